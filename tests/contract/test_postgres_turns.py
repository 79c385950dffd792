"""Groups of one dataset, one behind the other: the next is worked out while the first one is on its way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from support.postgres_strangers import stranger, waiting_for_a_lock
from support.store_values import Bench, PostgresBackend, deletes, request, upserts
from syncline_server.errors import SynclineError, Unavailable
from syncline_server.model import Commit, ProducerWrite, SessionMode
from syncline_server.store.abc import Contended, GroupResult
from syncline_server.store.postgres import group

pytestmark = pytest.mark.only_store("postgres", reason="SQLite writes one group at a time")


@dataclass(kw_only=True)
class Held:
    """A dataset that a stranger holds, so that a group stays on its way."""

    bench: Bench
    backend: PostgresBackend
    stranger: Any
    watcher: Any
    looks: list[Any] = field(default_factory=list)
    transaction: Any = None

    async def hold(self) -> None:
        self.transaction = self.stranger.transaction()
        await self.transaction.start()
        await self.stranger.execute("SELECT 1 FROM head FOR UPDATE")

    async def let_go(self) -> None:
        await self.transaction.rollback()

    async def send(self, *commits: Commit) -> "asyncio.Task[GroupResult]":
        """Give the store a group; return when it was sent, and waits for the lock."""
        sent = asyncio.Event()
        task = asyncio.create_task(self.bench.group(*commits, sent=sent.set))
        await asyncio.wait_for(sent.wait(), 10)
        await waiting_for_a_lock(self.watcher, 1)
        return task

    async def follow(self, *commits: Commit) -> "asyncio.Task[GroupResult]":
        """Give the store another group; return when it has looked for what it needs."""
        looks = len(self.looks)
        task = asyncio.create_task(self.bench.group(*commits, sent=lambda: None))
        async with asyncio.timeout(10):
            while len(self.looks) == looks:
                await asyncio.sleep(0.001)
        return task


@pytest.fixture
async def held(durable: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Held]:
    async with durable.open() as store, stranger(durable) as other, stranger(durable) as watcher:
        place = Held(
            bench=await Bench.make(store, durable.clock), backend=durable, stranger=other, watcher=watcher
        )
        look = group.look

        async def counted(*args: Any, **named: Any) -> Any:
            seen = await look(*args, **named)
            place.looks.append(seen)
            return seen

        monkeypatch.setattr(group, "look", counted)
        yield place


def told(done: GroupResult) -> Sequence[Any]:
    return [
        result
        if isinstance(result, SynclineError)
        else (result.revision, bytes(result.statuses), result.replayed)
        for result in done.results
    ]


async def test_a_group_is_worked_out_on_top_of_the_one_before(held: Held) -> None:
    """Records, answers, calls of a session and readings of a producer: all are as they will be, and looked up once."""
    bench = held.bench
    await bench.put({"old": 1})
    session = await bench.open(SessionMode.STREAM)
    producer, _ = await bench.store.open_producer(bench.source.number, "p", epoch=0)

    def call(number: int, write: Any) -> Commit:
        return bench.commit(write, session_id=session.session_id, sequence=number)

    def readings(first: int, write: Any) -> Commit:
        numbers = ProducerWrite(
            producer_number=producer.number, epoch=producer.epoch, first_sequence=first, last_sequence=first
        )
        return bench.commit(write, producer=numbers)

    held.looks.clear()
    await held.hold()
    first = await held.send(
        bench.commit(upserts({"a": 1, "b": 1, "old": 2}), identity=request("r")),
        call(1, upserts({"s": 1})),
        readings(1, upserts({"p": 1})),
    )
    second = await held.follow(
        bench.commit(upserts({"a": 1, "b": 1, "old": 2}), identity=request("r")),
        bench.commit(upserts({"a": 1, "b": 2, "c": 1})),
        bench.commit(deletes("old", "never")),
        call(1, upserts({"s": 1})),
        call(2, upserts({"s": 2})),
        readings(1, upserts({"p": 9})),
        readings(2, upserts({"p": 2})),
    )
    await held.let_go()
    assert told(await first) == [(2, b"\1\1\2", False), (3, b"\1", False), (4, b"\1", False)]
    assert told(await second) == [
        (2, b"\1\1\2", True),
        (5, b"\3\2\1", False),
        (6, b"\4\5", False),
        (3, b"\1", True),
        (7, b"\2", False),
        (7, b"", True),
        (8, b"\2", False),
    ]
    assert len(held.looks) == 2
    assert {key: revision for key, (revision, _) in (await bench.copy()).items()} == {
        "a": 2,
        "b": 5,
        "c": 5,
        "p": 8,
        "s": 7,
    }


async def test_what_came_to_nothing_is_not_built_upon(held: Held) -> None:
    """F50: the connection of the first one is broken; the one behind it is worked out anew."""
    bench = held.bench
    await held.hold()
    first = await held.send(bench.commit(upserts({"a": 1, "b": 1})))
    second = await held.follow(bench.commit(upserts({"a": 1})), bench.commit(upserts({"b": 1}), dry_run=True))
    (waiting,) = await held.watcher.fetch(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    await held.watcher.fetchval("SELECT pg_terminate_backend($1)", waiting["pid"])
    with pytest.raises(Unavailable):
        await first
    await held.let_go()
    assert told(await second) == [(1, b"\1", False), (1, b"\1", False)]
    assert set(await bench.copy()) == {"a"}


async def test_t19_another_node_may_come_between(held: Held) -> None:
    """T19: what it wrote is seen, and revisions have no gaps."""
    bench = held.bench
    async with held.backend.open() as store:
        other = replace(bench, store=store)
        await held.hold()
        first = await held.send(bench.commit(upserts({"a": 1})))
        between = asyncio.create_task(other.put({"a": 2, "x": 1}))
        await waiting_for_a_lock(held.watcher, 2)
        second = await held.follow(bench.commit(upserts({"a": 2})))
        await held.let_go()
        results = [*(await first).results, await between, *(await second).results]
        revisions = [result.revision for result in results if result.changed]
        assert sorted(revisions) == list(range(1, len(revisions) + 1))
        assert results[0].revision == 1, "it was there first"
        copy = await bench.copy()
        assert copy == await other.copy()
        assert copy["a"][1] == upserts({"a": 2}).data[0]


async def test_a_session_waits_for_its_turn(held: Held) -> None:
    """The commits of a dataset keep their order, whatever kind they are."""
    bench = held.bench
    session = await bench.open(SessionMode.ACCRUE)
    await bench.stage(session, upserts({"a": "session"}))
    await held.hold()
    first = await held.send(bench.commit(upserts({"a": 1})))
    close = asyncio.create_task(bench.close(session, 1))
    await asyncio.sleep(0.05)
    await held.let_go()
    assert told(await first) == [(1, b"\1", False)]
    assert (await close).revision == 2


async def test_who_shares_a_group_does_not_wait_for_long(held: Held) -> None:
    """T83: a group of several datasets, one of which is held up."""
    bench = held.bench
    other = await Bench.make(bench.store, bench.clock, dataset_id="other")
    await held.hold()
    first = await held.send(bench.commit(upserts({"a": 1})))
    with pytest.raises(Contended):
        await bench.group(bench.commit(upserts({"a": 2})), other.commit(upserts({"a": 2})))
    await held.let_go()
    assert told(await first) == [(1, b"\1", False)]
