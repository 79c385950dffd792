"""A schedule of faults, drawn from a seed: the network, the process, the places where it dies, the clients."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable

from robustness.history import History
from support.proxy import Link, Proxy
from support.server_process import ServerProcess

PLACES = ("commit.before", "commit.rows", "commit.after", "stage.rows", "prepare", "session.applied", "purge")
"""Failpoints at which the server may be killed; see ``syncline_server.failpoints``."""
PLACES_OF_SQLITE = {"checkpoint.before", "checkpoint.after", "stage.rows", "prepare"}
"""Failpoints that are not there beside PostgreSQL."""
DIES_WITHIN_SECONDS = 3.0


class Faults:
    """Does one thing after another to a server and to the connections with it."""

    def __init__(self, history: History, server: ServerProcess, proxy: Proxy, *, seed: int) -> None:
        self.history = history
        self.server = server
        self.proxy = proxy
        self.rng = random.Random(f"{seed} faults")
        self.starts = 0
        """How often the server was started again."""

    NETWORK = ("cut_all", "cut_one", "hold", "hold_one", "delay", "half_close", "deaf", "slow", "jitter")
    PROCESS = ("kill", "terminate", "freeze", "die_at_a_place")

    async def rage(self, seconds: float, kinds: tuple[str, ...] = NETWORK + PROCESS) -> None:
        """Faults for so long; when this returns, all is well again."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {name: getattr(self, name) for name in kinds}
        weights = [4 if name in self.NETWORK else 2 for name in kinds]
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self.rng.uniform(0.02, 0.4))
            name = self.rng.choices(kinds, weights)[0]
            self.history.fault(name)
            await faults[name]()
            await self.proxy.mend()

    # -- the network --------------------------------------------------------------------------------------

    async def cut_all(self) -> None:
        """Reset every connection."""
        await self.proxy.cut()

    async def cut_one(self) -> None:
        """Reset one connection."""
        if link := self._link():
            link.cut()

    async def hold(self) -> None:
        """Nothing passes on any connection, in one direction or both."""
        self.proxy.hold(*self.rng.choice([("requests",), ("answers",), ("requests", "answers")]))
        await self._while()

    async def hold_one(self) -> None:
        """The same on one connection."""
        if link := self._link():
            link.held.add(self.rng.choice(["requests", "answers"]))
            await self._while()

    async def delay(self) -> None:
        """Everything is late."""
        self.proxy.delay_seconds = self.rng.uniform(0.005, 0.1)
        await self._while()

    async def jitter(self) -> None:
        """Everything is late by different times."""
        self.proxy.jitter_seconds = self.rng.uniform(0.005, 0.1)
        await self._while()

    async def slow(self) -> None:
        """A few bytes a second on one connection."""
        if link := self._link():
            link.bytes_per_second = self.rng.choice([1_000, 10_000, 50_000])
            await self._while()

    async def half_close(self) -> None:
        """The server hears that a client will send nothing more."""
        if link := self._link():
            link.half_close()

    async def deaf(self) -> None:
        """Whoever connects now is not answered; later it is reset."""
        self.proxy.is_deaf = True
        await self.proxy.cut()
        await self._while()
        await self.proxy.cut()

    # -- the process --------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """SIGKILL, and start again."""
        await self.server.kill()
        await self._start()

    async def terminate(self) -> None:
        """SIGTERM, and start again; it must end cleanly."""
        code = await self.server.terminate()
        assert code == 0, f"the server ended with {code}"
        await self._start()

    async def freeze(self) -> None:
        """SIGSTOP for a while."""
        self.server.send(signal.SIGSTOP)
        await self._while()
        self.server.send(signal.SIGCONT)

    async def die_at_a_place(self) -> None:
        """Start again so that it dies at a failpoint; or by SIGKILL when it does not come there."""
        await self.server.kill()
        places = [place for place in PLACES if not self.server.store or place not in PLACES_OF_SQLITE]
        place, visit = self.rng.choice(places), self.rng.randint(1, 12)
        self.history.fault(f"{place}=kill@{visit}")
        with contextlib.suppress(RuntimeError):  # it came there before it listened
            await self._start(env={"SYNCLINE_FAILPOINTS": f"{place}=kill@{visit}"})
        with_failpoint = asyncio.get_running_loop().time() + DIES_WITHIN_SECONDS
        while self.server.is_running and asyncio.get_running_loop().time() < with_failpoint:
            await asyncio.sleep(0.02)
        await self.server.kill()
        await self._start()

    async def _start(self, **how: object) -> None:
        self.starts += 1
        await self.server.start(**how)

    # -- how long -----------------------------------------------------------------------------------------

    def _link(self) -> Link | None:
        links = self.proxy.links
        return self.rng.choice(links) if links else None

    async def _while(self) -> None:
        await asyncio.sleep(self.rng.choice([0.05, 0.3, 0.8]))
