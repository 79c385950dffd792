"""A TCP proxy between a client and a server, with the faults of a bad network.

It reads the HTTP/2 frames on their way to the client (RFC 9113, section 4.1), so that a connection can be cut
exactly before the k-th answer: the first DATA frame of a unary response, or a message of a stream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Self

FRAME_HEADER_BYTES: Final = 9
DATA: Final = 0x00
CHUNK_BYTES: Final = 1 << 16


class Cut(Exception):
    """The connection is to be reset here."""


class Proxy:
    """Forwards connections until told otherwise. ``Proxy.to(address)`` makes one that runs."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._links: set[asyncio.Task[None]] = set()
        self._holding: set[str] = set()
        self._moved = asyncio.Condition()
        self.address = ""
        self.answers = 0
        """DATA frames for clients that came by, over all connections."""
        self.requests_bytes = 0
        """Bytes from clients that came by."""
        self.connections = 0
        self.cuts = 0
        self.delay_seconds = 0.0
        """How long each piece is on its way."""
        self.is_deaf = False
        """New connections are accepted and never answered."""
        self.cut_when: Callable[[int, int], bool] = lambda total, on_connection: False
        """Asked before each answer, with its number in all and on its connection, from 1: cut instead?"""

    @classmethod
    @asynccontextmanager
    async def to(cls, target: str) -> AsyncIterator[Self]:
        """A proxy to ``HOST:PORT`` on a port of its own."""
        proxy = cls(target)
        listener = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        proxy.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            listener.close()
            await proxy.cut()
            await listener.wait_closed()

    # -- faults -------------------------------------------------------------------------------------------

    async def cut(self) -> None:
        """Reset all connections."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

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
        async with self._moved:
            self._moved.notify_all()

    # -- connections --------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.connections += 1
        open_writers = [writer]
        try:
            if self.is_deaf:
                await asyncio.Event().wait()
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            open_writers.append(server_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_requests(reader, server_writer))
                directions.create_task(self._pass_answers(server_reader, writer))
        except* (OSError, Cut, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the one end learns from a reset that the other is gone
        finally:
            self._links.discard(task)
            for one in open_writers:
                one.transport.abort()

    async def _pass_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            await self._forward("requests", chunk, writer)
            self.requests_bytes += len(chunk)
        raise Cut

    async def _pass_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
            await self._forward("answers", header + payload, writer)

    async def _forward(self, direction: str, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        async with self._moved:
            await self._moved.wait_for(lambda: direction not in self._holding)
        writer.write(data)
        await writer.drain()
