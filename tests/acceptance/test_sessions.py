"""Sessions through the SDK against a real server: the contract's section 4 (B-01 to B-43)."""

import asyncio
import signal
from datetime import timedelta

import pytest

import syncline

ROWS = [{"id": f"{n}", "v": n} for n in range(10)]


def statuses(report):
    return [entry.status.name for entry in report.results]


async def values(dataset):
    return {record.record_id: record.data["v"] async for record in dataset.records()}


@pytest.fixture
async def things(client):
    await client.create_dataset("things", identity=syncline.by_key("id"))
    await client.create_source("things", "feed")
    return client.dataset("things")


async def test_b02_stream_shows_at_once(things):
    """B-02, B-03: visible at once; closing either way changes no data and kills the id."""
    for commit in (True, False):
        session = await things.open_session("stream", source="feed")
        report = await session.upsert([{"id": f"{commit}", "v": 1}])
        assert statuses(report) == ["CREATED"]
        assert f"{commit}" in await values(things)
        await session.close(commit=commit)
        assert f"{commit}" in await values(things)
        with pytest.raises(syncline.SessionInvalid):
            await session.upsert(ROWS)


async def test_g16_accrue_shows_nothing_before_commit(things):
    """B-02, G16: private until committed, then everything in one revision; earlier data stays."""
    await things.push([{"id": "old", "v": 0}], source="feed")
    async with things.session("accrue", source="feed") as session:
        report = await session.upsert(ROWS[:5])
        await session.upsert(ROWS[5:])
        seen_before = await values(things)

    assert statuses(report) == ["STAGED"] * 5
    assert seen_before == {"old": 0}
    assert await values(things) == {"old": 0, **{row["id"]: row["v"] for row in ROWS}}
    assert session.result.created == 10
    assert (await things.sync()).checkpoint.revision == 2


@pytest.mark.on_both
async def test_g15_replace_is_exact(client, things):
    """B-02, B-16, G15: what is not in it goes, only real changes are events, other sources are left alone."""
    await things.push([{"id": "other", "v": 0}], source="default")
    await things.push(ROWS, source="feed")
    token = (await things.sync()).token
    async with things.session("replace", source="feed") as session:
        await session.upsert([*ROWS[:8], {"id": "8", "v": "new"}, {"id": "10", "v": 10}])
    page = await things.sync(token)

    assert (
        session.result.created,
        session.result.updated,
        session.result.unchanged,
        session.result.deleted,
    ) == (1, 1, 8, 1)
    assert {(c.record_id, type(c).__name__) for c in page.changes} == {
        ("8", "Put"),
        ("10", "Put"),
        ("9", "Delete"),
    }
    assert {change.revision for change in page.changes} == {3}
    assert "other" in await values(things)
    assert {row["id"]: (await things.get(row["id"])).revision for row in ROWS[:8]} == {
        row["id"]: 2 for row in ROWS[:8]
    }


async def test_t34_a_replace_with_the_same_set_makes_no_event(things):
    await things.push(ROWS, source="feed")
    async with things.session("replace", source="feed") as session:
        await session.upsert(reversed(ROWS))

    assert session.result.unchanged == 10
    assert session.result.revision == 1


async def test_b04_close_without_commit_discards(things):
    for mode in ("accrue", "replace"):
        session = await things.open_session(mode, source="feed")
        await session.upsert(ROWS)
        await session.close(commit=False)
    assert await values(things) == {}


async def test_an_error_in_the_block_rolls_back(things):
    with pytest.raises(ZeroDivisionError):
        async with things.session("accrue", source="feed") as session:
            await session.upsert(ROWS)
            raise ZeroDivisionError
    assert await values(things) == {}
    with pytest.raises(syncline.SessionInvalid):
        await session.upsert(ROWS)


async def test_b05_t42_an_empty_replace_empties_the_source_when_allowed(things):
    """B-05, T42: refused by the guard, the session stays open; allowed when the caller says so."""
    await things.push(ROWS, source="feed")
    guarded = await things.open_session("replace", source="feed")
    with pytest.raises(syncline.MassDeleteRefused):
        await guarded.close(commit=True)
    await guarded.upsert(ROWS)
    kept = await guarded.close(commit=True)
    async with things.session("replace", source="feed", allow_mass_delete=True) as session:
        pass

    assert kept.unchanged == 10
    assert session.result.deleted == 10
    assert await values(things) == {}


