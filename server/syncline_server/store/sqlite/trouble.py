"""The one place where an error of SQLite becomes one of ours."""

import sqlite3
from typing import Final

from syncline_server.errors import SynclineError
from syncline_server.store.trouble import store_full, store_unavailable

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
