"""Copies over the feed, on a store in memory and on the real ones. Every checkpoint is checked by digest."""

import asyncio

import pytest

from support.feed_encoder import Copy, parse
from support.feed_house import follow, follow_to, other, rows, running
from syncline_server.errors import InvalidArgument, NotFound, Unavailable
from syncline_server.feed import tokens


@pytest.fixture
def house(feed_backend_name, tmp_path):
    return lambda **settings: running(feed_backend_name, tmp_path, **settings)


async def test_g7_g8_cold_start_then_live_from_the_ring(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(25)))
        copy = Copy()
        async with home.subscribe() as messages:
            await follow(copy, messages)
            await home.assert_equal(copy)
            assert copy.batches == 3
            reads = home.store.reads
            await home.write(rows(1, 2, version=1))
            appended = await home.write([("k3", None), ("new", b"{}")])
            await follow_to(copy, messages, appended.head.revision)
            await home.assert_equal(copy)
            assert home.store.reads == reads


async def test_g10_first_event_of_an_empty_dataset_is_a_checkpoint(house):
    async with house() as home, home.subscribe() as messages:
        copy = await follow(Copy(), messages)
        assert copy.checkpoints == [0]
        await home.write(rows(1))
        await follow_to(copy, messages, 1)
        await home.assert_equal(copy)


async def test_g11_sync_pages_to_the_head_and_goes_on_later(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(25)))
        copy = await home.sync(Copy())
        await home.assert_equal(copy)
        assert copy.batches == 3
        await home.write([*rows(3, version=1), ("k4", None)])
        await home.sync(copy)
        await home.assert_equal(copy)
        assert copy.batches == 4
        await home.sync(copy)
        assert (copy.batches, copy.resets) == (4, [])


async def test_sync_page_size_is_bounded_by_the_setting(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(12)))
        events, _ = await home.feed.sync(home.dataset, b"", page_size=3)
        assert len(parse(events)[0]["record_ids"]) == 3
        events, _ = await home.feed.sync(home.dataset, b"", page_size=100)
        assert len(parse(events)[0]["record_ids"]) == 10


async def test_g11_a_stream_goes_on_where_another_broke_off(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(35)))
        copy = Copy()
        while not copy.exact:
            async with home.subscribe(token=copy.token) as messages:
                copy.take(await anext(messages))
        await home.assert_equal(copy)
        assert (copy.batches, copy.resets) == (4, [])


async def test_t50_g11_purge_between_two_pages_of_a_cold_start(house):
    """F2: the watermark passes the cursor, but not the head that the copy was begun at: no reset."""
    async with house(page_changes=10) as home:
        for n in range(30):
            await home.write(rows(n))
        await home.write([("k29", None)])
        copy = await home.sync(Copy(), until=lambda: True)
        assert copy.revision == 10
        await home.purge()
        await home.sync(copy)
        await home.assert_equal(copy)
        assert copy.resets == []


async def test_t50_g11_purge_of_deletes_that_a_copy_has_not_seen(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(30)))
        copy = await home.sync(Copy(), until=lambda: True)
        await home.write([(f"k{n}", None) for n in range(5)])
        await home.purge()
        await home.sync(copy)
        assert copy.resets == ["COMPACTED"]
        await home.assert_equal(copy)


async def test_t50_g11_purge_while_a_page_is_read_for_a_stream(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(30)))

        async def purge(after):
            if after and not purged:
                purged.append(after)
                await home.write([(f"k{n}", None) for n in range(5)])
                await home.purge()

        purged = []
        home.store.before_read = purge
        async with home.subscribe() as messages:
            copy = await follow(Copy(), messages)
            await home.assert_equal(copy)
        assert purged
        assert copy.resets == ["COMPACTED"]


async def test_g11_reset_and_first_page_come_in_one_answer_of_sync(house):
    async with house() as home:
        await home.write(rows(1, 2))
        copy = await home.sync(Copy())
        await home.write([("k1", None)])
        await home.purge()
        events, _ = await home.feed.sync(home.dataset, copy.token)
        assert [event["event"] for event in parse(events)] == ["reset", "changes", "checkpoint"]


