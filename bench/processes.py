"""Child processes of the benchmark: started here, ended here by their own id, whatever happens between."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 10.0


class ServerFailed(RuntimeError):
    """A server ended, or did not answer in time; the message holds the end of its output."""


def free_port() -> int:
    """A TCP port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def stop(process: asyncio.subprocess.Process) -> None:
    """End the process: politely, then not."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def running_server(
    command: Sequence[str], *, port: int, log: Path, env: Mapping[str, str] | None = None, seconds: float = 30
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server until the block is left; enter it when the port accepts connections.

    Raises ServerFailed when it ends before that, or ``seconds`` pass.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
    try:
        await _wait_for_port(process, port, log, seconds)
        yield process
    finally:
        await asyncio.shield(stop(process))


async def _wait_for_port(process: asyncio.subprocess.Process, port: int, log: Path, seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            late = asyncio.get_running_loop().time() > deadline
            if late or process.returncode is not None:
                what = "did not open its port" if late else f"ended with code {process.returncode}"
                raise ServerFailed(f"{log.stem} {what}:\n{_tail(log)}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def _tail(log: Path, size: int = 2000) -> str:
    return log.read_bytes()[-size:].decode(errors="replace")


@contextlib.asynccontextmanager
async def running_module(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``python -m module`` with pipes to its standard streams until the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 << 20,  # a line of latencies is long
    )
    try:
        yield process
    finally:
        await asyncio.shield(stop(process))