@pytest.mark.parametrize(("kept", "refused"), [(100, False), (99, True)])
async def test_t42_the_guard_refuses_more_than_half_of_many(things, kept, refused):
    """T42: more than half of over 100 records."""
    rows = [{"id": f"{n}", "v": n} for n in range(200)]
    await things.push(rows, source="feed")
    session = await things.open_session("replace", source="feed")
    await session.upsert(rows[:kept])
    if refused:
        with pytest.raises(syncline.MassDeleteRefused):
            await session.close(commit=True)
    else:
        assert (await session.close(commit=True)).deleted == 100
    assert len(await values(things)) == (200 if refused else 100)


async def test_b06_opening_another_rolls_the_earlier_one_back(things):
    """B-06: implicit rollback; data of a stream session that is visible stays."""
    stream = await things.open_session("stream", source="feed")
    await stream.upsert([{"id": "streamed", "v": 1}])
    first = await things.open_session("accrue", source="feed")
    await first.upsert(ROWS)
    second = await things.open_session("accrue", source="feed")
    for dead in (stream, first):
        with pytest.raises(syncline.SessionInvalid):
            await dead.upsert(ROWS)
        with pytest.raises(syncline.SessionInvalid):
            await dead.close(commit=True)
    await second.upsert([{"id": "second", "v": 2}])
    await second.close(commit=True)

    assert await values(things) == {"streamed": 1, "second": 2}


@pytest.mark.parametrize("mode", ["stream", "accrue", "replace"])
async def test_b07_actions_are_applied_in_the_order_sent(things, mode):
    """B-07, B-08: upsert then delete is absent, delete then upsert is present; repeats, last wins."""
    async with things.session(mode, source="feed", allow_mass_delete=True) as session:
        await session.upsert([{"id": "gone", "v": 1}, {"id": "twice", "v": 1}, {"id": "twice", "v": 2}])
        await session.delete([{"id": "gone"}, {"id": "gone"}, {"id": "never"}, {"id": "back"}])
        await session.upsert([{"id": "back", "v": 3}])
        await session.upsert([{"id": "by-id", "v": 1}])
        await session.delete_ids(["by-id"])

    assert await values(things) == {"twice": 2, "back": 3}


@pytest.mark.parametrize("mode", ["stream", "accrue", "replace"])
async def test_b34_an_invalid_record_refuses_its_call_and_not_the_session(things, mode):
    """B-34: the whole call, every error; the session goes on."""
    async with things.session(mode, source="feed") as session:
        await session.upsert([{"id": "a", "v": 1}])
        with pytest.raises(syncline.InvalidRecords) as refused:
            await session.upsert([{"id": "b", "v": 1}, {"v": 2}, {"v": 3}])
        await session.upsert([{"id": "c", "v": 1}])

    assert [v.index for v in refused.value.violations] == [1, 2]
    assert set(await values(things)) == {"a", "c"}


async def test_b17_records_are_checked_when_they_are_sent(client, things):
    """B-17: against the schema of that moment; not again at close."""
    async with things.session("accrue", source="feed") as session:
        await session.upsert([{"id": "a", "v": 1}])
        await client.update_dataset(
            "things", schema={"type": "object", "properties": {"v": {"type": "string"}}}
        )
        with pytest.raises(syncline.InvalidRecords):
            await session.upsert([{"id": "b", "v": 1}])

    assert set(await values(things)) == {"a"}


async def test_b11_wrong_ids_get_one_answer(client, things):
    """B-11: unknown, another source's, malformed: the same refusal, and no effect on the open session."""
    session = await things.open_session("accrue", source="feed")
    await session.upsert(ROWS)
    messages = set()
    for session_id, source in [
        ("5f0c9f0e-0000-4000-8000-000000000000", "feed"),
        (session.session_id, "default"),
    ]:
        stranger = things.attach_session(session_id, source=source)
        with pytest.raises(syncline.SessionInvalid) as refused:
            await stranger.close(commit=True, calls=1)
        messages.add(refused.value.message.replace(session_id, "ID"))
    closed = await session.close(commit=True)

    assert len(messages) == 1
    assert closed.created == 10


async def test_t40_close_names_the_calls_it_knows_of(things):
    """T40: a close that counts other calls than were accepted commits nothing."""
    session = await things.open_session("accrue", source="feed")
    await session.upsert(ROWS)
    stale = things.attach_session(session.session_id, source="feed")
    with pytest.raises(syncline.SynclineError) as refused:
        await stale.close(commit=True, calls=2)

    assert refused.value.reason == "SESSION_INCOMPLETE"
    assert (await session.close(commit=True)).created == 10


@pytest.mark.on_both
async def test_b18_a_session_survives_a_restart(server, things):
    """B-18: staged rows are durable."""
    session = await things.open_session("replace", source="feed")
    await session.upsert(ROWS[:5])
    await server.stop(signal.SIGKILL)
    await server.start()
    await session.upsert(ROWS[5:])
    result = await session.close(commit=True)

    assert result.created == 10


