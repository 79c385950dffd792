"""A real server for your own tests.

::

    async with syncline.testing.server() as target, target.connect() as client:
        await client.create_dataset("books", identity=syncline.by_key("isbn"))

Needs ``pip install "syncline[server]"``. The server runs as a process of its own in a temporary directory, on a
port that was free, and is gone after the block.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from syncline._transport import ADMIN_KEY_FILE, DEFAULT_DATA
from syncline.client import Client, connect

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0

_LISTENING: Final = "listening on "


class Target:
    """A server that runs as long as the ``server`` block."""

    def __init__(self, directory: Path, settings: Mapping[str, object]) -> None:
        self._directory = directory
        self._listen = "127.0.0.1:0"
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")
        }
        self._environment["SYNCLINE_HTTP"] = ""
        self._environment |= {f"SYNCLINE_{name.upper()}": str(value) for name, value in settings.items()}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        """``HOST:PORT``; stays the same over restarts."""
        return self._listen

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self._directory / DEFAULT_DATA

    @property
    def key(self) -> str:
        """The admin key."""
        return (self.data / ADMIN_KEY_FILE).read_text().strip()

    @property
    def log(self) -> str:
        """What it has logged."""
        path = self._directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def connect(self, **options: Any) -> Client:
        """A client with the admin key; options as for ``syncline.connect``."""
        options.setdefault("key", self.key)
        return connect(self.address, **options)

    async def start(self) -> None:
        """Start it, after ``stop`` or ``kill``. Raises RuntimeError with its last words when it does not."""
        if self._process is not None:
            raise RuntimeError("the server is running")
        with (self._directory / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "syncline_server", "serve"),
                *("--data", str(self.data), "--listen", self._listen),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                async for line in self._process.stdout:
                    text = line.decode().strip()
                    if text.startswith(_LISTENING):
                        self._listen = text.removeprefix(_LISTENING)
                        return
        except TimeoutError:
            pass
        await self.kill()
        raise RuntimeError(f"the server did not start:\n{self.log[-2000:]}")

    async def stop(self) -> None:
        """Stop it in its orderly way: SIGTERM."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it without warning: SIGKILL."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Stop and start it."""
        await self.stop()
        await self.start()

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            await asyncio.wait_for(process.communicate(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@asynccontextmanager
async def server(**settings: object) -> AsyncIterator[Target]:
    """Run a server for the length of the block.

    ``settings`` are those of the server by name, as in ``server(checkpoint_seconds=0.5)``. Raises RuntimeError
    with the server's last words when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="syncline-") as directory:
        target = Target(Path(directory), settings)
        try:
            await target.start()
            yield target
        finally:
            await target.kill()
