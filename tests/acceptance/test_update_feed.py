"""UpdateFeed on bare stubs against real server processes: cuts, slow and stopped readers, restarts."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import psutil
import pytest

from support.feed_client import FeedClient, delete, push
from support.proxy import Proxy
from support.waiting import until
from support.wire import WIDE, Refused, Wire
from syncline.v1 import catalog_service_pb2 as catalog

NAMES = ("books", "birds")
ONE, TWO = (1, ""), (2, "")


@asynccontextmanager
async def wire_to(address, key):
    """Stubs on a connection of their own, which comes back soon after a cut."""
    options = [
        *WIDE,
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.min_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", 100),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Wire(channel, key)


@pytest.fixture
async def wire(server):
    async with wire_to(server.address, server.key) as wire:
        for name in NAMES:
            await wire.make_dataset(name)
        yield wire


async def add_both(feed):
    """Both datasets, from where their copies are."""
    for number, name in enumerate(NAMES, 1):
        await feed.add(number, name, token=feed.copies[number, ""].token, credit_bytes=1 << 28)


async def head_of(wire, name):
    dataset = await wire.call(wire.catalog.GetDataset, catalog.GetDatasetRequest(name=f"datasets/{name}"))
    return dataset.dataset.revision


async def follow_through_faults(wire, copies, there, *, again=(grpc.StatusCode.UNAVAILABLE,)):
    """Connect again with the last tokens until ``there(feed)``; return how often a stream was begun."""
    for streams in itertools.count(1):
        try:
            async with FeedClient(wire, copies) as feed:
                await add_both(feed)
                await feed.until(lambda: there(feed))
                return streams
        except grpc.aio.AioRpcError as error:
            assert error.code() in again, error
        except asyncio.InvalidStateError:
            pass  # the stream had ended when the next action was written
    raise AssertionError


def exact(feed, heads):
    return all(
        feed.copies[number, ""].exact and feed.copies[number, ""].revision >= head
        for number, head in enumerate(heads, 1)
    )


async def test_t49_g08_g11_cut_after_every_message(server, wire):
    """T49, G8, G11: a connection that dies after every k-th answer; contiguous batches, and the same copies."""
    for first in range(0, 4_000, 500):
        await push(wire, "books", *range(first, first + 500), size=900)
    await push(wire, "birds", *range(300))
    await delete(wire, "books", *range(100))
    heads = [await head_of(wire, name) for name in NAMES]
    found = []
    for after in (2, 3, 5, 8):
        async with (
            Proxy.to(server.address) as proxy,
            wire_to(proxy.address, server.key) as far,
        ):
            proxy.cut_after_answers(after * 4)
            copies = FeedClient(wire).copies
            streams = await follow_through_faults(far, copies, lambda feed: exact(feed, heads))
            found.append((copies[ONE].records, copies[TWO].records))
            assert after > 2 or streams > 1, "the cuts were met"
            assert not copies[ONE].resets + copies[TWO].resets
    assert all(copy == found[0] for copy in found)
    assert (len(found[0][0]), len(found[0][1])) == (3_900, 300)


async def served(call):
    """What a call gives as soon as its channel has found the server again."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)


