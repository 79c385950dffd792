"""Robustness: traffic, faults, and a judge that knows all that was promised."""

import os
import random

import pytest

from support.frail_postgres import frail_postgres


@pytest.fixture(scope="session", autouse=True)
def started(shared_server):
    """The shared server is there before any test looks at what was running."""


@pytest.fixture
def seed(record_property):
    """Of this run; SYNCLINE_TEST_SEED repeats one."""
    seed = int(os.environ.get("SYNCLINE_TEST_SEED") or random.randrange(1 << 32))
    record_property("seed", seed)
    print(f"SYNCLINE_TEST_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def frail_cluster():
    """The files of a PostgreSQL cluster, for ``postgres``."""
    with frail_postgres() as cluster:
        yield cluster


@pytest.fixture
async def postgres(frail_cluster):
    """A PostgreSQL server of the test's own, which it may crash."""
    async with frail_cluster.running():
        yield frail_cluster
