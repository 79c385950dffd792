"""A bare grpc.aio server that answers every message with itself: what a unary call costs by itself.

``python -m bench.systems.echo PORT`` runs it, under the same event loop as Syncline's server.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio

from bench.loops import run
from bench.processes import free_port, running_server

_METHOD = "/bench.Echo/Echo"


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return grpc.unary_unary_rpc_method_handler(_echo) if details.method == _METHOD else None


async def _echo(request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    return request


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


@contextlib.asynccontextmanager
async def running_echo(directory: Path) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """Run a server in a process of its own; the value calls it."""
    port = free_port()
    command = [sys.executable, "-m", "bench.systems.echo", str(port)]
    async with (
        running_server(command, port=port, log=directory / "echo.log"),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        await channel.channel_ready()
        echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        yield echo


if __name__ == "__main__":
    run(serve(int(sys.argv[1])))
