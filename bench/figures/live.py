"""live_p50, live_p99, live_1000 and fanout_bulk."""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.followers import Followers, running_followers
from bench.measure import (
    Figure,
    Outcome,
    Requirement,
    Room,
    at_most,
    interleaved,
    medians,
    percentile,
    quiet_collector,
)
from bench.records import Item, make_item
from bench.systems.base import Publisher, Watched
from bench.systems.echo import BareStreams
from bench.systems.stubs import SynclineFeed
from bench.systems.syncline import Syncline

CONNECTIONS = 20
MANY_EACH = 50
"""Subscriptions on each connection for live_1000."""
FANOUT_EVENTS_PER_SECOND = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a latency is measured."""

    each: int
    """Subscriptions on each of the connections."""
    writes: int
    """In a round."""
    rounds: int
    pause_seconds: float
    """Between two writes, so that each is delivered before the next."""

    @property
    def subscribers(self) -> int:
        return CONNECTIONS * self.each


async def _served(stack: contextlib.AsyncExitStack, system: Watched, room: Room, each: int) -> str:
    """Address of a server of its own."""
    room.say(f"starting {system.name} with {CONNECTIONS * each:,} subscribers")
    directory = room.directory / system.name
    directory.mkdir()
    return (await stack.enter_async_context(system.serve(directory))).address


async def _followed(
    stack: contextlib.AsyncExitStack, system: Watched, address: str, collection: str, each: int
) -> Followers:
    return await stack.enter_async_context(
        running_followers(
            system.name,
            address,
            collection,
            streams=CONNECTIONS,
            clients=CONNECTIONS,
            subscriptions=each,
        )
    )


class LatencyRound:
    """Writes one record after the other; returns the p50 and keeps the p99, in ms."""

    def __init__(
        self, client: Publisher, followers: Followers, plan: Plan, *, collection: str = "live"
    ) -> None:
        self._client = client
        self._collection = collection
        self._followers = followers
        self._plan = plan
        self._next = 0
        self.p99: list[float] = []

    async def __call__(self, _number: int) -> float:
        plan = self._plan
        await self._followers.ask("latencies", plan.writes * plan.subscribers)
        for _ in range(plan.writes):
            self._next += 1
            item = make_item(self._next)
            item["sent_ns"] = time.monotonic_ns()
            await self._client.push_one(self._collection, item)
            await asyncio.sleep(plan.pause_seconds)
        latencies = await self._followers.latencies_ns()
        self.p99.append(percentile(latencies, 0.99) / 1e6)
        return percentile(latencies, 0.5) / 1e6


_Samples = Mapping[str, Sequence[float]]


async def _latencies(room: Room, systems: Sequence[Watched], plan: Plan) -> tuple[_Samples, _Samples]:
    """The p50 and the p99 of each round, by system."""
    async with contextlib.AsyncExitStack() as stack:
        rounds = {}
        for system in systems:
            address = await _served(stack, system, room, plan.each)
            client = await stack.enter_async_context(system.connect(address))
            await client.create("live")
            followers = await _followed(stack, system, address, "live", plan.each)
            rounds[system.name] = LatencyRound(client, followers, plan)
            await rounds[system.name](0)  # connections and caches are warm afterwards
            rounds[system.name].p99.clear()
        p50 = await interleaved(plan.rounds, rounds)
    return p50, {name: latency.p99 for name, latency in rounds.items()}


def _figure(name: str, what: str, samples: _Samples) -> Figure:
    """A latency in ms. What went through UpdateFeed is Syncline's value."""
    names = {SynclineFeed.name: "syncline", BareStreams.name: "grpc_fanout"}
    samples = {names.get(name, name): values for name, values in samples.items()}
    return Figure(name=name, what=what, unit="ms", better="lower", values=medians(samples), samples=samples)


