"""What both demos run: servers, a second process that follows, and themselves."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

import syncline

console = Console()


def tell(what: str, figure: str) -> None:
    """Print one figure."""
    console.print(f"   {what:<40} {figure}", highlight=False, soft_wrap=True)


class Server:
    """A real server process that can be killed and started again on the same data and port.

    ``store``: address of a PostgreSQL database; then it is a node, and ``node`` its name.
    """

    def __init__(self, data: Path, *, store: str = "", node: str = "") -> None:
        self.data = data
        self.node = node
        self._store = store
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def admin_key(self) -> str:
        """The key that the first start made; of several nodes the first one has it."""
        return (self.data / "admin.key").read_text().strip()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        """Run it while the block lasts."""
        try:
            await self.start()
            yield self
        finally:
            await self.stop(signal.SIGTERM)

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = await run_program(
            "syncline_server",
            "serve",
            *("--data", str(self.data), "--listen", self.address, "--http", "", "--node", self.node),
            environment={"SYNCLINE_STORE": self._store},  # the list of processes shows arguments
        )
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if b"listening on" in line:
                return
        raise SystemExit(f"the server at {self.address} did not start")

    async def stop(self, how: signal.Signals) -> None:
        """End it, by SIGTERM or by SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            await self._process.wait()


class Follower:
    """A second process that follows the dataset and reports each checkpoint that it reached."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._key = key
        self._process: asyncio.subprocess.Process | None = None
        self.seen: list[dict[str, object]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Follower"]:
        """Run it while the block lasts."""
        self._process = await run_program(
            "examples.demo_parts", self._address, environment={"SYNCLINE_KEY": self._key}, stderr=None
        )
        try:
            yield self
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()

    async def reach(self, revision: int) -> dict[str, object]:
        """Wait until its copy is exact at this revision or a later one."""
        assert self._process is not None and self._process.stdout is not None
        while not self.seen or int(str(self.seen[-1]["revision"])) < revision:
            line = await self._process.stdout.readline()
            if not line:
                raise SystemExit("the follower ended")
            self.seen.append(json.loads(line))
        return self.seen[-1]


async def run_program(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    stderr: int | None = asyncio.subprocess.DEVNULL,
) -> asyncio.subprocess.Process:
    """Start a module as a process of its own; Ctrl-C is not for it, but for who started it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=os.environ | environment,
        start_new_session=True,
    )


async def follow(address: str) -> None:
    """What the second process does: hold an exact copy, tell about each checkpoint."""
    puts = deletes = resets = 0
    async with syncline.connect(address) as client:
        copy = syncline.Copy()
        async for event in client.dataset("airports").changes():
            copy.apply(event)  # verifies count and digest at every checkpoint
            if isinstance(event, syncline.Put):
                puts += 1
            elif isinstance(event, syncline.Delete):
                deletes += 1
            elif isinstance(event, syncline.Reset):
                resets += 1
            elif isinstance(event, syncline.Checkpoint):
                told = {
                    "revision": event.revision,
                    "records": len(copy),
                    "digest": copy.digest.hex(),
                    "puts": puts,
                    "deletes": deletes,
                    "resets": resets,
                }
                print(json.dumps(told), flush=True)
                puts = deletes = 0


def run(demo: Coroutine[object, object, None]) -> None:
    """Run a demo to its end, or until Ctrl-C or SIGTERM: what it started is stopped and removed in any case."""

    async def until_told() -> None:
        this = asyncio.current_task()
        assert this is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        await demo

    began = time.perf_counter()
    try:
        asyncio.run(until_told())
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; nothing that was started is left")
        sys.exit(130)
    console.print(f"all proven in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    asyncio.run(follow(sys.argv[1]))
