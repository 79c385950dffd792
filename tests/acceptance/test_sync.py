"""Sync and Subscribe through the SDK against a real server: the contract's section 3."""

import asyncio
import os
import signal

import psutil
import pytest

import syncline


def rows(start, stop, v=0):
    return [{"id": f"{n:06d}", "v": v} for n in range(start, stop)]


def apply(copy, page):
    for event in (page.reset, page.changes, page.checkpoint):
        if event is not None:
            copy.apply(event)


async def copy_of(dataset, token=None, copy=None):
    """Sync to a checkpoint; the Copy itself verifies count and digest there."""
    copy = copy or syncline.Copy()
    while True:
        page = await dataset.sync(token)
        apply(copy, page)
        token = page.token
        if page.checkpoint:
            return copy, token


@pytest.fixture
async def things(client):
    await client.create_dataset("things", identity=syncline.by_key("id"))
    return client.dataset("things")


async def until_checkpoint(stream, revision):
    events = []
    async for event in stream:
        events.append(event)
        if isinstance(event, syncline.Checkpoint) and event.revision >= revision:
            return events
    raise AssertionError("the stream ended")


def changed(events):
    return [
        (type(e).__name__, e.record_id, e.revision)
        for e in events
        if isinstance(e, syncline.Put | syncline.Delete)
    ]


async def test_an_empty_dataset_has_a_checkpoint(things):
    page = await things.sync()

    assert len(page.changes) == 0
    assert (page.checkpoint.revision, page.checkpoint.record_count) == (0, 0)
    assert page.reset is None


@pytest.mark.on_both
async def test_g07_pages_end_in_an_exact_copy(things):
    """G7, G8: pages are bounded, contiguous, and proven by count and digest at the checkpoint."""
    await things.push(rows(0, 3_000))
    await things.delete_ids([f"{n:06d}" for n in range(100)])
    token, pages, copy = None, 0, syncline.Copy()
    while True:
        page = await things.sync(token)
        pages += 1
        assert len(page.changes) <= 1_000
        apply(copy, page)
        token = page.token
        if page.checkpoint:
            break

    assert pages >= 3
    assert len(copy) == page.checkpoint.record_count == 2_900
    assert copy.digest == page.checkpoint.digest


async def test_a_token_brings_only_what_changed(things):
    await things.push(rows(0, 10))
    token = (await things.sync()).token
    await things.push(rows(3, 5, v=1))
    await things.delete_ids(["000009"])
    page = await things.sync(token)
    nothing = await things.sync(page.token)

    assert [(type(c).__name__, c.record_id) for c in page.changes] == [
        ("Put", "000003"),
        ("Put", "000004"),
        ("Delete", "000009"),
    ]
    assert len(nothing.changes) == 0
    assert nothing.checkpoint.revision == 3


async def test_g09_versions_in_between_are_conflated(things):
    await things.push(rows(0, 1))
    token = (await things.sync()).token
    for v in range(1, 20):
        await things.push(rows(0, 1, v=v))
    page = await things.sync(token)

    assert [(c.record_id, c.data["v"], c.revision) for c in page.changes] == [("000000", 19, 20)]


@pytest.mark.on_both
async def test_g11_a_token_works_across_a_restart(server, things):
    await things.push(rows(0, 10))
    copy, token = await copy_of(things)
    await server.stop(signal.SIGKILL)
    await server.start()
    await things.push(rows(10, 12))
    page = await things.sync(token)

    assert page.reset is None
    assert [c.record_id for c in page.changes] == ["000010", "000011"]
    await copy_of(things, token, copy)


