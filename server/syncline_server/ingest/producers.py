"""Streams of producers: numbered readings in, durable acknowledgements out, each number applied once.

A stream has one commit under way. What arrives meanwhile waits and becomes the next one; the commit queue joins the
commits of all streams. So a batch grows with the load, and a lone reading waits for nothing. A producer that sends
without waiting is given as long again as its last commit took: with 100 of them at once half as many commits carry the
same readings, which is a third more readings a second.

What makes it exact is in the store: the commit carries the numbers, and the transaction that applies it moves the
producer's high-water mark. A stream that dies may leave a commit behind whose fate it never learns; the next stream
is told by the mark.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from syncline_server.catalog.catalog import Catalog
from syncline_server.errors import FailedPrecondition, SynclineError
from syncline_server.ingest.backlog import Backlog, Batch, Taken
from syncline_server.ingest.committer import RETRY_AFTER_SECONDS, Committer
from syncline_server.ingest.records import Limits
from syncline_server.ingest.write_path import PreparedWrite, Upsert, WritePath, check_may_push
from syncline_server.model import (
    Commit,
    CommitResult,
    Principal,
    Producer,
    ProducerWrite,
    RequestIdentity,
    Source,
    Violation,
)
from syncline_server.store.abc import Store

LOOK_AGAIN_SECONDS: Final = 0.5
"""How often a stream whose source is disabled looks whether it still is."""
CHANGED_ATTEMPTS: Final = 5
"""How often readings are checked again when the dataset's settings change under them."""
GATHER_MOST_SECONDS: Final = 0.02
"""What follows a batch of several readings may gather for as long as that one's commit took, and not for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """Readings are durable. The columns have an entry for each from ``first_sequence`` on; empty: repeats."""

    last_sequence: int
    first_sequence: int
    revision: int = 0
    statuses: Sequence[int] = ()
    violations: Sequence[Violation] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """The peer should send nothing for so long; what is under way is kept."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The source takes no readings; what was not acknowledged has to be sent again, later."""

    error: SynclineError
    expected_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The source takes readings again."""

    expected_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoingAway:
    """The server is about to stop; everything that was received has been acknowledged."""


Event = Acknowledged | Paused | Refused | Resumed | GoingAway


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a peer asks for."""

    producer_id: str
    epoch: int = 0
    previous_epoch: int = 0
    validate_only: bool = False
    identity: RequestIdentity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings:
    """How much may wait."""

    credit_bytes: int = 1 << 20
    """Of one stream: what it may send before it is acknowledged, and what is kept of it."""
    backlog_bytes: int = 64 << 20
    """Of all streams together; above it they are asked to pause."""


Opened = Callable[[Source, Producer], None]
"""Is told of every epoch that begins."""


class ProducerStreams:
    """The streams that are open on this server."""

    def __init__(
        self,
        write_path: WritePath,
        catalog: Catalog,
        store: Store,
        committer: Committer,
        *,
        limits: Limits,
        settings: ProducerSettings,
        opened: Opened | None = None,
    ) -> None:
        self.write_path = write_path
        self.catalog = catalog
        self.committer = committer
        self.limits = limits
        self.settings = settings
        self.backlog_bytes = 0
        """Weight of what all streams hold."""
        self._store = store
        self._opened = opened
        self._streams: dict[int, set[ProducerStream]] = {}
        self._draining = False
        self._settled = asyncio.Event()
        self.now = (
            asyncio.get_running_loop().time
        )  # asked for once: until Python 3.12 the answer costs a system call

    def __len__(self) -> int:
        return sum(map(len, self._streams.values()))

    @property
    def is_full(self) -> bool:
        """Whether all streams together hold as much as they may."""
        return self.backlog_bytes >= self.settings.backlog_bytes

    @asynccontextmanager
    async def open(
        self, principal: Principal, dataset_id: str, source_id: str, opening: Opening
    ) -> AsyncIterator["ProducerStream"]:
        """Open a producer, and a stream of it while the block lasts.

        Raises PermissionDenied, NotFound, FailedPrecondition(SOURCE_DISABLED, PRODUCER_FENCED).
        """
        check_may_push(principal, dataset_id, source_id)
        target = await self.write_path.target(principal, dataset_id, source_id, afresh=True)
        producer, previous_last = await self._store.open_producer(
            target.source.number,
            opening.producer_id,
            epoch=opening.epoch,
            previous_epoch=opening.previous_epoch,
            dry_run=opening.validate_only,
            identity=opening.identity,
        )
        stream = ProducerStream(self, principal, producer, previous_last_sequence=previous_last)
        if opening.validate_only:
            yield stream
            return
        if not opening.epoch:
            self._fence_older(producer)
            if self._opened is not None:
                self._opened(target.source, producer)
        self._streams.setdefault(producer.number, set()).add(stream)
        if self._draining:
            stream.drain()
        try:
            yield stream
        finally:
            self._forget(stream)

    def _fence_older(self, producer: Producer) -> None:
        """End the streams of earlier epochs at once; the store refuses what they still bring in any case."""
        message = f"producer {producer.producer_id!r} was opened again, with epoch {producer.epoch}"
        self._fence(producer, message, epoch=producer.epoch)

    def deleted(self, producer: Producer) -> None:
        """Hear that a producer was forgotten: its streams end."""
        self._fence(producer, f"producer {producer.producer_id!r} was deleted")

    def _fence(self, producer: Producer, message: str, **metadata: int) -> None:
        for stream in self._streams.get(producer.number, ()):
            stream.end(
                FailedPrecondition("PRODUCER_FENCED", message, producer=producer.producer_id, **metadata)
            )

    def _forget(self, stream: "ProducerStream") -> None:
        stream.close()
        number = stream.producer.number
        self._streams[number].discard(stream)
        if not self._streams[number]:
            del self._streams[number]
        self.look_settled()

    async def drain(self, *, within_seconds: float) -> None:
        """Let every stream write and acknowledge what it has received, take no more, and say that it goes."""
        self._draining = True
        for streams in self._streams.values():
            for stream in streams:
                stream.drain()
        self.look_settled()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._settled.wait()

    def look_settled(self) -> None:
        """Note when nothing is left to be written by streams that are to end."""
        if self._draining and not any(s.holds_readings for group in self._streams.values() for s in group):
            self._settled.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """A batch on its way: in the commit queue, or refused before it came there."""

    batch: Batch | None = None
    prepared: PreparedWrite | None = None
    verdict: "asyncio.Future[CommitResult] | None" = None
    error: SynclineError | None = None


