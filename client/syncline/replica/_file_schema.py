"""The form of a replica's file: SQLite, in WAL mode, to be read by anybody.

::

    record       the visible copy, rows in order of arrival, one index by id; its columns may be relied on
                   record_id, revision, commit_time_us (microseconds since 1970), json (canonical JSON text)
                   entry: what the record adds to the digest, 16 bytes
    new_record   a complete new copy under way: rows in order of arrival, also several of one id, of which the last
                 counts; json is NULL for a record that is gone. Its index is made when it is complete
    state        one row: what ``record`` equals, and how far ``new_record`` came

Data and token are written in one transaction. Fetching a million rows into a table without an index, and making the
index in the end, takes half of the time that keeping an index up takes.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from syncline._digest import Tally
from syncline.errors import ReplicaUnusable
from syncline.replica._copy import Point, time_of, time_us

APPLICATION_ID: Final = 0x534C5250
"""`SLRP`; what ``file`` and SQLite know the file by."""

FORMAT: Final = 1

BUSY_SECONDS: Final = 10.0

_RECORD: Final = """CREATE TABLE {table} (
    record_id TEXT NOT NULL, revision INTEGER NOT NULL, commit_time_us INTEGER NOT NULL, json TEXT, entry BLOB
)"""

_STATE: Final = """CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), dataset TEXT NOT NULL, selection TEXT NOT NULL,
    revision INTEGER NOT NULL, record_count INTEGER NOT NULL, digest BLOB NOT NULL, token BLOB NOT NULL,
    commit_time_us INTEGER NOT NULL, is_verified INTEGER NOT NULL, is_complete INTEGER NOT NULL,
    equal_time_us INTEGER NOT NULL, new_token BLOB, new_count INTEGER NOT NULL, new_digest BLOB NOT NULL
)"""

_INDEXES: Final = ("record_by_id_1", "record_by_id_2")
"""The index keeps its name when a new copy takes the place of the old one, so they take turns."""


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of SQLite as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise ReplicaUnusable(
            f"{path}: {error}; when the file is damaged, remove it to begin anew"
        ) from error


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode, which any thread may use, one at a time."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        timeout=BUSY_SECONDS,
        check_same_thread=False,
        cached_statements=64,
    )


def prepare(connection: sqlite3.Connection, path: Path, dataset: str, selection: str) -> None:
    """Make an empty file a replica, or check that it is one. Raises ReplicaUnusable, sqlite3.Error."""
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    if not is_empty:
        _check_form(connection, path)
        # A file that never got anything, as after a mistyped dataset, is a copy of nothing yet.
        connection.execute(
            "UPDATE state SET dataset = ? WHERE token = x'' AND is_complete = 0 AND new_token IS NULL",
            (dataset,),
        )
        check(connection, path, dataset)
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL: a crash of the system may lose the newest commits, each of them whole; they are fetched again.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -32768")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute(
        "CREATE TEMP TABLE changed (place INTEGER PRIMARY KEY, record_id TEXT, kind INTEGER, revision INTEGER, "
        "commit_time_us INTEGER, reason INTEGER, before BLOB)"
    )
    connection.execute("CREATE INDEX temp.changed_by_id ON changed (record_id)")
    if is_empty:
        _create(connection, dataset, selection)
    elif connection.execute("SELECT selection FROM state").fetchone() != (selection,):
        # What another filter selected is nothing that this replica may show.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DROP TABLE IF EXISTS new_record")
        connection.execute("DROP TABLE record")
        connection.execute("DROP TABLE state")
        connection.execute("COMMIT")
        _create(connection, dataset, selection)


def check(connection: sqlite3.Connection, path: Path, dataset: str) -> None:
    """Check that a file is a replica of a dataset. Raises ReplicaUnusable, sqlite3.Error."""
    _check_form(connection, path)
    (found,) = connection.execute("SELECT dataset FROM state").fetchone()
    if found != dataset:
        raise ReplicaUnusable(
            f"{path} is a replica of {found!r}, not of {dataset!r}; use a file for each dataset"
        )


def _check_form(connection: sqlite3.Connection, path: Path) -> None:
    application_id, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application_id != APPLICATION_ID:
        raise ReplicaUnusable(f"{path} is a database of something else, not a replica")
    if version > FORMAT:
        raise ReplicaUnusable(
            f"{path} is of a newer version of syncline (format {version}); update the package"
        )


def _create(connection: sqlite3.Connection, dataset: str, selection: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    create_records(connection, "record")
    create_index(connection, "record")
    connection.execute(_STATE)
    connection.execute(
        "INSERT INTO state VALUES (1, ?, ?, 0, 0, zeroblob(16), x'', 0, 0, 0, 0, NULL, 0, zeroblob(16))",
        (dataset, selection),
    )
    connection.execute("COMMIT")


def create_records(connection: sqlite3.Connection, table: str) -> None:
    """A table for records, without its index."""
    connection.execute(_RECORD.format(table=table))


def create_index(connection: sqlite3.Connection, table: str) -> None:
    """The index of a table. Raises sqlite3.IntegrityError when an id is there twice."""
    used = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    name = next(name for name in _INDEXES if name not in used)
    connection.execute(f"CREATE UNIQUE INDEX {name} ON {table} (record_id)")


def swap(connection: sqlite3.Connection) -> None:
    """The new copy takes the place of the old one."""
    connection.execute("DROP TABLE record")
    connection.execute("ALTER TABLE new_record RENAME TO record")


def read_point(connection: sqlite3.Connection) -> Point:
    """What the visible copy equals."""
    row: Sequence[int | bytes] = connection.execute(
        "SELECT revision, record_count, commit_time_us, is_verified, is_complete, equal_time_us, digest, token FROM state"
    ).fetchone()
    revision, record_count, commit_time_us, is_verified, is_complete, equal_time_us = map(int, row[:6])
    return Point(
        revision=revision,
        record_count=record_count,
        digest=bytes(row[6]),
        token=bytes(row[7]),
        commit_time=time_of(commit_time_us),
        is_verified=bool(is_verified),
        is_complete=bool(is_complete),
        equal_time_us=equal_time_us,
    )


def write_point(connection: sqlite3.Connection, point: Point) -> None:
    """Store what the visible copy equals; there is no new one then."""
    connection.execute(
        "UPDATE state SET revision = ?, record_count = ?, digest = ?, token = ?, commit_time_us = ?, is_verified = ?, "
        "is_complete = ?, equal_time_us = ?, new_token = NULL, new_count = 0, new_digest = zeroblob(16)",
        (
            point.revision,
            point.record_count,
            point.digest,
            point.token,
            time_us(point.commit_time),
            point.is_verified,
            point.is_complete,
            point.equal_time_us,
        ),
    )


def read_progress(connection: sqlite3.Connection) -> tuple[bytes, Tally]:
    """How far the new copy came: its token, empty when there is none to go on with, and what is in it."""
    token, count, digest = connection.execute("SELECT new_token, new_count, new_digest FROM state").fetchone()
    return token or b"", Tally(count, int.from_bytes(digest, "big"))


def write_progress(connection: sqlite3.Connection, token: bytes, tally: Tally) -> None:
    """Store how far the new copy came."""
    connection.execute(
        "UPDATE state SET new_token = ?, new_count = ?, new_digest = ?",
        (token or None, tally.count, tally.digest),
    )
