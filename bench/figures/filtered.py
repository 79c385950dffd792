"""fanout_filtered: what a thousand subscribers, each of whom wants something else, cost those who write."""

import asyncio
import contextlib
import time

from bench.followers import Followers, running_followers
from bench.measure import Figure, Outcome, Room, Stopwatch, at_least, interleaved, medians
from bench.records import make_item
from bench.systems.base import Client
from bench.systems.stubs import SynclineFeed

SUBSCRIBERS = 1_000
CONNECTIONS = 20
CALLERS = 50
_COLLECTION = "filtered"
_FILTER = 'warehouse = "w-{}"'


class _WritersRound:
    """Fifty callers, a record a call, until so many are written and every subscriber has what it wants of them."""

    def __init__(self, client: Client, followers: Followers, commits: int) -> None:
        self._client = client
        self._followers = followers
        self._commits = commits
        self._next = 0
        self.delivered_seconds: list[float] = []

    async def __call__(self, _number: int) -> float:
        await self._followers.ask("arrival", self._commits)
        start_ns = time.monotonic_ns()
        watch = Stopwatch()
        end = self._next + self._commits
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(self._caller(end))
        rate = self._commits / watch.seconds
        arrived_ns = await self._followers.arrival_ns()
        self.delivered_seconds.append((arrived_ns - start_ns) / 1e9)
        return rate

    async def _caller(self, end: int) -> None:
        while self._next < end:
            item = make_item(self._next)
            # Each commit is for one subscriber, all over them: 7,919 is prime.
            item["warehouse"] = f"w-{self._next * 7_919 % SUBSCRIBERS}"
            self._next += 1
            await self._client.push_one(_COLLECTION, item)


async def measure(room: Room) -> Outcome:
    """Commits a second of the same writers: one subscriber of everything, or 1,000 with a filter each."""
    commits = room.pick(3_000, 1_000)
    contenders = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, streams, subscriptions, text in (
            ("syncline", CONNECTIONS, SUBSCRIBERS // CONNECTIONS, _FILTER),
            ("unfiltered", 1, 1, None),
        ):
            room.say(f"starting the server of {name}")
            system = SynclineFeed()
            directory = room.directory / name
            directory.mkdir()
            running = await stack.enter_async_context(system.serve(directory))
            client = await stack.enter_async_context(system.connect(running.address))
            await client.create(_COLLECTION)
            followers = await stack.enter_async_context(
                running_followers(
                    system.name,
                    running.address,
                    _COLLECTION,
                    streams=streams,
                    clients=streams,
                    subscriptions=subscriptions,
                    filter_form=text,
                )
            )
            contenders[name] = _WritersRound(client, followers, commits)
        samples = await interleaved(room.pick(3, 2), contenders)
    values = medians(samples)
    figure = Figure(
        name="fanout_filtered",
        what=(
            f"{CALLERS} callers, a record a call, while {SUBSCRIBERS:,} subscribers with a filter `=` each follow, "
            "every record for one of them; unfiltered: one subscriber of everything"
        ),
        unit="commits/s",
        better="higher",
        values=values,
        samples=samples,
    )
    needed = at_least(
        "fanout_filtered: at least 0.5 times unfiltered", values["syncline"], values["unfiltered"], 0.5
    )
    return Outcome(figures=[figure], requirements=needed)
