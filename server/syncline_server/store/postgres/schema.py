"""The schema of a database: applied migrations, and the rows that every store has."""

from collections.abc import Callable, Sequence
from typing import Final

from syncline_server.store.abc import StoreInfo, StoreRefused
from syncline_server.store.migrate import Migration, load_migrations, pending
from syncline_server.store.postgres.clock import NOW_US
from syncline_server.store.postgres.connection import SCHEMA, Connection, Place

PACKAGE: Final = "syncline_server.store.postgres.migrations"

_ADVISORY_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('syncline.schema', 0))"
_NO_LIMITS: Final = "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"
INCOMING: Final = SCHEMA + "_incoming"
"""A store that is being copied to here, until it is complete."""
MOVED: Final = SCHEMA + "_moved_"
"""What the schema of a store that was copied elsewhere begins with; the time follows."""

_CREATE_TABLE: Final = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.schema_migration (
    version   bigint PRIMARY KEY,
    name      text NOT NULL,
    checksum  text NOT NULL,
    time_us   bigint NOT NULL
)
"""
_HAS_TABLE: Final = "SELECT to_regclass('schema_migration') IS NOT NULL"
_OTHER_STATES: Final = f"""
SELECT nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace
WHERE nspname = '{INCOMING}' OR starts_with(nspname, '{MOVED}')
ORDER BY nspname <> '{INCOMING}', nspname DESC LIMIT 1
"""
_APPLIED: Final = "SELECT version, checksum FROM schema_migration"
_NOTE: Final = "INSERT INTO schema_migration (version, name, checksum, time_us) VALUES ($1, $2, $3, $4)"

_INSERT_STORE: Final = (
    "INSERT INTO store (one, store_id, token_secret) VALUES (1, $1, $2) ON CONFLICT DO NOTHING"
)
_NEWEST_HISTORY: Final = "SELECT history_id, place FROM history ORDER BY number DESC LIMIT 1"
_INSERT_HISTORY: Final = "INSERT INTO history (history_id, time_us, cause, place) VALUES ($1, $2, $3, $4)"
_STORE: Final = "SELECT store_id, token_secret FROM store"
_HISTORIES: Final = "SELECT history_id FROM history"


async def missing_migrations(connection: Connection) -> Sequence[Migration]:
    """Migrations that the database needs. Raises StoreRefused when its schema is newer or another."""
    rows = await connection.fetch(_APPLIED) if await connection.fetchval(_HAS_TABLE) else []
    return pending(load_migrations(PACKAGE), {row[0]: row[1] for row in rows})


async def refuse_other_states(connection: Connection) -> None:
    """Raise StoreRefused where a store was moved away from, or is not complete yet; an empty one would be made there."""
    found = await connection.fetchrow(_OTHER_STATES)
    if found is None or await connection.fetchval(_HAS_TABLE):
        return
    schema, comment = found
    if schema == INCOMING:
        raise StoreRefused(
            f"schema {schema} is the unfinished copy of a store: run syncline-server copy again, or drop it"
        )
    raise StoreRefused(
        f"the store was moved away from this database (schema {schema}: {comment}): give the address of the new one; "
        "to make an empty store here, rename or drop that schema first"
    )


async def expect_schema(connection: Connection) -> None:
    """Raise StoreRefused where there is no store, one that was moved away, or one that is not complete yet."""
    await refuse_other_states(connection)
    if not await connection.fetchval(_HAS_TABLE):
        raise StoreRefused("there is no store in this database; start a server to make one")


async def migrate(connection: Connection, *, schema: str = SCHEMA, dry_run: bool = False) -> Sequence[str]:
    """Bring the schema up to date, in one transaction; the names of the steps that were (to be) done.

    One node does it while others wait for the lock and find nothing left to do. ``schema`` must be the search path of
    the connection. Raises StoreRefused.
    """
    missing = await missing_migrations(connection)
    if dry_run or not missing:
        return _names(missing)
    async with connection.transaction():
        await connection.execute(_NO_LIMITS)
        await connection.execute(_ADVISORY_LOCK)
        if schema == SCHEMA:
            await refuse_other_states(connection)
        await connection.execute(_CREATE_TABLE.format(schema=schema))
        missing = await missing_migrations(connection)
        for migration in missing:
            await connection.execute(migration.script)
            now_us = await connection.fetchval(NOW_US)
            await connection.execute(_NOTE, migration.version, migration.name, migration.checksum, now_us)
    return _names(missing)


def _names(migrations: Sequence[Migration]) -> Sequence[str]:
    return [f"{migration.version:04d} {migration.name}" for migration in migrations]


async def enter_history(
    connection: Connection,
    cause: str,
    place: Place,
    random_bytes: Callable[[int], bytes],
    *,
    now_us: int | None,
) -> StoreInfo:
    """Tell what the store is; begin a new history when the place is new, or after a restore.

    A token names the history that it was given out in. Another system identifier, timeline or database says that what
    was known may have been lost (hazards F9, F51); nodes that open one and the same place share its history.
    """
    async with connection.transaction():
        await connection.execute(_ADVISORY_LOCK)
        await connection.execute(_INSERT_STORE, random_bytes(8), random_bytes(32))
        newest = await connection.fetchrow(_NEWEST_HISTORY)
        if newest is None or newest["place"] != place.identity or cause == "restore":
            if now_us is None:
                now_us = await connection.fetchval(NOW_US)
            await connection.execute(_INSERT_HISTORY, random_bytes(8), now_us, cause, place.identity)
        newest = await connection.fetchrow(_NEWEST_HISTORY)
        store_id, token_secret = await connection.fetchrow(_STORE)
        histories = await connection.fetch(_HISTORIES)
    return StoreInfo(
        kind="postgres",
        store_id=store_id,
        token_secret=token_secret,
        history_id=newest["history_id"],
        histories=frozenset(row[0] for row in histories),
        engine_version=f"PostgreSQL {place.version}",
    )
