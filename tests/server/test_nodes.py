"""Which node does what is to be done once, and what nodes tell of each other."""

import asyncio
import urllib.request
from contextlib import AsyncExitStack
from importlib.metadata import version

import pytest
import structlog

from support.hosted import hosted
from support.postgres_cluster import store_address
from support.store_model import ModelStore
from support.store_values import Bench, HeldClock
from support.wire import house
from syncline.v1 import server_service_pb2 as pb
from syncline_server import upkeep
from syncline_server.errors import Aborted, Unavailable
from syncline_server.feed.uptake import Uptake
from syncline_server.metrics import Metrics
from syncline_server.model import Lease, Node


@pytest.fixture
def clock():
    return HeldClock()


@pytest.fixture
def store(clock):
    store = ModelStore(clock)
    store.clock = clock
    return store


class Work:
    """Counts its runs and keeps the leases that it was run under."""

    def __init__(self):
        self.fences = []

    async def run(self, lease):
        self.fences.append(lease.fence)


# -- who does it ------------------------------------------------------------------------------------------


async def test_one_node_works_and_another_takes_over_when_it_is_silent(store, clock):
    first, second = upkeep.Duty(store, "a"), upkeep.Duty(store, "b")
    work, other = Work(), Work()
    run, run_other = first.alone(work.run), second.alone(other.run)
    await run()
    assert work.fences == [], "nobody has asked for the lease yet"
    with structlog.testing.capture_logs() as events:
        for _ in range(10):
            await first.run()
            await second.run()
            await run()
            await run_other()
            clock.pass_seconds(upkeep.EXTEND_SECONDS)
        assert (work.fences, other.fences) == ([1] * 10, [])
        clock.pass_seconds(upkeep.LEASE_SECONDS - upkeep.EXTEND_SECONDS)
        await second.run()
        await run()
        await run_other()
    assert (work.fences, other.fences) == ([1] * 10, [2]), "a lease that is over is not used"
    assert [(e["event"], e["fence"]) for e in events] == [("lease.taken", 1), ("lease.taken", 2)]


async def test_t85_one_that_was_suspended_stops_when_the_store_says_that_it_lost(store, clock):
    """T85: its own clock says that the lease is still good, as it does to one that was stopped between two lines."""
    bench = await Bench.make(store, clock)
    await bench.put(["a", "b"])
    await bench.remove("a")
    metrics = Metrics()
    uptake = Uptake(store, clock, expiry_us=1_000_000)
    purge = upkeep.Purge(store, uptake, clock, metrics, min_age_us=0, min_revisions=0, max_tombstones=9)
    clock.pass_seconds(1)
    suspended = upkeep.Duty(store, "a")
    await suspended.run()
    begun = suspended.lease
    assert begun is not None
    clock.pass_seconds(upkeep.LEASE_SECONDS)
    await upkeep.Duty(store, "b").run()
    clock.us -= int(upkeep.LEASE_SECONDS * 1e6)
    assert suspended.lease == begun
    with structlog.testing.capture_logs() as events:
        await suspended.alone(purge.run)()
        await suspended.alone(purge.run)()
    assert [(e["event"], e["lease"], e["fence"]) for e in events] == [("lease.lost", "upkeep", 1)]
    assert suspended.lease is None
    assert (await bench.head()).purge_revision == 0


async def test_a_loss_is_told_once_and_only_a_loss_is_silent(store, clock):
    duty = upkeep.Duty(store, "a")
    await duty.run()

    async def refuse(lease: Lease) -> None:
        raise Aborted("ETAG_MISMATCH", "something else")

    with pytest.raises(Aborted):
        await duty.alone(refuse)()
    assert duty.lease is not None
    clock.pass_seconds(upkeep.LEASE_SECONDS)
    await upkeep.Duty(store, "b").run()
    with structlog.testing.capture_logs() as events:
        await duty.run()
        await duty.run()
    assert [(e["event"], e["fence"]) for e in events] == [("lease.lost", 1)]


async def test_a_store_in_trouble_does_not_take_the_lease_away(store, monkeypatch):
    duty = upkeep.Duty(store, "a")
    await duty.run()

    async def fail(*_, **__):
        raise Unavailable("STORE_UNAVAILABLE", "for a moment")

    monkeypatch.setattr(store, "acquire_lease", fail)
    with pytest.raises(Unavailable):
        await duty.run()
    assert duty.lease is not None