async def test_t53_tokens_of_other_things(house):
    async with house() as home:
        await home.write(rows(1, 2))
        copy = await home.sync(Copy())
        info = home.store.info
        position = tokens.decode(copy.token, store_id=info.store_id, secret=info.token_secret)
        filtered = tokens.rebase(position, other(position.origin, filter_fingerprint=b"a filter"))
        for token, reason in (
            (tokens.encode(filtered, info.token_secret), "FILTER_CHANGED"),
            (_foreign(position), "HISTORY_CHANGED"),
        ):
            events, _ = await home.feed.sync(home.dataset, token)
            assert parse(events)[0]["reason"] == reason
            async with home.subscribe(token=token) as messages:
                anew = await follow(Copy(), messages)
            assert anew.resets == [reason]
            await home.assert_equal(anew)
        await home.create("films")
        await home.write(rows(7))
        await home.sync(copy)
        assert copy.resets == ["DATASET_REPLACED"]
        await home.assert_equal(copy)


def _foreign(position):
    """Of another store: not verifiable, and with figures that no store of ours could read at."""
    origin = other(position.origin, store_id=b"another!")
    return tokens.encode(
        other(position, origin=origin, position=2**64 - 1, seen_revision=2**64 - 1), b"?" * 32
    )


@pytest.mark.parametrize("token", [b"x", b"\x01" * 102])
async def test_t58_damaged_tokens_are_refused_everywhere(house, token):
    async with house() as home:
        with pytest.raises(InvalidArgument, check=lambda e: e.reason == "TOKEN_INVALID"):
            await home.feed.sync(home.dataset, token)
        with pytest.raises(InvalidArgument, check=lambda e: e.reason == "TOKEN_INVALID"):
            async with home.subscribe(token=token) as messages:
                await anext(messages)


async def test_t55_g10_idle_subscribers_get_checkpoints_that_outlive_purges(house):
    async with house(checkpoint_seconds=0.1) as home:
        await home.write(rows(*range(5)))
        await home.write([("k1", None)])
        async with home.subscribe() as messages:
            copy = await follow(Copy(), messages)
            await follow(copy, messages, until=lambda: len(copy.checkpoints) == 4)
            assert (copy.batches, set(copy.checkpoints)) == (1, {2})
        await home.purge()
        await home.sync(copy)
        assert copy.resets == []
        await home.assert_equal(copy)


async def test_g10_bookmarks_keep_their_time(house):
    async with house(checkpoint_seconds=0.2) as home, home.subscribe() as messages:
        await anext(messages)
        clock = asyncio.get_running_loop().time
        for _ in range(3):
            began = clock()
            await anext(messages)
            assert 0.2 * 0.85 <= clock() - began < 0.2 * 1.1 + 0.2, "10 % jitter; 0.2 s for a busy machine"


async def test_t64_commit_larger_than_ring_and_message(house):
    """F28: it travels in fragments, and no checkpoint falls inside it."""
    sizes = {"frame_bytes": 16 << 10, "ring_bytes": 32 << 10, "page_bytes": 8 << 10}
    async with house(**sizes) as home:
        await home.write(rows(1))
        first, second = Copy(), Copy()
        async with home.subscribe() as messages, home.subscribe() as more:
            await follow(first, messages)
            await follow(second, more)
            reads = home.store.reads
            await home.write(rows(*range(2_000), version=1, size=100))
            await asyncio.gather(follow_to(first, messages, 2), follow_to(second, more, 2))
        for copy in (first, second):
            await home.assert_equal(copy)
            assert copy.checkpoints == [1, 2], copy.checkpoints
            assert copy.batches > 20
            assert copy.largest < 32 << 10, "8 KiB of ids and data, and what the encoding adds"
        assert home.store.reads - reads < 1.5 * first.batches, "two followers shared most of the pages"


async def test_g20_drain_gives_a_last_token_and_ends(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(30)))
        idle, scanning = Copy(), Copy()
        async with home.subscribe() as messages, home.subscribe() as scan:
            await follow(idle, messages)
            scanning.take(await anext(scan))
            home.feed.drain()
            async with asyncio.timeout(5):
                for copy, stream in ((idle, messages), (scanning, scan)):
                    async for message in stream:
                        copy.take(message)
        assert idle.going_away
        await home.assert_equal(idle)
        assert not scanning.exact
        assert scanning.token, "one that broke off inside a scan has the token of its last page"
        with pytest.raises(Unavailable, check=lambda e: e.reason == "SHUTTING_DOWN"):
            async with home.subscribe() as messages:
                await anext(messages)


async def test_g20_drain_sends_what_is_committed_first(house):
    async with house() as home, home.subscribe() as messages:
        copy = await follow(Copy(), messages)
        await home.write(rows(1))
        home.feed.drain()
        async for message in messages:
            copy.take(message)
        assert copy.going_away
        await home.assert_equal(copy)


