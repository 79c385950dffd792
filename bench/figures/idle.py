"""rss_idle_stream, rss_idle_feed and rss_subscription: what those who wait cost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench.followers import running_followers
from bench.machine import resident_bytes
from bench.measure import Figure, Outcome, Room, at_most
from bench.systems.base import Running, Watched
from bench.systems.echo import BareStreams
from bench.systems.stubs import SynclineFeed
from bench.systems.syncline import Syncline

CLIENTS = 20
SUBSCRIPTIONS = 1_000
SUBSCRIPTION_LIMIT_BYTES = 1_024
SETTLE_SECONDS = 1.0
_COLLECTION = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """One that runs, and how it is subscribed to."""

    system: Watched
    running: Running

    async def grown_bytes(self, *, streams: int, subscriptions: int = 1) -> int:
        """Resident memory that so many idle streams add."""
        before = resident_bytes(self.running.pid)
        async with self._followers(streams, subscriptions):
            await asyncio.sleep(SETTLE_SECONDS)
            return resident_bytes(self.running.pid) - before

    async def warm(self) -> None:
        """Pay what the first subscribers cost once."""
        async with self._followers(CLIENTS, 1):
            pass

    def _followers(self, streams: int, subscriptions: int) -> contextlib.AbstractAsyncContextManager[object]:
        return running_followers(
            self.system.name,
            self.running.address,
            _COLLECTION,
            streams=streams,
            clients=CLIENTS,
            subscriptions=subscriptions,
        )


@contextlib.asynccontextmanager
async def _serving(system: Watched, parent: Path) -> AsyncIterator[_Server]:
    """A server of its own for each figure: freed memory that another one left would hide growth."""
    directory = parent / system.name
    directory.mkdir()
    async with system.serve(directory) as running, system.connect(running.address) as client:
        await client.create(_COLLECTION)
        server = _Server(system=system, running=running)
        await server.warm()
        yield server


async def measure(room: Room) -> Outcome:
    """Growth of the server's resident memory, divided by the number of those who wait."""
    streams = room.pick(2_000, 500)
    values = {}
    for system in (Syncline(), SynclineFeed(), BareStreams()):
        room.say(f"{system.name}: opening {streams:,} idle streams")
        async with _serving(system, room.directory) as server:
            values[system.name] = await server.grown_bytes(streams=streams) / streams
    bare = values[BareStreams.name]
    figures = [
        Figure(
            name=name,
            what=f"server memory of each of {streams:,} idle {what} on {CLIENTS} connections",
            unit="bytes",
            better="lower",
            values={"syncline": values[system], "grpc_idle": bare},
        )
        for name, system, what in (
            ("rss_idle_stream", Syncline.name, "streams of Subscribe"),
            ("rss_idle_feed", SynclineFeed.name, "streams of UpdateFeed"),
        )
    ]
    needed = [
        at_most("rss_idle_stream: at most 1.5 times grpc_idle", values[Syncline.name] / bare, 1.5),
    ]
    return Outcome(figures=figures, requirements=needed)


async def measure_subscriptions(room: Room) -> Outcome:
    """1,000 subscriptions on a stream against one on a stream; on several streams, to see it among the pages."""
    streams = room.pick(10, 5)
    room.say(f"opening {streams} streams with {SUBSCRIPTIONS:,} idle subscriptions each")
    async with _serving(SynclineFeed(), room.directory) as server:
        grown = await server.grown_bytes(streams=streams, subscriptions=SUBSCRIPTIONS)
    each = grown / (streams * SUBSCRIPTIONS)
    figure = Figure(
        name="rss_subscription",
        what=f"server memory of each of {SUBSCRIPTIONS:,} subscriptions on each of {streams} streams, streams included",
        unit="bytes",
        better="lower",
        values={"syncline": each},
    )
    return Outcome(
        figures=[figure],
        requirements=[at_most("rss_subscription: bytes", each, SUBSCRIPTION_LIMIT_BYTES)],
    )
