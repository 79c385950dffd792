"""Commits: verdicts, revisions, groups, identities."""

import asyncio
from dataclasses import replace

import pytest

from support.store_values import Bench, body, deletes, request, upserts
from syncline_server.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from syncline_server.model import (
    Condition,
    Identity,
    IdentityKind,
    RecordScope,
    SessionMode,
    Status,
)
from syncline_server.store.abc import Store

CREATED, UPDATED, UNCHANGED, DELETED, NOT_FOUND, CONFLICT = (
    Status.CREATED,
    Status.UPDATED,
    Status.UNCHANGED,
    Status.DELETED,
    Status.NOT_FOUND,
    Status.CONFLICT,
)


@pytest.mark.on_both
async def test_g3_revisions_are_contiguous_and_only_for_changes(bench: Bench) -> None:
    assert (await bench.put(["a", "b"])).revision == 1
    result = await bench.put({"a": 1, "b": 2, "c": 1})
    assert (result.revision, result.changed) == (2, True)
    assert list(result.statuses) == [UNCHANGED, UPDATED, CREATED]
    assert (result.created, result.updated, result.unchanged, result.deleted) == (1, 1, 1, 0)
    nothing = await bench.put({"a": 1, "b": 2})
    assert (nothing.revision, nothing.changed, list(nothing.statuses)) == (2, False, [UNCHANGED] * 2)
    gone = await bench.remove("b", "nothing")
    assert (gone.revision, list(gone.statuses)) == (3, [DELETED, NOT_FOUND])
    assert (await bench.remove("b")).changed is False
    assert (await bench.head()).revision == 3


@pytest.mark.on_both
async def test_t34_unchanged_is_by_bytes(bench: Bench) -> None:
    """T34: equal content makes no revision and no event; 1, 1.0 and true are three values."""
    await bench.put({"a": 1})
    before = await bench.page()
    assert not (await bench.put({"a": 1})).changed
    assert await bench.page() == before
    for revision, value in enumerate(("1.0", "true", "1"), 2):
        assert (await bench.put({"a": value})).revision == revision


async def test_a_record_that_comes_back_is_new(bench: Bench) -> None:
    await bench.put(["a"])
    bench.clock.pass_seconds(1)
    await bench.put({"a": 2})
    first = (await bench.store.get_records(bench.dataset.number, ["a"], max_bytes=99))[0][0]
    assert first.update_time_us - first.create_time_us == 1_000_000
    bench.clock.pass_seconds(1)
    await bench.group(bench.commit(deletes("a")), bench.commit(upserts({"a": 2})))
    again = (await bench.store.get_records(bench.dataset.number, ["a"], max_bytes=99))[0][0]
    assert (again.create_time_us, again.revision) == (bench.clock.us, 4)


@pytest.mark.on_both
async def test_each_commit_of_a_group_has_its_own_verdict(bench: Bench) -> None:
    """T29 on store level: what is refused leaves nothing behind and takes nothing along."""
    await bench.put({"a": 1})
    condition = {0: Condition(if_absent=True)}
    group = await bench.group(
        bench.commit(upserts({"a": 2})),
        bench.commit(upserts(["a", "x"], conditions=condition)),
        bench.commit(upserts(["y"]), generation=9),
        bench.commit(upserts(["y"]), dataset_number=99),
        bench.commit(upserts(["y"]), source_number=99),
        bench.commit(deletes("a")),
        bench.commit(upserts(["b"])),
    )
    results = group.results
    assert [type(r) for r in results[1:5]] == [Aborted, Aborted, NotFound, NotFound]
    assert [r.reason for r in results[1:5]] == [
        "CONDITION_FAILED",
        "DATASET_CHANGED",
        "DATASET_NOT_FOUND",
        "SOURCE_NOT_FOUND",
    ]
    assert [results[i].revision for i in (0, 5, 6)] == [2, 3, 4]
    assert await bench.copy() == {"b": (4, body("b"))}


