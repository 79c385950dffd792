"""From the address of a store to a side of a copy."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, cast

from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import CopySource, CopyTarget
from syncline_server.store.opening import import_postgres
from syncline_server.store.sqlite.copy_source import SqliteSource
from syncline_server.store.sqlite.copy_target import SqliteTarget

DATABASE: Final = "syncline.db"
"""Name of the store's file in a data directory."""


def is_postgres(address: str) -> bool:
    """Whether the address names a PostgreSQL database, and not a file or directory."""
    return address.startswith(("postgresql://", "postgres://"))


def store_file(address: str) -> Path:
    """File of the store in a data directory, or that file itself."""
    path = Path(address)
    if path.is_file() or (path.suffix == ".db" and not path.is_dir()):
        return path
    return path / DATABASE


def copy_source(address: str) -> AbstractAsyncContextManager[CopySource]:
    """The store at this address, to be copied. Entering it raises StoreRefused."""
    if is_postgres(address):
        place = import_postgres("copy_source").PostgresSource.open(address)
        return cast("AbstractAsyncContextManager[CopySource]", place)
    return SqliteSource.open(store_file(address))


def copy_target(address: str) -> AbstractAsyncContextManager[CopyTarget]:
    """The store to be made at this address. Entering it raises StoreRefused."""
    if is_postgres(address):
        place = import_postgres("copy_target").PostgresTarget.open(address)
        return cast("AbstractAsyncContextManager[CopyTarget]", place)
    return SqliteTarget.open(store_file(address))


def refuse_same_place(source: str, target: str) -> None:
    """Raise StoreRefused where two stores would share their side files."""
    if is_postgres(source) or is_postgres(target):
        return
    if store_file(source).parent.resolve() == store_file(target).parent.resolve():
        raise StoreRefused("both are in one directory; a store needs a directory of its own")
