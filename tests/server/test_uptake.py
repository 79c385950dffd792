"""Uptake: who has which revision, and whom purge waits for."""

import asyncio

import pytest
import structlog

from support.store_model import ModelStore
from support.store_values import Bench, HeldClock
from syncline_server import upkeep
from syncline_server.errors import Unavailable
from syncline_server.feed.uptake import Uptake
from syncline_server.metrics import Metrics

DAY_US = 86_400_000_000


@pytest.fixture
async def bench():
    clock = HeldClock()
    made = await Bench.make(ModelStore(clock), clock)
    for name in "abc":
        clock.pass_seconds(1)
        await made.put([name])
    return made


@pytest.fixture
def uptake(bench):
    return Uptake(bench.store, bench.clock, expiry_us=DAY_US)


async def granted(bench):
    lease = await bench.store.acquire_lease(upkeep.LEASE, holder="n", seconds=1)
    assert lease is not None
    return lease


async def _told(uptake, bench, revision=0, **more):
    report = await uptake.get(await bench.store.get_dataset("books"), revision, limit=10, **more)
    return (report.replica_count, report.reached_count), [
        (s.replica.replica_id, s.replica.revision, s.connected, s.holds_purge) for s in report.replicas
    ]


async def test_it_tells_how_many_have_a_revision_and_who_is_behind_since_when(uptake, bench):
    number = bench.dataset.number
    uptake.connected(number, "fresh", "k", 0)
    uptake.connected(number, "behind", "k", 1)
    uptake.connected(number, "newest", "k", 2)
    uptake.applied(number, "newest", "k", 3)
    assert await _told(uptake, bench) == (
        (3, 1),
        [("fresh", 0, True, False), ("behind", 1, True, True), ("newest", 3, True, False)],
    )
    assert (await _told(uptake, bench, revision=1))[0] == (3, 2)
    report = await uptake.get(await bench.store.get_dataset("books"), 0, limit=2)
    times = await bench.store.revision_times(number, [1, 2])
    assert [s.behind_since_us for s in report.replicas] == list(times)
    assert report.replica_count == 3, "named are two, counted all"


async def test_reports_reach_the_store_once_and_survive_its_trouble(uptake, bench):
    number = bench.dataset.number
    uptake.connected(number, "r", "k", 1)
    uptake.applied(number, "r", "k", 2)
    fine, calls = bench.store.report_replicas, []

    async def fail(reports):
        calls.append(reports)
        raise Unavailable("STORE_UNAVAILABLE", "not now")

    bench.store.report_replicas = fail
    with pytest.raises(Unavailable):
        await uptake.flush()
    uptake.applied(number, "r", "k", 3)
    bench.store.report_replicas = fine
    await uptake.flush()
    assert [(r.replica_id, r.revision) for r in await bench.store.list_replicas(number)] == [("r", 3)]
    bench.store.report_replicas = fail
    await uptake.flush()
    assert len(calls) == 1, "nothing is written twice"


async def test_a_replica_whose_file_was_restored_is_behind_again(uptake, bench):
    number = bench.dataset.number
    uptake.connected(number, "r", "k", 3)
    await uptake.flush()
    uptake.disconnected(number, "r")
    uptake.connected(number, "r", "k", 1)
    await uptake.flush()
    assert [r.revision for r in await bench.store.list_replicas(number)] == [1]
    other = Uptake(bench.store, bench.clock, expiry_us=DAY_US)
    assert await _told(other, bench) == ((1, 0), [("r", 1, False, True)]), "another node sees it in the store"


async def test_waiting_ends_when_enough_have_it(uptake, bench):
    number = bench.dataset.number
    for name in ("a", "b"):
        uptake.connected(number, name, "k", 1)
    waiting = asyncio.create_task(_told(uptake, bench, wait_ratio=0.5, timeout_seconds=1_000))
    await asyncio.sleep(0)
    assert not waiting.done()
    uptake.applied(number, "b", "k", 3)
    async with asyncio.timeout(5):
        assert (await waiting)[0] == (2, 1)
    assert (await _told(uptake, bench, wait_ratio=1.0, timeout_seconds=0))[0] == (2, 1), "time was up"
    uptake_of_none = Uptake(bench.store, bench.clock, expiry_us=0)
    assert (await _told(uptake_of_none, bench, wait_ratio=1.0, timeout_seconds=1_000))[0] == (0, 0)


async def test_the_silent_are_forgotten_and_hold_nothing(uptake, bench):
    number = bench.dataset.number
    uptake.connected(number, "gone", "k", 1)
    await uptake.flush()
    uptake.disconnected(number, "gone")
    held = await uptake.holding(number)
    assert held is not None
    assert held.replica_id == "gone"
    bench.clock.pass_seconds(2 * 86_400)
    assert await uptake.holding(number) is None
    await uptake.forget(await granted(bench))
    assert await bench.store.list_replicas(number) == []


async def test_one_that_stays_connected_and_hears_nothing_new_is_not_forgotten(uptake, bench):
    number = bench.dataset.number
    uptake.connected(number, "r", "k", 3)
    await uptake.flush()
    for _ in range(3):
        bench.clock.pass_seconds(86_000)
        uptake.applied(number, "r", "k", 3)  # a bookmark, acknowledged
        await uptake.flush()
        await uptake.forget(await granted(bench))
    assert (await _told(uptake, bench))[0] == (1, 1)


async def test_purge_stops_at_the_slowest_replica_and_says_who(uptake, bench):
    """F17, section 5 of the issue: deletes stay until every registered replica has them."""
    await bench.remove("a")
    await bench.remove("b")
    number = bench.dataset.number
    uptake.connected(number, "slow", "k", 4)
    uptake.connected(number, "quick", "k", 5)
    purge = upkeep.Purge(
        bench.store, uptake, bench.clock, Metrics(), min_age_us=0, min_revisions=0, max_tombstones=100
    )
    bench.clock.pass_seconds(60)
    with structlog.testing.capture_logs() as events:
        await purge.run(await granted(bench))
    assert (await bench.head()).purge_revision == 4
    assert [(e["event"], e["replica"], e["revision"]) for e in events] == [("purge.held_back", "slow", 4)]
    uptake.applied(number, "slow", "k", 5)
    await purge.run(await granted(bench))
    assert (await bench.head()).purge_revision == 5
