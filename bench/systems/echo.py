"""A bare grpc.aio server: what a message and an idle stream cost by themselves, whatever is done with them.

``python -m bench.systems.echo PORT`` runs it, under the same event loop as Syncline's server.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio

from bench.loops import run
from bench.processes import free_port, running_server
from bench.records import Item, encode_item
from bench.systems.base import Publisher, Running, Watched, one_a_stream

_UNARY: Final = "/bench.Echo/Unary"
_STREAM: Final = "/bench.Echo/Stream"
_FOLLOW: Final = "/bench.Echo/Follow"
_PUBLISH: Final = "/bench.Echo/Publish"

_OWN_CONNECTION: Final = [("grpc.use_local_subchannel_pool", 1)]

_Coming = asyncio.Future[tuple[bytes, "_Coming"]]
"""The next message, and the one after it."""

_Context = grpc.aio.ServicerContext[bytes, bytes]


class _Handler(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._coming: _Coming = asyncio.get_running_loop().create_future()
        self._methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            _UNARY: grpc.unary_unary_rpc_method_handler(_unary),
            _STREAM: grpc.stream_stream_rpc_method_handler(_stream),
            _FOLLOW: grpc.unary_stream_rpc_method_handler(self._follow),
            _PUBLISH: grpc.unary_unary_rpc_method_handler(self._publish),
        }

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return self._methods.get(details.method)

    async def _follow(self, _request: bytes, _context: _Context) -> AsyncIterator[bytes]:
        """An empty message, then whatever is published. Nothing is kept for a stream that waits."""
        coming = self._coming
        yield b""
        while True:
            message, coming = await asyncio.shield(coming)
            yield message

    async def _publish(self, request: bytes, _context: _Context) -> bytes:
        """To everybody who follows."""
        coming, self._coming = self._coming, asyncio.get_running_loop().create_future()
        coming.set_result((request, self._coming))
        return b""


async def _unary(request: bytes, _context: _Context) -> bytes:
    return request


async def _stream(requests: AsyncIterator[bytes], _context: _Context) -> AsyncIterator[bytes]:
    """Every message back, one by one."""
    async for request in requests:
        yield request


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handler(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start()
    await ended.wait()
    await server.stop(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """Its methods, on one channel; messages are bytes."""

    unary: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
    stream: "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"


@contextlib.asynccontextmanager
async def running_echo(directory: Path, *, connections: int) -> AsyncIterator[list[Echo]]:
    """Run a server in a process of its own; each of the values calls it on a connection of its own."""
    async with BareStreams().serve(directory) as running, contextlib.AsyncExitStack() as stack:
        echoes = []
        for _ in range(connections):
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(running.address, options=_OWN_CONNECTION)
            )
            await channel.channel_ready()
            echoes.append(Echo(unary=channel.unary_unary(_UNARY), stream=channel.stream_stream(_STREAM)))
        yield echoes


class BareClient(Publisher):
    """Tells everybody who follows, and follows. There is one collection, which nothing keeps."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._follow: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_FOLLOW)
        self._publish: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_PUBLISH)

    async def create(self, collection: str) -> None:
        """Nothing needs making."""

    async def push_one(self, collection: str, item: Item) -> None:
        """One call."""
        del collection
        await self._publish(encode_item(item))

    async def watch(self, collection: str, subscriptions: int = 1) -> AsyncIterator[list[bytes]]:
        """A stream of its own."""
        one_a_stream(subscriptions)
        call: Any = self._follow(collection.encode())
        try:
            async for message in call:
                yield [message] if message else []
        finally:
            call.cancel()


class BareStreams(Watched):
    """The same server as one that can be followed."""

    name = "grpc"

    @contextlib.asynccontextmanager
    async def serve(self, directory: Path) -> AsyncIterator[Running]:
        """Run one."""
        port = free_port()
        command = [sys.executable, "-m", "bench.systems.echo", str(port)]
        async with running_server(command, port=port, log=directory / "echo.log") as process:
            yield Running(address=f"127.0.0.1:{port}", pid=process.pid)

    @contextlib.asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[Publisher]:
        """A connection of its own."""
        async with grpc.aio.insecure_channel(address, options=_OWN_CONNECTION) as channel:
            yield BareClient(channel)


if __name__ == "__main__":
    run(serve(int(sys.argv[1])))
