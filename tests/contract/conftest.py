"""Every test of this directory runs against every backend, and ends with a check of what it left behind."""

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest

from support.postgres_cluster import PostgresCluster, running_cluster
from support.store_values import BACKENDS, DURABLE, Backend, Bench
from syncline_server.store.abc import Store


def _params(names: Iterable[str]) -> list[object]:
    """PostgreSQL in `make test-all` until servers can use it: no user reaches it before, and it takes half a minute."""
    return [pytest.param(n, marks=pytest.mark.slow) if n == "postgres" else n for n in names]


@pytest.fixture(scope="session", autouse=True)
def postgres_cluster() -> Iterator[PostgresCluster]:
    """One for all tests of this process; a test has databases of its own in it."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(params=_params(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.check()


@pytest.fixture(params=_params(DURABLE))
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A backend whose contents survive that it is closed and opened again."""
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.check()


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    async with backend.open() as opened:
        yield opened


@pytest.fixture
async def bench(store: Store, backend: Backend) -> Bench:
    return await Bench.make(store, backend.clock)
