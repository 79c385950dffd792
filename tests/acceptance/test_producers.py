"""Producers against a real server: every reading once, whatever happens to the link, the server or the producer."""

import asyncio
import contextlib
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

import syncline
from support.proxy import Proxy
from support.push_wire import SOURCE, push_call
from support.waiting import until
from support.wire import TIMEOUT, Refused, Wire

READINGS = 400


def reading(sequence):
    return b'{"n":%d}' % sequence


@contextlib.asynccontextmanager
async def wire_to(address, key):
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Wire(channel, key)


class Sensor:
    """A producer by hand: it sends what is not acknowledged, again and again, until everything is."""

    def __init__(self, key, total=READINGS, size=7, window=50):
        self.key = key
        self.total = total
        self.size = size
        self.window = window
        self.moved = asyncio.Event()
        self.epoch = 0
        self.acked = 0
        self.connections = 0

    async def run(self, address):
        """Connect until every reading is acknowledged."""
        async with asyncio.timeout(60):
            while self.acked < self.total:
                self.connections += 1
                try:
                    await self._connect(address)
                except (grpc.aio.AioRpcError, TimeoutError) as error:
                    if isinstance(error, grpc.aio.AioRpcError):
                        assert Refused(error).reason == "", "the link's trouble, not the server's"
                    await asyncio.sleep(0.02)

    async def _connect(self, address):
        async with wire_to(address, self.key) as wire, push_call(wire) as push:
            await push.open("sensor", epoch=self.epoch)
            self.epoch = push.opened.epoch
            self.heard(push.opened.last_sequence)
            sender = asyncio.create_task(self._send(push, self.acked + 1))
            try:
                while self.acked < self.total:
                    answer = await push.read()
                    if answer.HasField("ack"):
                        self.heard(answer.ack.last_sequence)
            finally:
                sender.cancel()
                await asyncio.wait([sender])

    async def _send(self, push, first):
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for start in range(first, self.total + 1, self.size):
                end = min(start + self.size, self.total + 1)
                while end - self.acked > self.window:
                    self.moved.clear()
                    await self.moved.wait()
                await push.send(start, [reading(n) for n in range(start, end)])

    def heard(self, sequence):
        assert sequence >= self.acked, "what was acknowledged stays so"
        self.acked = sequence
        self.moved.set()


async def make_log(client):
    await client.create_dataset("books", identity=syncline.append())


async def numbers(client):
    """The readings that the dataset holds, each as often as it is in it."""
    found = []
    async with client.dataset("books").changes() as feed:
        async for event in feed:
            if isinstance(event, syncline.Checkpoint):
                return sorted(found)
            found.append(event.data["n"])
    raise AssertionError("the feed ended")


@pytest.mark.parametrize("answers", [2, 3, 5])
async def test_g5_t20_a_link_that_breaks_again_and_again(client, shared_server, answers):
    """T20: every connection is cut instead of its k-th answer; nothing is lost, nothing comes twice."""
    await make_log(client)
    sensor = Sensor(shared_server.key)
    async with Proxy.to(shared_server.address) as proxy:
        proxy.cut_after_answers(answers)
        await sensor.run(proxy.address)
        assert proxy.cuts >= 2
    assert await numbers(client) == list(range(1, READINGS + 1))


@pytest.mark.parametrize("place", ["commit.rows", "commit.after"])
async def test_g5_t25_the_server_dies_around_a_commit(make_server, store_name, place):
    """T25: killed inside a commit, and between it and its acknowledgement: exactly once."""
    if (store_name, place) == ("postgres", "commit.rows"):
        place = "commit.before"  # there a group is written and committed by one call
    async with make_server() as server:
        async with server.client() as client:
            await make_log(client)
        await server.stop()
        await server.start(env={"SYNCLINE_FAILPOINTS": f"{place}=kill@4"})
        sensor = Sensor(server.key)
        running = asyncio.create_task(sensor.run(server.address))
        await server.wait()
        assert sensor.acked < READINGS
        await server.start()
        await running
        async with server.client() as client:
            assert await numbers(client) == list(range(1, READINGS + 1))
        assert await asyncio.to_thread(server.fsck) == []


PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
import grpc
from support.push_wire import push_call
from support.wire import Refused, Wire

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        async with push_call(Wire(channel, sys.argv[2])) as push:
            await push.open("sensor")
            print("opened", flush=True)
            sequence = push.opened.last_sequence
            try:
                while True:
                    sequence += 1
                    await push.send(sequence, [b'{"n":%d}' % sequence])
                    await push.acked(sequence)
                    print("acked", sequence, flush=True)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                reason = (await push.refused()).reason
        while not reason:  # the link broke before it could say: go on with the same epoch
            async with push_call(Wire(channel, sys.argv[2])) as push_again:
                try:
                    await push_again.open("sensor", epoch=push.opened.epoch)
                    break
                except grpc.aio.AioRpcError as error:
                    reason = Refused(error).reason
        print("ended", reason, flush=True)