async def test_g11_a_purged_token_resets_loudly(make_server):
    """G11, T50: never a silent gap; the old copy is replaced whole, the deleted record included."""
    async with make_server(
        SYNCLINE_RETENTION_SECONDS="0", SYNCLINE_RETENTION_REVISIONS="0", SYNCLINE_PURGE_SECONDS="0.1"
    ) as server:
        async with syncline.connect(server.address, key=server.key) as client:
            await client.create_dataset("things", identity=syncline.by_key("id"))
            things = client.dataset("things")
            await things.push(rows(0, 10))
            copy, token = await copy_of(things)
            await things.delete_ids(["000001"])
            await things.push(rows(20, 21))

            async def purged():
                while (await client.get_dataset("things")).purge_revision < 2:
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(purged(), 20)
            page = await things.sync(token)
            await copy_of(things, token, copy)

    assert page.reset.reason.name == "COMPACTED"
    assert "000001" not in copy
    assert len(copy) == 10


async def test_t53_a_token_of_a_deleted_dataset_resets(client, things):
    """T53: a dataset made again under the name is another one."""
    await things.push(rows(0, 10))
    token = (await things.sync()).token
    await client.delete_dataset("things")
    await client.create_dataset("things", identity=syncline.by_key("id"))
    await things.push(rows(0, 1))
    page = await things.sync(token)

    assert page.reset.reason.name == "DATASET_REPLACED"
    assert [c.record_id for c in page.changes] == ["000000"]


async def test_t58_a_damaged_token_is_refused(things):
    """T58: every flipped bit, every truncation, random bytes."""
    await things.push(rows(0, 1))
    token = (await things.sync()).token
    damaged = [token[:n] for n in range(1, len(token), 7)]
    damaged += [bytes([*token[:n], token[n] ^ 0x40, *token[n + 1 :]]) for n in range(0, len(token), 5)]
    damaged += [os.urandom(len(token)), token + b"x"]
    for bad in damaged:
        with pytest.raises(syncline.SynclineError) as refused:
            await things.sync(bad)
        assert refused.value.reason == "TOKEN_INVALID"


async def test_g14_min_revision_waits(things):
    """G14: answered when the dataset gets there; UNAVAILABLE with a reason when it does not in time."""
    waiting = asyncio.create_task(things.sync(min_revision=2))
    await things.push(rows(0, 1))
    await things.push(rows(1, 2))
    page = await asyncio.wait_for(waiting, 10)
    with pytest.raises(syncline.SynclineError) as late:
        await things.get("000000", min_revision=99, timeout_seconds=1.0)

    assert page.checkpoint.revision == 2
    assert late.value.reason == "REVISION_NOT_REACHED"


@pytest.mark.on_both
async def test_subscribe_from_empty_then_live(things):
    """A complete copy first, then each commit with its checkpoint."""
    await things.push(rows(0, 2_500))
    copy = syncline.Copy()
    async with things.changes() as stream:
        for event in await until_checkpoint(stream, 1):
            copy.apply(event)
        await things.push(rows(2_500, 2_501))
        await things.delete_ids(["000000"])
        live = await until_checkpoint(stream, 3)
        for event in live:
            copy.apply(event)

    assert changed(live) == [("Put", "002500", 2), ("Delete", "000000", 3)]
    assert len(copy) == 2_500


async def test_subscribe_from_a_token_and_from_now(things):
    await things.push(rows(0, 5))
    token = (await things.sync()).token
    await things.push(rows(5, 6))
    async with things.changes(token=token) as resumed, things.changes(from_now=True) as now:
        after_token = await until_checkpoint(resumed, 2)
        first_of_now = await anext(aiter(now))
        await things.push(rows(6, 7))
        after_now = await until_checkpoint(now, 3)

    assert changed(after_token) == [("Put", "000005", 2)]
    assert isinstance(first_of_now, syncline.Checkpoint)
    assert first_of_now.revision == 2
    assert changed(after_now) == [("Put", "000006", 3)]


async def test_g01_a_commit_is_seen_whole(things):
    """G1: whoever subscribes never sees a checkpoint inside a commit."""
    sizes = set()

    async def watch():
        copy = syncline.Copy()
        async with things.changes() as stream:
            async for event in stream:
                copy.apply(event)
                if isinstance(event, syncline.Checkpoint):
                    sizes.add(len(copy))
                    if event.revision >= 30:
                        return

    watcher = asyncio.create_task(watch())
    for n in range(30):
        await things.push(rows(n * 100, n * 100 + 100))
    await asyncio.wait_for(watcher, 20)

    assert all(size % 100 == 0 for size in sizes)


