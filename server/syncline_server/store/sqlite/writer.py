"""The one connection that writes: a transaction is one function on its thread."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Generic, ParamSpec, TypeVar

import aiosqlite

from syncline_server import failpoints
from syncline_server.clock import Clock
from syncline_server.store.sqlite.connection import run_on
from syncline_server.store.sqlite.trouble import is_fatal, translate
from syncline_server.store.trouble import store_full, store_unavailable

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[T]):
    """What a durable transaction returned, and what it cost."""

    value: T
    transaction_seconds: float
    sync_seconds: float
    """Time of COMMIT, which waits for the disk."""


class Writer:
    """Runs transactions, one after the other, in the order in which they were asked for."""

    def __init__(self, connection: aiosqlite.Connection, path: Path, clock: Clock) -> None:
        self._connection = connection
        self._wal_path = path.with_name(path.name + "-wal")
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._fatal: str | None = None
        self.failed = asyncio.Event()
        """Set when the process should end: an outcome is unknown or the database is damaged."""
        self.full = False
        """The newest write found the disk full."""
        self.transactions = 0

    async def transact(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Done[T]:
        """Run ``work`` inside ``BEGIN IMMEDIATE`` … ``COMMIT``; roll back when it raises.

        Domain errors of ``work`` come through. Raises ResourceExhausted(STORE_FULL) when it was rolled back for
        lack of space, Unavailable(STORE_UNAVAILABLE) when the database is locked or the outcome is unknown.
        """
        return await run_on(self._connection, self._transact, lambda plain: work(plain, *args, **kwargs))

    async def outside(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run what cannot run inside a transaction (checkpoint). Raises as ``transact`` does."""
        return await run_on(self._connection, self._outside, lambda plain: work(plain, *args, **kwargs))

    async def attached(
        self,
        schema: tuple[str, str],
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Done[T]:
        """``transact`` with another database attached: ``schema`` is (URI, name)."""
        return await run_on(
            self._connection, self._attached, schema, lambda plain: work(plain, *args, **kwargs)
        )

    def check(self) -> None:
        """Raise Unavailable(STORE_UNAVAILABLE) once the store has failed."""
        if self._fatal is not None:
            raise store_unavailable(self._fatal)

    def wal_bytes(self) -> int:
        """Size of the WAL file, 0 when there is none."""
        try:
            return self._wal_path.stat().st_size
        except FileNotFoundError:
            return 0

    def _attached(
        self,
        plain: sqlite3.Connection,
        schema: tuple[str, str],
        work: Callable[[sqlite3.Connection], T],
    ) -> Done[T]:
        uri, name = schema
        self._outside(plain, lambda connection: connection.execute(f"ATTACH ? AS {name}", (uri,)))
        try:
            return self._transact(plain, work)
        finally:
            self._outside(plain, lambda connection: connection.execute(f"DETACH {name}"))

    def _outside(self, plain: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        self.check()
        try:
            return work(plain)
        except sqlite3.Error as error:
            raise self._judge(error) from error

    def _transact(self, plain: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> Done[T]:
        self.check()
        failpoints.hit("commit.before")
        started = self._clock.monotonic()
        try:
            plain.execute("BEGIN IMMEDIATE")
            try:
                value = work(plain)
                failpoints.hit("commit.rows")
                syncing = self._clock.monotonic()
                plain.execute("COMMIT")
            except BaseException:
                if plain.in_transaction:
                    plain.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._judge(error) from error
        ended = self._clock.monotonic()
        self.full = False
        self.transactions += 1
        failpoints.hit("commit.after")
        return Done(value=value, transaction_seconds=ended - started, sync_seconds=ended - syncing)

    def _judge(self, error: sqlite3.Error) -> Exception:
        """What to raise instead, remembering what the error says about the store."""
        # The WAL's index could not grow: no room either, and nothing was written.
        if getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMSIZE":
            self.full = True
            return store_full("SQLITE_IOERR_SHMSIZE")
        if is_fatal(error):
            self._fatal = f"after {getattr(error, 'sqlite_errorname', 'an error')} the server restarts"
            self._loop.call_soon_threadsafe(self.failed.set)
        ours = translate(error)
        if ours is None:
            return error
        self.full = self.full or ours.reason == "STORE_FULL"
        return ours
