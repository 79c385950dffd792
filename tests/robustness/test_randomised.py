"""The randomised run: everything at once, faults from a seed, every promise judged.

``SYNCLINE_CHECK_SEED`` repeats a run, ``SYNCLINE_CHECK_SECONDS`` makes it longer. What a failed run leaves is kept in
the directory that it prints: the history as JSON lines, and the server's data and log.
"""

import os
import random

import pytest

from robustness.faults import Faults
from robustness.history import History
from robustness.traffic import TINY, Traffic, told
from support.postgres_cluster import store_address
from support.proxy import Proxy
from support.server_process import server_process

SECONDS = 10.0
LONG_SECONDS = 600.0
PARTS_SECONDS = 15.0
"""A long run is several of these one after the other, each with a server of its own."""


@pytest.fixture
def check_seed(record_property):
    seed = int(os.environ.get("SYNCLINE_CHECK_SEED") or random.randrange(1 << 32))
    record_property("seed", seed)
    print(f"SYNCLINE_CHECK_SEED={seed}")
    return seed


async def run(store_name: str, directory, seed: int, seconds: float) -> History:
    """One server, all clients, all faults. For several servers on one store see test_nodes.py."""
    directory.mkdir(exist_ok=True)
    with store_address(store_name) as store:
        return await run_on(store, directory, seed, seconds)


async def run_on(store: str, directory, seed: int, seconds: float) -> History:
    """The same on the store with this address."""
    async with (
        server_process(directory, env=TINY, store=store) as server,
        Proxy.to(server.address, seed=seed) as proxy,
        Traffic.on(server, seed=seed, addresses=[proxy.address], replica_directory=directory) as traffic,
    ):
        faults = Faults(traffic.history, server, proxy, seed=seed)
        try:
            await faults.rage(seconds)
            history = await traffic.finish()
            await server.stop()
            problems = server.fsck()
            assert not problems, problems
        except BaseException:
            traffic.history.save(directory / "history.jsonl")
            print(f"SYNCLINE_CHECK_SEED={seed}; kept in {directory}\n{told(traffic.judged)}")
            raise
        print(f"{len(history.operations)} writes, {len(history.faults)} faults, {faults.starts} starts")
        return history


@pytest.mark.timeout(120)
async def test_the_promises_hold_under_random_faults(store_name, tmp_path, check_seed):
    """G1–G14, G16, G20 by their validators; SYNCLINE_CHECK_SECONDS of it."""
    seconds = float(os.environ.get("SYNCLINE_CHECK_SECONDS") or SECONDS)
    history = await run(store_name, tmp_path, check_seed, seconds)
    assert len(history.acknowledged()) > 10 * seconds
    assert len(history.faults) > seconds / 4


@pytest.mark.slow
@pytest.mark.timeout(2 * LONG_SECONDS)
async def test_the_promises_hold_under_random_faults_for_long(store_name, tmp_path, check_seed):
    for part in range(int(LONG_SECONDS / PARTS_SECONDS)):
        await run(store_name, tmp_path / f"{part}", check_seed + part, PARTS_SECONDS)
