"""Opening a store of either kind."""

import importlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from syncline_server.clock import Clock
from syncline_server.store.abc import Store, StoreRefused
from syncline_server.store.sqlite import open_store as open_sqlite


def open_store(address: str, file: Path, *, clock: Clock) -> AbstractAsyncContextManager[Store]:
    """The store in the PostgreSQL database that ``address`` names; when that is empty, the one in ``file``.

    With PostgreSQL only the monotonic time of ``clock`` counts: the database has the wall time. Entering it raises
    StoreRefused.
    """
    if address:
        return open_postgres(address, monotonic=clock.monotonic)
    return open_sqlite(file, clock=clock)


def open_postgres(
    address: str, *, monotonic: Callable[[], float] = time.monotonic
) -> AbstractAsyncContextManager[Store]:
    """The store in a PostgreSQL database. Raises StoreRefused when the driver is not installed."""
    opened = import_postgres("opening").open_store(address, monotonic=monotonic)
    return cast("AbstractAsyncContextManager[Store]", opened)


def import_postgres(module: str) -> Any:
    """A module of the store in PostgreSQL. Raises StoreRefused when the driver is not installed."""
    try:
        return importlib.import_module(f"syncline_server.store.postgres.{module}")
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise StoreRefused(
            'a store in PostgreSQL needs the driver asyncpg: pip install "syncline[postgres]"'
        ) from error


def shown(address: str) -> str:
    """A store's address without what nobody is to see: the password, also one among the parameters."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "postgresql://…"
    if "@" in parts.path:  # a slash in the password that is not written as %2F
        return "postgresql://…"
    query = "&".join(part for part in parts.query.split("&") if not part.startswith("password="))
    user, at, hosts = parts.netloc.rpartition("@")
    return urlunsplit(
        SplitResult(parts.scheme, user.split(":", 1)[0] + at + hosts, parts.path, query, parts.fragment)
    )
