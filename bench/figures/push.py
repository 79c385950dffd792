"""push_bulk and push_single."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

from bench.measure import Figure, Outcome, Room, Stopwatch, at_least, interleaved, medians, quiet_collector
from bench.records import Item, encode_item, make_item, shuffled_items
from bench.systems.base import CALL_RECORDS, IN_FLIGHT, Client, System
from bench.systems.echo import running_echo
from bench.systems.sqlite import Sqlite
from bench.systems.syncline import Syncline

CALLERS = 50


async def measure_bulk(room: Room) -> Outcome:
    """New records in the order of their keys, as an export has them."""
    items = [make_item(number) for number in range(room.pick(100_000, 30_000))]
    figure = await _bulk(room, "push_bulk", "in order", items)
    needed = at_least(
        "push_bulk: at least 2 times etcd", figure.values["syncline"], figure.values.get("etcd"), 2.0
    )
    return Outcome(figures=[figure], requirements=needed)


async def measure_bulk_shuffled(room: Room) -> Outcome:
    """The same in an order without pattern, which is what an index on disk likes least."""
    items = shuffled_items(room.pick(100_000, 30_000))
    return Outcome(figures=[await _bulk(room, "push_bulk_shuffled", "shuffled", items)])


async def _bulk(room: Room, name: str, order: str, items: list[Item]) -> Figure:
    """1,000 records a call, 4 calls in flight; every round fills a new collection."""
    with quiet_collector():
        async with contextlib.AsyncExitStack() as stack:
            contenders: dict[str, Callable[[int], Awaitable[float]]] = {}
            for system in (Syncline(), *room.peers.values()):
                client = await connected(stack, system, room)
                contenders[system.name] = BulkRound(client, items)
            sqlite = stack.enter_context(contextlib.closing(Sqlite(room.directory / "sqlite.db")))
            contenders["sqlite"] = _SqliteRound(sqlite, items)
            samples = await interleaved(room.pick(4, 2), contenders)
    return Figure(
        name=name,
        what=f"{len(items):,} new records, {order}, {CALL_RECORDS:,} a call, {IN_FLIGHT} in flight",
        unit="records/s",
        better="higher",
        values=medians(samples),
        samples=samples,
    )


async def connected(stack: contextlib.AsyncExitStack, system: System, room: Room) -> Client:
    """A running server of the system, and a client of it."""
    room.say(f"starting {system.name}")
    running = await stack.enter_async_context(system.serve(room.directory))
    return await stack.enter_async_context(system.connect(running.address))


class BulkRound:
    """All items into a new collection."""

    def __init__(self, client: Client, items: list[Item]) -> None:
        self._client = client
        self._items = items

    async def __call__(self, number: int) -> float:
        collection = f"bulk-{number}"
        await self._client.create(collection)
        watch = Stopwatch()
        await self._client.push_bulk(collection, self._items)
        return len(self._items) / watch.seconds


class _SqliteRound:
    def __init__(self, sqlite: Sqlite, items: list[Item]) -> None:
        self._sqlite = sqlite
        self._items = items

    async def __call__(self, number: int) -> float:
        watch = Stopwatch()
        self._sqlite.push_bulk(f"bulk-{number}", self._items)
        return len(self._items) / watch.seconds


async def measure_single(room: Room) -> Outcome:
    """One record a call from 50 concurrent callers, beside as many callers of a bare echo."""
    seconds = room.pick(2_000, 1_000) / 1_000
    async with contextlib.AsyncExitStack() as stack:
        client = await connected(stack, Syncline(), room)
        await client.create("single")
        (echo,) = await stack.enter_async_context(running_echo(room.directory, connections=1))
        samples = await interleaved(
            room.pick(5, 2),
            {
                "syncline": CallersRound(partial(client.push_one, "single"), seconds),
                "grpc_echo": CallersRound(lambda item: echo.unary(encode_item(item)), seconds),
            },
        )
    values = medians(samples)
    figure = Figure(
        name="push_single",
        what=f"{CALLERS} callers, a record a call",
        unit="calls/s",
        better="higher",
        values=values,
        samples=samples,
    )
    needed = at_least(
        "push_single: at least 0.6 times grpc_echo", values["syncline"], values["grpc_echo"], 0.6
    )
    return Outcome(figures=[figure], requirements=needed)


class CallersRound:
    """Fifty callers, each calling again when it is answered."""

    def __init__(self, call: Callable[[Item], Awaitable[object]], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._next = 0

    async def __call__(self, _number: int) -> float:
        first, watch = self._next, Stopwatch()
        end = time.monotonic() + self._seconds
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(self._caller(end))
        return (self._next - first) / watch.seconds

    async def _caller(self, end: float) -> None:
        while time.monotonic() < end:
            self._next += 1
            await self._call(make_item(self._next))
