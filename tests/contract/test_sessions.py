"""Accrue and replace sessions; what all sessions have in common."""

import asyncio
from dataclasses import replace

import pytest

from support.store_values import Backend, Bench, body, deletes, request, upserts
from syncline_server.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange, PermissionDenied
from syncline_server.model import MassDeleteGuard, Reason, RecordScope, SessionMode
from syncline_server.store.abc import Store

GUARD = MassDeleteGuard()


async def invalid(awaitable) -> None:
    with pytest.raises(PermissionDenied) as raised:
        await awaitable
    assert raised.value.reason == "SESSION_INVALID"


@pytest.mark.on_both
async def test_g16_nothing_shows_before_the_commit(bench: Bench) -> None:
    await bench.put(["a"])
    session = await bench.open(SessionMode.ACCRUE)
    await bench.stage(session, upserts(["b"]))
    assert set(await bench.copy()) == {"a"}
    result = await bench.close(session, 1)
    assert (result.revision, result.created, result.calls, result.statuses) == (2, 1, 1, b"")
    assert set(await bench.copy()) == {"a", "b"}
    await invalid(bench.store.get_session(session.session_id, source_number=bench.source.number))


@pytest.mark.on_both
async def test_actions_apply_in_the_order_sent(bench: Bench) -> None:
    """T31: of repeats of an id the last one counts, in whichever call."""
    await bench.put(["old"])
    session = await bench.open(SessionMode.ACCRUE)
    await bench.stage(session, upserts({"x": 1, "y": 1}))
    await bench.stage(session, deletes("x", "old", "nothing"))
    await bench.stage(session, upserts({"old": 3, "y": 2}))
    await bench.store.prepare_session(session.session_id)
    group = await bench.group(bench.commit(_closing(session, 3), reason=Reason.SESSION))
    result = group.results[0]
    assert (result.created, result.updated, result.unchanged, result.deleted) == (1, 1, 0, 0)
    assert await bench.copy() == {"old": (2, body("old", 3)), "y": (2, body("y", 2))}
    changes = group.appended[0].changes
    assert changes is not None
    assert list(changes.record_ids) == ["old", "y"]
    assert set(changes.reasons) == {Reason.SESSION}


@pytest.mark.on_both
@pytest.mark.on_both
async def test_calls_handed_over_in_order_are_taken_in_order(bench: Bench) -> None:
    """However many are under way at once: none is refused because a later one was faster."""
    session = await bench.open(SessionMode.ACCRUE)
    calls = [
        bench.stage(session, upserts({f"k{number % 7}": number}), sequence=number) for number in range(1, 31)
    ]
    assert [staged.calls for staged in await asyncio.gather(*calls)] == list(range(1, 31))


def _closing(session, calls, guard=None):
    from syncline_server.model import SessionCommit

    return SessionCommit(session_id=session.session_id, calls=calls, guard=guard)


@pytest.mark.on_both
async def test_g15_replace_is_exact(bench: Bench) -> None:
    """G15, T35: the source holds exactly what was pushed; what stayed keeps its revision and makes no event."""
    other = await bench.second_source()
    await bench.put({"stays": 1, "changes": 1, "goes": 1, "named": 1})
    await other.put(["theirs"])
    session = await bench.open()
    await bench.stage(session, upserts({"stays": 1, "changes": 2, "new": 1}))
    await bench.stage(session, deletes("named"))
    await other.put(["late"])
    await bench.put({"late-mine": 1, "stays": 1})
    group = await bench.group(bench.commit(_closing(session, 2), reason=Reason.SESSION))
    result = group.results[0]
    assert (result.created, result.updated, result.unchanged, result.deleted) == (1, 1, 1, 3)
    copy = await bench.copy()
    assert copy == {
        "stays": (1, body("stays")),
        "theirs": (2, body("theirs")),
        "late": (3, body("late")),
        "changes": (5, body("changes", 2)),
        "new": (5, body("new")),
    }
    changes = group.appended[0].changes
    assert changes is not None
    told = dict(zip(changes.record_ids, changes.reasons, strict=True))
    assert told == {
        "changes": Reason.SESSION,
        "new": Reason.SESSION,
        "named": Reason.SESSION,
        "goes": Reason.REPLACE,
        "late-mine": Reason.REPLACE,
    }
    assert group.appended[0].head == await bench.head()


