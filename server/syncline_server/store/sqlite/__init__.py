"""The embedded store: one SQLite file."""

from syncline_server.store.sqlite.opening import open_store
from syncline_server.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "open_store"]
