"""Every test of this directory runs against every backend, and ends with a check of what it left behind."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.store_values import BACKENDS, Backend, Bench
from syncline_server.store.abc import Store


@pytest.fixture
def backend(backend_name: str, tmp_path: Path) -> Iterator[Backend]:
    made = BACKENDS[backend_name](tmp_path)
    yield made
    made.check()


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    async with backend.open() as opened:
        yield opened


@pytest.fixture
async def bench(store: Store, backend: Backend) -> Bench:
    return await Bench.make(store, backend.clock)
