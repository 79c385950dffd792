"""The schema of a database file: applied migrations, and the rows that every store has."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from syncline_server import failpoints
from syncline_server.store.abc import StoreInfo
from syncline_server.store.migrate import Migration, load_migrations, pending

PACKAGE: Final = "syncline_server.store.sqlite.migrations"

_CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version   INTEGER PRIMARY KEY,
    name      TEXT NOT NULL,
    checksum  TEXT NOT NULL,
    time_us   INTEGER NOT NULL
) STRICT
"""
_HAS_TABLE: Final = "SELECT 1 FROM sqlite_schema WHERE name = 'schema_migration'"
_APPLIED: Final = "SELECT version, checksum FROM schema_migration"
_NOTE: Final = "INSERT INTO schema_migration (version, name, checksum, time_us) VALUES (?, ?, ?, ?)"
_INSERT_STORE: Final = "INSERT OR IGNORE INTO store (one, store_id, token_secret) VALUES (1, ?, ?)"
_INSERT_HISTORY: Final = "INSERT INTO history (history_id, time_us, cause) VALUES (?, ?, ?)"
_STORE: Final = "SELECT store_id, token_secret FROM store"
_HISTORIES: Final = "SELECT history_id FROM history ORDER BY number"


def missing_migrations(connection: sqlite3.Connection) -> Sequence[Migration]:
    """Migrations that the file needs. Raises StoreRefused when its schema is newer or another."""
    has_table = connection.execute(_HAS_TABLE).fetchone() is not None
    applied = dict(connection.execute(_APPLIED).fetchall()) if has_table else {}
    return pending(load_migrations(PACKAGE), applied)


def apply_migration(connection: sqlite3.Connection, migration: Migration, *, now_us: int) -> None:
    """Carry out one migration as one transaction: a crash leaves it applied and noted, or neither."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_CREATE_TABLE)
        for statement in statements(migration.script):
            connection.execute(statement)
        connection.execute(_NOTE, (migration.version, migration.name, migration.checksum, now_us))
        failpoints.hit(f"migration.{migration.version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def statements(script: str) -> Iterator[str]:
    """Split a script; ``executescript`` would commit the transaction that is running."""
    gathered = ""
    for line in script.splitlines(keepends=True):
        gathered += line
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""


def append_history(
    connection: sqlite3.Connection, cause: str, random_bytes: Callable[[int], bytes], *, now_us: int
) -> StoreInfo:
    """Begin a new history, inside the running transaction, and tell what the store is.

    A token names the history that it was given out in. The list is in the database, so an older copy that
    somebody put in its place does not know the histories that came after it (hazard F9).
    """
    connection.execute(_INSERT_STORE, (random_bytes(8), random_bytes(32)))
    history_id = random_bytes(8)
    connection.execute(_INSERT_HISTORY, (history_id, now_us, cause))
    store_id, token_secret = connection.execute(_STORE).fetchone()
    return StoreInfo(
        kind="sqlite",
        store_id=store_id,
        token_secret=token_secret,
        history_id=history_id,
        histories=frozenset(row[0] for row in connection.execute(_HISTORIES).fetchall()),
        engine_version=f"SQLite {sqlite3.sqlite_version}",
    )
