"""What the figures ask of a system."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import Item

CALL_RECORDS = 1_000
"""Records of a bulk call."""
IN_FLIGHT = 4
"""Bulk calls on their way at a time."""


class Unavailable(RuntimeError):
    """The system is not on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that runs."""

    address: str
    pid: int


class Watcher(ABC):
    """A connection to a server that can be followed. A collection is a dataset, a bucket or a key prefix."""

    @abstractmethod
    async def create(self, collection: str) -> None:
        """Make the collection, empty."""

    @abstractmethod
    def watch(self, collection: str, subscriptions: int = 1) -> AsyncIterator[list[bytes]]:
        """Follow the collection, as lists of the JSON texts that came together.

        An empty list is among the first: everything later will be seen. Several subscriptions share a stream where
        the system has that, and the lists are those of all of them together.
        """


class Publisher(Watcher):
    """A connection through which others are told."""

    @abstractmethod
    async def push_one(self, collection: str, item: Item) -> None:
        """Upsert one item; return when it is acknowledged."""


class Client(Publisher):
    """A connection to a server that keeps what is written to it."""

    @abstractmethod
    async def push_bulk(self, collection: str, items: list[Item]) -> None:
        """Upsert all items, ``CALL_RECORDS`` a call and ``IN_FLIGHT`` calls at a time, or what is nearest."""

    @abstractmethod
    async def copy(self, collection: str) -> dict[str, bytes]:
        """Read everything into a dict: key → JSON text."""


def one_a_stream(subscriptions: int) -> None:
    """For systems whose streams have one subscription each. Raises ValueError for more."""
    if subscriptions != 1:
        raise ValueError(f"{subscriptions} subscriptions on a stream that has one")


class Watched(ABC):
    """A kind of server that can be followed."""

    name: str

    @abstractmethod
    def serve(self, directory: Path) -> AbstractAsyncContextManager[Running]:
        """Run a server of its own process with its data in ``directory``."""

    @abstractmethod
    def connect(self, address: str) -> AbstractAsyncContextManager[Publisher]:
        """Connect to it."""


class System(Watched):
    """A kind of server that keeps what is written to it."""

    durability: str
    """What an acknowledged write has survived, in a few words."""

    @abstractmethod
    def version(self) -> str:
        """Version of the server. Raises Unavailable when it is not on this machine."""

    @abstractmethod
    def connect(self, address: str) -> AbstractAsyncContextManager[Client]:
        """Connect to it."""


async def run_limited(
    calls: Iterable[Callable[[], Coroutine[Any, Any, Any]]], *, in_flight: int = IN_FLIGHT
) -> None:
    """Make the calls in order, ``in_flight`` at a time."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await call()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(worker())
