"""Two nodes over one PostgreSQL: everything at once, faults from a seed, every promise judged.

``SYNCLINE_CHECK_SEED`` repeats a run, ``SYNCLINE_CHECK_SECONDS`` makes it longer. What a failed run leaves is kept in
the directory that it prints: the history as JSON lines, and the nodes' logs.
"""

import os
import random

import pytest

from robustness.faults_nodes import NodeFaults
from robustness.history import History
from robustness.nodes import nodes_on
from robustness.planted import command
from robustness.traffic import TINY, Traffic, told

SECONDS = 6.0
LONG_SECONDS = 60.0
LONG_RUNS = 10
ROOMY = {name: value for name, value in TINY.items() if not name.endswith(("_CHANGES", "_BYTES"))}
"""Pages, rings and credits of the usual size: what nodes hear of each other is sent from memory."""
PREFIXES = (command("short_leases"),) * 2

pytestmark = pytest.mark.only_store("postgres", reason="several servers have one store")


@pytest.fixture
def check_seed(record_property):
    seed = int(os.environ.get("SYNCLINE_CHECK_SEED") or random.randrange(1 << 32))
    record_property("seed", seed)
    print(f"SYNCLINE_CHECK_SEED={seed}")
    return seed


async def run(postgres, directory, seed: int, seconds: float) -> History:
    """Two nodes, all clients, all faults; rings and pages are tiny with every other seed."""
    settings = ROOMY if seed % 2 else TINY
    async with (
        nodes_on(postgres, directory, seed=seed, env=settings, prefixes=PREFIXES) as nodes,
        Traffic.on(
            nodes[0].server,
            seed=seed,
            addresses=nodes.addresses,
            recorder=nodes.recorder,
            replica_directory=directory,
        ) as traffic,
    ):
        faults = NodeFaults(traffic.history, nodes, seed=seed)
        try:
            await faults.rage(seconds)
            history = await traffic.finish()
            await nodes.check()
        except BaseException:
            traffic.history.save(directory / "history.jsonl")
            print(f"SYNCLINE_CHECK_SEED={seed}; kept in {directory}\n{told(traffic.judged)}")
            raise
        print(
            f"{len(history.operations)} writes, {len(history.faults)} faults, {faults.starts} starts, "
            f"{faults.crashes} crashes of the database, {sum(node.back.cuts for node in nodes)} answers cut off"
        )
        return history


@pytest.mark.timeout(120)
async def test_the_promises_hold_on_two_nodes_under_random_faults(postgres, tmp_path, check_seed):
    """G1–G14, G16, G20 by their validators; T72, T73, T75, T79, T83, T85 among the faults."""
    seconds = float(os.environ.get("SYNCLINE_CHECK_SECONDS") or SECONDS)
    history = await run(postgres, tmp_path, check_seed, seconds)
    assert len(history.acknowledged()) > 5 * seconds
    assert len(history.faults) > seconds / 8


@pytest.mark.slow
@pytest.mark.timeout(10 * LONG_RUNS * LONG_SECONDS)
async def test_the_promises_hold_on_two_nodes_for_long(postgres, tmp_path, check_seed):
    for part in range(LONG_RUNS):
        await run(postgres, tmp_path / f"{part}", check_seed + part, LONG_SECONDS)