async def test_a_node_that_leaves_hands_over_at_once(store):
    leaving, staying = upkeep.Duty(store, "a"), upkeep.Duty(store, "b")
    await leaving.run()
    await leaving.release()
    await leaving.release()
    assert leaving.lease is None
    await staying.run()
    assert staying.lease is not None
    await leaving.release()
    await staying.run()
    assert (staying.lease.holder, staying.lease.fence) == ("b", 2)


# -- who is there -----------------------------------------------------------------------------------------


def node(node_id, name):
    return Node(node_id=node_id, name=name, addresses=(), version="1", start_time_us=0)


async def test_nodes_that_will_not_come_back_are_forgotten(store, clock):
    me = upkeep.Presence(store, node("me", "a"), lambda: 7)
    lease = await store.acquire_lease("upkeep", holder="me", seconds=1)

    async def after(seconds):
        clock.pass_seconds(seconds)
        await me.report()
        await me.forget(lease)
        return [n.node_id for n in await store.list_nodes()]

    await store.report_node(node("before", "a"))
    await store.report_node(node("silent", "b"))
    assert await after(1) == ["me", "silent"], "it was started anew under its name"
    with structlog.testing.capture_logs() as events:
        assert await after(3_598) == ["me", "silent"]
        assert await after(1) == ["me"]
    assert [(e["event"], e["node"], e["silent_seconds"]) for e in events] == [("node.forgotten", "b", 3_600)]
    assert (await store.list_nodes())[0].lag_us == 7
    await me.leave()
    assert await store.list_nodes() == []


async def nodes_at(wire, count):
    """The list, once it has so many that report."""
    async with asyncio.timeout(20):
        while True:
            nodes = (await wire.call(wire.server.ListNodes, pb.ListNodesRequest())).nodes
            if len(nodes) == count:
                return nodes
            await asyncio.sleep(0.02)


def _metrics(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return answer.read().decode()


async def test_a_server_alone_is_a_node_too(tmp_path):
    async with house(tmp_path, listen=f"127.0.0.1:0,unix:{tmp_path}/s", http="127.0.0.1:0") as alone:
        (told,) = await nodes_at(alone.wire, 1)
        port = alone.server.addresses[0].rpartition(":")[2]
        assert list(told.addresses) == list(alone.server.addresses)
        assert told.name.endswith(f":{port}")
        assert (told.version, told.silent, told.this_node) == (version("syncline"), False, True)
        assert told.lag.ToMicroseconds() == 0
        metrics = await asyncio.to_thread(_metrics, alone.server.http)
        assert "\nsyncline_upkeep_lease 1.0\n" in metrics
        assert "\nsyncline_node_lag_seconds 0.0\n" in metrics
        assert 0 <= told.report_time.ToMicroseconds() - told.start_time.ToMicroseconds() < 60_000_000
        reader = await alone.wire.make_key("READ", datasets=["*"])
        refused = await reader.refused(reader.server.ListNodes, pb.ListNodesRequest())
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


@pytest.mark.only_store("postgres", reason="several servers have one store")
async def test_nodes_of_one_store_see_each_other_come_and_go(store_name, tmp_path, monkeypatch):
    """Two servers: one has the lease, and the other one gets it when that one is stopped."""
    monkeypatch.setattr(upkeep, "EXTEND_SECONDS", 0.05)
    with store_address(store_name) as address, structlog.testing.capture_logs() as events:

        async def fences(expected):
            async with asyncio.timeout(20):
                while [e["fence"] for e in events if e["event"] == "lease.taken"] != expected:
                    await asyncio.sleep(0.02)

        def serve(name):
            return hosted(house(tmp_path, store=address, node=name))

        async with AsyncExitStack() as outer, AsyncExitStack() as inner:
            first = await inner.enter_async_context(serve("b"))
            await fences([1])
            second = await outer.enter_async_context(serve("a"))
            assert [n.this_node for n in await nodes_at(second.wire, 2)] == [True, False]
            told = [(n.name, n.this_node, n.silent) for n in await nodes_at(first.wire, 2)]
            assert told == [("a", False, False), ("b", True, False)]
            await fences([1])
            await inner.aclose()
            await fences([1, 2])
            assert [n.name for n in await nodes_at(second.wire, 1)] == ["a"]
        async with serve("c") as third:
            await fences([1, 2, 3])
            assert [n.name for n in await nodes_at(third.wire, 1)] == ["c"]
