"""Databases to be copied from and to, and a store with something of everything in it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.copies import fill
from support.postgres_cluster import PostgresCluster
from support.store_values import SqliteBackend


@pytest.fixture
def new_database(postgres_cluster: PostgresCluster) -> Iterator[Callable[[], str]]:
    """Makes empty databases and gives their addresses."""
    made = []

    def make() -> str:
        made.append(f"copy_{len(made)}")
        postgres_cluster.execute(f"CREATE DATABASE {made[-1]}")
        return postgres_cluster.dsn(made[-1])

    yield make
    for name in made:
        postgres_cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A store with something of everything in it."""
    backend = SqliteBackend(tmp_path / "filled")
    async with backend.open() as store:
        await fill(store, backend.clock)
    return backend.path