async def test_b20_parallel_posts_in_one_stream_session(things):
    """B-20: 100 concurrent posts of 100 records, each report has its 100 keys."""
    async with things.session("stream", source="feed") as session:
        reports = await asyncio.gather(
            *(session.upsert([{"id": f"{n}-{k}", "v": k} for k in range(100)]) for n in range(100))
        )

    assert all(statuses(report) == ["CREATED"] * 100 for report in reports)
    assert (await things.sync(all=True)).checkpoint.record_count == 10_000


async def test_b19_an_idle_session_expires(things):
    """B-19: idle time-out rolls it back; a stream session has none by default."""
    stream = await things.open_session("stream", source="default")
    session = await things.open_session("accrue", source="feed", idle_timeout=timedelta(seconds=1))
    await session.upsert(ROWS)

    async def dead():
        while True:
            try:
                await session.info()
            except syncline.SessionInvalid:
                return
            await asyncio.sleep(0.1)

    await asyncio.wait_for(dead(), 15)
    with pytest.raises(syncline.SessionInvalid):
        await session.close(commit=True)
    await stream.upsert([{"id": "alive", "v": 1}])
    assert await values(things) == {"alive": 1}


async def test_iterators_are_streamed(things):
    """Large sets are sent in chunks, in order, without a list."""
    async with things.session("replace", source="feed") as session:
        report = await session.upsert({"id": f"{n % 5000}", "v": n} for n in range(20_000))

    assert report.revision == 0
    assert session.result.created == 5_000
    assert (await things.get("4999")).data["v"] == 19_999


async def changed_meanwhile(things, policy):
    """A replace session of 0 to 4 on top of 0 to 9, during which others change 0 and 9, delete 1, make 20."""
    await things.push(ROWS, source="feed")
    session = await things.open_session("replace", source="feed", on_conflict=policy, allow_mass_delete=True)
    await session.upsert([{"id": f"{n}", "v": "new"} for n in range(5)])
    await things.push([{"id": i, "v": "meanwhile"} for i in ("0", "9", "20")], source="feed")
    await things.delete_ids(["1"], source="feed")
    info = await session.info()
    assert (info.conflict_policy, info.base_revision) == (policy, 1)
    return session


async def test_t36_g15_overwrite_makes_the_source_exact(things):
    """T36, G15: the default; the last commit wins."""
    session = await changed_meanwhile(things, "overwrite")
    result = await session.close(commit=True)

    assert (result.created, result.updated, result.deleted, result.kept) == (1, 4, 6, 0)
    assert await values(things) == {f"{n}": "new" for n in range(5)}


async def test_t36_keep_newer_leaves_what_others_changed(things):
    """T36: changed and made records stay, a deleted one stays deleted."""
    session = await changed_meanwhile(things, "keep_newer")
    preview = await session.preview()
    result = await session.close(commit=True)

    assert result.revision == 4
    assert (result.created, result.updated, result.unchanged, result.deleted, result.kept) == (0, 3, 0, 4, 4)
    assert preview.kept == 4
    assert await values(things) == {
        "0": "meanwhile",
        "9": "meanwhile",
        "20": "meanwhile",
        **dict.fromkeys("234", "new"),
    }


async def test_t36_abort_changes_nothing(things):
    """T36: SessionConflict; the session stays open, and a new one without conflicts commits."""
    session = await changed_meanwhile(things, "abort")
    before = await values(things)
    with pytest.raises(syncline.SessionConflict) as refused:
        await session.preview()
    with pytest.raises(syncline.SessionConflict):
        await session.close(commit=True)

    assert (refused.value.reason, dict(refused.value.metadata)) == ("SESSION_CONFLICT", {"conflicts": "4"})
    assert await values(things) == before
    assert (await session.info()).calls == 1
    async with things.session("accrue", source="feed", on_conflict="abort") as again:
        await again.upsert(ROWS)
    assert again.result.kept == 0
    assert (await values(things))["0"] == 0


async def test_t36_stream_sessions_only_overwrite(things):
    for policy in ("keep_newer", "abort"):
        with pytest.raises(syncline.InvalidArgument) as refused:
            await things.open_session("stream", source="feed", on_conflict=policy)
        assert "conflict_policy" in refused.value.fields
    with pytest.raises(ValueError, match="on_conflict is one of"):
        await things.open_session("replace", source="feed", on_conflict="never")
    assert await (await things.open_session("stream", source="feed", on_conflict="overwrite")).close()
