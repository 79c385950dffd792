"""Subscribers in a process of their own: ``python -m bench.followers SYSTEM ADDRESS COLLECTION STREAMS CLIENTS …``.

The streams share CLIENTS connections evenly, and may have several subscriptions each, with filters. The process
prints ``ready`` when all of them follow, then answers lines of its standard input with one line of JSON each:

* ``latencies N``: when N more items have come, of all subscribers together: ns from ``sent_ns`` in each item to its
  delivery;
* ``arrival N``: when N more items have come, the CLOCK_MONOTONIC ns of the last one.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

import msgspec

from bench.loops import run
from bench.processes import running_module
from bench.records import decode_item
from bench.systems import followed_systems
from bench.systems.base import Watcher
from bench.systems.stubs import FeedClient

_OPEN_AT_ONCE: Final = 200
"""Streams. gRPC refuses some of those that come when a thousand wait to be taken up already."""


class _Tally:
    """What all subscribers together got since they were last asked."""

    def __init__(self) -> None:
        self.enough = asyncio.Event()
        self._items: list[tuple[int, list[bytes]]] = []
        self._missing = 0

    def expect(self, count: int) -> None:
        self.enough.clear()
        self._items.clear()
        self._missing = count

    def add(self, items: list[bytes]) -> None:
        self._items.append((time.monotonic_ns(), items))
        self._missing -= len(items)
        if self._missing < 0:
            raise RuntimeError(f"{-self._missing} items more than were written for these subscribers")
        if not self._missing:
            self.enough.set()

    def latencies(self) -> list[int]:
        return [arrived - decode_item(item)["sent_ns"] for arrived, items in self._items for item in items]

    @property
    def last_arrival(self) -> int:
        return self._items[-1][0]


async def _follow(updates: AsyncIterator[list[bytes]], tally: _Tally, ready: asyncio.Event) -> None:
    async for items in updates:
        if items:
            tally.add(items)
        else:
            ready.set()


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.followers")
    for name in ("system", "address", "collection"):
        parser.add_argument(name)
    for name in ("streams", "clients", "subscriptions"):
        parser.add_argument(name, type=int)
    parser.add_argument("--filter", help="of each subscription, with {} for its number")
    return parser.parse_args()


def _updates(arguments: argparse.Namespace, connected: list[Watcher]) -> Iterator[AsyncIterator[list[bytes]]]:
    """What each stream brings."""
    each = arguments.subscriptions
    for number in range(arguments.streams):
        client = connected[number % len(connected)]
        if arguments.filter is None:
            yield client.watch(arguments.collection, each)
        else:
            assert isinstance(client, FeedClient)
            filters = [arguments.filter.format(number * each + offset) for offset in range(each)]
            yield client.stubs.follow(arguments.collection, filters)


async def main(arguments: argparse.Namespace) -> None:
    """Follow until the standard input ends."""
    async with contextlib.AsyncExitStack() as stack:
        kind = followed_systems()[arguments.system]
        connected = [
            await stack.enter_async_context(kind.connect(arguments.address)) for _ in range(arguments.clients)
        ]
        tally = _Tally()
        tasks: list[asyncio.Task[None]] = []
        try:
            beginning: list[asyncio.Event] = []
            for updates in _updates(arguments, connected):
                ready = asyncio.Event()
                beginning.append(ready)
                tasks.append(asyncio.create_task(_follow(updates, tally, ready)))
                if len(beginning) == _OPEN_AT_ONCE:
                    await _all_ready(tasks, beginning)
            await _all_ready(tasks, beginning)
            print("ready", flush=True)
            async for line in await _standard_input():
                what, count = line.decode().split()
                tally.expect(int(count))
                print("expecting", flush=True)
                await _unless_ended(tasks, tally.enough)
                answer = tally.latencies() if what == "latencies" else tally.last_arrival
                print(msgspec.json.encode(answer).decode(), flush=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _all_ready(tasks: list[asyncio.Task[None]], beginning: list[asyncio.Event]) -> None:
    for ready in beginning:
        await _unless_ended(tasks, ready)
    beginning.clear()


async def _unless_ended(tasks: list[asyncio.Task[None]], event: asyncio.Event) -> None:
    """Wait for the event, or raise what ended one of the tasks: none ends by itself."""
    if event.is_set():
        return
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            waiting.cancel()
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
    system: str,
    address: str,
    collection: str,
    *,
    streams: int,
    clients: int,
    subscriptions: int = 1,
    filter_form: str | None = None,
) -> AsyncIterator[Followers]:
    """Subscribers that all follow already, ``subscriptions`` on each stream.

    ``filter_form`` makes the filter of each subscription, with its number in place of ``{}``.
    """
    arguments = [system, address, collection, str(streams), str(clients), str(subscriptions)]
    if filter_form is not None:
        arguments += ["--filter", filter_form]
    async with running_module("bench.followers", *arguments) as process:
        followers = Followers(process)
        await followers.wait_ready()
        yield followers


if __name__ == "__main__":
    run(main(_arguments()))
