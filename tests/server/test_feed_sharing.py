"""What subscribers share and what they do not do to each other, on a store in memory."""

import asyncio
import random

import pytest

from support.feed_encoder import Copy
from support.feed_house import follow, follow_to, rows, running
from syncline_server.errors import Unavailable


@pytest.fixture
def house(tmp_path):
    return lambda **settings: running("memory", tmp_path, **settings)


async def test_one_frame_for_all_subscribers(house):
    async with house(checkpoint_seconds=0.2) as home:
        streams = [home.feed.subscribe(home.dataset) for _ in range(20)]
        for stream in streams:
            await anext(stream)
        encoded = home.encoder.calls
        await home.write(rows(1))
        frames = [await anext(stream) for stream in streams]
        assert home.encoder.calls == encoded + 1
        assert all(frame is frames[0] for frame in frames)
        bookmarks = await asyncio.gather(*(anext(stream) for stream in streams))
        assert all(bookmark is bookmarks[0] for bookmark in bookmarks)
        for stream in streams:
            await stream.aclose()


async def test_f15_concurrent_cold_starts_cost_little_more_than_one(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(500)))

        async def cold():
            async with home.subscribe() as messages:
                return await follow(Copy(), messages)

        copies = await asyncio.gather(*(cold() for _ in range(10)))
        assert home.store.reads < 60, "fifty pages, read about once"
        for copy in copies:
            await home.assert_equal(copy)
            assert copy.batches == 50


async def test_g12_g14_kept_pages_are_not_for_whoever_may_have_seen_more(house):
    async with house() as home:
        await home.write(rows(1))
        async with home.subscribe() as messages:
            await follow(Copy(), messages)
            await home.write([("k1", None), *rows(2)])
            async with home.subscribe() as later:
                copy = await follow(Copy(), later)
        assert copy.checkpoints == [await home.revision()]


async def test_g12_a_read_under_way_is_not_for_whoever_may_have_seen_more(house):
    async with house() as home:
        await home.write(rows(1))
        held, go_on = asyncio.Event(), asyncio.Event()

        async def hold(page):
            home.store.after_read = None
            held.set()
            await go_on.wait()

        home.store.after_read = hold
        async with home.subscribe() as messages, home.subscribe(min_revision=2) as later:
            early = asyncio.ensure_future(follow(Copy(), messages))
            await held.wait()
            await home.write(rows(2))
            late = asyncio.ensure_future(follow(Copy(), later))
            await asyncio.sleep(0)
            go_on.set()
            assert (await early).checkpoints == [1]
            assert (await late).checkpoints == [2]


async def test_t114_reconnecting_at_the_head_costs_no_read(house):
    async with house() as home:
        await home.write(rows(1))
        async with home.subscribe() as messages, home.subscribe() as stays:
            copy = await follow(Copy(), messages)
            await follow(Copy(), stays)
            reads = home.store.reads
            async with home.subscribe(token=copy.token) as again:
                await follow(copy, again)
                assert copy.checkpoints == [1, 1]
            await home.write(rows(2))
            async with home.subscribe(token=copy.token) as again:
                await follow_to(copy, again, 2)
            assert home.store.reads == reads
            await home.assert_equal(copy)


async def test_t57_g13_restored_store_is_noticed_by_every_kind_of_token(house):
    """Copies at a checkpoint, and copies stopped inside a scan, before and after the backup."""
    async with house(page_changes=10, page_cache_bytes=0) as home:
        store = home.store._store
        await home.write(rows(*range(30)))
        old = await home.sync(Copy())
        old_scan = await home.sync(Copy(), until=lambda: True)
        backup = store.backup()
        await home.write(rows(*range(5), version=1))
        lost = await home.sync(Copy())
        lost_scan = await home.sync(Copy(), until=lambda: True)
        await home.sync(old_scan, until=lambda: True)
        store.restore(backup)
        await home.write(rows(*range(5), version=2))
        for copy, resets in (
            (old, []),
            (lost, ["HISTORY_CHANGED"]),
            (lost_scan, ["HISTORY_CHANGED"]),
            (old_scan, ["HISTORY_CHANGED"]),
        ):
            await home.sync(copy)
            assert copy.resets == resets
            await home.assert_equal(copy)


async def test_g11_tokens_outlive_a_restart(house):
    async with house(page_changes=10) as home:
        await home.write(rows(*range(30)))
        whole, part = await home.sync(Copy()), await home.sync(Copy(), until=lambda: True)
        home.store._store.restart()
        await home.write(rows(3, version=1))
        for copy in (whole, part):
            async with home.subscribe(token=copy.token) as messages:
                await follow(copy, messages)
            assert copy.resets == []
            await home.assert_equal(copy)


async def test_t59_g17_a_slow_reader_is_conflated_and_costs_nobody(house):
    limits = {"ring_bytes": 20_000, "shared_bytes": 20_000, "message_bytes": 5_000, "page_changes": 10}
    async with house(**limits) as home:
        fast, slow = Copy(), Copy()
        async with home.subscribe() as messages, home.subscribe() as seldom:
            await follow(fast, messages)
            await follow(slow, seldom)
            taken = 0
            for number in range(1_000):
                appended = await home.write(rows(number % 5, version=number))
                await follow_to(fast, messages, appended.head.revision)
                (channel,) = home.feed._channels
                assert channel.ring.size_bytes <= 20_000
                assert channel.shared.size_bytes <= 20_000
                if number % 100 == 99:
                    slow.take(await anext(seldom))
                    taken += 1
            await follow_to(slow, seldom, 1_000)
        for copy in (fast, slow):
            await home.assert_equal(copy)
        assert fast.batches == 1_000
        assert slow.batches < 100 + taken, "versions in between were skipped"


