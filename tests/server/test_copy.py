"""T82: a whole store moves to another place, and its clients go on there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.copies import copied, everything, fill
from support.postgres_cluster import PostgresCluster
from support.store_values import Bench, HeldClock, SqliteBackend
from syncline_server.store.sqlite.fsck import fsck

pytestmark = pytest.mark.usefixtures("postgres_cluster")


@pytest.fixture
def database(postgres_cluster: PostgresCluster) -> Iterator[str]:
    """Address of an empty database."""
    name = postgres_cluster.new_database()
    yield postgres_cluster.dsn(name)
    postgres_cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_round_trip_over_postgres_gives_the_same_rows(tmp_path: Path, database: str) -> None:
    backend = SqliteBackend(tmp_path / "one")
    async with backend.open() as store:
        await fill(store, backend.clock)
    before = everything(backend.path)
    await copied(backend.path, database)
    assert not backend.path.exists()
    await copied(database, tmp_path / "two")
    after = everything(tmp_path / "two" / "syncline.db")
    assert set(before) == set(after)
    for table, rows in before.items():
        assert after[table] == rows, table
    assert fsck(tmp_path / "two" / "syncline.db").ok
