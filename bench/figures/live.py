"""live_p50, live_p99 and fanout_bulk."""

import asyncio
import contextlib
import random
import time

from bench.followers import Followers, running_followers
from bench.measure import Figure, Outcome, Room, interleaved, medians, percentile, quiet_collector
from bench.records import make_item
from bench.systems.base import CALL_RECORDS, IN_FLIGHT, Client, System
from bench.systems.syncline import Syncline

SUBSCRIBERS = 20
PAUSE_SECONDS = 0.01
"""Between two single writes, so that each is delivered before the next."""


async def _writer_and_followers(
    stack: contextlib.AsyncExitStack, system: System, room: Room, collection: str
) -> tuple[Client, Followers]:
    room.say(f"starting {system.name} with {SUBSCRIBERS} subscribers")
    running = await stack.enter_async_context(system.serve(room.directory))
    client = await stack.enter_async_context(system.connect(running.address))
    await client.create(collection)
    followers = await stack.enter_async_context(
        running_followers(system.name, running.address, collection, streams=SUBSCRIBERS, clients=SUBSCRIBERS)
    )
    return client, followers


class _LatencyRound:
    """Writes one record after the other; returns the p50 and keeps the p99, in ms."""

    def __init__(self, client: Client, followers: Followers, writes: int) -> None:
        self._client = client
        self._followers = followers
        self._writes = writes
        self._next = 0
        self.p99: list[float] = []

    async def __call__(self, _number: int) -> float:
        await self._followers.ask("latencies", self._writes)
        for _ in range(self._writes):
            self._next += 1
            item = make_item(self._next)
            item["sent_ns"] = time.monotonic_ns()
            await self._client.push_one("live", item)
            await asyncio.sleep(PAUSE_SECONDS)
        latencies = await self._followers.latencies_ns()
        self.p99.append(percentile(latencies, 0.99) / 1e6)
        return percentile(latencies, 0.5) / 1e6


async def measure_latency(room: Room) -> Outcome:
    """Time from the call of a write to the delivery of the record to each of 20 subscribers."""
    async with contextlib.AsyncExitStack() as stack:
        rounds = {}
        for system in (Syncline(), *room.peers.values()):
            client, followers = await _writer_and_followers(stack, system, room, "live")
            rounds[system.name] = _LatencyRound(client, followers, room.pick(150, 80))
            await rounds[system.name](0)  # connections and caches are warm afterwards
            rounds[system.name].p99.clear()
        p50 = await interleaved(room.pick(5, 3), rounds)
    p99 = {name: latency.p99 for name, latency in rounds.items()}
    figures = [
        Figure(
            name=f"live_p{part}",
            what=f"{part}th percentile, a write to each of {SUBSCRIBERS} subscribers",
            unit="ms",
            better="lower",
            values=medians(samples),
            samples=samples,
        )
        for part, samples in ((50, p50), (99, p99))
    ]
    return Outcome(figures=figures)


async def measure_fanout(room: Room) -> Outcome:
    """New records as in push_bulk, while 20 subscribers follow; every one of them gets every record."""
    count = room.pick(100_000, 30_000)
    async with contextlib.AsyncExitStack() as stack:
        client, followers = await _writer_and_followers(stack, Syncline(), room, "fanout")

        async def fill(number: int) -> float:
            items = [make_item(number * count + offset) for offset in range(count)]
            random.Random(count).shuffle(items)
            with quiet_collector():
                await followers.ask("arrival", count)
                start_ns = time.monotonic_ns()
                await client.push_bulk("fanout", items)
                end_ns = await followers.arrival_ns()
            return SUBSCRIBERS * count / ((end_ns - start_ns) / 1e9)

        samples = await interleaved(room.pick(3, 2), {"syncline": fill})
    figure = Figure(
        name="fanout_bulk",
        what=f"{count:,} new records to {SUBSCRIBERS} subscribers, {CALL_RECORDS:,} a call, {IN_FLIGHT} in flight",
        unit="events/s",
        better="higher",
        values=medians(samples),
        samples=samples,
    )
    return Outcome(figures=[figure])
