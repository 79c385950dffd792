"""Connections: what each must have in force, and how a function gets onto a connection's thread.

Exactly one connection writes the database and checkpoints its WAL; every other one is opened read-only. That
is what keeps SQLite before 3.51.3 clear of its WAL-reset bug, which needs two that write or checkpoint.
"""

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import aiosqlite

from syncline_server.store.abc import StoreRefused

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS: Final = 5_000
WAL_SIZE_LIMIT_BYTES: Final = 64 << 20
CACHED_STATEMENTS: Final = 512

Pragma = tuple[str, str | int]
"""What to set, and what must be read back."""

_COMMON: Final[Mapping[str, Pragma]] = {
    "busy_timeout": (str(BUSY_TIMEOUT_MS), BUSY_TIMEOUT_MS),
    "foreign_keys": ("ON", 1),
    "trusted_schema": ("OFF", 0),
    "temp_store": ("FILE", 1),
}
WRITER: Final[Mapping[str, Pragma]] = {
    **_COMMON,
    "journal_mode": ("WAL", "wal"),
    "synchronous": ("FULL", 2),
    "wal_autocheckpoint": ("0", 0),
    "journal_size_limit": (str(WAL_SIZE_LIMIT_BYTES), WAL_SIZE_LIMIT_BYTES),
    # Freed content is overwritten where that costs no extra write; some builds default to always.
    "secure_delete": ("FAST", 2),
    # KiB: the index of about a million records, and the limit of memory that a big transaction takes.
    "cache_size": ("-32768", -32768),
}
READER: Final[Mapping[str, Pragma]] = {
    **_COMMON,
    "query_only": ("ON", 1),
    "cache_size": ("-8192", -8192),
}
STAGING: Final[Mapping[str, Pragma]] = {
    **_COMMON,
    "journal_mode": ("WAL", "wal"),
    "synchronous": ("FULL", 2),
    "wal_autocheckpoint": ("4000", 4000),
    "journal_size_limit": (str(WAL_SIZE_LIMIT_BYTES), WAL_SIZE_LIMIT_BYTES),
    "secure_delete": ("FAST", 2),
    "cache_size": ("-8192", -8192),
}


def set_pragmas(connection: sqlite3.Connection, pragmas: Mapping[str, Pragma]) -> None:
    """Set each and read it back: SQLite ignores a pragma that it cannot follow without a word.

    Raises StoreRefused when one is not in force.
    """
    for name, (value, expected) in pragmas.items():
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        row = connection.execute(f"PRAGMA {name}").fetchone()
        if row is None or row[0] != expected:
            raise StoreRefused(
                f"SQLite did not accept PRAGMA {name} = {value} (it is {row and row[0]!r}); "
                "is the database on a file system without shared memory or locks?"
            )


def open_plain(path: Path, pragmas: Mapping[str, Pragma], *, mode: str) -> sqlite3.Connection:
    """Open a database file in ``mode`` (SQLite's URI parameter) with these pragmas in force."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        cached_statements=CACHED_STATEMENTS,
        timeout=BUSY_TIMEOUT_MS / 1_000,
        check_same_thread=False,  # made on the thread that keeps it; closed elsewhere only after a crash
    )
    try:
        set_pragmas(connection, pragmas)
    except BaseException:
        connection.close()
        raise
    return connection


async def connect(path: Path, pragmas: Mapping[str, Pragma], *, mode: str) -> aiosqlite.Connection:
    """Open a database file on a thread of its own."""
    return await aiosqlite.Connection(lambda: open_plain(path, pragmas, mode=mode), iter_chunk_size=64)


async def run_on(
    connection: aiosqlite.Connection,
    work: Callable[Concatenate[sqlite3.Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``work(connection, …)`` as one piece on the connection's thread.

    aiosqlite offers single statements only, each a hop between threads and a place where a cancellation can
    leave a transaction open (hazard M6). Its own methods all go through ``_execute``; so does this, in the one
    place of this program that does. Whoever is cancelled while waiting here does not stop the work.
    """
    plain: sqlite3.Connection = connection._conn  # noqa: SLF001
    result: Any = await connection._execute(work, plain, *args, **kwargs)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return result  # type: ignore[no-any-return]
