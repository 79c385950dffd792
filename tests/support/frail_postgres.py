"""A PostgreSQL server of a test's own, on TCP, that may crash: its cluster is made once and started for each test."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from examples.local_postgres import USER, LocalPostgres


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FrailPostgres(LocalPostgres):
    """A cluster whose server listens on 127.0.0.1 as well."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.tcp_port = 0
        self._numbers = count(1)
        self._users: set[str] = set()

    def share_programs(self, other: "FrailPostgres") -> None:
        """Instead of ``make``: the files of the cluster come from elsewhere."""
        self._programs = other._programs
        if os.geteuid() == 0:
            os.chown(self.directory, other.directory.stat().st_uid, -1)

    @property
    def address(self) -> str:
        """``HOST:PORT``, for a proxy."""
        return f"127.0.0.1:{self.tcp_port}"

    def dsn_at(self, address: str, database: str, user: str = USER) -> str:
        """How to connect to a database by an address, which may be a proxy's."""
        return f"postgresql://{user}@{address}/{database}?sslmode=disable"

    def start_on_tcp(self, **settings: str) -> None:
        """Start, on the port that it had before if it had one."""
        self.tcp_port = self.tcp_port or free_port()
        self.start(listen_addresses="127.0.0.1", port=f"{self.tcp_port}", **settings)

    def dsn(self, database: str = "postgres") -> str:
        """See LocalPostgres. The socket's name has the port in it."""
        return f"{super().dsn(database)}&port={self.port}"

    async def crash(self) -> None:
        """End it without warning, and start it again: it recovers from its log."""
        await asyncio.to_thread(self.stop, "immediate")
        await asyncio.to_thread(self.start_on_tcp)

    def make_users(self, *names: str) -> None:
        """Roles that may do anything, where they are missing."""
        for name in names:
            if name not in self._users:
                self.execute(f"CREATE ROLE {name} SUPERUSER LOGIN")
                self._users.add(name)

    def new_database(self) -> str:
        """An empty database."""
        name = f"frail_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FrailPostgres"]:
        """Started while the block lasts."""
        await asyncio.to_thread(self.start_on_tcp)
        try:
            yield self
        finally:
            await asyncio.to_thread(self.stop, "immediate")


@contextmanager
def frail_postgres() -> Iterator[FrailPostgres]:
    """A cluster that is not started."""
    directory = Path(tempfile.mkdtemp(prefix="syncline-pg-"))
    try:
        cluster = FrailPostgres(directory)
        cluster.make()
        yield cluster
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def connection_to(dsn: str) -> AsyncIterator[Any]:
    """A connection that is none of the product's."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()