async def test_t34_replace_by_the_same_is_no_revision(bench: Bench) -> None:
    """T34."""
    await bench.put({"a": 1, "b": 1})
    before = await bench.page()
    session = await bench.open()
    await bench.stage(session, upserts({"b": 1, "a": 1}))
    bench.clock.pass_seconds(1)
    result = await bench.close(session, 1, GUARD)
    assert (result.revision, result.changed, result.unchanged) == (1, False, 2)
    assert await bench.page() == before
    assert (await bench.store.get_source("books", "default")).last_received_us == bench.clock.us


async def test_replace_takes_over_unchanged_shared_records(bench: Bench) -> None:
    other = await bench.second_source()
    await other.put({"a": 1, "b": 1, "c": 1})
    session = await bench.open()
    await bench.stage(session, upserts({"a": 1, "b": 2}))
    await bench.close(session, 1)
    records, _, _ = await bench.store.get_records(bench.dataset.number, ["a", "b", "c"], max_bytes=999)
    assert {r.record_id: (r.source_id, r.revision) for r in records} == {
        "a": ("default", 1),
        "b": ("default", 2),
        "c": ("other", 1),
    }


async def test_per_source_sessions_do_not_touch_others(store: Store, backend: Backend) -> None:
    bench = await Bench.make(store, backend.clock, record_scope=RecordScope.PER_SOURCE)
    other = await bench.second_source()
    await other.put(["other/a"])
    await bench.put(["default/a"])
    session = await bench.open()
    await bench.stage(session, upserts(["default/b"]))
    await bench.stage(session, deletes("other/a"))
    result = await bench.close(session, 2)
    assert (result.created, result.deleted) == (1, 1)
    assert set(await bench.copy()) == {"other/a", "default/b"}


@pytest.mark.on_both
async def test_t42_the_guard_refuses_mass_deletes(bench: Bench) -> None:
    """T42: an empty replace and one that deletes 60 % are refused, and pass when that is meant."""
    await bench.put([f"k{i}" for i in range(200)])
    empty = await bench.open()
    with pytest.raises(FailedPrecondition) as raised:
        await bench.close(empty, 0, GUARD)
    assert raised.value.reason == "MASS_DELETE"
    assert raised.value.metadata["deleted"] == "200"
    sixty = await bench.open()
    await bench.stage(sixty, upserts([f"k{i}" for i in range(80)]))
    with pytest.raises(FailedPrecondition):
        await bench.close(sixty, 1, GUARD)
    assert len(await bench.copy()) == 200
    await bench.stage(sixty, upserts([f"k{i}" for i in range(80, 100)]))
    assert (await bench.close(sixty, 2, GUARD)).deleted == 100, "the session stayed open, and half is allowed"
    last = await bench.open()
    assert (await bench.close(last, 0, None)).deleted == 100
    assert await bench.copy() == {}
    nothing = await bench.open()
    assert not (await bench.close(nothing, 0, GUARD)).changed


async def test_t40_a_close_must_know_every_call(bench: Bench) -> None:
    """T40, T39: a late close of an earlier attempt commits nothing."""
    session = await bench.open(SessionMode.ACCRUE)
    await bench.stage(session, upserts(["a"]))
    await bench.stage(session, upserts(["b"]))
    for calls in (0, 1, 3):
        with pytest.raises(FailedPrecondition) as raised:
            await bench.close(session, calls)
        assert raised.value.reason == "SESSION_INCOMPLETE"
    attempt = await bench.open(SessionMode.ACCRUE)
    await invalid(bench.close(session, 2))
    await invalid(bench.stage(session, upserts(["c"])))
    assert await bench.copy() == {}
    await bench.stage(attempt, upserts(["d"]))
    await bench.close(attempt, 1)
    assert set(await bench.copy()) == {"d"}


async def test_a_dry_run_of_a_session_leaves_it_open(bench: Bench) -> None:
    await bench.put(["a", "b"])
    page = await bench.page()
    session = await bench.open()
    await bench.stage(session, upserts({"a": 2, "c": 1}))
    told = await bench.close(session, 1, None, dry_run=True, identity=request("r"))
    assert (told.created, told.updated, told.deleted, told.revision) == (1, 1, 1, 1)
    with pytest.raises(FailedPrecondition):
        await bench.close(session, 1, MassDeleteGuard(max_ratio=0.1, above_records=1), dry_run=True)
    assert await bench.page() == page
    await bench.stage(session, upserts(["b"]))
    done = await bench.close(session, 2, None, identity=request("r"))
    assert (done.created, done.updated, done.deleted, done.unchanged) == (1, 1, 0, 1)