def _of_etcd(name: str, figure: Figure) -> Sequence[Requirement]:
    """Not above etcd's; nothing where etcd is missing."""
    values = figure.values
    if "etcd" not in values:
        return ()
    return (at_most(f"{name}: at most 1 times etcd", values["syncline"] / values["etcd"], 1.0),)


async def measure_latency(room: Room) -> Outcome:
    """Time from the call of a write to the delivery of the record to each of 20 subscribers."""
    plan = Plan(each=1, writes=room.pick(100, 40), rounds=room.pick(5, 2), pause_seconds=0.01)
    systems = (SynclineFeed(), Syncline(), *room.peers.values(), BareStreams())
    figures: list[Figure] = []
    for part, samples in zip((50, 99), await _latencies(room, systems, plan), strict=True):
        what = f"{part}th percentile, a write to each of {plan.subscribers} subscribers"
        through_sdk = {"syncline": samples[Syncline.name]}
        through_feed = {name: values for name, values in samples.items() if name != Syncline.name}
        figures += [
            _figure(f"live_p{part}", f"{what}, UpdateFeed", through_feed),
            _figure(f"live_sdk_p{part}", f"{what}, Dataset.changes of the SDK", through_sdk),
        ]
    figures.sort(key=lambda figure: "sdk" in figure.name)
    needed = [line for figure in figures[:2] for line in _of_etcd(figure.name, figure)]
    return Outcome(figures=figures, requirements=needed)


async def measure_many(room: Room) -> Outcome:
    """The same for 1,000 subscribers, 50 on each stream."""
    plan = Plan(each=MANY_EACH, writes=room.pick(15, 6), rounds=room.pick(3, 2), pause_seconds=0.1)
    systems = (SynclineFeed(), *(peer for name, peer in room.peers.items() if name == "etcd"))
    _, p99 = await _latencies(room, systems, plan)
    what = (
        f"99th percentile, a write to each of {plan.subscribers:,} subscribers on {CONNECTIONS} connections"
    )
    figure = _figure("live_1000", what, p99)
    return Outcome(figures=[figure], requirements=_of_etcd(figure.name, figure))


async def measure_fanout(room: Room) -> Outcome:
    """New records as in push_bulk and in push_bulk_shuffled, while 20 subscribers follow; each gets every record."""
    count = room.pick(100_000, 30_000)
    async with contextlib.AsyncExitStack() as stack:
        system = SynclineFeed()
        address = await _served(stack, system, room, 1)
        client = await stack.enter_async_context(system.connect(address))
        await client.create("fanout")
        followers = await _followed(stack, system, address, "fanout", 1)

        begun = 0

        async def fill(items: list[Item]) -> float:
            with quiet_collector():
                await followers.ask("arrival", CONNECTIONS * count)
                start_ns = time.monotonic_ns()
                await client.push_bulk("fanout", items)
                end_ns = await followers.arrival_ns()
            return CONNECTIONS * count / ((end_ns - start_ns) / 1e9)

        def new_items() -> list[Item]:
            nonlocal begun
            begun += count
            return [make_item(number) for number in range(begun - count, begun)]

        async def in_order(_number: int) -> float:
            return await fill(new_items())

        async def shuffled(number: int) -> float:
            items = new_items()
            random.Random(number).shuffle(items)
            return await fill(items)

        samples = await interleaved(room.pick(3, 2), {"syncline": in_order, "shuffled": shuffled})
    figure = Figure(
        name="fanout_bulk",
        what=f"{count:,} new records to {CONNECTIONS} subscribers, as in push_bulk; beside it with shuffled keys",
        unit="events/s",
        better="higher",
        values=medians(samples),
        samples=samples,
    )
    measured = figure.values["syncline"]
    needed = Requirement(
        what="fanout_bulk: at least 1,000,000 events/s",
        limit=FANOUT_EVENTS_PER_SECOND,
        measured=measured,
        reached=measured >= FANOUT_EVENTS_PER_SECOND,
    )
    return Outcome(figures=[figure], requirements=[needed])
