"""sensor_stream and sensor_batched: many producers, every reading durable and applied once."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc.aio

from bench.measure import (
    Figure,
    Outcome,
    Requirement,
    Room,
    Stopwatch,
    at_least,
    interleaved,
    medians,
    quiet_collector,
)
from bench.records import Item, encode_item, make_item
from bench.systems.echo import running_echo
from bench.systems.stubs import ProducerCall, SynclineFeed

CONNECTIONS = 10
STREAMS = 100
WINDOW = 50
"""Messages of a stream that are on their way."""
BATCH = 50
"""Readings of a message, for sensor_batched."""
BATCHED_READINGS_PER_SECOND = 20_000
_COLLECTION = "sensors"


class Stream(ABC):
    """Sends messages as long as its window is open, and hears how far they are answered."""

    def __init__(self) -> None:
        self._sent = 0
        self._answered = 0
        self._room = asyncio.Event()

    @abstractmethod
    async def send(self, items: Sequence[Item]) -> None:
        """Send one message."""

    @abstractmethod
    async def answered(self) -> int:
        """Wait for news: how many items were answered since the stream was opened."""

    async def run(self, messages: Sequence[Sequence[Item]]) -> None:
        """Send them all; return when all are answered."""
        window = WINDOW * len(messages[0])
        end = self._sent + sum(map(len, messages))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(end))
            for items in messages:
                while self._sent - self._answered >= window:
                    self._room.clear()
                    await self._room.wait()
                self._sent += len(items)
                await self.send(items)

    async def _hear(self, end: int) -> None:
        while self._answered < end:
            self._answered = await self.answered()
            self._room.set()


class _Producer(Stream):
    """A PushStream: cumulative acknowledgements, once the readings are on the disk."""

    def __init__(self, call: ProducerCall) -> None:
        super().__init__()
        self._call = call

    async def send(self, items: Sequence[Item]) -> None:
        await self._call.send(items)

    async def answered(self) -> int:
        return await self._call.acknowledged()


class _EchoStream(Stream):
    """A stream of the bare echo: every message comes back."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self._call = call
        self._back = 0

    async def send(self, items: Sequence[Item]) -> None:
        await self._call.write(encode_item(items[0]))

    async def answered(self) -> int:
        if await self._call.read() is grpc.aio.EOF:
            raise RuntimeError("the echo ended a stream")
        self._back += 1
        return self._back


class Round:
    """All streams at once; returns items a second, sent and answered."""

    def __init__(self, streams: Sequence[Stream], *, messages: int, size: int) -> None:
        self._streams = streams
        self._messages = messages
        self._size = size
        self._next = 0

    async def __call__(self, _number: int) -> float:
        plans = [[self._items() for _ in range(self._messages)] for _ in self._streams]
        with quiet_collector():
            watch = Stopwatch()
            async with asyncio.TaskGroup() as tasks:
                for stream, messages in zip(self._streams, plans, strict=True):
                    tasks.create_task(stream.run(messages))
            return len(self._streams) * self._messages * self._size / watch.seconds

    def _items(self) -> list[Item]:
        first = self._next
        self._next += self._size
        return [make_item(number) for number in range(first, self._next)]


async def open_producers(
    stack: contextlib.AsyncExitStack, system: SynclineFeed, address: str, collection: str
) -> list[Stream]:
    """Open as many producers, on connections of their own, until the stack is closed."""
    channels = [await stack.enter_async_context(system.connect_stubs(address)) for _ in range(CONNECTIONS)]
    streams: list[Stream] = []
    for number in range(STREAMS):
        call = await channels[number % CONNECTIONS].open_producer(collection, f"sensor-{number}")
        stack.callback(call.cancel)
        streams.append(_Producer(call))
    return streams


@contextlib.asynccontextmanager
async def _producers(room: Room) -> AsyncIterator[tuple[list[Stream], list[Stream]]]:
    """Those that send single readings, and those that batch, each kind in a dataset of its own."""
    system = SynclineFeed()
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(system.serve(room.directory))
        client = await stack.enter_async_context(system.connect(running.address))
        for kind in ("single", "batched"):
            await client.create(f"{_COLLECTION}-{kind}")
        yield (
            await open_producers(stack, system, running.address, f"{_COLLECTION}-single"),
            await open_producers(stack, system, running.address, f"{_COLLECTION}-batched"),
        )


@contextlib.asynccontextmanager
async def _echoes(room: Room) -> AsyncIterator[list[Stream]]:
    async with (
        running_echo(room.directory, connections=CONNECTIONS) as channels,
        contextlib.AsyncExitStack() as stack,
    ):
        calls = [channels[number % CONNECTIONS].stream() for number in range(STREAMS)]
        for call in calls:
            stack.callback(call.cancel)
        yield [_EchoStream(call) for call in calls]


async def measure(room: Room) -> Outcome:
    """Single readings beside as many messages of a bare echo, and readings in batches."""
    room.say(f"opening {STREAMS} producers and {STREAMS} streams of the echo")
    async with _producers(room) as (single, batched), _echoes(room) as echoes:
        messages = room.pick(200, 100)
        rounds: Mapping[str, Round] = {
            "syncline": Round(single, messages=messages, size=1),
            "grpc_bidi_echo": Round(echoes, messages=messages, size=1),
            "batched": Round(batched, messages=room.pick(10, 5), size=BATCH),
        }
        samples = await interleaved(room.pick(4, 3), rounds)
    in_batches = {"syncline": samples.pop("batched")}
    values = medians(samples)
    figures = [
        Figure(
            name="sensor_stream",
            what=f"{STREAMS} PushStream streams, a reading a message, {WINDOW} on their way each, durable",
            unit="messages/s",
            better="higher",
            values=values,
            samples=samples,
        ),
        Figure(
            name="sensor_batched",
            what=f"the same with {BATCH} readings a message",
            unit="readings/s",
            better="higher",
            values=medians(in_batches),
            samples=in_batches,
        ),
    ]
    reached = figures[1].values["syncline"]
    needed = [
        *at_least(
            "sensor_stream: at least 0.7 times grpc_bidi_echo",
            values["syncline"],
            values["grpc_bidi_echo"],
            0.7,
        ),
        Requirement(
            what="sensor_batched: at least 20,000 readings/s",
            limit=BATCHED_READINGS_PER_SECOND,
            measured=reached,
            reached=reached >= BATCHED_READINGS_PER_SECOND,
        ),
    ]
    return Outcome(figures=figures, requirements=needed)
