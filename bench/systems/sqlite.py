"""SQLite by itself: one thread, no server, no checking. The floor under every store built on it."""

import sqlite3
from pathlib import Path

from bench.records import Item, batches, encode_item
from bench.systems.base import CALL_RECORDS

_CREATE = """
CREATE TABLE record (
    dataset INTEGER NOT NULL,
    record_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (dataset, record_id)
);
CREATE INDEX record_by_revision ON record (dataset, revision);
"""
_UPSERT = """
INSERT INTO record (dataset, record_id, revision, data) VALUES (?, ?, ?, ?)
ON CONFLICT (dataset, record_id) DO UPDATE SET revision = excluded.revision, data = excluded.data
"""
_SCAN = "SELECT record_id, data FROM record WHERE dataset = ? ORDER BY revision"


class Sqlite:
    """A table in arrival order with its two indexes; WAL, synchronous=FULL."""

    name = "sqlite"
    durability = "fsync at every commit (WAL, synchronous=FULL)"

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _CREATE)
        self._datasets: dict[str, int] = {}

    @staticmethod
    def version() -> str:
        """Of the library."""
        return sqlite3.sqlite_version

    def push_bulk(self, collection: str, items: list[Item]) -> None:
        """``executemany`` of upserts, 1,000 a transaction."""
        dataset = self._datasets.setdefault(collection, len(self._datasets) + 1)
        for revision, batch in enumerate(batches(items, CALL_RECORDS), 1):
            rows = [(dataset, item["sku"], revision, encode_item(item)) for item in batch]
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_UPSERT, rows)
            self._connection.execute("COMMIT")

    def copy(self, collection: str) -> dict[str, bytes]:
        """A scan in order of revision."""
        rows = self._connection.execute(_SCAN, (self._datasets[collection],))
        return dict(rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