@pytest.mark.on_both
async def test_t38_a_close_can_be_retried(bench: Bench) -> None:
    """T38 without the restart."""
    session = await bench.open(SessionMode.ACCRUE)
    await bench.stage(session, upserts(["a"]))
    first = await bench.close(session, 1, identity=request("close"))
    again = await bench.close(session, 1, identity=request("close"))
    assert again == replace(first, replayed=True)
    await invalid(bench.close(session, 1, identity=request("another")))


async def test_t41_repeated_calls_count_once(bench: Bench) -> None:
    """T41: by number, and by identity; out of order they are refused."""
    session = await bench.open(SessionMode.ACCRUE)
    first = await bench.stage(session, upserts({"a": 1}), sequence=1)
    assert (first.calls, first.records, first.replayed) == (1, 1, False)
    with pytest.raises(OutOfRange) as raised:
        await bench.stage(session, upserts({"a": 3}), sequence=3)
    assert raised.value.metadata["expected"] == "2"
    second = await bench.stage(session, upserts({"a": 2, "b": 1}), identity=request("r"))
    assert (second.calls, second.records) == (2, 3)
    assert await bench.stage(session, upserts({"a": 1}), sequence=1) == replace(first, replayed=True)
    repeated = await bench.stage(session, upserts({"a": 2, "b": 1}), identity=request("r"))
    assert repeated == replace(second, replayed=True)
    with pytest.raises(InvalidArgument):
        await bench.stage(session, upserts(["z"]), identity=request("r", b"other"))
    found = await bench.store.get_session(session.session_id, source_number=bench.source.number)
    assert (found.calls, found.records) == (2, 3)
    await bench.close(session, 2)
    assert await bench.copy() == {"a": (1, body("a", 2)), "b": (1, body("b"))}


async def test_one_session_per_source(bench: Bench) -> None:
    other = await bench.second_source()
    first = await bench.open(SessionMode.ACCRUE)
    theirs = await other.open(SessionMode.ACCRUE)
    await bench.stage(first, upserts(["a"]))
    assert await bench.store.count_sessions() == 2
    second = await bench.open(SessionMode.REPLACE)
    assert await bench.store.count_sessions() == 2
    await invalid(bench.stage(first, upserts(["b"])))
    await invalid(bench.store.get_session(first.session_id, source_number=bench.source.number))
    await other.stage(theirs, upserts(["c"]))
    await bench.close(second, 0, GUARD)
    await other.close(theirs, 1)
    assert set(await bench.copy()) == {"c"}


async def test_a_session_is_known_only_to_its_source(bench: Bench) -> None:
    """One and the same answer for unknown, closed, foreign."""
    other = await bench.second_source()
    session = await bench.open(SessionMode.ACCRUE)
    store, name, wrong = bench.store, session.session_id, other.source.number
    for refused in (
        store.get_session(name, source_number=wrong),
        store.stage(name, upserts(["a"]), source_number=wrong),
        store.discard_session(name, source_number=wrong),
        other.close(session, 0),
        store.get_session("unknown", source_number=wrong),
        store.stage("unknown", upserts(["a"]), source_number=wrong),
        other.put(["a"], session_id=name),
        bench.put(["a"], session_id=name),
        bench.put(["a"], session_id="unknown"),
    ):
        await invalid(refused)
    assert await bench.store.count_sessions() == 1


async def test_discard_leaves_nothing(bench: Bench) -> None:
    session = await bench.open()
    await bench.stage(session, upserts(["a"]))
    name, number = session.session_id, bench.source.number
    revision = (await bench.head()).revision
    assert await bench.store.discard_session(name, source_number=number, identity=request("r")) == revision
    assert (await bench.put(["b"])).revision == revision + 1
    assert await bench.store.discard_session(name, source_number=number, identity=request("r")) == revision
    await invalid(bench.store.discard_session(name, source_number=number, identity=request("other")))
    await invalid(bench.stage(session, upserts(["a"])))
    assert set(await bench.copy()) == {"b"}
    assert await bench.store.count_sessions() == 0


async def test_a_retried_open_returns_the_session(bench: Bench) -> None:
    session = await bench.open(SessionMode.ACCRUE, session_id="first", identity=request("r"))
    await bench.stage(session, upserts(["a"]))
    again = await bench.open(SessionMode.ACCRUE, session_id="second", identity=request("r"))
    assert (again.session_id, again.calls) == ("first", 1)
    await bench.store.discard_session("first", source_number=bench.source.number)
    await invalid(bench.open(SessionMode.ACCRUE, session_id="third", identity=request("r")))


