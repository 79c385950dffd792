"""Many clients of two nodes: writers that meet in the database, subscribers whose nodes are restarted one by one."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from robustness.history import Checkpoint, Opened
from robustness.nodes import LATE_COMMITS, nodes_on
from robustness.promises_feed import STOP
from robustness.traffic import PLAIN, Traffic
from support.frail_postgres import connection_to
from support.waiting import until

pytestmark = pytest.mark.only_store("postgres", reason="several servers have one store")

WRITES = 300


@asynccontextmanager
async def at_work(postgres, directory, seed, crowd, settings=None, *, has_proxies=True, **how):
    """Two nodes, and clients of both."""
    async with nodes_on(postgres, directory, seed=seed, env=settings) as nodes:
        traffic = Traffic.on(
            nodes[0].server,
            seed=seed,
            crowd=crowd,
            addresses=nodes.addresses if has_proxies else [node.server.address for node in nodes],
            recorder=nodes.recorder,
            checkpoint_seconds=10.0,
            **how,
        )
        async with traffic as running:
            yield nodes, running


@pytest.mark.slow
async def test_t78_g03_g08_fifty_writers_on_two_nodes(postgres, tmp_path, seed):
    """T78: commits take their time under the lock, and their answers too; revisions have no gap, and no ring either.

    Slow; with two nodes in one process (tests/server/test_nodes_feed.py) it runs with every commit.
    """
    followed = (("things", "all"), ("items", "all"), ("things", "red")) * 2
    streams = (tuple((*place, "latest") for place in followed),) * 2
    crowd = replace(PLAIN, writers=50, keys=tuple("abcde"), subscribers=followed, streams=streams)
    async with at_work(postgres, tmp_path, seed, crowd) as (nodes, traffic):
        traffic.run.is_calm = True
        async with connection_to(nodes.dsn) as connection:
            await connection.execute(LATE_COMMITS)
        for node in nodes:
            node.back.jitter_seconds = 0.005
        await traffic.acknowledged(WRITES)
        await nodes.mend()
        history = await traffic.finish()
        assert traffic.resets == []
        assert all(op.outcome == "ok" or op.code == "CONDITION_FAILED" for op in history.operations)
        for dataset in ("things", "items"):
            revisions = sorted({operation.revision for operation in history.acknowledged(dataset)})
            assert revisions == list(range(1, len(revisions) + 1))
        await nodes.check()


async def restarted_one_by_one(postgres, directory, seed, *, streams, rounds):
    """Each stream has twenty subscriptions; no copy begins anew, nothing comes twice, and all reach the head."""
    kinds = [(selection, mode) for selection in ("all", "red") for mode in ("latest", "on_checkpoint")]
    places = tuple(("things", *kinds[n % len(kinds)]) for n in range(20))
    crowd = replace(PLAIN, writers=2, streams=(places,) * streams, subscribers=(("things", "all"),) * 3)
    work = at_work(postgres, directory, seed, crowd, has_proxies=False, all_hop=True)
    async with work as (nodes, traffic):
        traffic.run.is_calm = (
            True  # who was sent away goes on from where it stands, at the other node, with all others
        )
        traffic.catch_up_seconds = 30.0
        await until(lambda: all(map(is_at_a_checkpoint, traffic.history.views)), seconds=60)
        for _ in range(rounds):
            for node in nodes:
                await traffic.acknowledged(20)
                traffic.history.fault(STOP)
                assert await node.server.terminate() == 0
                await node.server.start()
        await traffic.acknowledged(20)
        history = await traffic.finish()
        assert traffic.resets == []
        assert all(op.outcome == "ok" or op.code == "CONDITION_FAILED" for op in history.operations)
        await nodes.check()
    resumed = [frame for view in history.views for frame in view.frames if isinstance(frame, Opened)]
    assert len(resumed) > len(history.views) * rounds
    began = [view.name for view in history.views if sum(not frame.token for frame in opened(view)) > 1]
    assert began == [], "a copy that stood at a checkpoint is never begun again (T114)"


def is_at_a_checkpoint(view):
    return any(isinstance(frame, Checkpoint) for frame in view.frames)


def opened(view):
    return [frame for frame in view.frames if isinstance(frame, Opened)]


async def test_t113_g11_g20_rolling_restarts_under_sixty_subscribers(postgres, tmp_path, seed):
    """T113, and T114 for two nodes: all that one node had come to the other at once, with their tokens."""
    await restarted_one_by_one(postgres, tmp_path, seed, streams=3, rounds=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_t113_g11_g20_rolling_restarts_under_a_thousand_subscribers(postgres, tmp_path, seed):
    await restarted_one_by_one(postgres, tmp_path, seed, streams=50, rounds=4)


@pytest.mark.slow
async def test_g21_a_key_deleted_at_one_node_ends_the_streams_of_both(postgres, tmp_path, seed):
    """G21: guests at the first node, at the second, and at either hear nothing more after the key's time."""
    crowd = replace(PLAIN, writers=1, guests=6, subscribers=(), copies=())
    settings = {"SYNCLINE_KEY_CHECK_SECONDS": "0.2"}
    async with at_work(postgres, tmp_path, seed, crowd, settings) as (nodes, traffic):
        await until(lambda: all(map(is_at_a_checkpoint, traffic.history.guests)))
        await traffic.acknowledged(10)
        await traffic.revoke(within_seconds=13.0)  # other nodes remember a key for ten seconds
        await traffic.finish()
        await nodes.check()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_t73_g02_g05_twenty_crashes_of_the_database(postgres, tmp_path, seed):
    """T73: PostgreSQL is stopped with `immediate` under load and recovers; nothing acknowledged is lost or doubled."""
    crowd = replace(PLAIN, sessions=2, swaps=1, sensors=1, gauges=1)
    async with at_work(postgres, tmp_path, seed, crowd, replica_directory=tmp_path) as (nodes, traffic):
        for _ in range(20):
            await postgres.crash()
            await traffic.acknowledged(10)
        history = await traffic.finish()
        assert traffic.resets == []
        assert all(node.server.is_running for node in nodes)
        assert len(history.acknowledged()) > 20 * 10
        await nodes.check()