asyncio.run(main())
"""


async def test_g6_t26_a_stopped_producer_is_fenced_when_it_wakes(server):
    """T26: SIGSTOP, a new epoch, SIGCONT: the old process is told, and nothing that it sends has effect."""
    async with server.client() as client:
        await make_log(client)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", PROGRAM, server.address, server.key, str(Path(__file__).parents[1])),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            said = b""
            while not said.startswith(b"acked 3"):
                said = await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
            os.kill(process.pid, signal.SIGSTOP)
            async with wire_to(server.address, server.key) as wire, push_call(wire) as push:
                await push.open("sensor")
                first = push.opened.last_sequence + 1
                await push.send(first, [b'{"n":%d}' % -first])
                await push.acked(first)
                os.kill(process.pid, signal.SIGCONT)
                output = (await asyncio.wait_for(process.stdout.read(), TIMEOUT)).decode()
                assert output.splitlines()[-1] == "ended PRODUCER_FENCED"
                await push.send(first + 1, [b'{"n":%d}' % -(first + 1)])
                await push.acked(first + 1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert await numbers(client) == [-(first + 1), -first, *range(1, first)]


async def test_g5_a_restored_store_tells_how_far_it_is(server, backups):
    """After a restore the marks are those of the backup: what came since is sent again from there."""
    async with server.client() as client:
        await make_log(client)
    sensor = Sensor(server.key, total=50)
    await sensor.run(server.address)
    backup = backups.take(server)
    sensor.total = 100
    await sensor.run(server.address)
    await server.stop()
    backups.put_back(server, backup)
    await server.start()
    async with wire_to(server.address, server.key) as wire, push_call(wire) as push:
        await push.open("sensor", epoch=sensor.epoch)
        assert push.opened.last_sequence == 50
        await push.send(51, [reading(n) for n in range(51, 101)])
        await push.acked(100)
    async with server.client() as client:
        assert await numbers(client) == list(range(1, 101))


async def test_t30_every_bad_reading_is_told_and_the_others_stay(client, shared_server):
    """T30: over many messages in one commit, the index of a violation leads to the reading."""
    await make_log(client)
    async with wire_to(shared_server.address, shared_server.key) as wire, push_call(wire) as push:
        await push.open("t30")
        for sequence in range(1, 101):
            await push.send(sequence, [b"bad" if sequence % 10 == 0 else reading(sequence)])
        bad, last = [], 0
        while last < 100:
            ack = await push.ack()
            assert ack.first_sequence == last + 1
            last = ack.last_sequence
            bad += [ack.first_sequence + violation.index for violation in ack.violations]
    assert bad == list(range(10, 101, 10))
    assert await numbers(client) == [n for n in range(1, 101) if n % 10]


async def test_who_is_heard_from_is_told_by_the_client(server):
    async with server.client() as client:
        await make_log(client)
        info = await client.update_source("books", "default", expect_every=timedelta(seconds=1))
        assert info.expect_every == timedelta(seconds=1)
        await Sensor(server.key, total=3).run(server.address)
        (found,) = await client.producers("books")
        assert (found.producer, found.last_sequence, found.state) == ("sensor", 3, "alive")
        async with client.watch_producers("books") as watch, asyncio.timeout(TIMEOUT):
            states = [(await anext(watch)).state]
            while states[-1] != "lost":
                states.append((await anext(watch)).state)
            assert states == ["alive", "late", "lost"]
            await server.restart()
            await Sensor(server.key, total=5).run(server.address)
            news = await anext(watch)
            while news.state != "alive":
                news = await anext(watch)
            assert news.epoch > found.epoch
            await client.delete_producer("books", "default", "sensor")
            gone = await anext(watch)
            while not isinstance(gone, syncline.ProducerForgotten):
                gone = await anext(watch)
            assert gone.producer == "sensor"
        cleared = await client.update_source("books", "default", expect_every=timedelta(0))
        assert cleared.expect_every is None
        with pytest.raises(syncline.NotFound):
            await client.delete_producer("books", "default", "sensor")


async def test_the_command_shows_who_is_heard_from(client, shared_server):
    await make_log(client)

    async def command(*arguments):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "syncline.cli", "source", *arguments),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"SYNCLINE_SERVER": shared_server.address, "SYNCLINE_KEY": shared_server.key},
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    assert (await command("create", "books", "s", "--expect-every", "90s"))[0] == 0
    assert (await client.get_source("books", "s")).expect_every == timedelta(seconds=90)
    assert (await command("update", "books", "default", "--expect-every", "2h"))[0] == 0
    await Sensor(shared_server.key, total=3).run(shared_server.address)
    _, shown = await command("producers", "books", "default")
    assert shown.splitlines()[-1].split()[:2] == ["sensor", "alive"]
    assert (await command("update", "books", "s", "--expect-every", "never"))[0] == 0
    assert (await client.get_source("books", "s")).expect_every is None


async def test_a_watch_ends_with_its_dataset(client):
    await make_log(client)
    async with client.watch_producers("books") as watch, asyncio.timeout(TIMEOUT):
        waiting = asyncio.ensure_future(anext(watch))
        await until(lambda: watch._call is not None)
        await client.delete_dataset("books")
        with pytest.raises(syncline.NotFound):
            await waiting


async def test_g6_an_epoch_that_was_never_opened_is_refused(client, shared_server):
    await make_log(client)
    async with wire_to(shared_server.address, shared_server.key) as wire, push_call(wire) as push:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await push.open("never", epoch=5, source=SOURCE)
        assert Refused(error.value).reason == "PRODUCER_FENCED"