@pytest.mark.parametrize("told", [True, False])
async def test_deleted_dataset_ends_its_streams(house, told):
    """By the announcement, or by the look that is taken in case one was lost."""
    async with house(poll_seconds=0.05) as home:
        await home.write(rows(1))
        async with home.subscribe() as messages:
            await follow(Copy(), messages)
            pending = asyncio.ensure_future(anext(messages))
            await home.delete(tell=told)
            with pytest.raises(NotFound, check=lambda e: e.reason == "DATASET_NOT_FOUND"):
                async with asyncio.timeout(5):
                    await pending


async def test_deleted_while_a_page_is_on_its_way(house):
    """What is read before a delete may still arrive, but does not settle the matter."""
    async with house(poll_seconds=1_000) as home:
        await home.write(rows(1))
        held, go_on = asyncio.Event(), asyncio.Event()

        async def hold(page):
            held.set()
            await go_on.wait()

        home.store.after_read = hold
        async with home.subscribe() as messages:
            pending = asyncio.ensure_future(anext(messages))
            await held.wait()
            await home.delete()
            go_on.set()
            home.store.after_read = None
            Copy().take(await pending)
            with pytest.raises(NotFound):
                async with asyncio.timeout(5):
                    await anext(messages)


async def test_from_now_begins_with_a_checkpoint_at_the_head(house):
    async with house() as home:
        await home.write(rows(1, 2))
        copy = Copy(whole=False)
        async with home.subscribe(from_now=True) as messages:
            await follow(copy, messages)
            assert (copy.checkpoints, copy.records) == ([1], {})
            await home.write(rows(3))
            await follow_to(copy, messages, 2)
            assert set(copy.records) == {"k3"}


async def test_g14_min_revision_waits_for_the_commit(house):
    async with house() as home:
        await home.write(rows(1))
        copy = Copy()
        page = asyncio.ensure_future(home.feed.sync(home.dataset, b"", min_revision=2))
        async with home.subscribe(min_revision=2) as messages:
            first = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0)
            await home.write(rows(2))
            async with asyncio.timeout(5):
                copy.take(await first)
                events, _ = await page
        assert copy.checkpoints == [2]
        assert parse(events)[-1]["revision"] == 2


async def test_g14_a_revision_that_does_not_come(house):
    async with house(revision_wait_seconds=0.05) as home:
        for how in ({}, {"timeout_seconds": 0.01}):
            with pytest.raises(Unavailable, check=lambda e: e.reason == "REVISION_NOT_REACHED"):
                await home.feed.sync(home.dataset, b"", min_revision=1, **how)
        assert not home.feed._revision_waiters


async def test_g14_waiting_for_a_revision_ends_with_the_dataset_and_with_the_server(house):
    async with house() as home:
        waiting = asyncio.ensure_future(home.feed.wait_revision(home.dataset.number, 5))
        await asyncio.sleep(0)
        await home.delete()
        with pytest.raises(NotFound):
            await waiting
        await home.create("films")
        waiting = asyncio.ensure_future(home.feed.wait_revision(home.dataset.number, 5))
        await home.write(rows(1))
        home.feed.drain()
        with pytest.raises(Unavailable, check=lambda e: e.reason == "SHUTTING_DOWN"):
            await waiting


async def test_t79_lost_wake_ups_cost_time_and_nothing_else(house):
    async with house(poll_seconds=0.05) as home, home.subscribe() as messages:
        copy = await follow(Copy(), messages)
        waiting = asyncio.ensure_future(home.feed.wait_revision(home.dataset.number, 2))
        await home.write(rows(1), announce=False)
        await home.write(rows(2), announce=False)
        async with asyncio.timeout(5):
            await waiting
        await follow_to(copy, messages, 2)
        await home.assert_equal(copy)
        appended = await home.write(rows(3))
        await follow_to(copy, messages, appended.head.revision)
        await home.assert_equal(copy)


async def test_f11_t81_doubled_late_and_out_of_order_wake_ups(house):
    async with house() as home, home.subscribe() as messages:
        copy = await follow(Copy(), messages)
        first = await home.write(rows(1), announce=False)
        second = await home.write([("k1", None), *rows(2)], announce=False)
        for appended in (second, first, second, first):
            home.notifier.announce(appended)
        await follow_to(copy, messages, second.head.revision)
        await home.assert_equal(copy)
