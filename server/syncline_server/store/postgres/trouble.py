"""The one place where an error of PostgreSQL or of its driver becomes one of ours."""

from typing import Final

import asyncpg

from syncline_server.errors import SynclineError
from syncline_server.store.trouble import store_full, store_unavailable

_FULL: Final = frozenset({"53100"})
"""disk_full: the server said so, so the transaction was rolled back."""
_PASSING_CLASSES: Final = frozenset({"08", "40", "53", "57", "58"})
"""Connections, rollbacks, resources, interventions of an operator, the system around the server."""
_PASSING: Final = frozenset({"25006", "25P03", "25P04", "55P03"})
"""Read-only (a standby answers), idle or long transaction ended, a lock not to be had."""

_GONE: Final = frozenset({"3F000", "42P01", "42883"})
"""No such schema, table, function: every statement here knows those that there are."""


def translate(error: Exception) -> SynclineError | None:
    """Our words for trouble of the server or of the way to it; None for what can only be a mistake in this program."""
    if isinstance(error, asyncpg.PostgresError):
        return _judge(error.sqlstate or "", error)
    if isinstance(error, asyncpg.InternalClientError | OSError | TimeoutError):
        return store_unavailable(str(error) or type(error).__name__)
    if isinstance(error, asyncpg.InterfaceError):
        # The driver says so of a connection that went away between two statements, and of arguments that are wrong.
        lost = "closed" in str(error) or "closing" in str(error) or "terminated" in str(error)
        return store_unavailable(str(error)) if lost else None
    return None


def _judge(state: str, error: Exception) -> SynclineError | None:
    if state in _FULL:
        return store_full(state)
    if state in _PASSING or state[:2] in _PASSING_CLASSES:
        return store_unavailable(f"{state}: {error}")
    if state in _GONE:
        return store_unavailable("this store was moved, or its schema is gone: go to the new one")
    return None
