"""PostgreSQL as either side of a copy (``syncline_server.store.copying``): what both sides read."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import (
    BUCKET_BITS,
    OWNERS_MODULUS,
    Identity,
    Key,
    Owners,
    Row,
    Table,
)
from syncline_server.store.opening import shown
from syncline_server.store.postgres.connection import SETTINGS, Connection, single_connection

COPY_SETTINGS: Final = {
    **SETTINGS,
    "application_name": "syncline-server copy",
    "statement_timeout": "0",
}
WHOLE_TABLES: Final = "SET LOCAL enable_seqscan = on"
"""For what reads a whole table."""

_IDENTITY: Final = "SELECT store_id, token_secret FROM store"
_OWNERS: Final = f"""
SELECT position >> {BUCKET_BITS}, source_number, count(*),
       sum((position % $2) * (position % $2) % $2 * (position % $2) % $2)::bigint
FROM entry WHERE dataset_number = $1 GROUP BY 1, 2
"""
_REQUEST_SUMS: Final = """
SELECT count(*), min(remember_until_us), max(remember_until_us), sum(remember_until_us % 1000000007)::bigint FROM request
"""
_COMMIT_ID: Final = "SELECT commit_id FROM revision WHERE dataset_number = $1 AND revision = $2"


class PostgresSide:
    """Reads the store in one schema of a database, over one connection."""

    def __init__(self, dsn: str, connection: Connection) -> None:
        self.name = shown(dsn)
        self._connection = connection

    async def rows(self, table: Table, after: Key | None) -> Sequence[Row]:
        """See ``Side``."""
        key = ", ".join(table.key)
        statement = f"SELECT {', '.join(table.columns)} FROM {table.name}"
        if after is not None:
            statement += f" WHERE ({key}) > ({', '.join(f'${n}' for n in range(1, len(after) + 1))})"
        statement += f" ORDER BY {key} LIMIT {table.chunk_rows}"
        return [tuple(row) for row in await self._connection.fetch(statement, *(after or ()))]

    async def owners(self, dataset_number: int) -> Owners:
        """See ``Side``."""
        async with self._connection.transaction():
            await self._connection.execute(WHOLE_TABLES)
            found = await self._connection.fetch(_OWNERS, dataset_number, OWNERS_MODULUS)
        return {(bucket, source): (count, total) for bucket, source, count, total in found}

    async def request_sums(self) -> Row:
        """See ``Side``."""
        return tuple(await self._connection.fetchrow(_REQUEST_SUMS))

    async def commit_id(self, dataset_number: int, revision: int) -> bytes | None:
        """See ``CopySource``."""
        found: bytes | None = await self._connection.fetchval(_COMMIT_ID, dataset_number, revision)
        return found

    async def _identity(self) -> Identity:
        row = await self._connection.fetchrow(_IDENTITY)
        if row is None:
            raise StoreRefused(f"there is no store in {self.name}: it was never opened by a server")
        return Identity(store_id=row[0], token_secret=row[1])


@asynccontextmanager
async def connected(dsn: str, schema: str) -> AsyncIterator[Connection]:
    """A connection that sees one schema. Raises StoreRefused, also when it breaks inside the block."""
    try:
        async with single_connection(dsn, {**COPY_SETTINGS, "search_path": schema}) as connection:
            if await connection.fetchval("SELECT current_setting('search_path')") != schema:
                raise StoreRefused(
                    f"{shown(dsn)} does not take the settings of a connection; a copy goes to PostgreSQL directly, "
                    "not through a pooler"
                )
            yield connection
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreRefused(
            f"PostgreSQL: {error}; a copy makes and renames schemas: run it as the owner of the store, or GRANT CREATE "
            "ON DATABASE to the role of a new one"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreRefused(f"PostgreSQL: {error}") from error
