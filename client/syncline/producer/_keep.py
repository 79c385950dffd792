"""Where readings wait: in memory, or in a spool, which keeps them over a loss of power."""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from syncline._call import LOG
from syncline.errors import SpoolUnusable
from syncline.producer._outbox import Outbox, Reading
from syncline.producer._spool import Holdings, Spool
from syncline.v1.push_service_pb2 import Opened

AHEAD_BYTES: Final = 1 << 20
"""So much of a spool is read ahead."""
AHEAD_RECORDS: Final = 4_096
LAZY_SECONDS: Final = 1.0
"""Settled readings are removed from the spool with the next ones that are appended, or after this time."""
CLOSE_SECONDS: Final = 10.0
"""How long leaving waits for room on the disk."""
FULL_SECONDS: Final = 1.0
"""How often an append is tried again while the disk is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait."""

    records: int
    size_bytes: int

    def exceeded(self, records: int, size_bytes: int) -> bool:
        """Whether that is too much. One reading may always wait, however large."""
        return records > self.records or (size_bytes > self.size_bytes and records > 1)


class DiskFull(Exception):
    """There is no room for the spool now. Not for users."""


class Memory:
    """Readings are kept in memory only."""

    is_durable = False

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.dropped = 0
        """Readings that made room for newer ones."""
        self.arrived: deque[Reading] = deque()  # always empty: a reading is at its place at once
        self.previous_epoch = 0

    def put(self, reading: Reading) -> None:
        """Take a reading."""
        self._outbox.push((reading,))

    def drop_oldest(self, limits: Limits) -> None:
        """Drop readings that were never sent, the oldest first, until the others are within the limits."""
        while limits.exceeded(self._outbox.records, self._outbox.size_bytes):
            if not self._outbox.drop_first_ahead():
                break
            self.dropped += 1

    async def run(self) -> None:
        """Nothing is to be done beside."""

    async def adopt(self, opened: Opened, *, begins: bool) -> int:
        """A stream was opened, or with it an epoch begins. Returns how many readings that told to be durable."""
        durable = opened.previous_last_sequence if begins else None
        return self._outbox.opened(opened.last_sequence, durable_through=durable)

    async def take(self, *, records: int, size_bytes: int, credit_bytes: int) -> tuple[int, list[bytes]]:
        """The next message; see Outbox.take."""
        return self._outbox.take(records=records, size_bytes=size_bytes, credit_bytes=credit_bytes)

    def settled(self, readings: list[Reading]) -> None:
        """The server has these."""

    async def discard_first(self) -> Reading:
        """Give up the first in flight; see Outbox.discard_first."""
        return self._outbox.discard_first()

    def closed(self) -> None:
        """The stream is not open any more."""

    async def aclose(self) -> None:
        """Nothing is to be let go."""