@pytest.mark.on_both
async def test_what_a_group_added_is_told_once_without_what_was_superseded(bench: Bench) -> None:
    other = await Bench.make(bench.store, bench.clock, dataset_id="other")
    group = await bench.group(
        bench.commit(upserts({"a": 1, "b": 1})),
        other.commit(upserts(["z"])),
        bench.commit(upserts({"a": 2})),
        bench.commit(deletes("b")),
    )
    told = {one.dataset_number: one for one in group.appended}
    mine = told[bench.dataset.number]
    assert (mine.from_revision, mine.head) == (0, await bench.head())
    assert mine.changes == (await bench.page()).changes
    assert mine.changes is not None
    assert list(mine.changes.record_ids) == ["a", "b"]
    assert list(mine.changes.revisions) == [2, 3]
    assert list(mine.changes.kinds) == [1, 2]
    assert told[other.dataset.number].changes == (await other.page()).changes
    assert (await bench.group(bench.commit(upserts({"a": 2})))).appended == []
    many = await bench.group(bench.commit(upserts(["c", "d", "e"])), carry_changes=2)
    assert (many.appended[0].changes, many.appended[0].head) == (None, await bench.head())


async def test_a_disabled_source_refuses(bench: Bench) -> None:
    await bench.put(["a"])
    await bench.store.update_source(replace(bench.source, disabled=True), expected_generation=1)
    for refused in (bench.put(["b"]), bench.remove("a"), bench.open()):
        with pytest.raises(FailedPrecondition) as raised:
            await refused
        assert raised.value.reason == "SOURCE_DISABLED"
    assert set(await bench.copy()) == {"a"}


@pytest.mark.on_both
async def test_conditions_hold_inside_the_transaction(bench: Bench) -> None:
    await bench.put(["a", "b"])
    await bench.put({"a": 2})
    await bench.remove("b")
    good = {
        0: Condition(if_revision=2),
        1: Condition(if_absent=True),
        2: Condition(if_absent=True),
    }
    result = await bench.write(upserts({"a": 3, "b": 3, "c": 3}, conditions=good))
    assert list(result.statuses) == [UPDATED, CREATED, CREATED]
    bad = {
        0: Condition(if_revision=2),
        1: Condition(if_absent=True),
        3: Condition(if_revision=1),
    }
    write = upserts({"a": 4, "b": 4, "c": 4, "new": 4}, conditions=bad)
    with pytest.raises(Aborted) as raised:
        await bench.write(write)
    assert raised.value.reason == "CONDITION_FAILED"
    assert [(v.index, v.keyword) for v in raised.value.violations] == [
        (0, "if_revision"),
        (1, "if_absent"),
        (3, "if_revision"),
    ]
    assert (await bench.head()).revision == 4
    partial = await bench.write(write, partial=True)
    assert list(partial.statuses) == [CONFLICT, CONFLICT, UPDATED, CONFLICT]
    assert "new" not in await bench.copy()


@pytest.mark.on_both
async def test_shared_records_go_to_whoever_wrote_them_last(bench: Bench) -> None:
    other = await bench.second_source()
    await bench.put(["a", "b", "c"])
    before = await bench.page()
    assert not (await other.put(["a", "b"])).changed
    assert await bench.page() == before, "no event for a change of owner"
    records, _, _ = await bench.store.get_records(bench.dataset.number, ["a", "b", "c"], max_bytes=9999)
    assert {r.record_id: r.source_id for r in records} == {"a": "other", "b": "other", "c": "default"}
    assert list((await bench.remove("a")).statuses) == [DELETED]


async def test_per_source_records_belong_to_their_source(store: Store, backend) -> None:
    bench = await Bench.make(store, backend.clock, record_scope=RecordScope.PER_SOURCE)
    other = await bench.second_source()
    await bench.put(["default/a"])
    await other.put(["other/a"])
    assert list((await other.remove("default/a", "other/a")).statuses) == [NOT_FOUND, DELETED]
    assert set(await bench.copy()) == {"default/a"}


