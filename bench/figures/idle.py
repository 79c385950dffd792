"""rss_idle_stream."""

import asyncio

from bench.followers import running_followers
from bench.machine import resident_bytes
from bench.measure import Figure, Outcome, Room
from bench.systems.syncline import Syncline

CLIENTS = 20
SETTLE_SECONDS = 1.0


async def measure(room: Room) -> Outcome:
    """Growth of the server's resident memory, divided by the number of subscribers that wait."""
    streams = room.pick(2_000, 500)
    system = Syncline()
    room.say(f"opening {streams:,} idle subscriptions")
    async with system.serve(room.directory) as running, system.connect(running.address) as client:
        await client.create("idle")
        async with running_followers("syncline", running.address, "idle", streams=CLIENTS, clients=CLIENTS):
            pass  # what the first subscribers cost once
        before = resident_bytes(running.pid)
        async with running_followers("syncline", running.address, "idle", streams=streams, clients=CLIENTS):
            await asyncio.sleep(SETTLE_SECONDS)
            grown = resident_bytes(running.pid) - before
    figure = Figure(
        name="rss_idle_stream",
        what=f"server memory of each of {streams:,} idle subscribers on {CLIENTS} connections",
        unit="bytes",
        better="lower",
        values={"syncline": grown / streams},
    )
    return Outcome(figures=[figure])
