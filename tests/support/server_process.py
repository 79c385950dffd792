"""A real ``syncline-server`` process for tests: its own directory and port, and every way to end it.

The port is kept, so that a restarted server is found by clients that know the first one. Its log is a file; what it says shows in ``log``.
"""

import asyncio
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import syncline

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
PORTS: Final = range(10_000, 32_000)
"""Below those that Linux gives to outgoing connections, one of which would take the place of a server that is away."""


class ServerProcess:
    """A server that can be started, ended and started again on the same directory and port.

    ``store``: address of a PostgreSQL database. Nodes of one store that share ``data`` share the file of the admin key.
    """

    def __init__(
        self,
        directory: Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        listen: str = "",
        store: str = "",
        data: Path | None = None,
    ) -> None:
        self.data = data or directory / "data"
        self.log_file = directory / "server.log"
        self.http = ""
        self.store = store
        self._args = tuple(args)
        self._prefix = tuple(prefix)
        """A command to run it under, such as strace or prlimit."""
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")}
        self._env |= {"SYNCLINE_HTTP": ""} | ({"SYNCLINE_STORE": store} if store else {}) | dict(env or {})
        self._listen = listen or f"127.0.0.1:{_free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.output: list[str] = []
        """Lines that it printed up to ``listening on``."""

    # -- what a test asks ---------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``HOST:PORT`` or ``unix:PATH``, after the first start."""
        return self._listen

    @property
    def key(self) -> str:
        """The admin key."""
        return (self.data / "admin.key").read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything it logged, over all its starts."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def client(self) -> Any:
        """An SDK client with the admin key: ``async with server.client() as client``."""
        return syncline.connect(self.address, key=self.key)

    def fsck(self) -> list[str]:
        """Problems that ``syncline-server fsck`` finds."""
        found = self.command("fsck")
        problems = [line for line in found.stdout.splitlines() if line.startswith("problem:")]
        assert found.returncode == (1 if problems else 0), found.stdout + found.stderr
        return problems

    def command(self, name: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run another command of ``syncline-server`` on the same data."""
        command = [sys.executable, "-m", "syncline_server", name, "--data", str(self.data), *args]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env=self._env, timeout=120
        )

    # -- life ---------------------------------------------------------------------------------------------

    async def start(self, *, env: Mapping[str, str] | None = None) -> None:
        """Start, and return when it listens. Raises RuntimeError with its words when it does not."""
        await asyncio.to_thread(self.start_now, env=env)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; return the exit code (negative: the signal that ended it)."""
        return await asyncio.to_thread(self.stop_now, number)

    async def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with the signal and start it again."""
        await self.stop(number)
        await self.start()

    async def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait until it ends by itself; return the exit code."""
        return await asyncio.to_thread(self._wait, seconds)

    async def kill(self) -> int:
        """SIGKILL."""
        return await self.stop(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        return await self.stop(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send a signal and go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def start_now(self, *, env: Mapping[str, str] | None = None) -> None:
        """``start``, blocking."""
        assert not self.is_running
        self._close()
        for path in (self.data, self.log_file):
            path.parent.mkdir(parents=True, exist_ok=True)
        command = [*self._prefix, sys.executable, "-m", "syncline_server", "serve"]
        command += ["--data", str(self.data), "--listen", self._listen, *self._args]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=self._env | dict(env or {})
            )
        self.output = self._read_until_listening()
        self._listen = self.output[-1].removeprefix("listening on ")

    def stop_now(self, number: signal.Signals = signal.SIGTERM) -> int:
        """``stop``, blocking."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._wait(STOP_SECONDS)

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGCONT)
                self._process.kill()
            self._process.wait()
            self._close()

    def _wait(self, seconds: float) -> int:
        assert self._process is not None
        code = self._process.wait(seconds)
        self._close()
        return code

    def _close(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _read_until_listening(self) -> list[str]:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + START_SECONDS
        said = b""
        while True:
            lines = said.decode().split("\n")
            if any(line.startswith("listening on ") for line in lines[:-1]):
                return [line for line in lines if line]
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(pipe, 4096) if readable else b""
            if not more:
                self.end()
                raise RuntimeError(f"the server did not start: {said.decode()}{self.log[-2000:]}")
            said += more


@asynccontextmanager
async def server_process(
    directory: Path,
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    listen: str = "",
    store: str = "",
    data: Path | None = None,
) -> AsyncIterator[ServerProcess]:
    """A server that runs when the block begins and is gone when it ends."""
    server = ServerProcess(
        directory, args=args, env=env, prefix=prefix, listen=listen, store=store, data=data
    )
    try:
        await server.start()
        yield server
    finally:
        await asyncio.to_thread(server.end)


def _free_port() -> int:
    while True:
        port = secrets.choice(
            PORTS
        )  # not by `random`, which tests that run side by side may have seeded alike
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
