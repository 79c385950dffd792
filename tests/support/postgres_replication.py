"""A PostgreSQL primary and a standby that streams from it, each on a port of its own, to fail over between them."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from examples.local_postgres import USER
from support.frail_postgres import FrailPostgres, connection_to, frail_postgres
from support.waiting import until

DATABASE: Final = "replicated"

_STANDBYS: Final = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"


class Pair:
    """A primary that runs, and a standby that follows it."""

    def __init__(self, primary: FrailPostgres, standby: FrailPostgres, *, synchronous: bool) -> None:
        self.primary = primary
        self.standby = standby
        self._settings = {"synchronous_standby_names": "*"} if synchronous else {}

    @property
    def dsn(self) -> str:
        """Whichever of the two can be written to."""
        hosts = f"{self.primary.address},{self.standby.address}"
        return f"postgresql://{USER}@{hosts}/{DATABASE}?target_session_attrs=read-write&sslmode=disable"

    async def start(self) -> None:
        """Start the primary, copy it, and start the copy as its standby."""
        await asyncio.to_thread(self.primary.start_on_tcp)
        await asyncio.to_thread(self.primary.execute, f"CREATE DATABASE {DATABASE}")
        await asyncio.to_thread(self._copy)
        if self._settings:  # only now: without a standby nothing could be committed
            await asyncio.to_thread(self.primary.stop)
            await asyncio.to_thread(self.primary.start_on_tcp, **self._settings)
        await asyncio.to_thread(self.standby.start_on_tcp)
        await self.follows()

    def _copy(self) -> None:
        self.primary.run(
            "pg_basebackup",
            "--pgdata",
            str(self.standby.data),
            "--host",
            "127.0.0.1",
            "--port",
            f"{self.primary.tcp_port}",
            "--username",
            USER,
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        )

    async def follows(self) -> None:
        """Wait until the standby streams, and if it is a synchronous one, until commits wait for it."""
        wanted = "sync" if self._settings else "async"
        async with connection_to(self.primary.dsn()) as connection:

            async def streams() -> bool:
                return bool(wanted in [row[0] for row in await connection.fetch(_STANDBYS)])

            await until(streams)

    async def lose_primary(self) -> None:
        """The primary is gone, without warning."""
        await asyncio.to_thread(self.primary.stop, "immediate")

    async def promote(self) -> None:
        """The standby is the primary now."""
        await asyncio.to_thread(self.standby.run, "pg_ctl", "promote", "-D", str(self.standby.data), "-w")

    async def stop(self) -> None:
        """Stop what runs."""
        for cluster in (self.standby, self.primary):
            await asyncio.to_thread(cluster.stop, "immediate")


@asynccontextmanager
async def replicated(*, synchronous: bool) -> AsyncIterator[Pair]:
    """A pair that runs. ``synchronous``: a commit is acknowledged when the standby has it on its disk too."""
    place = Path(tempfile.mkdtemp(prefix="syncline-pg-"))
    try:
        with frail_postgres() as primary:
            standby = FrailPostgres(place)
            standby.share_programs(primary)
            pair = Pair(primary, standby, synchronous=synchronous)
            try:
                await pair.start()
                yield pair
            finally:
                await pair.stop()
    finally:
        shutil.rmtree(place)
