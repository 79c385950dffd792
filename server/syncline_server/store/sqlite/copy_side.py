"""The embedded store as either side of a copy (``syncline_server.store.copying``): what both sides read.

Everything here blocks: a copy runs alone in its process, and its other side goes on in another one meanwhile.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

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
from syncline_server.store.sqlite.files import (
    StoreFiles,
)

_COMMIT_ID: Final = "SELECT commit_id FROM revision WHERE dataset_number = ? AND revision = ?"
_IDENTITY: Final = "SELECT store_id, token_secret FROM store"
_OWNERS: Final = f"""
SELECT position >> {BUCKET_BITS}, source_number, count(*),
       sum((position % ?2) * (position % ?2) % ?2 * (position % ?2) % ?2)
FROM entry WHERE dataset_number = ?1 GROUP BY 1, 2
"""
_REQUEST_SUMS: Final = """
SELECT count(*), min(remember_until_us), max(remember_until_us), sum(remember_until_us % 1000000007) FROM request
"""


class SqliteSide:
    """What both sides read."""

    def __init__(self, files: StoreFiles) -> None:
        self.files = files
        self.name = str(files.database)
        self._connection: sqlite3.Connection

    async def rows(self, table: Table, after: Key | None) -> Sequence[Row]:
        """See ``Side``."""
        statement = f"SELECT {', '.join(table.columns)} FROM {table.name}"
        key = ", ".join(table.key)
        if after is not None:
            statement += f" WHERE ({key}) > ({', '.join('?' * len(after))})"
        statement += f" ORDER BY {key} LIMIT {table.chunk_rows}"
        return self._connection.execute(statement, after or ()).fetchall()

    async def owners(self, dataset_number: int) -> Owners:
        """See ``Side``."""
        found = self._connection.execute(_OWNERS, (dataset_number, OWNERS_MODULUS))
        return {(bucket, source): (count, total) for bucket, source, count, total in found}

    async def request_sums(self) -> Row:
        """See ``Side``."""
        return tuple(self._connection.execute(_REQUEST_SUMS).fetchone())

    async def commit_id(self, dataset_number: int, revision: int) -> bytes | None:
        """See ``CopySource``."""
        row = self._connection.execute(_COMMIT_ID, (dataset_number, revision)).fetchone()
        return row and bytes(row[0])


def identity_of(connection: sqlite3.Connection) -> Identity:
    """Which store it is. Raises StoreRefused when it was never opened."""
    row = connection.execute(_IDENTITY).fetchone()
    if row is None:
        raise StoreRefused("there is no store in the file: it was never opened by a server")
    return Identity(store_id=row[0], token_secret=row[1])
