"""Producers: epochs, fencing, and numbers that are used once."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.store_values import BACKENDS, Backend, Bench, SqliteBackend, request, upserts
from syncline_server.errors import FailedPrecondition, NotFound, OutOfRange, SynclineError
from syncline_server.model import Commit, Producer, ProducerWrite, Upserts
from syncline_server.store.sqlite.fsck import fsck

NOTHING = Upserts(record_ids=(), data=(), hashes=())


async def opened(bench: Bench, producer_id: str = "p", **how: object) -> Producer:
    return (await bench.store.open_producer(bench.source.number, producer_id, **({"epoch": 0} | how)))[0]


def numbered(producer: Producer, first: int, last: int) -> ProducerWrite:
    return ProducerWrite(
        producer_number=producer.number, epoch=producer.epoch, first_sequence=first, last_sequence=last
    )


def readings(bench: Bench, producer: Producer, first: int, last: int, **more: object) -> Commit:
    write = upserts([f"{producer.producer_id}-{sequence}" for sequence in range(first, last + 1)])
    return bench.commit(write, producer=numbered(producer, first, last), **more)


async def send(bench: Bench, producer: Producer, first: int, last: int, **more: object) -> object:
    result = (await bench.group(readings(bench, producer, first, last, **more))).results[0]
    if isinstance(result, SynclineError):
        raise result
    return result


async def test_g05_an_opening_that_arrives_again_begins_no_epoch(bench: Bench) -> None:
    """Hazard F50: the first attempt may arrive after the second one, whose answer was heard; it must not fence that."""
    first = await opened(bench, identity=request("opening"))
    await send(bench, first, 1, 2)
    again = await opened(bench, identity=request("opening"))
    assert (again.epoch, again.last_sequence) == (first.epoch, 2)
    newer = await opened(bench, identity=request("another"))
    assert newer.epoch == first.epoch + 1
    with pytest.raises(FailedPrecondition) as fenced:
        await opened(bench, identity=request("opening"))
    assert fenced.value.reason == "PRODUCER_FENCED"
    assert (await opened(bench, identity=request("another"))).epoch == newer.epoch


async def test_opening_makes_a_producer_and_counts_epochs(bench: Bench) -> None:
    store, number = bench.store, bench.source.number
    producer = await opened(bench)
    assert producer.epoch == bench.clock.us // 1_000
    assert (producer.last_sequence, producer.last_received_us) == (0, None)
    assert (producer.create_time_us, producer.open_time_us) == (bench.clock.us, bench.clock.us)
    assert (producer.dataset_id, producer.source_id, producer.source_number) == ("books", "default", number)
    again = await opened(bench)
    assert again == replace(producer, epoch=producer.epoch + 1)
    bench.clock.pass_seconds(5)
    third = await opened(bench)
    assert third.epoch == bench.clock.us // 1_000
    assert third.create_time_us == producer.create_time_us
    assert third.open_time_us == bench.clock.us
    bench.clock.pass_seconds(-1_000)
    assert (await opened(bench)).epoch == third.epoch + 1, "a clock that jumps back uses no epoch twice"
    await opened(bench, "a")
    await opened(bench, "q")
    assert [p.producer_id for p in await store.list_producers(number, limit=2)] == ["a", "p"]
    assert [p.producer_id for p in await store.list_producers(number, after="p", limit=9)] == ["q"]
    other = await bench.second_source()
    assert await store.list_producers(other.source.number, limit=9) == []


async def test_opening_is_refused(bench: Bench) -> None:
    store = bench.store
    with pytest.raises(NotFound) as gone:
        await store.open_producer(99, "p", epoch=0)
    assert gone.value.reason == "SOURCE_NOT_FOUND"
    with pytest.raises(FailedPrecondition) as unknown:
        await opened(bench, epoch=1)
    assert unknown.value.reason == "PRODUCER_FENCED"
    await store.update_source(replace(bench.source, disabled=True), expected_generation=1)
    with pytest.raises(FailedPrecondition) as disabled:
        await opened(bench)
    assert disabled.value.reason == "SOURCE_DISABLED"
    assert await store.list_producers(bench.source.number, limit=9) == []


async def test_a_dry_run_opens_nothing(bench: Bench) -> None:
    planned, came_to = await bench.store.open_producer(bench.source.number, "p", epoch=0, dry_run=True)
    assert (planned.producer_id, planned.epoch, came_to) == ("p", bench.clock.us // 1_000, 0)
    assert await bench.store.list_producers(bench.source.number, limit=9) == []
    first = await opened(bench)
    await send(bench, first, 1, 2)
    planned, came_to = await bench.store.open_producer(
        bench.source.number, "p", epoch=0, previous_epoch=first.epoch, dry_run=True
    )
    assert (planned.epoch, came_to) == (first.epoch + 1, 2)
    await send(bench, first, 3, 3)


async def test_g5_numbers_are_used_once(bench: Bench) -> None:
    """T25: a repeat has no effect, a gap and a partial repeat are refused with what is expected."""
    producer = await opened(bench)
    first = await send(bench, producer, 1, 3)
    assert (first.revision, first.created, first.replayed) == (1, 3, False)
    for begin, end in ((1, 3), (1, 1), (2, 3)):
        repeat = await send(bench, producer, begin, end)
        assert (repeat.revision, repeat.changed, repeat.replayed, repeat.statuses) == (1, False, True, b"")
    for begin, end in ((5, 5), (3, 4), (1, 9), (9, 9)):
        with pytest.raises(OutOfRange) as gap:
            await send(bench, producer, begin, end)
        assert (gap.value.reason, gap.value.metadata["expected"]) == ("SEQUENCE_GAP", "4")
    assert (await send(bench, producer, 4, 4)).revision == 2
    assert (await bench.store.get_producer(bench.source.number, "p")).last_sequence == 4


async def test_g5_numbers_move_within_a_group(bench: Bench) -> None:
    """T25: commits of one group see each other; what one refuses leaves the others alone."""
    one, two = await opened(bench, "one"), await opened(bench, "two")
    group = await bench.group(
        readings(bench, one, 1, 2),
        readings(bench, two, 1, 1),
        readings(bench, one, 1, 2),
        readings(bench, one, 4, 4),
        readings(bench, one, 3, 3),
        readings(bench, two, 2, 2, generation=99),
    )
    results = group.results
    assert [type(r) for r in results] == [type(results[0])] * 3 + [
        OutOfRange,
        type(results[0]),
        type(results[5]),
    ]
    assert [results[i].replayed for i in (0, 1, 2, 4)] == [False, False, True, False]
    assert isinstance(results[5], SynclineError)
    listed = await bench.store.list_producers(bench.source.number, limit=9)
    assert [(p.producer_id, p.last_sequence) for p in listed] == [("one", 3), ("two", 1)]
    assert (await bench.head()).revision == 3


async def test_refused_readings_use_up_their_numbers(bench: Bench) -> None:
    """A commit of nothing moves the numbers and the times, and makes no revision."""
    producer = await opened(bench)
    bench.clock.pass_seconds(7)
    result = (await bench.group(bench.commit(NOTHING, producer=numbered(producer, 1, 5)))).results[0]
    assert (result.revision, result.changed, result.replayed) == (0, False, False)
    heard = await bench.store.get_producer(bench.source.number, "p")
    assert (heard.last_sequence, heard.last_received_us) == (5, bench.clock.us)
    bench.clock.pass_seconds(7)
    await send(bench, producer, 4, 5)
    assert (await bench.store.get_producer(bench.source.number, "p")) == heard, "a repeat is no reading"
    source = await bench.store.get_source("books", "default")
    assert source.last_received_us == heard.last_received_us


async def test_unchanged_readings_count_as_received(bench: Bench) -> None:
    producer = await opened(bench)
    await bench.put(["p-1"])
    bench.clock.pass_seconds(3)
    assert not (await send(bench, producer, 1, 1)).changed
    assert (await opened(bench, epoch=producer.epoch)).last_received_us == bench.clock.us


async def test_g6_a_newer_epoch_fences_the_older(bench: Bench) -> None:
    old = await opened(bench)
    await send(bench, old, 1, 2)
    new = await opened(bench)
    assert new.last_sequence == 2, "numbers go on over epochs"
    for first, last in ((3, 3), (1, 2)):
        with pytest.raises(FailedPrecondition) as fenced:
            await send(bench, old, first, last)
        assert fenced.value.reason == "PRODUCER_FENCED"
    with pytest.raises(FailedPrecondition):
        await opened(bench, epoch=old.epoch)
    assert await opened(bench, epoch=new.epoch) == new
    await send(bench, new, 3, 3)


async def test_how_far_an_earlier_epoch_came(bench: Bench) -> None:
    async def came_to(previous_epoch: int, epoch: int = 0) -> int:
        number = bench.source.number
        return (await bench.store.open_producer(number, "p", epoch=epoch, previous_epoch=previous_epoch))[1]

    first = await opened(bench)
    await send(bench, first, 1, 4)
    assert await came_to(first.epoch, epoch=first.epoch) == 4
    second = await opened(bench, previous_epoch=first.epoch)
    await send(bench, second, 5, 6)
    third = await opened(bench)
    await send(bench, third, 7, 7)
    assert [await came_to(p.epoch) for p in (first, second, third)] == [4, 6, 7]
    assert await came_to(first.epoch) == 4, "asked again after a lost answer"
    assert await came_to(12345) == 0, "an epoch that is not known"


async def test_deleted_producers_are_fenced_and_begin_anew(bench: Bench) -> None:
    store, number = bench.store, bench.source.number
    producer = await opened(bench)
    await send(bench, producer, 1, 2)
    await store.delete_producer(number, "p", identity=request("r"))
    await store.delete_producer(number, "p", identity=request("r"))
    for lost in (store.get_producer(number, "p"), store.delete_producer(number, "p")):
        with pytest.raises(NotFound) as gone:
            await lost
        assert gone.value.reason == "PRODUCER_NOT_FOUND"
    assert await store.list_producers(number, limit=9) == []
    for again in (send(bench, producer, 3, 3), opened(bench, epoch=producer.epoch)):
        with pytest.raises(FailedPrecondition) as fenced:
            await again
        assert fenced.value.reason == "PRODUCER_FENCED"
    bench.clock.pass_seconds(-3_600)
    anew = await opened(bench, previous_epoch=producer.epoch)
    assert anew.epoch > producer.epoch, "no epoch is used twice, also after a delete"
    assert (anew.last_sequence, anew.last_received_us) == (0, None)
    assert anew.number != producer.number
    assert (await send(bench, anew, 1, 1)).changed is False, "what was written stays"


async def test_producers_go_with_their_source(bench: Bench) -> None:
    other = await bench.second_source()
    producer = await opened(other)
    await send(other, producer, 1, 1)
    await bench.store.delete_source(other.source, expected_generation=None)
    with pytest.raises(NotFound) as gone:
        await send(other, producer, 2, 2)
    assert gone.value.reason == "SOURCE_NOT_FOUND"
    mine = await opened(bench)
    await bench.store.delete_dataset(bench.dataset.number, expected_generation=None)
    with pytest.raises(NotFound):
        await send(bench, mine, 1, 1)


async def test_a_repeat_is_answered_while_the_source_is_disabled(bench: Bench) -> None:
    producer = await opened(bench)
    await send(bench, producer, 1, 2)
    await bench.store.update_source(replace(bench.source, disabled=True), expected_generation=1)
    assert (await send(bench, producer, 1, 2)).replayed
    with pytest.raises(FailedPrecondition) as disabled:
        await send(bench, producer, 3, 3)
    assert disabled.value.reason == "SOURCE_DISABLED"
    assert (await bench.store.get_producer(bench.source.number, "p")).last_sequence == 2


async def test_expect_every_is_kept(bench: Bench) -> None:
    store = bench.store
    assert bench.source.expect_every_us is None
    wanted = replace(bench.source, expect_every_us=5_000_000)
    assert (await store.update_source(wanted, expected_generation=1)).expect_every_us == 5_000_000
    made = await store.create_source(replace(wanted, number=0, source_id="made"))
    assert (await store.get_source("books", "made")) == made
    assert made.expect_every_us == 5_000_000
    cleared = await store.update_source(bench.source, expected_generation=2)
    assert cleared.expect_every_us is None


async def test_producers_survive(durable: Backend) -> None:
    async with durable.open() as store:
        bench = await Bench.make(store, durable.clock)
        producer = await opened(bench)
        await send(bench, producer, 1, 3)
    async with durable.open() as store:
        bench.store = store
        assert (await store.get_producer(bench.source.number, "p")).last_sequence == 3
        assert (await send(bench, producer, 2, 3)).replayed
        await send(bench, producer, 4, 4)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE producer SET epoch = epoch + 1", "producer whose newest epoch is not its own"),
        ("DELETE FROM producer_epoch", "producer whose newest epoch is not its own"),
        ("UPDATE producer_epoch SET base_sequence = 9", "epoch that began beyond the one after it"),
        ("UPDATE producer SET source_number = 99", "refers to a row of source that is not there"),
    ],
)
async def test_t16_fsck_finds_damaged_producers(tmp_path: Path, damage: str, problem: str) -> None:
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await send(bench, await opened(bench), 1, 3)
        await opened(bench)
    backend.check()
    with closing(sqlite3.connect(backend.path)) as connection:
        connection.execute(damage)
        connection.commit()
    assert any(problem in found for found in fsck(backend.path).problems)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("send"), st.sampled_from("ab"), st.tuples(st.integers(-3, 2), st.integers(1, 3))),
        st.tuples(st.just("old"), st.sampled_from("ab"), st.integers(1, 3)),
        st.tuples(st.just("delete"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("clock"), st.just("a"), st.integers(-5, 5)),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(actions=ACTIONS)
def test_g5_g6_against_a_dictionary(
    actions: list[tuple[str, str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """T25, T26: whatever is sent, repeated or skipped, in whichever epoch, each number counts once."""
    asyncio.run(_against_a_dictionary(BACKENDS["sqlite"](tmp_path_factory.mktemp("model")), actions))


async def _against_a_dictionary(backend: Backend, actions: list[tuple[str, str, object]]) -> None:
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        now: dict[str, tuple[Producer, int]] = {}
        old: list[Producer] = []
        used: set[tuple[str, int]] = set()
        for what, name, how in actions:
            if what == "clock":
                backend.clock.pass_seconds(how)
            elif what == "open":
                producer = await opened(bench, name)
                assert (name, producer.epoch) not in used
                used.add((name, producer.epoch))
                if name in now:
                    old.append(now[name][0])
                last = now[name][1] if name in now else 0
                assert producer.last_sequence == last
                now[name] = (producer, last)
            elif what == "delete" and name in now:
                await store.delete_producer(bench.source.number, name)
                old.append(now.pop(name)[0])
            elif what == "old" and old:
                with pytest.raises(FailedPrecondition):
                    await send(bench, old[-1], how, how)
            elif what == "send" and name in now:
                producer, last = now[name]
                first = max(1, last + 1 + how[0])
                final = first + how[1] - 1
                if first == last + 1:
                    assert not (await send(bench, producer, first, final)).replayed
                    now[name] = (producer, final)
                elif final <= last:
                    assert (await send(bench, producer, first, final)).replayed
                else:
                    with pytest.raises(OutOfRange) as gap:
                        await send(bench, producer, first, final)
                    assert gap.value.metadata["expected"] == str(last + 1)
    backend.check()
