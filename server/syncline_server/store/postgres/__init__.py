"""The store of many nodes: one PostgreSQL database."""

from syncline_server.store.postgres.opening import open_store
from syncline_server.store.postgres.store import PostgresStore

__all__ = ["PostgresStore", "open_store"]
