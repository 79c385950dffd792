"""PostgreSQL: a server for Syncline's nodes, and by itself through asyncpg, the floor under a store built on it."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.machine import children_cpu_seconds
from bench.records import Item, batches, encode_item
from bench.systems.base import CALL_RECORDS, IN_FLIGHT, Running, Unavailable, run_limited
from bench.systems.stubs import SynclineFeed
from examples.local_postgres import LocalPostgres, installed

_CREATE = """
CREATE TABLE record (
    dataset bigint NOT NULL,
    record_id text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (dataset, record_id)
);
CREATE INDEX record_by_revision ON record (dataset, revision, record_id);
"""
_UPSERT = """
INSERT INTO record (dataset, record_id, revision, data)
SELECT $1, record_id, $2, data FROM unnest($3::text[], $4::bytea[]) new (record_id, data)
ON CONFLICT (dataset, record_id) DO UPDATE SET revision = excluded.revision, data = excluded.data
"""
_SCAN = """
SELECT revision, record_id, data FROM record
WHERE dataset = $1 AND (revision, record_id) > ($2, $3) ORDER BY revision, record_id LIMIT $4
"""
_FACTS = """
SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit
"""


class Postgres(LocalPostgres):
    """A server that is there while it is measured, with PostgreSQL's own settings for what is durable."""

    def cpu_seconds(self) -> dict[int, float]:
        """Time on a CPU that each of its processes has used, by id."""
        assert self._process is not None
        return children_cpu_seconds(self._process.pid)

    def cpu_seconds_since(self, before: dict[int, float]) -> float:
        """What all of them have used since then."""
        return sum(seconds - before.get(pid, 0.0) for pid, seconds in self.cpu_seconds().items())


@contextlib.asynccontextmanager
async def running_postgres(parent: Path) -> AsyncIterator[Postgres]:
    """A new cluster with its server. Its directory is short, because the socket's path is, and open to its user."""
    with tempfile.TemporaryDirectory(prefix="syncline-pg-", dir=parent) as name:
        postgres = Postgres(Path(name))
        await asyncio.to_thread(postgres.make)
        await asyncio.to_thread(postgres.start)
        try:
            yield postgres
        finally:
            await asyncio.to_thread(postgres.stop)


def require() -> None:
    """Raise Unavailable when there is no PostgreSQL on this machine to be measured."""
    try:
        installed()
    except ModuleNotFoundError as missing:
        raise Unavailable(str(missing)) from missing


async def facts(dsn: str) -> dict[str, str]:
    """Version and durability for the report, as the server tells them to a client with default settings."""
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetchrow(_FACTS)
    finally:
        await connection.close()
    return {
        "version": found["version"],
        "durability": (
            f"fsync before the answer (fsync={found['fsync']}, synchronous_commit={found['synchronous_commit']}), "
            "for the store on it as for pg_floor"
        ),
    }


class Floor:
    """A table and asyncpg: nothing is checked, compared or counted. Datasets are numbers in the table."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._datasets: dict[str, int] = {}

    async def push_bulk(self, collection: str, items: list[Item], *, in_flight: int = IN_FLIGHT) -> None:
        """``unnest`` upserts, 1,000 a statement, each a transaction, as many on their way as calls with us."""
        dataset = self._datasets.setdefault(collection, len(self._datasets) + 1)
        calls = enumerate(batches(items, CALL_RECORDS), 1)
        await run_limited(
            (partial(self._upsert, dataset, revision, batch) for revision, batch in calls),
            in_flight=in_flight,
        )

    async def _upsert(self, dataset: int, revision: int, batch: list[Item]) -> None:
        ids, data = [item["sku"] for item in batch], [encode_item(item) for item in batch]
        await self._pool.execute(_UPSERT, dataset, revision, ids, data)

    async def settle(self) -> None:
        """Have the planner know the table: without, it would sort what an index has in order."""
        await self._pool.execute("VACUUM ANALYZE record")

    async def copy(self, collection: str) -> dict[str, bytes]:
        """A keyset scan in order of revision, a page of 1,000 after the other."""
        dataset, copy = self._datasets[collection], dict[str, bytes]()
        revision, record_id = -1, ""
        async with self._pool.acquire() as connection:
            while True:
                rows = await connection.fetch(_SCAN, dataset, revision, record_id, CALL_RECORDS)
                copy.update((row[1], row[2]) for row in rows)
                if len(rows) < CALL_RECORDS:
                    return copy
                revision, record_id, _ = rows[-1]


@contextlib.asynccontextmanager
async def bare(postgres: Postgres) -> AsyncIterator[Floor]:
    """The floor, in a database of its own."""
    import asyncpg

    postgres.execute("CREATE DATABASE bare")
    async with asyncpg.create_pool(postgres.dsn("bare"), min_size=IN_FLIGHT, max_size=IN_FLIGHT) as pool:
        await pool.execute(_CREATE)
        yield Floor(pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A server of Syncline on that store, and the key that opens all of them."""

    running: Running
    system: SynclineFeed


@contextlib.asynccontextmanager
async def running_nodes(
    postgres: Postgres, directory: Path, count: int, *, page_cache: bool = True
) -> AsyncIterator[list[Node]]:
    """So many nodes over one database. ``page_cache``: whether the first one has it."""
    postgres.execute("CREATE DATABASE syncline")
    nodes: list[Node] = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1, count + 1):
            system = SynclineFeed(store=postgres.dsn("syncline"), page_cache=page_cache or number > 1)
            place = directory / f"node-{number}"
            place.mkdir()
            running = await stack.enter_async_context(system.serve(place))
            if nodes:  # the first one made the key, and the others have none
                key_file = nodes[0].running.address.partition("/")[2]
                address = f"{running.address.partition('/')[0]}/{key_file}"
                running = Running(address=address, pid=running.pid)
            nodes.append(Node(running=running, system=system))
        yield nodes