@pytest.mark.on_both
async def test_last_received_is_set_even_when_nothing_changed(bench: Bench) -> None:
    await bench.put(["a"])
    bench.clock.pass_seconds(5)
    await bench.put(["a"])
    found = await bench.store.get_source("books", "default")
    assert found.last_received_us == bench.clock.us
    bench.clock.pass_seconds(5)
    with pytest.raises(Aborted):
        await bench.put(["b"], generation=7)
    assert await bench.store.get_source("books", "default") == found


async def test_commit_times_never_go_back(bench: Bench) -> None:
    """T92 on store level: a clock that jumps back makes no earlier commit."""
    await bench.put(["a"])
    first = (await bench.head()).commit_time_us
    bench.clock.pass_seconds(-3_600)
    await bench.put(["b"])
    assert (await bench.head()).commit_time_us == first


async def test_a_dry_run_tells_and_does_nothing(bench: Bench) -> None:
    await bench.put(["a"])
    page, found = await bench.page(), await bench.store.get_source("books", "default")
    bench.clock.pass_seconds(1)
    result = await bench.write(upserts({"a": 2, "b": 1}), dry_run=True, identity=request("r"))
    assert (list(result.statuses), result.revision, result.changed) == ([UPDATED, CREATED], 1, True)
    assert list((await bench.remove("a", dry_run=True)).statuses) == [DELETED]
    assert await bench.page() == page
    assert await bench.store.get_source("books", "default") == found
    assert await bench.store.find_answer(request("r")) is None
    with pytest.raises(Aborted):
        await bench.write(upserts(["a"], conditions={0: Condition(if_absent=True)}), dry_run=True)


# -- identities -------------------------------------------------------------------------------------------


@pytest.mark.on_both
async def test_t20_a_retry_gets_the_first_answer(bench: Bench) -> None:
    """T20, G5."""
    first = await bench.put({"a": 1, "b": 1}, identity=request("r"))
    await bench.put({"a": 2})
    again = await bench.put({"a": 1, "b": 1}, identity=request("r"))
    assert again == replace(first, replayed=True)
    assert await bench.store.find_answer(request("r")) == again
    assert (await bench.copy())["a"] == (2, body("a", 2))
    assert await bench.store.find_answer(request("unknown")) is None


async def test_t24_a_late_retry_does_not_undo_what_came_after(bench: Bench) -> None:
    """T24: v1 (answer lost), v2 by another, retry of v1: v2 stays."""
    await bench.put({"a": 1}, identity=request("first"))
    await bench.put({"a": 2}, identity=request("second"))
    assert (await bench.put({"a": 1}, identity=request("first"))).replayed
    assert (await bench.copy())["a"][1] == body("a", 2)


async def test_t22_the_same_id_for_another_request_is_refused(bench: Bench) -> None:
    """T22."""
    await bench.put(["a"], identity=request("r"))
    for question in (
        bench.put(["b"], identity=request("r", b"other")),
        bench.store.find_answer(request("r", b"other")),
    ):
        with pytest.raises(InvalidArgument) as raised:
            await question
        assert raised.value.reason == "REQUEST_ID_REUSED"
    assert set(await bench.copy()) == {"a"}


@pytest.mark.on_both
async def test_t23_one_effect_of_fifty_at_once(bench: Bench) -> None:
    """T23: in one group and over several."""
    commit = bench.commit(upserts(["a"]), identity=request("r"))
    groups = await asyncio.gather(*(bench.group(*[commit] * 10) for _ in range(5)))
    results = [result for group in groups for result in group.results]
    assert [result.revision for result in results] == [1] * 50
    assert sum(not result.replayed for result in results) == 1
    assert (await bench.head()).revision == 1


