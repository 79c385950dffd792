"""A TCP proxy between clients and a server, with the faults of a bad network.

Each connection is a ``Link`` with faults of its own; those of the proxy apply to all of its links. It reads the
HTTP/2 frames on their way to the client (RFC 9113, section 4.1), so that a connection can be cut exactly before the
k-th answer: the first DATA frame of a unary response, or a message of a stream.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Self

FRAME_HEADER_BYTES: Final = 9
DATA: Final = 0x00
CHUNK_BYTES: Final = 1 << 16
REQUESTS: Final = "requests"
ANSWERS: Final = "answers"


class Cut(Exception):
    """The connection is to be reset here."""


class Link:
    """One connection through a proxy, and what is wrong with it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.kind = ""
        """What it is for, if the proxy can tell."""
        self.delay_seconds = 0.0
        """How long each piece is on its way."""
        self.bytes_per_second = 0
        """How much passes in each direction; 0: no limit."""
        self.held: set[str] = set()
        """Directions in which nothing passes: ``requests``, ``answers``."""
        self.is_half_closed = False
        """The server was told that the client sends nothing more."""
        self._task = task
        self._server: asyncio.StreamWriter | None = None

    def cut(self) -> None:
        """Reset it."""
        self._task.cancel()

    def half_close(self) -> None:
        """Tell the server that the client sends nothing more, and swallow what it does; answers still pass."""
        self.is_half_closed = True
        if self._server is not None and not self._server.is_closing():
            self._server.write_eof()

    def connected(self, server: asyncio.StreamWriter) -> None:
        """Both ends are there."""
        self._server = server


class Proxy:
    """Forwards connections until told otherwise. ``Proxy.to(address)`` makes one that runs."""

    def __init__(self, target: str, *, seed: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._links: dict[asyncio.Task[None], Link] = {}
        self._holding: set[str] = set()
        self._moved = asyncio.Condition()
        self._random = random.Random(seed)
        self.address = ""
        self.answers = 0
        """DATA frames for clients that came by, over all connections."""
        self.requests_bytes = 0
        """Bytes from clients that came by."""
        self.connections = 0
        self.cuts = 0
        self.delay_seconds = 0.0
        """How long each piece is on its way."""
        self.jitter_seconds = 0.0
        """How much longer at most; drawn for each piece from the seed."""
        self.bytes_per_second = 0
        """How much passes in each direction of a connection; 0: no limit."""
        self.is_deaf = False
        """New connections are accepted and never answered."""
        self.cut_when: Callable[[int, int], bool] = lambda total, on_connection: False
        """Asked before each answer, with its number in all and on its connection, from 1: cut instead?"""

    @classmethod
    @asynccontextmanager
    async def to(cls, target: str, *, seed: int = 0) -> AsyncIterator[Self]:
        """A proxy to ``HOST:PORT`` on a port of its own."""
        proxy = cls(target, seed=seed)
        listener = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        proxy.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            listener.close()
            await asyncio.sleep(0)  # what was accepted just now becomes a link, or nobody would close it
            await proxy.cut()
            await listener.wait_closed()

    # -- faults -------------------------------------------------------------------------------------------

    @property
    def links(self) -> list[Link]:
        """Connections that are open, oldest first."""
        return list(self._links.values())

    async def cut(self) -> None:
        """Reset all connections."""
        tasks = list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut_before_answer(self, number: int) -> None:
        """Cut once, instead of the answer that is the ``number``-th from now."""
        number += self.answers
        self.cut_when = lambda total, on_connection: total == number

    def cut_after_answers(self, count: int) -> None:
        """Cut every connection after ``count`` answers."""
        self.cut_when = lambda total, on_connection: on_connection > count

    def hold(self, *directions: str) -> None:
        """Let nothing through any more: ``requests``, ``answers`` or both. The connections stay."""
        self._holding.update(directions)

    async def release(self) -> None:
        """Let everything through again, what was held first."""
        self._holding.clear()
        for link in self._links.values():
            link.held.clear()
        async with self._moved:
            self._moved.notify_all()

    async def mend(self) -> None:
        """End every fault, also those of single connections. What was cut stays cut."""
        self.delay_seconds = self.jitter_seconds = 0.0
        self.bytes_per_second = 0
        self.is_deaf = False
        self.cut_when = lambda total, on_connection: False
        for link in self._links.values():
            link.delay_seconds, link.bytes_per_second = 0.0, 0
        await self.release()

    # -- connections --------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = self._links[task] = Link(task)
        self.connections += 1
        open_writers = [writer]
        try:
            if self.is_deaf:
                await asyncio.Event().wait()
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            open_writers.append(server_writer)
            link.connected(server_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_requests(link, reader, server_writer))
                directions.create_task(self._pass_answers(link, server_reader, writer))
        except* (OSError, Cut, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the one end learns from a reset that the other is gone
        finally:
            del self._links[task]
            for one in open_writers:
                one.transport.abort()

    async def _pass_requests(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            await self._forward(link, REQUESTS, chunk, writer)
            self.requests_bytes += len(chunk)
        raise Cut

    async def _pass_answers(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        on_connection = 0
        while True:
            header = await reader.readexactly(FRAME_HEADER_BYTES)
            length = int.from_bytes(header[:3])
            payload = await reader.readexactly(length)
            if header[3] == DATA and length:
                on_connection += 1
                self.answers += 1
                if self.cut_when(self.answers, on_connection):
                    self.cuts += 1
                    raise Cut
            await self._forward(link, ANSWERS, header + payload, writer)

    async def _forward(self, link: Link, direction: str, data: bytes, writer: asyncio.StreamWriter) -> None:
        if seconds := self._seconds(link, len(data)):
            await asyncio.sleep(seconds)
        async with self._moved:
            await self._moved.wait_for(lambda: direction not in self._holding | link.held)
        if direction == REQUESTS and link.is_half_closed:
            return
        writer.write(data)
        await writer.drain()

    def _seconds(self, link: Link, size_bytes: int) -> float:
        """How long a piece is on its way."""
        seconds = self.delay_seconds + link.delay_seconds
        if self.jitter_seconds:
            seconds += self._random.uniform(0, self.jitter_seconds)
        rates = [rate for rate in (self.bytes_per_second, link.bytes_per_second) if rate]
        return seconds + (size_bytes / min(rates) if rates else 0.0)