async def test_t64_a_commit_larger_than_any_message(things):
    """T64: fragments on the wire, one revision at the client."""
    async with things.changes() as stream:
        await until_checkpoint(stream, 0)
        async with things.session("accrue") as session:
            await session.upsert({"id": f"{n}", "text": "x" * 500} for n in range(30_000))
        events = await until_checkpoint(stream, 1)

    checkpoints = [e for e in events if isinstance(e, syncline.Checkpoint) and e.revision == 1]
    assert {e.revision for e in events if isinstance(e, syncline.Put)} == {1}
    assert len(changed(events)) == 30_000
    assert [c.record_count for c in checkpoints] == [30_000]


async def test_g10_bookmarks_come_when_idle(make_server):
    """G10: a caught-up subscriber hears a checkpoint though nothing happens."""
    async with (
        make_server(SYNCLINE_CHECKPOINT_SECONDS="0.3") as server,
        syncline.connect(server.address, key=server.key) as client,
    ):
        await client.create_dataset("things", identity=syncline.by_key("id"))
        await client.dataset("things").push(rows(0, 1))
        async with client.dataset("things").changes() as stream:
            await until_checkpoint(stream, 1)
            idle = await asyncio.wait_for(anext(aiter(stream)), 5)

    assert isinstance(idle, syncline.Checkpoint)
    assert idle.revision == 1


@pytest.mark.on_both
async def test_g11_g20_a_subscriber_survives_restarts_and_never_skips(server, things):
    """G11, G20, T110: SIGTERM gives a last token, kill -9 does not; either way nothing is missed or doubled."""
    seen, copy = [], syncline.Copy()

    async def follow():
        async with things.changes() as stream:
            async for event in stream:
                copy.apply(event)
                if isinstance(event, syncline.Put):
                    seen.append(event.record_id)
                if isinstance(event, syncline.Checkpoint) and event.revision >= 6:
                    return

    follower = asyncio.create_task(follow())
    for n in range(6):
        await things.push(rows(n * 10, n * 10 + 10))
        if n == 1:
            await server.stop()
            await server.start()
        if n == 3:
            await server.stop(signal.SIGKILL)
            await server.start()
    await asyncio.wait_for(follower, 40)

    assert seen == [f"{n:06d}" for n in range(60)]
    assert len(copy) == 60


async def test_deleting_the_dataset_ends_the_stream(client, things):
    await things.push(rows(0, 1))
    with pytest.raises(syncline.SynclineError) as ended:
        async with things.changes() as stream:
            await until_checkpoint(stream, 1)
            await client.delete_dataset("things")
            async for _ in stream:
                pass

    assert ended.value.reason == "DATASET_NOT_FOUND"


async def test_g17_t59_a_stuck_reader_delays_nobody(server, things):
    """G17, T59: it is conflated from the store later; commits and other readers go on, memory stays flat."""
    async with things.changes() as stuck, things.changes() as brisk:
        await until_checkpoint(stuck, 0)
        await until_checkpoint(brisk, 0)
        before = psutil.Process(server.pid).memory_info().rss
        for n in range(60):
            result = await things.push([{"id": f"{k}", "v": n, "pad": "x" * 1_000} for k in range(1_000)])
        latest = await asyncio.wait_for(until_checkpoint(brisk, result.revision), 20)
        grown = psutil.Process(server.pid).memory_info().rss - before
        caught_up = await asyncio.wait_for(until_checkpoint(stuck, result.revision), 20)

    assert latest[-1].revision == result.revision == 60
    assert caught_up[-1].record_count == 1_000
    assert grown < 60 << 20  # 60 MB were pushed; the ring, page cache and transport buffers are bounded
