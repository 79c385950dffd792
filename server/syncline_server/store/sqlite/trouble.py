"""The one place where an error of SQLite becomes one of ours."""

import sqlite3
from typing import Final

from syncline_server.errors import ResourceExhausted, SynclineError, Unavailable

RETRY_FULL_SECONDS: Final = 5.0
RETRY_BUSY_SECONDS: Final = 1.0

_FATAL: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""After these nothing that the process remembers can be trusted: it ends and is started again (hazard M4)."""
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PASSING: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT})


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 when the driver itself raised it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_fatal(error: sqlite3.Error) -> bool:
    """Whether the process should end."""
    return primary_code(error) in _FATAL


def store_full(detail: str) -> ResourceExhausted:
    """The disk has no room for a write."""
    return ResourceExhausted(
        "STORE_FULL",
        f"the disk of the store is full ({detail}); nothing was done; reads go on",
        retry_after_seconds=RETRY_FULL_SECONDS,
    )


def store_unavailable(detail: str) -> Unavailable:
    """Nobody knows what became of the write."""
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"the store cannot answer ({detail}); retry with the same request id",
        retry_after_seconds=RETRY_BUSY_SECONDS,
    )


def translate(error: sqlite3.Error) -> SynclineError | None:
    """Our words for trouble of the disk or of locks; None for what can only be a mistake in this program."""
    code = primary_code(error)
    name = getattr(error, "sqlite_errorname", "")
    if code == sqlite3.SQLITE_FULL:
        return store_full(name)
    if code in _BUSY:
        return store_unavailable(f"{name}: another process holds the database")
    if code in _FATAL or code in _PASSING:
        return store_unavailable(f"{name}: {error}")
    return None