@pytest.mark.on_both
async def test_a_refused_request_may_be_sent_again(bench: Bench) -> None:
    """G4: rejected means no effect, so the identity is free."""
    refused = upserts(["a"], conditions={0: Condition(if_revision=1)})
    group = await bench.group(
        bench.commit(refused, identity=request("r")), bench.commit(upserts(["a"]), identity=request("r"))
    )
    assert isinstance(group.results[0], Aborted)
    assert (group.results[1].revision, group.results[1].replayed) == (1, False)


async def test_the_answer_under_append_has_the_ids(store: Store, backend) -> None:
    bench = await Bench.make(store, backend.clock, identity=Identity(kind=IdentityKind.APPEND))
    first = await bench.put(["id-1", "id-2"], identity=request("r"))
    assert first.record_ids == ()
    again = await bench.put(["id-3", "id-4"], identity=request("r"))
    assert (again.replayed, again.record_ids) == (True, ("id-1", "id-2"))
    assert set(await bench.copy()) == {"id-1", "id-2"}


async def test_t21_identities_are_forgotten_in_their_time(bench: Bench) -> None:
    """T21: at least 24 hours past the time in the id and the time of receipt, whichever is later."""
    hour = 3_600_000_000
    await bench.put(["a"], identity=request("now"))
    await bench.put(["b"], identity=request("ahead", time_us=bench.clock.us + hour))
    assert await bench.store.forget_requests(before_us=bench.clock.us + 24 * hour, limit=10) == 0
    later = bench.clock.us + 26 * hour
    assert await bench.store.forget_requests(before_us=later, limit=1) == 1
    assert await bench.store.find_answer(request("now")) is None
    assert await bench.store.find_answer(request("ahead")) is not None
    assert await bench.store.forget_requests(before_us=later + hour, limit=10) == 1
    assert await bench.store.forget_requests(before_us=later + hour, limit=10) == 0


@pytest.mark.parametrize("size", [1, 2, 15, 17, 64, 100, 257, 1_024, 3_001])
async def test_pushes_of_any_size(bench: Bench, size: int) -> None:
    names = [f"k{i}" for i in range(size)]
    assert (await bench.put(names, identity=request("r"))).statuses == bytes([CREATED]) * size
    assert (await bench.put(names, identity=request("r"))).statuses == bytes([CREATED]) * size
    result = await bench.put({name: i % 2 for i, name in enumerate(names)})
    assert (result.updated, result.unchanged) == ((size + 1) // 2, size // 2)
    assert len(await bench.copy()) == size


async def test_an_empty_write_counts_as_received(bench: Bench) -> None:
    result = await bench.put([])
    assert (result.revision, result.changed, result.statuses) == (0, False, b"")
    assert (await bench.store.get_source("books", "default")).last_received_us == bench.clock.us


# -- stream sessions --------------------------------------------------------------------------------------


@pytest.mark.on_both
async def test_calls_of_a_stream_session_are_numbered(bench: Bench) -> None:
    session = await bench.open(SessionMode.STREAM)
    name = session.session_id
    first = await bench.put(["a"], session_id=name, sequence=1)
    assert (first.revision, first.calls) == (1, 1)
    second = await bench.put(["b", "c"], session_id=name)
    assert (second.revision, second.calls) == (2, 2)
    repeated = await bench.put(["a"], session_id=name, sequence=1, identity=request("new"))
    assert repeated == replace(first, replayed=True)
    with pytest.raises(OutOfRange) as raised:
        await bench.put(["d"], session_id=name, sequence=4)
    assert (raised.value.reason, raised.value.metadata["expected"]) == ("SEQUENCE_GAP", "3")
    bench.clock.pass_seconds(1)
    await bench.put(["a"], session_id=name, sequence=3)
    found = await bench.store.get_session(name, source_number=bench.source.number)
    assert (found.calls, found.records, found.active_time_us) == (3, 4, bench.clock.us)
    assert set(await bench.copy()) == {"a", "b", "c"}