async def test_g20_t110_sigterm_under_load(server, wire):
    """T110, G20: last tokens, exit 0, and after the restart copies that go on without a reset (G12: never back)."""
    copies = FeedClient(wire).copies
    done = asyncio.Event()

    async def write():
        for version in itertools.count():
            if done.is_set():
                return
            try:
                await push(wire, NAMES[version % 2], version % 50, version=version)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)

    writer = asyncio.create_task(write())
    try:
        async with FeedClient(wire, copies) as feed:
            await add_both(feed)
            await feed.until(lambda: exact(feed, (5, 5)))
            stopping = asyncio.create_task(server.stop(signal.SIGTERM))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await feed.until(lambda: False)
            refused = Refused(raised.value)
            assert (refused.code, refused.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert feed.going_away is not None
            assert copies[ONE].going_away
            assert copies[TWO].going_away
            assert await stopping == 0
        await server.start()
        await until(lambda: not writer.done())
        done.set()
        await writer
        heads = [await served(partial(head_of, wire, name)) for name in NAMES]
        await follow_through_faults(wire, copies, lambda feed: exact(feed, heads))
    finally:
        done.set()
        await asyncio.gather(writer, return_exceptions=True)
    assert not copies[ONE].resets + copies[TWO].resets


async def test_g11_kill_under_load(server, wire):
    """After ``kill -9`` as well: nothing was sent that the restarted server does not have (G2, G13)."""
    copies = FeedClient(wire).copies
    async with FeedClient(wire, copies) as feed:
        await add_both(feed)
        for version in range(30):
            await push(wire, "books", version % 7, version=version)
        await feed.until_exact(20, ONE)
        await server.kill()
    await server.start()
    await push(wire, "books", 1, version=100)
    heads = (await head_of(wire, "books"), 0)
    await follow_through_faults(wire, copies, lambda feed: exact(feed, heads))
    assert not copies[ONE].resets


async def test_t115_streams_have_an_age_and_nobody_notices(make_server):
    """T115: streams and connections end every second; each stream with last tokens, and the copies go on."""
    async with (
        make_server(SYNCLINE_CONNECTION_AGE_SECONDS="1") as server,
        wire_to(server.address, server.key) as wire,
    ):
        for name in NAMES:
            await wire.make_dataset(name)
        copies = FeedClient(wire).copies
        ends = []
        for version in itertools.count():
            async with FeedClient(wire, copies) as feed:
                await add_both(feed)
                await push(wire, "books", version, version=version)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await feed.until(lambda: False)
                ends.append(Refused(raised.value).reason)
                assert feed.going_away is not None
                assert copies[ONE].going_away
            if version == 3:
                break
        assert ends == ["MOVED"] * 4
        assert not copies[ONE].resets + copies[TWO].resets
        assert len(copies[ONE].records) == 4
        assert copies[ONE].batches == 4


async def test_g17_t59_a_slow_reader_is_alone(server, wire):
    """T59, G17: one reads a message now and then; commits and others go on, the server's memory stays, it is conflated."""
    process = psutil.Process(server.pid)
    for first in range(0, 2_000, 500):
        await push(wire, "books", *range(first, first + 500), size=1_000)
    async with wire_to(server.address, server.key) as far, FeedClient(far) as slow, FeedClient(wire) as quick:
        await slow.add(1, "books", credit_bytes=64 << 10)
        await quick.add(1, "books", credit_bytes=1 << 30)
        await quick.until_exact(4, ONE)
        before = process.memory_info().rss
        times = []
        for version in range(80):
            begun = time.monotonic()
            revision = await push(wire, "books", *range(200), version=version, size=1_000)
            await quick.until_exact(revision, ONE)
            times.append(time.monotonic() - begun)
            if version % 20 == 0:
                had = slow.bytes[1]
                await slow.grant(1, 300_000)
                await slow.until(lambda had=had: slow.bytes[1] > had)
        grown = process.memory_info().rss - before
        assert grown < 40 << 20, "the ring of 8 MiB, and what the allocator keeps"
        assert sorted(times)[len(times) // 2] < 0.5
        await slow.grant(1, 1 << 30)
        await slow.until_exact(revision, ONE)
        assert slow.copies[ONE].records == quick.copies[ONE].records
        assert slow.bytes[1] < quick.bytes[1] / 4, "what came in between was folded"


FOLLOWER = """
import asyncio, sys
from support.feed_client import FeedClient
from support.wire import *

async def main(address, key):
    async with grpc.aio.insecure_channel(address, options=WIDE) as channel:
        async with FeedClient(Wire(channel, key)) as feed:
            for number in range(1, 4):
                await feed.add(number, "books", credit_bytes=1 << 30)
            while True:
                await feed.next()
                print("read", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_t60_m9_a_process_that_stands_still_is_dropped(make_server):
    """T60, M9: a stopped process answers no ping; what was held for it is let go, and writes were never delayed."""
    env = {
        "SYNCLINE_KEEPALIVE_SECONDS": "1",
        "SYNCLINE_KEEPALIVE_TIMEOUT_SECONDS": "1",
        "SYNCLINE_CLIENT_PING_SECONDS": "1",
    }
    async with make_server(**env) as server, wire_to(server.address, server.key) as wire:
        await wire.make_dataset("books")
        follower = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FOLLOWER,
            server.address,
            server.key,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        try:
            assert await asyncio.wait_for(follower.stdout.readline(), 30) == b"read\n"
            sockets = len(psutil.Process(server.pid).net_connections())
            follower.send_signal(signal.SIGSTOP)
            before = psutil.Process(server.pid).memory_info().rss
            for version in range(40):
                await push(wire, "books", *range(200), version=version, size=1_000)
            await until(lambda: len(psutil.Process(server.pid).net_connections()) < sockets)
            assert psutil.Process(server.pid).memory_info().rss - before < 40 << 20
        finally:
            follower.kill()
            await follower.communicate()
