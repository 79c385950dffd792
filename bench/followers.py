"""Subscribers in a process of their own: ``python -m bench.followers SYSTEM ADDRESS COLLECTION STREAMS CLIENTS``.

They share CLIENTS connections evenly. The process prints ``ready`` when all of them follow, then answers
lines of its standard input with one line of JSON each:

* ``latencies N``: when every subscriber has got N more items, ns from ``sent_ns`` in the item to its delivery;
* ``arrival N``: when every subscriber has got N more items, the CLOCK_MONOTONIC ns of the last one.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator

import msgspec

from bench.loops import run
from bench.processes import running_module
from bench.records import decode_item
from bench.systems import all_systems
from bench.systems.base import Client


class _Follower:
    """One subscriber and what it got since it was last asked."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.enough = asyncio.Event()
        self._items: list[tuple[int, list[bytes]]] = []
        self._missing = 0

    def expect(self, count: int) -> None:
        self.enough.clear()
        self._items.clear()
        self._missing = count

    async def follow(self, updates: AsyncIterator[list[bytes]]) -> None:
        async for items in updates:
            if items:
                self._items.append((time.monotonic_ns(), items))
                self._missing -= len(items)
                if self._missing <= 0:
                    self.enough.set()
            else:
                self.ready.set()

    def latencies(self) -> list[int]:
        return [arrived - decode_item(item)["sent_ns"] for arrived, items in self._items for item in items]

    @property
    def last_arrival(self) -> int:
        return self._items[-1][0]


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def main(system: str, address: str, collection: str, streams: int, clients: int) -> None:
    """Follow until the standard input ends."""
    async with contextlib.AsyncExitStack() as stack:
        kind = all_systems()[system]
        connected: list[Client] = [
            await stack.enter_async_context(kind.connect(address)) for _ in range(clients)
        ]
        followers = [_Follower() for _ in range(streams)]
        tasks = [
            asyncio.create_task(follower.follow(connected[number % clients].watch(collection)))
            for number, follower in enumerate(followers)
        ]
        try:
            await _all(tasks, [follower.ready for follower in followers])
            print("ready", flush=True)
            async for line in await _standard_input():
                what, count = line.decode().split()
                for follower in followers:
                    follower.expect(int(count))
                print("expecting", flush=True)
                await _all(tasks, [follower.enough for follower in followers])
                answer = (
                    [ns for follower in followers for ns in follower.latencies()]
                    if what == "latencies"
                    else max(follower.last_arrival for follower in followers)
                )
                print(msgspec.json.encode(answer).decode(), flush=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _all(tasks: list[asyncio.Task[None]], events: list[asyncio.Event]) -> None:
    """Wait for all events, or raise what ended one of the tasks: none ends by itself."""
    for event in events:
        waiting = asyncio.create_task(event.wait())
        await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError("a subscription ended")


class Followers:
    """The other end of such a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def ask(self, what: str, count: int) -> None:
        """Send a command; return when the followers count from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n".encode())
        await self._line("expecting")

    async def latencies_ns(self) -> list[int]:
        """Answer of ``latencies``."""
        return msgspec.json.decode(await self.line(), type=list[int])

    async def arrival_ns(self) -> int:
        """Answer of ``arrival``."""
        return msgspec.json.decode(await self.line(), type=int)

    async def line(self) -> bytes:
        """The next line. Raises RuntimeError when the process ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the subscribers' process ended")
        return line

    async def _line(self, expected: str) -> None:
        line = await self.line()
        if line.strip() != expected.encode():
            raise RuntimeError(f"the subscribers said {line[:200]!r}, not {expected!r}")

    async def wait_ready(self) -> None:
        """Return when all of them follow."""
        await self._line("ready")


@contextlib.asynccontextmanager
async def running_followers(
    system: str, address: str, collection: str, *, streams: int, clients: int
) -> AsyncIterator[Followers]:
    """Subscribers that all follow already."""
    arguments = (system, address, collection, str(streams), str(clients))
    async with running_module("bench.followers", *arguments) as process:
        followers = Followers(process)
        await followers.wait_ready()
        yield followers


if __name__ == "__main__":
    run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
