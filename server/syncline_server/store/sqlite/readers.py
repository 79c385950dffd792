"""Connections that only read."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import aiosqlite

from syncline_server.store.sqlite.connection import READER, connect, run_on
from syncline_server.store.sqlite.trouble import translate

P = ParamSpec("P")
T = TypeVar("T")


class Readers:
    """A few read-only connections; each question goes to the one with the least to do."""

    def __init__(self, connections: list[aiosqlite.Connection]) -> None:
        self._connections = connections
        self._waiting = [0] * len(connections)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, connections: int) -> AsyncIterator["Readers"]:
        """Open the connections and close them at the end."""
        async with AsyncExitStack() as stack:
            opened = []
            for _ in range(connections):
                connection = await connect(path, READER, mode="ro")
                stack.push_async_callback(connection.close)
                opened.append(connection)
            yield cls(opened)

    async def read(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work`` on one of the connections.

        Raises Unavailable(STORE_UNAVAILABLE) when the disk fails, and whatever ``work`` raises.
        """
        index = self._waiting.index(min(self._waiting))
        self._waiting[index] += 1
        try:
            return await run_on(self._connections[index], work, *args, **kwargs)
        except sqlite3.Error as error:
            ours = translate(error)
            if ours is None:
                raise
            raise ours from error
        finally:
            self._waiting[index] -= 1