async def test_a_session_needs_its_source(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.open(source_number=99)
    with pytest.raises(NotFound):
        await bench.open(dataset_number=99)


async def test_t37_sessions_expire_when_idle(bench: Bench) -> None:
    """T37, T46: idle for its time-out it is rolled back; writing keeps it; stream sessions stay."""
    other, third = await bench.second_source(), await bench.second_source("third")
    staged = await bench.open(SessionMode.ACCRUE)
    await other.open(SessionMode.STREAM)
    await third.open(SessionMode.STREAM, idle_timeout_us=5_000_000)
    bench.clock.pass_seconds(3_599)
    await bench.stage(staged, upserts(["a"]))
    bench.clock.pass_seconds(3_599)
    assert await bench.store.expire_sessions(now_us=bench.clock.us) == 1
    assert await bench.store.count_sessions() == 2
    bench.clock.pass_seconds(1)
    assert await bench.store.expire_sessions(now_us=bench.clock.us) == 1
    await invalid(bench.stage(staged, upserts(["b"])))
    assert await bench.store.expire_sessions(now_us=bench.clock.us) == 0
    assert await bench.store.count_sessions() == 1


async def test_closing_a_stream_session_changes_nothing(bench: Bench) -> None:
    session = await bench.open(SessionMode.STREAM)
    await bench.put(["a"], session_id=session.session_id)
    with pytest.raises(FailedPrecondition):
        await bench.close(session, 7)
    result = await bench.close(session, 1)
    assert (result.revision, result.changed, result.created) == (1, False, 0)
    assert await bench.store.count_sessions() == 0


@pytest.mark.on_both
async def test_session_commits_mix_with_others_in_a_group(bench: Bench) -> None:
    other = await bench.second_source()
    mine, theirs = await bench.open(), await other.open(SessionMode.ACCRUE)
    await bench.stage(mine, upserts({"a": 2, "b": 1}))
    await other.stage(theirs, upserts({"a": 3}))
    group = await bench.group(
        bench.commit(upserts({"a": 1, "x": 1})),
        bench.commit(_closing(mine, 1)),
        bench.commit(upserts(["c"])),
        other.commit(_closing(theirs, 9)),
        other.commit(_closing(theirs, 1)),
    )
    assert [getattr(r, "revision", None) for r in group.results] == [1, 2, 3, None, 4]
    assert await bench.copy() == {
        "b": (2, body("b")),
        "c": (3, body("c")),
        "a": (4, body("a", 3)),
    }
    appended = group.appended[0]
    assert (appended.from_revision, appended.head) == (0, await bench.head())
    assert appended.changes == (await bench.page()).changes


async def test_t19_many_writers_one_order(bench: Bench) -> None:
    """T19 on store level: writers on the same keys, sessions among them."""
    others = [await bench.second_source(f"s{i}") for i in range(4)]

    async def write(writer: Bench, number: int) -> list[int]:
        revisions = []
        for turn in range(6):
            result = await writer.put({f"k{turn % 3}": number * 100 + turn})
            revisions.append(result.revision)
        session = await writer.open(SessionMode.ACCRUE, session_id=f"w{number}")
        await writer.stage(session, upserts({"k0": number * 1000}))
        revisions.append((await writer.close(session, 1)).revision)
        return revisions

    written = await asyncio.gather(*(write(w, i) for i, w in enumerate([bench, *others])))
    every = sorted(revision for revisions in written for revision in revisions)
    assert every == list(range(1, len(every) + 1))
    assert all(revisions == sorted(revisions) for revisions in written)
    await bench.copy()


async def test_sessions_of_any_size(bench: Bench) -> None:
    names = [f"k{i:05d}" for i in range(5_000)]
    session = await bench.open()
    for start in range(0, 5_000, 700):
        await bench.stage(session, upserts(names[start : start + 700]))
    assert (await bench.close(session, 8)).created == 5_000
    again = await bench.open()
    await bench.stage(again, upserts({n: 2 if i % 100 == 0 else 1 for i, n in enumerate(names[:-10])}))
    result = await bench.close(again, 1)
    assert (result.updated, result.deleted, result.unchanged) == (50, 10, 4_940)
    page = await bench.page(max_changes=10_000)
    assert page.changes.revisions.count(2) == 60
    assert len(await bench.copy()) == 4_990
