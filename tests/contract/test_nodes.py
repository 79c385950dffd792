"""Leases with fences, and nodes: who does what only one may do, and who is there."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from support.store_values import Backend, Bench, deletes, request, upserts
from syncline_server.errors import Aborted, NotFound
from syncline_server.model import Lease, Node, Replica, SessionMode
from syncline_server.store.abc import Store

pytestmark = pytest.mark.on_both

LATER = 1 << 60


async def acquire(store: Store, holder: str, *, name: str = "upkeep", seconds: float = 15) -> Lease | None:
    return await store.acquire_lease(name, holder=holder, seconds=seconds)


async def taken(store: Store, holder: str) -> Lease:
    lease = await acquire(store, holder)
    assert lease is not None
    return lease


# -- leases -----------------------------------------------------------------------------------------------


async def test_a_lease_has_one_holder_until_its_time_is_over(bench: Bench) -> None:
    start_us = bench.clock.us
    first = await acquire(bench.store, "a")
    assert first == Lease(name="upkeep", holder="a", fence=1, expire_time_us=start_us + 15_000_000)
    assert await acquire(bench.store, "b") is None
    bench.clock.pass_seconds(14.999_999)
    assert await acquire(bench.store, "b") is None
    bench.clock.pass_seconds(0.000_001)
    second = await acquire(bench.store, "b")
    assert second == Lease(name="upkeep", holder="b", fence=2, expire_time_us=start_us + 30_000_000)
    assert await acquire(bench.store, "a") is None


async def test_a_holder_extends_its_lease_under_its_fence(bench: Bench) -> None:
    """Also late, if nobody took it: then nobody did anything under it either."""
    first = await taken(bench.store, "a")
    for seconds in (5, 60):
        bench.clock.pass_seconds(seconds)
        extended = await taken(bench.store, "a")
        assert (extended.fence, extended.expire_time_us) == (first.fence, bench.clock.us + 15_000_000)
    assert await acquire(bench.store, "b") is None


async def test_a_lease_that_was_given_back_is_free_at_once(bench: Bench) -> None:
    first = await taken(bench.store, "a")
    await bench.store.release_lease(first)
    second = await taken(bench.store, "b")
    assert second.fence == 2
    await bench.store.release_lease(first)
    assert await acquire(bench.store, "c") is None, "the lease of another is not given back"
    await bench.store.release_lease(second)
    await bench.store.release_lease(second)
    assert (await taken(bench.store, "b")).fence == 3, "nor is a fence used twice"


async def test_leases_of_several_names_are_apart(bench: Bench) -> None:
    one = await acquire(bench.store, "a", name="one")
    other = await acquire(bench.store, "b", name="other", seconds=0.5)
    assert one is not None
    assert other is not None
    assert (one.fence, other.fence) == (1, 1)
    assert other.expire_time_us == bench.clock.us + 500_000


@pytest.mark.parametrize("holders", [2, 20])
async def test_of_many_who_ask_at_once_one_gets_it(bench: Bench, holders: int) -> None:
    for fence in (1, 2):
        asked = await asyncio.gather(*(acquire(bench.store, f"{fence}-{n}") for n in range(holders)))
        assert [lease.fence for lease in asked if lease is not None] == [fence]
        bench.clock.pass_seconds(15)


@dataclass
class Work:
    """Something to do for each method that takes a lease, and whether it was done."""

    bench: Bench

    async def prepare(self) -> None:
        bench = self.bench
        await bench.put(["a", "b"], identity=request("put"))
        await bench.remove("a")
        await bench.store.report_replicas(
            [
                Replica(
                    dataset_number=bench.dataset.number,
                    replica_id="r",
                    key_id="k",
                    revision=2,
                    report_time_us=1,
                )
            ]
        )
        accrue = await bench.open(SessionMode.ACCRUE)
        await bench.stage(accrue, upserts(["c"]))
        other = await bench.second_source()
        stream = await other.open(SessionMode.STREAM, idle_timeout_us=1)
        await other.write(deletes("x"), session_id=stream.session_id, sequence=1)

    async def purge(self, lease: Lease | None) -> int:
        number = self.bench.dataset.number
        result = await self.bench.store.purge(
            number, before_us=LATER, min_revisions=0, max_tombstones=9, lease=lease
        )
        return result.tombstones

    async def expire_sessions(self, lease: Lease | None) -> int:
        return await self.bench.store.expire_sessions(now_us=LATER, lease=lease)

    async def forget_requests(self, lease: Lease | None) -> int:
        return await self.bench.store.forget_requests(before_us=LATER, limit=9, lease=lease)

    async def forget_replicas(self, lease: Lease | None) -> int:
        return await self.bench.store.forget_replicas(before_us=LATER, limit=9, lease=lease)

    async def facts(self) -> list[object]:
        store, number = self.bench.store, self.bench.dataset.number
        return [
            await self.bench.page(),
            await store.count_sessions(),
            await store.find_answer(request("put")),
            await store.list_replicas(number),
        ]


FENCED: dict[str, tuple[Callable[[Work, Lease | None], Awaitable[int]], int]] = {
    "purge": (Work.purge, 1),
    "expire_sessions": (Work.expire_sessions, 2),
    "forget_requests": (Work.forget_requests, 2),  # a call of a stream session is remembered by its number
    "forget_replicas": (Work.forget_replicas, 1),
}
"""What is done, and how many of it there are to do."""


@pytest.mark.parametrize("name", FENCED)
async def test_t85_what_is_done_under_an_older_fence_has_no_effect(bench: Bench, name: str) -> None:
    """T85: the first holder was suspended past its lease, another took over; then the first one goes on."""
    run, amount = FENCED[name]
    work = Work(bench)
    await work.prepare()
    before = await work.facts()
    old = await taken(bench.store, "a")
    bench.clock.pass_seconds(15)
    new = await taken(bench.store, "b")
    with pytest.raises(Aborted) as raised:
        await run(work, old)
    assert (raised.value.reason, raised.value.metadata["lease"]) == ("LEASE_LOST", "upkeep")
    assert await work.facts() == before
    assert await run(work, new) == amount
    assert await work.facts() != before
    with pytest.raises(Aborted):
        await run(work, old)  # also when there is nothing left to do
    assert await run(work, new) == 0


@pytest.mark.parametrize("name", FENCED)
async def test_a_lease_that_ran_out_counts_until_another_took_it(bench: Bench, name: str) -> None:
    """Nobody else did anything meanwhile: that time is over proves nothing, the fence does."""
    run, amount = FENCED[name]
    work = Work(bench)
    await work.prepare()
    lease = await taken(bench.store, "a")
    bench.clock.pass_seconds(3_600)
    assert await run(work, lease) == amount


async def test_a_lease_that_nobody_granted_is_refused(bench: Bench) -> None:
    forged = Lease(name="upkeep", holder="a", fence=1, expire_time_us=LATER)
    with pytest.raises(Aborted):
        await Work(bench).purge(forged)
    await taken(bench.store, "b")
    with pytest.raises(NotFound):
        await bench.store.purge(99, before_us=0, min_revisions=0, max_tombstones=1, lease=forged)


# -- nodes ------------------------------------------------------------------------------------------------


def node(node_id: str, name: str, **more: object) -> Node:
    values: dict[str, object] = {"addresses": ("h:1", "unix:/a b"), "version": "1.0", "start_time_us": 7}
    return Node(node_id=node_id, name=name, **(values | more))  # type: ignore[arg-type]


async def test_nodes_tell_about_themselves_until_they_are_removed(bench: Bench) -> None:
    store, start_us = bench.store, bench.clock.us
    assert await store.list_nodes() == []
    await store.report_node(node("2", "b", report_time_us=LATER))
    await store.report_node(node("1", "Ä", addresses=()))
    bench.clock.pass_seconds(5)
    await store.report_node(node("0", "b", lag_us=1 << 40))
    now_us = start_us + 5_000_000
    expected = [
        node("0", "b", lag_us=1 << 40, report_time_us=now_us),
        node("2", "b", report_time_us=start_us),
        node("1", "Ä", addresses=(), report_time_us=start_us),
    ]
    assert list(await store.list_nodes()) == expected, "ordered as bytes, with the store's time"
    assert list(await store.list_nodes(reported_since_us=now_us)) == expected[:1]
    assert await store.list_nodes(reported_since_us=now_us + 1) == []
    await store.report_node(node("2", "c", version="2.0", lag_us=3))
    assert (await store.list_nodes())[1] == node("2", "c", version="2.0", lag_us=3, report_time_us=now_us)
    await store.remove_node("2")
    await store.remove_node("2")
    assert [n.node_id for n in await store.list_nodes()] == ["0", "1"]


async def test_what_processes_share_outlives_each_of_them(backend: Backend) -> None:
    """Of a store that one process has open, nothing is left to guard when it is closed: the next one may begin at once."""
    async with backend.open() as store:
        await store.report_node(node("1", "a"))
        lease = await taken(store, "a")
        alone = store.info.kind == "sqlite"
    async with backend.open() as store:
        assert [n.node_id for n in await store.list_nodes()] == ([] if alone else ["1"])
        assert ((await acquire(store, "b")) is None) is not alone
        backend.clock.pass_seconds(15)
        assert (await taken(store, "b")).fence == (1 if alone else lease.fence + 1)