class ProducerStream:
    """One stream: ``receive`` for what comes in, ``events`` for what goes out."""

    def __init__(
        self, room: ProducerStreams, principal: Principal, producer: Producer, *, previous_last_sequence: int
    ) -> None:
        self.producer = producer
        self.previous_last_sequence = previous_last_sequence
        self._room = room
        self._principal = principal
        self._backlog = Backlog(last_sequence=producer.last_sequence)
        self._ready: list[Event] = []
        self._attempt: _Attempt | None = None
        self._changed_attempts = 0
        self._overloaded_seconds = 0.0
        self._gather_seconds = 0.0
        self._repeated = False
        self._refusing = False
        self._crowded = False
        self._ending = False
        self._error: Exception | None = None
        self._draining = False
        self._wake = asyncio.Event()
        self._space = asyncio.Event()

    @property
    def holds_readings(self) -> bool:
        """Whether anything that was received is not durable yet."""
        return self._backlog.weight > 0

    # -- what comes in ------------------------------------------------------------------------------------

    def receive(self, first_sequence: int, records: Sequence[bytes]) -> bool:
        """Take readings; whether there is space for more. If not, the peer is not read before ``space``.

        Raises OutOfRange(SEQUENCE_GAP).
        """
        backlog, room = self._backlog, self._room
        if self._ending:
            return True
        before = backlog.weight
        taken = backlog.receive(first_sequence, records)
        if taken is Taken.DROPPED:
            return True
        room.backlog_bytes += backlog.weight - before
        if taken is Taken.REPEATED:
            self._repeated = True
        self._wake.set()
        return self._has_space()

    async def space(self) -> None:
        """Wait until there is space."""
        while not self._has_space():
            self._crowded = self._crowded or self._room.is_full
            self._space.clear()
            await self._space.wait()

    def _has_space(self) -> bool:
        weight = self._backlog.weight
        return not weight or (weight < self._room.settings.credit_bytes and not self._room.is_full)

    def end(self, error: Exception | None = None) -> None:
        """Take nothing more; when what was received is written the events end, with the error."""
        if not self._ending:
            self._ending = True
            self._error = error
        self._wake.set()

    def drain(self) -> None:
        """End because the server does."""
        self._draining = True
        self.end()

    def close(self) -> None:
        """The peer is gone: what is not with the store yet is forgotten."""
        verdict = None if self._attempt is None else self._attempt.verdict
        if verdict is not None and not verdict.cancel() and not verdict.cancelled():
            verdict.exception()  # it came, and nobody is there to be told
        self._shrink(self._backlog.drop)

    # -- what goes out ------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything that the peer is to be told, until the stream ends. Raises what ends it."""
        while True:
            self._wake.clear()
            if self._gather_seconds and self._backlog.weight:
                for event in self._take_ready():
                    yield event
                await asyncio.sleep(self._gather_seconds)
            self._gather_seconds = 0.0
            attempt = await self._submit()
            for event in self._take_ready():  # told while the next commit is under way
                yield event
            if attempt is not None:
                await self._settle(attempt)
            elif not await self._rest():
                break
        if self._error is not None:
            raise self._error
        if self._draining:
            yield GoingAway()

    async def _rest(self) -> bool:
        """Wait until there may be something to write; False: there will be nothing more."""
        if self._overloaded_seconds:
            await asyncio.sleep(self._overloaded_seconds)
            self._overloaded_seconds = 0.0
        elif self._wake.is_set():
            pass  # something came while we told
        elif self._ending:
            return False
        elif self._refusing:
            await self._look_again()
        else:
            await self._wake.wait()
        return True

    def _take_ready(self) -> list[Event]:
        ready, self._ready = self._ready, []
        if self._repeated:
            self._repeated = False
            durable = self._backlog.durable
            if not any(isinstance(event, Acknowledged) for event in ready):
                ready.append(Acknowledged(last_sequence=durable, first_sequence=durable + 1))
        if self._crowded:
            self._crowded = False
            ready.append(Paused(seconds=RETRY_AFTER_SECONDS))
        return ready

    async def _submit(self) -> _Attempt | None:
        """Bring what waits into the commit queue. None: nothing waits, or it has to wait longer."""
        if self._refusing or self._overloaded_seconds:
            return None
        room, producer = self._room, self.producer
        limits = room.limits
        batch = self._backlog.take(max_records=limits.records_per_call, max_bytes=limits.bytes_per_call)
        if batch is None:
            return None
        try:
            target = await room.write_path.target(self._principal, producer.dataset_id, producer.source_id)
            action = Upsert(records=batch.records, conditions={}, partial=True)
            prepared = await room.write_path.prepare(target, action)
            verdict = room.committer.submit(
                Commit(
                    dataset_number=target.opened.dataset.number,
                    generation=target.opened.dataset.generation,
                    source_number=target.source.number,
                    write=prepared.write,
                    partial=True,
                    key_id=self._principal.key_id,
                    size_bytes=prepared.size_bytes,
                    producer=ProducerWrite(
                        producer_number=producer.number,
                        epoch=producer.epoch,
                        first_sequence=batch.first_sequence,
                        last_sequence=batch.last_sequence,
                    ),
                )
            )
        except SynclineError as error:
            return _Attempt(error=error)
        self._attempt = _Attempt(batch=batch, prepared=prepared, verdict=verdict)
        return self._attempt

    async def _settle(self, attempt: _Attempt) -> None:
        """Wait for the verdict on a batch, and note what to tell of it. Raises what ends the stream."""
        backlog, batch, prepared = self._backlog, attempt.batch, attempt.prepared
        if attempt.error is not None:
            self._set_back(attempt.error)
        if batch is None or prepared is None or attempt.verdict is None:
            return
        submitted = self._room.now()
        try:
            result = await attempt.verdict
        except SynclineError as error:
            self._set_back(error)
            return
        finally:
            self._attempt = None
        if len(batch.records) > 1:
            self._gather_seconds = min(GATHER_MOST_SECONDS, self._room.now() - submitted)
        self._changed_attempts = 0
        self._shrink(backlog.applied)
        if result.replayed:
            self._repeated = True
            return
        report = prepared.report(result)
        self._ready.append(
            Acknowledged(
                last_sequence=batch.last_sequence,
                first_sequence=batch.first_sequence,
                revision=report.revision,
                statuses=report.statuses,
                violations=report.violations,
            )
        )

    def _set_back(self, error: SynclineError) -> None:
        """What to do about a batch that had no effect: try again, refuse for now, or end with the error."""
        room, backlog = self._room, self._backlog
        if error.reason == "OVERLOADED":
            self._overloaded_seconds = error.retry_after_seconds or RETRY_AFTER_SECONDS
            self._ready.append(Paused(seconds=self._overloaded_seconds))
        elif error.reason == "SOURCE_DISABLED":
            room.catalog.forget(self.producer.dataset_id)
            self._shrink(backlog.refuse)
            self._refusing = True
            self._ready.append(Refused(error=error, expected_sequence=backlog.durable + 1))
        elif error.reason == "DATASET_CHANGED" and self._changed_attempts < CHANGED_ATTEMPTS:
            room.catalog.forget(self.producer.dataset_id)
            self._changed_attempts += 1
        elif error.reason == "SEQUENCE_GAP" and backlog.holds(expected := int(error.metadata["expected"])):
            self._shrink(partial(backlog.cut, expected))
            self._repeated = True
        else:
            raise error

    def _shrink(self, change: Callable[[], None]) -> None:
        """Change the backlog, and let more be received if there is space now."""
        before = self._backlog.weight
        change()
        self._room.backlog_bytes += self._backlog.weight - before
        if self._has_space():
            self._space.set()
        if self._draining:
            self._room.look_settled()

    async def _look_again(self) -> None:
        """Wait a little, and see whether the source takes readings again."""
        producer = self.producer
        try:
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            pass
        try:
            await self._room.write_path.target(self._principal, producer.dataset_id, producer.source_id)
        except FailedPrecondition:
            return
        self._refusing = False
        self._backlog.resume()
        self._ready.append(Resumed(expected_sequence=self._backlog.durable + 1))
