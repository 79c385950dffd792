"""The embedded store: one SQLite file."""

from syncline_server.store.sqlite.store import SqliteStore, open_store

__all__ = ["SqliteStore", "open_store"]
