"""T14 in PostgreSQL: steps never change, and each can be taken while nodes of the version before go on."""

import asyncio
from collections.abc import Iterator

import pytest

from support.postgres_cluster import PostgresCluster
from support.store_values import Bench, HeldClock
from syncline_server.store.migrate import load_migrations
from syncline_server.store.postgres import open_store, schema
from syncline_server.store.postgres.connection import single_connection

pytestmark = pytest.mark.only_store("postgres", reason="steps of its schema")

RELEASED = {
    "0001_initial": "895ea6d2a6b1615dd896d84167b2d3dabe304270cb9f7c0521970e8231015012",
    "0002_functions": "f3b3e145d8460953185edc24116f37b90e51ec378b7aa1ed497c5fed03e2da0f",
    "0003_nodes": "101c6efb0170c02dfd58f3da07d9c93536315a70a936c5da64939e197548e222",
    "0004_one_commit": "2a483ee03348c0e9decdcc53d989fe32349745e9620c621a2045b6d810182cd1",
}


def test_released_steps_never_change() -> None:
    """Add the checksum of a new step here; never change one that is here."""
    assert {f"{m.version:04d}_{m.name}": m.checksum for m in load_migrations(schema.PACKAGE)} == RELEASED


@pytest.fixture
def database(postgres_cluster: PostgresCluster) -> Iterator[str]:
    """One without any schema."""
    postgres_cluster.execute("CREATE DATABASE bare")
    yield postgres_cluster.dsn("bare")
    postgres_cluster.execute("DROP DATABASE bare WITH (FORCE)")


@pytest.mark.parametrize("version", range(3, len(RELEASED) + 1))
async def test_f57_a_step_waits_for_nobody_and_disturbs_nobody(
    database: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F57: a node of the version before is inside a transaction that holds locks, and goes on afterwards.

    A step that needs such a lock would hold up every commit that comes behind it.
    """
    steps = load_migrations(schema.PACKAGE)
    monkeypatch.setattr(schema, "load_migrations", lambda package: steps[: version - 1])
    clock = HeldClock()
    async with open_store(database, clock=clock) as before, single_connection(database) as busy:
        bench = await Bench.make(before, clock)
        await bench.put(["a"])
        async with busy.transaction():
            for (table,) in await busy.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'syncline'"):
                if table != "schema_migration":
                    await busy.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
            monkeypatch.setattr(schema, "load_migrations", lambda package: steps[:version])
            async with asyncio.timeout(5), single_connection(database) as migrating:
                assert await schema.migrate(migrating) == [f"{version:04d} {steps[version - 1].name}"]
        assert (await bench.put(["b"])).revision == 2
        assert set(await bench.copy()) == {"a", "b"}
