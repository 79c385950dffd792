"""When UpdateFeed sends and when it ends: credit, delivery modes, bookmarks, drain, readers that stand still."""

import asyncio
import urllib.request

import grpc

from support.feed_client import FeedClient, push
from support.wire import WIDE, Wire, house
from syncline.v1.update_feed_pb2 import DeliveryMode

MAX_RATE, ON_CHECKPOINT = DeliveryMode.DELIVERY_MODE_MAX_RATE, DeliveryMode.DELIVERY_MODE_ON_CHECKPOINT


# -- credit ------------------------------------------------------------------------------------------------


async def test_g17_nothing_is_sent_without_credit(wire, feeds):
    """A part may go beyond what is left; then nothing comes until more is granted, and others go on."""
    await push(wire, "books", *range(2_000), size=200)
    async with feeds() as feed:
        await feed.add(1, "books", credit_bytes=100_000)
        await feed.add(2, "birds")
        await feed.until(lambda: feed.bytes[1] >= 100_000)
        before = feed.bytes[1]
        assert before < 100_000 + (512 << 10)
        await push(wire, "birds", 1)
        await feed.until_exact(1, (2, ""))
        await feed.until(lambda: len(feed.copies[2, ""].checkpoints) > 3)
        assert feed.bytes[1] == before
        await feed.grant(1, before - 100_000)
        await push(wire, "birds", 2)
        await feed.until_exact(2, (2, ""))
        assert feed.bytes[1] == before, "credit of 0 is none"
        await feed.grant(1, 10_000_000)
        await feed.until_exact(1, (1, ""))


async def test_g09_who_had_no_credit_is_conflated(wire, feeds):
    await push(wire, "books", *range(10))
    async with feeds() as feed:
        await feed.add(1, "books", credit_bytes=1)
        await feed.until(lambda: (1, "") in feed.accepted)
        for version in range(1, 20):
            await push(wire, "books", 1, version=version)
        assert not feed.copies[1, ""].records
        await feed.grant(1, 1 << 20)
        await feed.until_exact(20, (1, ""))
        assert feed.copies[1, ""].batches == 1


# -- delivery modes ----------------------------------------------------------------------------------------


async def test_max_rate_folds_what_comes_in_an_interval(wire, feeds):
    await push(wire, "books", 0)
    async with feeds() as feed:
        copy = feed.copies[1, ""]
        await feed.add(1, "books", delivery_mode=MAX_RATE, min_interval={"nanos": 500_000_000})
        await feed.until(lambda: copy.exact)
        for version in range(1, 10):
            await push(wire, "books", 0, version=version)
        await feed.until_exact(10, (1, ""))
        assert copy.batches == 2
        assert copy.folded == 8
        assert set(copy.checkpoints) == {1, 10}


async def test_max_rate_sends_bookmarks_meanwhile(wire, feeds):
    """G10: held back is not silent."""
    async with feeds() as feed:
        copy = feed.copies[1, ""]
        await feed.add(1, "books", delivery_mode=MAX_RATE, min_interval={"seconds": 3600})
        await feed.until(lambda: copy.exact)
        await push(wire, "books", 1)
        await feed.until(lambda: len(copy.checkpoints) == 4)
        assert copy.checkpoints == [0, 0, 0, 0]


async def test_on_checkpoint_waits_for_the_acknowledgement(wire, feeds):
    await push(wire, "books", 0)
    async with feeds() as feed:
        copy = feed.copies[1, ""]
        await feed.add(1, "books", delivery_mode=ON_CHECKPOINT)
        await feed.until_exact(1, (1, ""))
        for version in range(1, 6):
            await push(wire, "books", 0, version=version)
        await feed.until(lambda: len(copy.checkpoints) == 3)
        assert copy.checkpoints == [1, 1, 1]
        await feed.ack(1, 1)
        await feed.until_exact(6, (1, ""))
        assert (copy.batches, copy.folded) == (2, 4)
        await feed.ack(1, 6)
        await push(wire, "books", 1)
        await feed.until_exact(7, (1, ""))


# -- bookmarks, drain --------------------------------------------------------------------------------------


async def test_g10_bookmarks_come_for_each_subscription(wire, feeds):
    async with feeds() as feed:
        for number in range(1, 21):
            await feed.add(number, "books" if number % 2 else "birds")
        loop = asyncio.get_running_loop()
        await feed.until(lambda: all(feed.copies[n, ""].exact for n in range(1, 21)))
        begun = loop.time()
        await feed.until(lambda: all(len(feed.copies[n, ""].checkpoints) >= 6 for n in range(1, 21)))
        assert 5 * 0.4 * 0.8 < loop.time() - begun < 5 * 0.4 * 1.4


async def test_g20_a_drained_stream_ends_with_last_tokens(tmp_path):
    """Also whoever has no credit is told, but is sent nothing."""
    leave = asyncio.Event()

    async def serve(started):
        async with house(tmp_path) as home:
            started.set_result(home)
            await leave.wait()

    started = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(started))
    home = await started
    async with grpc.aio.insecure_channel(home.server.addresses[0]) as channel:
        wire = Wire(channel, home.wire.secret)
        await wire.make_dataset("books")
        await push(wire, "books", 1)
        async with FeedClient(wire) as feed:
            await feed.add(1, "books")
            await feed.add(2, "books", credit_bytes=1)
            await feed.until(lambda: feed.copies[1, ""].exact and (2, "") in feed.accepted)
            leave.set()
            refused = await feed.ended()
    await server
    assert feed.copies[1, ""].going_away
    assert feed.copies[2, ""].checkpoints == []
    assert 0 < feed.going_away.retry_delay.ToNanoseconds() <= 1e9
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")


# -- stuck readers -----------------------------------------------------------------------------------------


ENDED = b'syncline_calls_total{code="UNAVAILABLE",method="SyncService/UpdateFeed"} 1.0'


def metrics(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return answer.read()


async def test_f33_a_client_that_takes_nothing_is_ended_and_goes_on_from_its_token(tmp_path):
    """Its connection lives, so no keepalive ends it. What was under way still reaches it, then the status."""
    async with house(tmp_path, write_seconds=0.5, http="127.0.0.1:0") as home:
        wire = home.wire
        await wire.make_dataset("books")
        for first in range(0, 10_000, 500):
            await push(wire, "books", *range(first, first + 500), size=2_000)
        async with grpc.aio.insecure_channel(
            home.server.addresses[0], options=[*WIDE, ("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stuck = Wire(channel, wire.secret)
            async with FeedClient(stuck) as feed:
                await feed.add(1, "books", credit_bytes=1 << 30)
                await feed.until(lambda: feed.copies[1, ""].records)
                async with asyncio.timeout(20):
                    while ENDED not in await asyncio.to_thread(metrics, home.server.http):
                        await asyncio.sleep(0.05)
                refused = await feed.ended()
            assert (refused.code, refused.reason) == ("UNAVAILABLE", "READER_STUCK")
            async with FeedClient(stuck, feed.copies) as again:
                await again.add(1, "books", token=feed.copies[1, ""].token, credit_bytes=1 << 30)
                await again.until_exact(20, (1, ""))
                assert not again.copies[1, ""].resets
