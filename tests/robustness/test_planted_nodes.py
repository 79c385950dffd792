"""T118 for nodes that share a store: each planted fault is caught, and the same run without it passes."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from robustness import planted_nodes
from robustness.faults_nodes import NodeFaults
from robustness.nodes import LATE_COMMITS, nodes_on
from robustness.planted import SERVER, command
from robustness.planted_nodes import DISTURBANCES
from robustness.traffic import PLAIN, TINY, Traffic, told
from support.frail_postgres import connection_to

pytestmark = pytest.mark.only_store("postgres", reason="several servers have one store")

SEED = 118
SECONDS = 2.0
ROUNDS = 4
"""How often a run is tried before a fault counts as not caught; nearly all are caught by the first."""


def patience(name, seconds):
    """How long all may take to come to their end: where there is no fault, as long as a busy machine may need."""
    return 20.0 if name in DISTURBANCES or name == "sound" else seconds


@asynccontextmanager
async def at_work(postgres, directory, name, *, settings=TINY, patience_seconds=3.0, **how):
    """Traffic on two nodes, both with the fault."""
    async with (
        nodes_on(postgres, directory, env=settings, prefixes=(command(name),) * 2) as nodes,
        Traffic.on(
            nodes[0].server, seed=SEED, addresses=nodes.addresses, recorder=nodes.recorder, **how
        ) as traffic,
    ):
        traffic.catch_up_seconds = patience(name, patience_seconds)
        yield nodes, traffic


async def crowded(postgres, directory, name):
    """Commits take their time, so that what waits is committed in groups, and many of them have sessions in them."""
    followed = (("things", "all"), ("things", "red"), ("things", "masked"))
    crowd = replace(PLAIN, writers=6, sessions=4, swaps=4, subscribers=followed * 2, copies=followed)
    async with at_work(postgres, directory, name, patience_seconds=20.0, crowd=crowd) as (nodes, traffic):
        async with connection_to(nodes.dsn) as connection:
            await connection.execute(LATE_COMMITS)
        await asyncio.sleep(2 * SECONDS)
        await traffic.settle()
        return traffic.judge()


async def hopping(postgres, directory, name):
    """Subscribers that go from node to node, and one writer that keeps to one."""
    crowd = replace(PLAIN, writers=1, subscribers=(("things", "all"),) * 9, copies=())
    async with at_work(postgres, directory, name, crowd=crowd) as (_, traffic):
        await asyncio.sleep(SECONDS)
        await traffic.settle()
        return traffic.judge()


async def one_sided(postgres, directory, name):
    """The writer is at one node, followers at the other, and bookmarks are rare: only wake-ups bring what is written."""
    settings = {key: value for key, value in TINY.items() if "CHECKPOINT" not in key}
    crowd = replace(PLAIN, writers=1, subscribers=(("things", "all"),) * 3, copies=())
    work = at_work(
        postgres,
        directory,
        name,
        settings=settings,
        patience_seconds=1.5,  # below the time after which a silent stream is begun anew
        crowd=crowd,
        checkpoint_seconds=10.0,
    )
    async with work as (_, traffic):
        traffic.run.is_calm = True
        await traffic.acknowledged(20)
        await traffic.settle()
        return traffic.judge()


async def suspended(postgres, directory, name):
    """The node with the lease is stopped for longer than that lasts, again and again."""
    crowd = replace(PLAIN, writers=3, subscribers=(("things", "all"),), copies=())
    settings = TINY | {"SYNCLINE_PURGE_SECONDS": "0.1", "SYNCLINE_RETENTION_REVISIONS": "1"}
    async with at_work(postgres, directory, name, settings=settings, crowd=crowd) as (nodes, traffic):
        faults = NodeFaults(traffic.history, nodes, seed=SEED)
        for _ in range(4):
            await faults.freeze_leader(1.2)
            await traffic.acknowledged(5)
            await asyncio.sleep(0.3)
        await traffic.settle()
        return traffic.judge()


async def cut_off(postgres, directory, name):
    """Connections to the database break between commits and their answers, and clients try again elsewhere."""
    crowd = replace(PLAIN, writers=8, keys=tuple("abcde"), subscribers=(), copies=())
    async with at_work(postgres, directory, name, crowd=crowd, all_hop=True) as (nodes, traffic):
        for _ in range(12):
            for node in nodes:
                node.back.cut_before_commit_answer(1)
            await asyncio.sleep(0.15)
        await nodes.mend()
        await traffic.settle()
        return traffic.judge()


PLANTED = {
    "ring_vouches_for_what_it_has_not_heard": (hopping, {"ordered", "resumable"}),
    "other_nodes_are_never_looked_at": (one_sided, {"convergent"}),
    "fence_not_checked": (suspended, {"alone"}),
    "retried_without_looking": (cut_off, {"exactly_once", "reliable"}),
    "answers_remembered_by_the_node": (cut_off, {"exactly_once", "reliable"}),
}
"""The run of each fault, and the promises that it breaks, one of which at least must tell."""

SOUND = {
    "sound": (crowded, cut_off),
    "hints_are_lost": (hopping, one_sided),
    "lease_never_given_up": (suspended,),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.timeout(180)
async def test_t118_a_fault_planted_into_nodes_is_caught(postgres, tmp_path, name):
    run, promises = PLANTED[name]
    for attempt in range(ROUNDS):
        judged = await run(postgres, tmp_path / f"{attempt}", name)
        print(told(judged))
        if promises & judged.keys():
            return
    pytest.fail(f"not caught in {ROUNDS} runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "run"),
    [(name, run) for name, runs in SOUND.items() for run in runs],
    ids=lambda v: getattr(v, "__name__", v),
)
async def test_t118_the_same_run_of_nodes_without_a_fault_passes(postgres, tmp_path, name, run):
    judged = await run(postgres, tmp_path, name)
    assert not judged, told(judged)


def test_every_fault_planted_into_nodes_has_its_test():
    planted = {name for name, patch in SERVER.items() if patch.__module__ == planted_nodes.__name__}
    assert PLANTED.keys() == planted - DISTURBANCES
