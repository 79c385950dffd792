"""Databases to be copied from and to, a store with something of everything in it, and a server in this process."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.copies import fill
from support.feed_client import FeedClient
from support.hosted import hosted
from support.postgres_cluster import END_OTHERS, PostgresCluster
from support.store_values import SqliteBackend
from support.wire import house

CLEAR = """
DO $$
DECLARE
    one text;
BEGIN
    FOR one IN SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'syncline') LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', one);
    END LOOP;
END
$$
"""


@pytest.fixture(scope="session")
def cleared_databases() -> list[str]:
    """Names of databases with nothing in them: clearing one takes less than making and dropping it."""
    return []


@pytest.fixture
def new_database(
    postgres_cluster: PostgresCluster, cleared_databases: list[str]
) -> Iterator[Callable[[], str]]:
    """Gives addresses of empty databases."""
    used: list[str] = []

    def take() -> str:
        if cleared_databases:
            used.append(cleared_databases.pop())
        else:
            used.append(f"empty_{uuid.uuid4().hex}")
            postgres_cluster.execute(f"CREATE DATABASE {used[-1]}")
        return postgres_cluster.dsn(used[-1])

    yield take
    for name in used:
        postgres_cluster.execute(END_OTHERS, name)
        postgres_cluster.execute(CLEAR, name)
    cleared_databases += used


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A store with something of everything in it."""
    backend = SqliteBackend(tmp_path / "filled")
    async with backend.open() as store:
        await fill(store, backend.clock)
    return backend.path


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Any]:
    """A server in this process, whose bookmarks and checks of keys come often."""
    async with hosted(house(tmp_path, checkpoint_seconds=0.4, key_check_seconds=0.1)) as running:
        yield running


@pytest.fixture
async def wire(home: Any) -> Any:
    """Calls to it; it has the datasets ``books`` and ``birds``."""
    for dataset in ("books", "birds"):
        await home.wire.make_dataset(dataset)
    return home.wire


@pytest.fixture
def feeds(wire: Any) -> Callable[..., FeedClient]:
    """Makes streams of subscriptions, which may go on with the copies of earlier ones."""
    return lambda copies=None: FeedClient(wire, copies)
