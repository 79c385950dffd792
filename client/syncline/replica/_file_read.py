"""Reads of a replica's file, by any thread: one look-up in the index for a record, some 10 µs."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from syncline.events import ChangeReason, Put
from syncline.replica._copy import Point
from syncline.replica._file_schema import connect, read_point, told

T = TypeVar("T")

_ROWS_AT_ONCE: Final = 1_000


class Reader(Generic[T]):
    """Reads the visible copy."""

    def __init__(self, path: Path, decode: Callable[[bytes], T]) -> None:
        self._path = path
        self._decode = decode
        self._lock = threading.Lock()  # a cursor is used by one thread at a time
        self._connection = connect(path, read_only=True)

    def close(self) -> None:
        """Close it; iterations go on."""
        self._connection.close()

    def _one(self, sql: str, *values: Any) -> Any:
        with told(self._path), self._lock:
            return self._connection.execute(sql, values).fetchone()

    def point(self) -> Point:
        """What the copy equals."""
        with told(self._path), self._lock:
            return read_point(self._connection)

    def version(self) -> int:
        """Another number after each commit of another connection."""
        version: int = self._one("PRAGMA data_version")[0]
        return version

    def get(self, record_id: str) -> Put[T] | None:
        """A record."""
        row = self._one(
            "SELECT record_id, revision, commit_time_us, CAST(json AS BLOB) FROM record WHERE record_id = ?",
            record_id,
        )
        return None if row is None else self._put(row)

    def has(self, record_id: str) -> bool:
        """Whether it is there."""
        return self._one("SELECT 1 FROM record WHERE record_id = ?", record_id) is not None

    def count(self) -> int:
        """Number of records."""
        count: int = self._one("SELECT record_count FROM state")[0]
        return count

    def record_ids(self) -> Iterator[str]:
        """All ids."""
        return (record_id for (record_id,) in self._rows("SELECT record_id FROM record"))

    def records(self) -> Iterator[Put[T]]:
        """All records."""
        rows = self._rows("SELECT record_id, revision, commit_time_us, CAST(json AS BLOB) FROM record")
        return map(self._put, rows)

    def _rows(self, sql: str) -> Iterator[Any]:
        """All rows of one state. On a connection of its own: an open cursor would hold the others back in time."""
        with told(self._path), closing(connect(self._path, read_only=True)) as connection:
            cursor = connection.execute(sql)
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                yield from rows

    def _put(self, row: tuple[str, int, int, bytes | None]) -> Put[T]:
        record_id, revision, commit_time_us, json = row
        return Put(
            record_id=record_id,
            json=json or b"",
            revision=revision,
            commit_time_us=commit_time_us,
            reason=ChangeReason.UNSPECIFIED,
            token=b"",
            _decode=self._decode,
        )


def is_replica(path: Path) -> bool:
    """Whether there is something to read yet."""
    try:
        with closing(connect(path, read_only=True)) as connection:
            return bool(connection.execute("SELECT count(*) FROM state").fetchone()[0])
    except sqlite3.OperationalError:
        return False
