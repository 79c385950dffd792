"""T61: ten thousand subscribers that wait, then one commit. Minutes long: ``make test-all``."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from support.feed_client import push
from support.waiting import until
from support.wire import WIDE, Wire

PROCESSES, CHANNELS, STREAMS = 2, 50, 100
"""Client processes, connections of each, streams on each connection."""
SUBSCRIBERS = PROCESSES * CHANNELS * STREAMS
SERVED_SECONDS = 10.0
"""From the commit until the last of them has it. Measured: 2 to 4 s on two cores that the clients share."""
BYTES_PER_STREAM = 64 << 10
"""Measured: 30 to 40 KiB, nearly all of it gRPC's."""

CLIENT = """
import asyncio, json, sys, time
from support.wire import *
from syncline.v1 import sync_service_pb2 as pb
from syncline.v1.update_feed_pb2 import AddSubscription, FeedAction

async def follow(wire, gate, tally):
    async with gate:
        call = wire.sync.UpdateFeed(metadata=wire.metadata)
        add = AddSubscription(subscription_id=1, dataset="datasets/books")
        await call.write(pb.UpdateFeedRequest(actions=[FeedAction(add=add)]))
        first = True
        while first:
            first = not any(part.events for part in (await call.read()).parts)
    tally["ready"] += 1
    while True:
        for part in (await call.read()).parts:
            if any(event.HasField("changes") for event in part.events):
                tally["served"] += 1
                tally["last"] = time.monotonic()

async def main(address, key, channels, streams):
    tally = {"ready": 0, "served": 0, "last": 0.0}
    options = [*WIDE, ("grpc.use_local_subchannel_pool", 1)]
    gate = asyncio.Semaphore(50)
    wires = [Wire(grpc.aio.insecure_channel(address, options=options), key) for _ in range(channels)]
    tasks = [asyncio.create_task(follow(wire, gate, tally)) for wire in wires for _ in range(streams)]
    while True:
        await asyncio.sleep(0.25)
        for task in tasks:
            if task.done():
                task.result()
        print(json.dumps(tally), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


class Clients:
    """Processes full of subscribers, and what they last said."""

    def __init__(self):
        self.said = [{"ready": 0, "served": 0, "last": 0.0}] * PROCESSES
        self.ended = []

    def total(self, what):
        assert not self.ended, "a client process ended"
        return sum(said[what] for said in self.said)

    async def listen(self, number, process):
        async for line in process.stdout:
            self.said[number] = json.loads(line)
        self.ended.append(number)


@asynccontextmanager
async def clients(server):
    together = Clients()
    async with AsyncExitStack() as stack:
        for number in range(PROCESSES):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                CLIENT,
                server.address,
                server.key,
                str(CHANNELS),
                str(STREAMS),
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            listening = asyncio.create_task(together.listen(number, process))
            stack.callback(listening.cancel)
        yield together


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_t61_ten_thousand_idle_subscribers_and_one_commit(make_server):
    async with (
        make_server(SYNCLINE_STREAMS_PER_KEY=str(SUBSCRIBERS + 10)) as server,
        grpc.aio.insecure_channel(server.address, options=WIDE) as channel,
    ):
        wire = Wire(channel, server.key)
        await wire.make_dataset("books")
        process = psutil.Process(server.pid)
        empty = process.memory_info().rss
        loop = asyncio.get_running_loop()
        starting = loop.time()
        async with clients(server) as together:
            await until(lambda: together.total("ready") == SUBSCRIBERS, seconds=300)
            opened = loop.time() - starting
            grown = process.memory_info().rss - empty
            begun = loop.time()
            await push(wire, "books", 1)
            answered = loop.time() - begun
            await until(lambda: together.total("served") == SUBSCRIBERS, seconds=60)
            served = max(said["last"] for said in together.said) - begun
        print(
            f"{grown / SUBSCRIBERS:.0f} bytes a stream; all open in {opened:.1f} s; "
            f"a commit answered in {answered:.2f} s, all served in {served:.2f} s"
        )
        assert grown / SUBSCRIBERS < BYTES_PER_STREAM
        assert served < SERVED_SECONDS
        assert answered < SERVED_SECONDS / 2, "the writer does not wait for all of them"
