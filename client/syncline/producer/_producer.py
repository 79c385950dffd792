"""What a program sees of a producer."""

import asyncio
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar

from syncline._call import LOG
from syncline._convert import Codec
from syncline._reconnect import FeedOptions
from syncline.errors import OutboxFull, ReadingsLeft, RefusedReadings, SynclineError
from syncline.models import ProducerStats, RefusedReading
from syncline.producer._keep import Limits, Memory, Spooled
from syncline.producer._link import Link, Report
from syncline.producer._outbox import Outbox

if TYPE_CHECKING:
    from syncline.client import Connection

T = TypeVar("T")

WhenFull = Literal["wait", "drop_oldest", "raise"]
"""What ``send`` does where there is no room."""

MEMORY_LIMITS: Final = Limits(records=10_000, size_bytes=16 << 20)
SPOOL_LIMITS: Final = Limits(records=1_000_000, size_bytes=256 << 20)
OVERFLOW_RECORDS: Final = 100
"""With ``wait``, so many more readings are taken from those who do not wait."""
KEPT_REFUSALS: Final = 1_000
"""Refused readings that ``flush`` can name."""


class Producer(Generic[T]):
    """Sends readings of one sensor, each applied exactly once; ``Dataset.producer`` makes it, ``async with`` opens it.

    Readings are numbered, sent over a stream that is opened again whenever it breaks, and kept until the server
    has acknowledged them as durable. With a spool they are kept in a file as well, and go on where they were after
    a crash, a loss of power or a restart; without one those that were not acknowledged are gone then.

    One process at a time may be a producer: opening it again elsewhere fences this one, which then raises
    ProducerFenced. What cannot be mended (NotFound, PermissionDenied, NotAuthenticated, ProducerFenced,
    SpoolUnusable, and what ``on_refused`` raised) ends it: ``send``, ``flush`` and leaving raise it.
    """

    def __init__(
        self,
        connection: "Connection",
        codec: Codec[T],
        source: str,
        producer_id: str,
        *,
        spool: Path | None,
        on_full: WhenFull,
        on_refused: Callable[[RefusedReading], object] | None,
        limits: Limits,
        linger_seconds: float,
        options: FeedOptions,
    ) -> None:
        if on_full not in ("wait", "drop_oldest", "raise"):
            raise ValueError(f"on_full is 'wait', 'drop_oldest' or 'raise', not {on_full!r}")
        if limits.records < 1 or limits.size_bytes < 1:
            raise ValueError("a producer needs room for one reading at least")
        self._connection = connection
        self._codec = codec
        self._source = source
        self._producer_id = producer_id
        self._spool = spool
        self._on_full = on_full
        self._on_refused = on_refused
        self._limits = limits
        self._linger_seconds = linger_seconds
        self._options = options
        self._outbox = Outbox()
        self._keep: Memory | Spooled = Memory(self._outbox)
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._refused: list[RefusedReading] = []
        self._refused_unread = 0
        self._sent = self._durable = self._refused_total = 0

    def __repr__(self) -> str:
        return f"<producer {self._producer_id!r} of {self._source}>"

    # -- what a program does ------------------------------------------------------------------------------

    def send(self, record: T | bytes) -> "Room":
        """Take a reading, to be sent at once; returns before it is. There is no need to await this.

        Where there is no room: ``drop_oldest`` drops the oldest reading that was never sent; ``raise`` raises
        OutboxFull, and the reading was not taken; with ``wait`` the reading is taken, and awaiting what this returns
        lasts until there is room again. Who does not await it gets OutboxFull a hundred readings later.

        Raises OutboxFull, EncodeError, and what has ended the producer.
        """
        link = self._check_open()
        data = self._codec.encode(record)
        outbox, limits = self._outbox, self._limits
        if limits.exceeded(outbox.records + 1, outbox.size_bytes + len(data)):
            self._refuse_beyond(len(data))
        reading = outbox.make(data)
        self._keep.put(reading)
        self._sent += 1
        if not self._keep.is_durable:
            link.wake()
        if limits.exceeded(outbox.records, outbox.size_bytes) and self._on_full == "drop_oldest":
            self._keep.drop_oldest(limits)
        return Room(self)

    async def flush(self) -> None:
        """Wait until everything sent so far is durable on the server, however long that takes.

        Raises RefusedReadings when some of it, or of what was sent before, was refused, unless ``on_refused`` takes
        care of those; and what has ended the producer.
        """
        last = self._outbox.last_position
        await self._until(lambda: self._outbox.oldest_position(self._keep.arrived) > last)
        self._raise_refused()

    async def saved(self) -> None:
        """Wait until a crash cannot lose what was sent so far: it is in the spool, or without one on the server."""
        last = self._outbox.last_position
        if not self._keep.is_durable:
            await self._until(lambda: self._outbox.oldest_position(self._keep.arrived) > last)
            return
        arrived = self._keep.arrived
        await self._until(lambda: not arrived or arrived[0].position > last)

    async def ready(self) -> None:
        """Wait until the server has opened the producer: it may write. Raises what has ended it instead."""
        link = self._check_open()
        await self._until(lambda: link.epoch > 0)

    @property
    def stats(self) -> ProducerStats:
        """What it has done since it was entered, and where it stands."""
        link, outbox = self._link, self._outbox
        return ProducerStats(
            sent=self._sent,
            durable=self._durable,
            refused=self._refused_total,
            dropped=self._keep.dropped,
            waiting=outbox.records,
            waiting_bytes=outbox.size_bytes,
            connected=link is not None and link.is_open,
            epoch=link.epoch if link is not None else 0,
            last_sequence=outbox.next_sequence - 1,
            revision=link.revision if link is not None else 0,
            reconnects=link.reconnects if link is not None else 0,
            held_by=link.held_by if link is not None else "",
        )

    # -- its life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise RuntimeError("a producer is entered once; make another one")
        if self._spool is not None:
            owner = f"{self._source}/producers/{self._producer_id}"
            self._keep, self._outbox = await Spooled.open(self._spool, owner, changed=self._changed)
        connection = self._connection
        self._link = Link(
            connection.push,
            connection.caller,
            source=self._source,
            producer_id=self._producer_id,
            outbox=self._outbox,
            keep=self._keep,
            report=Report(changed=self._notify, settled=self._count_durable, refused=self._take_refused),
            options=self._options,
        )
        self._task = asyncio.create_task(self._run(self._link), name=f"producer {self._producer_id}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Wait until everything is durable, or with a spool in the spool.

        Waits ``linger_seconds`` for the server. Then, without a spool, raises ReadingsLeft; with one they stay in it.
        """
        try:
            if kind is None:
                await self._finish()
        finally:
            task = self._task
            assert task is not None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._keep.aclose()
            self._fail(RuntimeError("the producer is closed"))

    async def _run(self, link: Link) -> None:
        tasks = [asyncio.create_task(link.run()), asyncio.create_task(self._keep.run())]
        try:
            await asyncio.gather(*tasks)
        except Exception as error:  # noqa: BLE001 - told to whoever sends, flushes or leaves
            self._fail(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self) -> None:
        await self.saved() if self._keep.is_durable else None
        try:
            async with asyncio.timeout(self._linger_seconds):
                await self.flush()
        except TimeoutError:
            left = self._outbox.records
            if not self._keep.is_durable:
                raise ReadingsLeft(
                    f"{left} readings were not acknowledged within {self._linger_seconds:g} s, and are lost "
                    "unless the server has them: give the producer a spool, or more time by linger_seconds"
                ) from None
            LOG.info("producer %s: %d readings stay in the spool", self._producer_id, left)

    def _check_open(self) -> Link:
        if self._error is not None:
            raise self._error
        if self._link is None:
            raise RuntimeError(
                "the producer is not open: use it inside `async with dataset.producer(…) as …:`"
            )
        return self._link

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            if isinstance(error, SynclineError):
                LOG.error("producer %s has ended: %s", self._producer_id, error.message)
            self._notify()

    # -- room ---------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether what waits is within the limits."""
        outbox = self._outbox
        return not self._limits.exceeded(outbox.records, outbox.size_bytes)

    async def wait_for_room(self) -> None:
        """Wait until what waits is within the limits. Raises what has ended the producer."""
        await self._until(lambda: self.has_room)

    def _refuse_beyond(self, size_bytes: int) -> None:
        """Raise OutboxFull where nothing may go beyond the limits."""
        outbox, limits = self._outbox, self._limits
        if self._on_full == "drop_oldest":
            return
        if self._on_full == "wait" and outbox.records < limits.records + OVERFLOW_RECORDS:
            return
        advice = "; await what send() returns" if self._on_full == "wait" else ""
        raise OutboxFull(
            f"{outbox.records} readings ({outbox.size_bytes} bytes) wait, and there is no room for another one of "
            f"{size_bytes} bytes{advice}",
            metadata={"waiting": str(outbox.records), "waiting_bytes": str(outbox.size_bytes)},
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._check_open()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        if self._error is not None and not isinstance(self._error, RuntimeError):
            raise self._error

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _changed(self) -> None:
        """Readings have reached the spool, and may be sent."""
        if self._link is not None:
            self._link.wake()
        self._notify()

    # -- verdicts -----------------------------------------------------------------------------------------

    def _count_durable(self, count: int) -> None:
        self._durable += count

    def _take_refused(self, reading: RefusedReading) -> None:
        self._refused_total += 1
        if self._on_refused is not None:
            self._on_refused(reading)
            return
        self._refused_unread += 1
        if len(self._refused) < KEPT_REFUSALS:
            self._refused.append(reading)

    def _raise_refused(self) -> None:
        if not self._refused_unread:
            return
        refused, total = self._refused, self._refused_unread
        self._refused, self._refused_unread = [], 0
        raise RefusedReadings(f"{total} readings were refused", refused, total=total)


class Room:
    """What ``send`` returns: await it to wait until there is room for another reading."""

    __slots__ = ("_producer",)

    def __init__(self, producer: Producer[Any]) -> None:
        self._producer = producer

    def __await__(self) -> Generator[Any, None, None]:
        producer = self._producer
        if not producer.has_room:
            yield from producer.wait_for_room().__await__()