class Spooled:
    """Readings are kept in a file. One thing at a time is done to it, so that memory and file agree."""

    is_durable = True

    def __init__(
        self, outbox: Outbox, spool: Spool, executor: ThreadPoolExecutor, *, changed: Callable[[], None]
    ) -> None:
        self._outbox = outbox
        self._spool = spool
        self._executor = executor
        self._changed = changed
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._limits: Limits | None = None  # to be kept by dropping
        self._arrived_bytes = 0
        self._saving = 0  # how many of those that arrived are on their way to the file
        self._settled: Reading | None = None  # the last one that is to be removed from the file
        self._marked = spool.holdings.sent_position
        self._loaded = 0  # position of the last reading that was in memory
        self._floor = (
            spool.holdings.sent_position
        )  # until the first stream is open, those up to here may be durable
        self._is_open = False  # a stream is, so what is appended is about to be sent
        self.arrived: deque[Reading] = deque()
        self.previous_epoch = spool.holdings.epoch
        self.dropped = 0
        """Readings that made room for newer ones."""

    @classmethod
    async def open(cls, path: Path, owner: str, *, changed: Callable[[], None]) -> "tuple[Spooled, Outbox]":
        """Open the file. Raises SpoolUnusable."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="syncline-spool")
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(executor, Spool.open, path, owner)
        try:
            spool = await asyncio.shield(opening)
        except BaseException:
            opening.add_done_callback(_close_late)
            executor.shutdown(wait=False)
            raise
        holdings: Holdings = spool.holdings
        outbox = Outbox(next_position=holdings.next_position)
        outbox.inherit(holdings.records, holdings.size_bytes, first_position=holdings.first_position)
        return cls(outbox, spool, executor, changed=changed), outbox

    def put(self, reading: Reading) -> None:
        """Take a reading; it is in the file when it has left ``arrived``."""
        self.arrived.append(reading)
        self._arrived_bytes += len(reading.data)
        self._wake.set()

    def drop_oldest(self, limits: Limits) -> None:
        """Drop readings that were never sent, the oldest first: from the file soon.

        Those on their way to it are dropped at once when they alone are more than the limits, so that a disk that is
        slow or full cannot fill the memory.
        """
        self._limits = limits
        self._wake.set()
        while limits.exceeded(len(self.arrived), self._arrived_bytes) and len(self.arrived) > self._saving:
            reading = self.arrived[self._saving]
            del self.arrived[self._saving]
            self._arrived_bytes -= len(reading.data)
            self._outbox.forget(reading)
            self.dropped += 1

    async def run(self) -> None:
        """Bring what arrives into the file. Raises SpoolUnusable."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self.arrived and self._limits is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAZY_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
            try:
                await self._save()
            except DiskFull:
                LOG.warning("the disk of the spool is full; %d readings wait in memory", len(self.arrived))
                await asyncio.sleep(FULL_SECONDS)
                self._wake.set()

    async def adopt(self, opened: Opened, *, begins: bool) -> int:
        """A stream was opened, or with it an epoch begins. Returns how many readings that told to be durable.

        Where an epoch begins, the file begins it too, and what the server says of the one before settles the rest.
        """
        async with self._turn:
            self._is_open = True
            return await (self._begin_epoch(opened) if begins else self._go_on(opened))

    async def _begin_epoch(self, opened: Opened) -> int:
        outbox = self._outbox
        if self._settled is not None:  # the numbers in the file have to be those in memory
            await self._settle(self._settled.position)
        durable = opened.previous_last_sequence
        records, size = await self._do(self._spool.adopt, opened.epoch, opened.last_sequence + 1, durable)
        before = outbox.size_bytes
        settled = outbox.opened(opened.last_sequence, durable_through=durable)
        outbox.adopted(records - settled, size - (before - outbox.size_bytes))
        self._floor = 0
        return int(records)

    async def _go_on(self, opened: Opened) -> int:
        outbox = self._outbox
        expected = outbox.next_sequence
        last = self._last_settled(outbox.flying[-1] if outbox.flying else None)
        settled = outbox.opened(opened.last_sequence)
        if outbox.next_sequence != expected:
            await self._settle(outbox.flying[0].position - 1 if outbox.flying else last)
        return settled

    def _last_settled(self, reading: Reading | None) -> int:
        return max((one.position for one in (reading, self._settled) if one is not None), default=0)

    async def _settle(self, position: int) -> None:
        """Remove readings now, and note the number of the first after them."""
        self._settled = None
        await self._do(self._spool.settle, position, self._outbox.next_sequence)

    async def discard_first(self) -> Reading:
        """Give up the first in flight; see Outbox.discard_first.

        Before anything else is sent under its number, it has to be out of the file.
        """
        async with self._turn:
            reading = self._outbox.discard_first()
            await self._settle(reading.position)
            return reading

    def closed(self) -> None:
        """The stream is not open any more."""
        self._is_open = False

    async def take(self, *, records: int, size_bytes: int, credit_bytes: int) -> tuple[int, list[bytes]]:
        """The next message; see Outbox.take."""
        outbox = self._outbox
        async with self._turn:
            if outbox.beyond and not outbox.ahead:
                readings = await self._do(
                    self._spool.read, self._loaded, records=AHEAD_RECORDS, size_bytes=AHEAD_BYTES
                )
                outbox.load(readings)
                self._loaded = readings[-1].position if readings else self._loaded
            if outbox.ahead and outbox.ahead[-1].position > self._marked:
                self._marked = outbox.ahead[-1].position
                await self._do(self._spool.mark_sent, self._marked)
            return outbox.take(records=records, size_bytes=size_bytes, credit_bytes=credit_bytes)

    def settled(self, readings: list[Reading]) -> None:
        """The server has these: they leave the file with the next that come, or soon."""
        if readings:
            first = self._settled is None
            self._settled = readings[-1]
            if first:
                self._wake.set()

    async def aclose(self) -> None:
        """Bring the last readings into the file, and let go of it. Raises SpoolUnusable when they are lost."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self.arrived or self._settled is not None:
                    try:
                        await self._save()
                    except DiskFull:
                        await asyncio.sleep(FULL_SECONDS)
        except TimeoutError:
            raise SpoolUnusable(
                f"the disk of the spool is full; {len(self.arrived)} readings could not be kept"
            ) from None
        finally:
            async with self._turn:
                await self._do(self._spool.close)
            self._executor.shutdown(wait=False)

    async def _save(self) -> None:
        """One transaction with everything that waits for the file. Raises DiskFull."""
        outbox = self._outbox
        async with self._turn:
            await self._drop()
            readings = list(self.arrived)
            settled = self._settled
            if not readings and settled is None:
                return
            in_memory = not outbox.beyond and outbox.ahead_bytes < AHEAD_BYTES
            sent = in_memory and self._is_open
            self._saving = len(readings)
            try:
                await self._do(
                    self._spool.append,
                    readings,
                    sent=sent,
                    settled=None if settled is None else (settled.position, outbox.next_sequence),
                )
            finally:
                self._saving = 0
            if self._settled is settled:
                self._settled = None
            for reading in readings:
                self.arrived.popleft()
                self._arrived_bytes -= len(reading.data)
            if not in_memory:
                outbox.beyond += len(readings)
            elif readings:
                outbox.push(readings)
                self._loaded = readings[-1].position
                self._marked = max(self._marked, self._loaded if sent else 0)
        self._changed()

    async def _drop(self) -> None:
        limits, self._limits = self._limits, None
        outbox = self._outbox
        if limits is None or not limits.exceeded(outbox.records, outbox.size_bytes):
            return
        flying = outbox.flying[-1].position if outbox.flying else 0
        dropped, size, last = await self._do(
            self._spool.drop,
            max(flying, self._floor),
            records=outbox.records - limits.records,
            size_bytes=outbox.size_bytes - limits.size_bytes,
        )
        outbox.dropped(dropped, size, through=last)
        self.dropped += dropped

    async def _do(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in the spool's thread, to its end also when the caller is cancelled.

        What was done has to be noted, so the cancellation then comes at the next wait. Raises DiskFull, SpoolUnusable.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))
        cancelled = 0
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                cancelled += 1
        if cancelled and (task := asyncio.current_task()) is not None:
            for _ in range(cancelled):
                task.uncancel()
            task.cancel()
        try:
            return work.result()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFull from error
            raise SpoolUnusable(f"the spool cannot be used any more: {error}") from error


def _close_late(opening: "asyncio.Future[Spool]") -> None:
    """Somebody stopped waiting for the file to be opened."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