async def test_g17_a_stuck_reader_holds_one_page_and_reads_one_ahead(house):
    async with house(page_changes=10, shared_bytes=0) as home:
        await home.write(rows(*range(500)))
        async with home.subscribe() as messages:
            await anext(messages)
            for _ in range(20):
                await asyncio.sleep(0)
            assert home.store.reads == 2


async def test_f4_g10_a_scan_catches_up_with_busy_writers(house):
    """A page of ten for every thirty rows written never would."""
    async with house(page_changes=10) as home:
        await home.write(rows(*range(200)))
        number = 1_000
        async with home.subscribe() as messages:
            copy = Copy()
            async with asyncio.timeout(20):
                while not copy.exact:
                    copy.take(await anext(messages))
                    for _ in range(3):
                        number += 10
                        await home.write(rows(*range(number, number + 10)))
        assert len(copy.records) > 200
        assert home.feed._metrics.scan_laps._value.get() > 0


async def test_t62_subscribe_and_cancel_leaves_nothing(house):
    async with house(poll_seconds=0.02, linger_seconds=0.0) as home:
        await home.write(rows(*range(20)))
        tasks = len(asyncio.all_tasks())

        async def look(how):
            async with home.subscribe() as messages:
                if how:
                    await follow(Copy(), messages)
                await anext(messages)

        for number in range(100):
            task = asyncio.create_task(look(number % 2))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            (channel,) = tuple(home.feed._channels) or (None,)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not home.feed._hosts
        assert not channel.followers
        assert not channel._waiters
        assert channel.users == 0
        async with asyncio.timeout(5):
            while tuple(home.feed._channels) or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)


class Waiting:
    woken = False

    def wake(self):
        self.woken = True


async def test_wake_ups_of_many_leave_room_for_others(house):
    """F34: no turn of the event loop wakes more than 256."""
    async with house() as home:
        channel = home.feed._channels.open(home.dataset)
        waiters = [Waiting() for _ in range(1_000)]
        for waiter in waiters:
            channel.wait(waiter)
        channel.hear(1)
        turns = []
        while not all(waiter.woken for waiter in waiters):
            turns.append(sum(waiter.woken for waiter in waiters))
            await asyncio.sleep(0)
        assert turns == [256, 512, 768]


async def test_store_trouble_ends_the_stream_that_met_it_and_no_other(house):
    async with house() as home, home.subscribe() as stays:
        await home.write(rows(1))
        copy = await follow_to(Copy(), stays, 1)

        async def fail(after):
            raise Unavailable("STORE_UNAVAILABLE", "the disk is away")

        home.store.before_read = fail
        with pytest.raises(Unavailable, check=lambda e: e.reason == "STORE_UNAVAILABLE"):
            async with home.subscribe(min_revision=1) as messages:
                next(iter(home.feed._channels)).shared.clear()
                await anext(messages)
        await home.write(rows(2))
        await follow_to(copy, stays, 2)
        await home.assert_equal(copy)


@pytest.mark.parametrize("seed", range(25))
async def test_t63_t54_hand_off_between_store_and_ring(house, seed):
    """F12: a ring of four frames, random delays everywhere, wake-ups lost, late and out of order.

    The copies check every batch for gaps and repeats, and every checkpoint by digest.
    """
    choose = random.Random(seed)

    async def linger(most=6):
        for _ in range(choose.randrange(most)):
            await asyncio.sleep(0)

    async with house(ring_frames=4, page_changes=3, poll_seconds=0.02, checkpoint_seconds=0.2) as home:
        home.store.before_read = home.store.after_read = lambda _: linger()

        async def write():
            held = []
            for number in range(120):
                actions = rows(*choose.sample(range(12), choose.randint(1, 4)), version=number)
                actions.append(
                    (f"k{choose.randrange(12)}x", b"%d" % number if choose.random() < 0.5 else None)
                )
                held.append(await home.write(actions, announce=False))
                choose.shuffle(held)
                while held and choose.random() < 0.7:
                    if choose.random() < 0.9:
                        home.notifier.announce(held[-1])
                    held.pop()
                if choose.random() < 0.02:
                    await home.purge()
                await linger()

        async def read(copy):
            while not (writer.done() and copy.exact and copy.revision == await home.revision()):
                async with home.subscribe(token=copy.token) as messages:
                    for _ in range(choose.randint(1, 30)):
                        copy.take(await anext(messages))
                        await linger(choose.choice([1, 1, 3, 40]))
                        if writer.done() and copy.exact and copy.revision == await home.revision():
                            break

        writer = asyncio.create_task(write())
        copies = [Copy() for _ in range(6)]
        async with asyncio.timeout(30):
            await asyncio.gather(writer, *map(read, copies))
        for copy in copies:
            await home.assert_equal(copy)


async def test_f4_the_store_reads_ahead_while_a_page_is_sent_and_then_stops(house):
    """The page after the one that is sent, and no further before that one is taken."""
    async with house(page_changes=10) as home:
        await home.write(rows(*range(500)))
        async with home.subscribe() as messages:
            await anext(messages)
            for _ in range(100):
                await asyncio.sleep(0)
            assert home.store.reads == 2
            await anext(messages)
            for _ in range(100):
                await asyncio.sleep(0)
            assert home.store.reads == 4
