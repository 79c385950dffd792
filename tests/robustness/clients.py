"""What every client of a run has: a connection of its own through the proxy, a seed, and the history."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc

from robustness.history import History
from support.wire import Refused, Wire

CALL_SECONDS = 3.0
"""Most time for one attempt."""
SILENCE_SECONDS = 2.5
"""A stream that says nothing for so long is dead."""

REJECTED = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}
"""Codes that promise no effect (G4)."""

_CHANNEL = [
    # gRPC's own retries of a call that never left may go round without end, in the call's memory and with the
    # interpreter's lock, while a connection is going away: 150 MB a second. The SDK has switched them off as well.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # or all clients of the process would share one connection
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]
_TURNS = [("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))]


class Run:
    """One run: where the nodes are, what is noted, and when to stop."""

    def __init__(
        self, history: History, addresses: Sequence[str], key: str, *, seed: int, all_hop: bool = False
    ) -> None:
        """``all_hop``: nobody keeps to one node."""
        self.history = history
        self.addresses = tuple(addresses)
        self.key = key
        everywhere = "ipv4:" + ",".join(addresses)
        if len(self.addresses) == 1:
            self._places = self.addresses
        else:
            self._places = (everywhere,) if all_hop else (*self.addresses, everywhere)
        self.stopping = asyncio.Event()
        """Writers finish what they are about."""
        self.leaving = asyncio.Event()
        """Subscribers end."""
        self.is_calm = False
        """No more surprises by the clients themselves: whoever follows stays."""
        self.acknowledged: dict[str, int] = {}
        """Newest revision of each dataset that was acknowledged to anybody."""
        self._seed = seed
        self._wires = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Run":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def chooser(self, name: str) -> random.Random:
        """The choices of one client, which do not depend on those of others."""
        return random.Random(f"{self._seed} {name}")

    async def wire(self) -> Wire:
        """Stubs on a connection of their own.

        Where there are several nodes, the clients take turns: one keeps to the first, one to the second, …, and one
        goes to another node with each call and each stream.
        """
        place = self._places[self._wires % len(self._places)]
        self._wires += 1
        options = [*_CHANNEL, *_TURNS] if "," in place else _CHANNEL
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(place, options=options))
        return Wire(channel, self.key)

    def note(self, dataset: str, revision: int) -> None:
        """A revision was acknowledged."""
        self.acknowledged[dataset] = max(self.acknowledged.get(dataset, 0), revision)

    async def pause(self, rng: random.Random, seconds: float = 0.05) -> None:
        """A little while after a failure."""
        await asyncio.sleep(rng.uniform(0, seconds))


async def attempts(
    run: Run, rng: random.Random, call: Callable[[], Awaitable[Any]], *, count: int
) -> tuple[Any, Refused | None, bool]:
    """Call until there is an answer: the answer, or the last refusal and whether it promises that nothing was done."""
    in_doubt = False
    refused = None
    for _ in range(count):
        try:
            return await call(), None, False
        except grpc.aio.AioRpcError as error:
            refused = Refused(error)
            if refused.code in REJECTED:
                return None, refused, not in_doubt
            in_doubt = True
            await run.pause(rng, 0.3)
    return None, refused, False


def code_of(refused: Refused) -> str:
    """The code of a refusal; UNAVAILABLE where gRPC's core itself failed to write to a stream that had ended."""
    return "UNAVAILABLE" if refused.message == "Internal error from Core" else refused.code


def now() -> float:
    """The clock of the history."""
    return time.monotonic()
