"""Replicas that report, and what range digests and heads are made of."""

from dataclasses import replace
from hashlib import blake2b

import pytest

from support.store_values import Bench, request
from syncline_server.errors import NotFound
from syncline_server.model import Replica

LATER = 1 << 60


def _report(bench: Bench, name: str, revision: int, *, time_us: int = 1_000) -> Replica:
    return Replica(
        dataset_number=bench.dataset.number,
        replica_id=name,
        key_id="k",
        revision=revision,
        report_time_us=time_us,
    )


async def _replicas(bench: Bench, since_us: int = 0) -> list[tuple[str, int, int]]:
    found = await bench.store.list_replicas(bench.dataset.number, reported_since_us=since_us)
    return [(r.replica_id, r.revision, r.report_time_us) for r in found]


async def test_reports_never_go_back_except_to_the_beginning(bench: Bench) -> None:
    await bench.store.report_replicas([_report(bench, "b", 5), _report(bench, "a", 7)])
    assert await _replicas(bench) == [("b", 5, 1_000), ("a", 7, 1_000)]
    await bench.store.report_replicas([_report(bench, "a", 6, time_us=2_000), _report(bench, "b", 0)])
    assert await _replicas(bench) == [("b", 0, 1_000), ("a", 7, 2_000)]
    assert await _replicas(bench, since_us=1_500) == [("a", 7, 2_000)]


async def test_a_report_of_a_dataset_that_is_gone_is_passed_over(bench: Bench) -> None:
    gone = replace(_report(bench, "a", 1), dataset_number=bench.dataset.number + 100)
    await bench.store.report_replicas([gone, _report(bench, "b", 1)])
    assert await _replicas(bench) == [("b", 1, 1_000)]
    await bench.store.delete_dataset(bench.dataset.number, expected_generation=None)
    assert await _replicas(bench) == []


async def test_replicas_are_forgotten_by_name_and_by_age(bench: Bench) -> None:
    await bench.store.report_replicas([_report(bench, f"r{i}", i, time_us=1_000 * (1 + i)) for i in range(4)])
    identity = request("forget")
    await bench.store.delete_replica(bench.dataset.number, "r3", identity=identity)
    await bench.store.delete_replica(bench.dataset.number, "r3", identity=identity)
    with pytest.raises(NotFound, match="replica") as caught:
        await bench.store.delete_replica(bench.dataset.number, "r3")
    assert caught.value.reason == "REPLICA_NOT_FOUND"
    assert await bench.store.forget_replicas(before_us=2_500, limit=1) == 1
    assert await bench.store.forget_replicas(before_us=2_500, limit=5) == 1
    assert [name for name, _, _ in await _replicas(bench)] == ["r2"]


async def test_purge_waits_for_a_replica(bench: Bench) -> None:
    """F17: never beyond what a registered replica has."""
    await bench.put(["a", "b"])
    await bench.remove("a")
    await bench.remove("b")
    held = await bench.store.purge(
        bench.dataset.number, before_us=LATER, min_revisions=0, max_tombstones=10, not_beyond=2
    )
    assert (held.purge_revision, held.tombstones) == (2, 1)
    free = await bench.store.purge(bench.dataset.number, before_us=LATER, min_revisions=0, max_tombstones=10)
    assert (free.purge_revision, free.tombstones) == (3, 1)


async def test_entries_are_the_live_records_of_a_range_ordered_as_bytes(bench: Bench) -> None:
    await bench.put(["b", "Ä", "a", "c", "Z"])
    await bench.remove("b")
    await bench.put({"c": 2})
    number = bench.dataset.number
    every = await bench.store.list_entries(number, after="", limit=10)
    assert list(every.record_ids) == ["Z", "a", "c", "Ä"]
    assert list(every.revisions) == [1, 1, 3, 1]
    assert (every.more, every.revision) == (False, 3)
    copy = await bench.copy()
    assert list(every.hashes) == [blake2b(copy[r][1], digest_size=16).digest() for r in every.record_ids]
    part = await bench.store.list_entries(number, after="Z", through="c", limit=1)
    assert (list(part.record_ids), part.more) == (["a"], True)
    rest = await bench.store.list_entries(number, after="a", through="c", limit=1)
    assert (list(rest.record_ids), rest.more) == (["c"], False)
    none = await bench.store.list_entries(number, after="Ä", limit=1)
    assert (list(none.record_ids), none.more) == ([], False)
    assert await bench.store.count_entries(number, after="") == 4
    assert await bench.store.count_entries(number, after="Z", through="c") == 2
    for call in (bench.store.list_entries(99, after="", limit=1), bench.store.count_entries(99, after="")):
        with pytest.raises(NotFound):
            await call


async def test_heads_of_all_datasets(bench: Bench) -> None:
    await bench.put(["a"])
    ((name, incarnation, number, head),) = await bench.store.list_heads(limit=10)
    assert (name, incarnation, number) == (
        bench.dataset.dataset_id,
        bench.dataset.incarnation,
        bench.dataset.number,
    )
    assert head == await bench.head()
    assert await bench.store.list_heads(after=name, limit=10) == []


async def test_times_of_revisions(bench: Bench) -> None:
    times = []
    for name in "abc":
        bench.clock.pass_seconds(1)
        await bench.put([name])
        times.append((await bench.head()).commit_time_us)
    number = bench.dataset.number
    assert list(await bench.store.revision_times(number, [3, 1, 2])) == [times[2], times[0], times[1]]
    await bench.store.purge(number, before_us=LATER, min_revisions=1, max_tombstones=10)
    assert list(await bench.store.revision_times(number, [1, 3])) == [times[1], times[2]], (
        "the oldest one kept"
    )
    assert await bench.store.revision_times(number, []) == []
