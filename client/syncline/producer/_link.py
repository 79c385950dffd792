"""The stream of a producer: readings up, acknowledgements down, for as long as the producer lives."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from syncline import errors
from syncline._call import LOG, Caller, is_clock_trouble
from syncline._reconnect import FeedOptions, Reconnects
from syncline._status import to_error, to_part_error
from syncline._wire import to_violations
from syncline.errors import SynclineError
from syncline.models import RefusedReading, Violation
from syncline.producer._keep import DiskFull, Memory, Spooled
from syncline.producer._outbox import Outbox, OutboxViolation, refused_readings
from syncline.v1.push_service_pb2 import (
    Opened,
    OpenProducer,
    ProducerControl,
    PushStreamRequest,
    Readings,
    ReadingsAck,
)
from syncline.v1.push_service_pb2_grpc import PushServiceStub

MESSAGE_RECORDS: Final = 1_000
MESSAGE_BYTES: Final = 1 << 20
CREDIT_BYTES: Final = 1 << 20
"""Where the server says nothing."""
IDENTIFIED_SECONDS: Final = 3_600.0
"""Servers remember request ids for a day; an attempt that is an hour old does not arrive any more."""
PACE_SECONDS: Final = 0.002
"""Between messages that are not full, while others are under way: the first one after a rest waits for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Whom the link tells what happens."""

    changed: Callable[[], None]
    settled: Callable[[int], None]
    """So many readings are durable."""
    refused: Callable[[RefusedReading], None]


class Link:
    """Keeps a stream open, and sends what is in the outbox."""

    def __init__(
        self,
        stub: PushServiceStub,
        caller: Caller,
        *,
        source: str,
        producer_id: str,
        outbox: Outbox,
        keep: Memory | Spooled,
        report: Report,
        options: FeedOptions,
    ) -> None:
        self._stub = stub
        self._caller = caller
        self._source = source
        self._producer_id = producer_id
        self._outbox = outbox
        self._keep = keep
        self._report = report
        self._options = options
        self._reconnects = Reconnects(options)
        self._wake = asyncio.Event()
        self._all_settled = asyncio.Event()
        self._credit_bytes = CREDIT_BYTES
        self._heard_at = 0.0
        self._paused_until = 0.0
        self._one_by_one = False  # the server found a message too large
        self._going_away = False
        self._drop_reason: SynclineError | None = None
        self._fatal: SynclineError | None = None
        self._request_id = ""  # of the new epoch that is being opened
        self._identified_until = 0.0
        self._has_clock = True  # the server takes our request ids
        self.epoch = 0
        self.is_open = False
        self.revision = 0
        self.held_by = ""
        """Reason why the source takes no readings; empty: it does."""

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again."""
        return self._reconnects.total

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Streams, one after another. Raises what a new one cannot mend, as ProducerFenced."""
        while True:
            error = await self._stream()
            pause = await self._pause_seconds(error)
            LOG.info("producer %s: connecting again in %.2f s: %s", self._producer_id, pause, error.message)
            await asyncio.sleep(pause)

    async def _pause_seconds(self, error: SynclineError) -> float:
        now = _now()
        if self._going_away:
            return self._reconnects.orderly_pause_seconds(error.retry_after_seconds or 0.0, now)
        if is_clock_trouble(error):
            self._request_id, self._has_clock = "", False
        elif isinstance(error, errors.SourceDisabled):
            self.held_by = error.reason
        elif self._is_of_a_restored_store(error):
            LOG.warning(
                "producer %s: the server lost its epoch in a restore; a new one is opened", self._producer_id
            )
            self._keep.previous_epoch, self.epoch = self.epoch, 0
        elif isinstance(error, errors.LimitExceeded):
            await self._split(error)
        elif not isinstance(error, errors.OutcomeUnknown | errors.Overloaded | errors.OutOfRange):
            raise error
        counts = isinstance(error, errors.LimitExceeded | errors.OutOfRange | _Contradiction)
        return self._reconnects.pause_seconds(error, now, counts=counts)

    def _is_of_a_restored_store(self, error: SynclineError) -> bool:
        """Whether we are refused by a store that has never heard of our epoch: it knows only an older one."""
        known = error.metadata.get("epoch", "") if isinstance(error, errors.ProducerFenced) else ""
        return known.isdigit() and int(known) < self.epoch

    async def _split(self, error: SynclineError) -> None:
        """A message was too large: send one reading at a time, and give up the one that is too large by itself."""
        if self._one_by_one and self._outbox.flying:
            try:
                reading = await self._keep.discard_first()
            except DiskFull:
                return  # at the next attempt
            violation = Violation(index=0, pointer="", keyword="size", message=error.message)
            sequence = self._outbox.next_sequence
            self._reconnects.settle()
            self._report.refused(
                RefusedReading(json=reading.data, sequence=sequence, violations=(violation,))
            )
            self._report.changed()
        self._one_by_one = True

    # -- one stream ---------------------------------------------------------------------------------------

    async def _stream(self) -> SynclineError:
        """One stream from beginning to end; why it ended."""
        self._reconnects.connected(_now())
        self._going_away = False
        self._drop_reason = None
        self._paused_until = 0.0
        call: Any = self._stub.PushStream(metadata=self._caller.metadata)
        others: list[asyncio.Task[None]] = []
        try:
            await self._open(call)
            others += [
                asyncio.create_task(self._write_or_drop(call), name="producer writer"),
                asyncio.create_task(self._watch(call), name="producer watch"),
            ]
            return await self._read(call)
        except OutboxViolation as violation:
            return _Contradiction(str(violation))
        except DiskFull:
            return errors.Unavailable("the disk of the spool is full")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if self._fatal is not None:
                raise self._fatal from None
            return self._drop_reason or errors.Unavailable("the stream was cancelled")
        except grpc.aio.AioRpcError as error:
            return self._drop_reason or to_error(error, self._caller.endpoint)
        finally:
            self.is_open = False
            self._keep.closed()
            call.cancel()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _open(self, call: Any) -> None:
        request = OpenProducer(source=self._source, producer_id=self._producer_id, epoch=self.epoch)
        if not self.epoch:
            request.previous_epoch = self._keep.previous_epoch
            request.request_id = self._identify()
        with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already; reading tells why
            await call.write(PushStreamRequest(open=request))
        try:
            async with asyncio.timeout(self._options.silence_seconds):
                message = await call.read()
        except TimeoutError:
            self._drop_reason = errors.Unavailable("the producer was not opened in time")
            raise asyncio.CancelledError from None
        if message is grpc.aio.EOF or not message.HasField("opened"):
            raise OutboxViolation("the server did not say first that the producer was opened")
        await self._take_opened(message.opened)

    def _identify(self) -> str:
        """The same for all attempts at one new epoch: one that arrives late must not begin another one."""
        if not self._has_clock:
            return ""
        if not self._request_id or _now() > self._identified_until:
            self._request_id = self._caller.new_request_id()
            self._identified_until = _now() + IDENTIFIED_SECONDS
        return self._request_id

    async def _take_opened(self, opened: Opened) -> None:
        outbox = self._outbox
        numbered = outbox.next_sequence + len(outbox.flying) - 1
        if self.epoch and (opened.epoch != self.epoch or opened.last_sequence > numbered):
            raise OutboxViolation(
                f"opened with epoch {opened.epoch} after reading {opened.last_sequence}, where epoch is {self.epoch} "
                f"and the last reading {numbered}"
            )
        if opened.epoch < 1 or opened.last_sequence < 0:
            raise OutboxViolation(f"opened with epoch {opened.epoch} after reading {opened.last_sequence}")
        settled = await self._keep.adopt(opened, begins=not self.epoch)
        self.epoch = opened.epoch
        self._request_id = ""
        self._credit_bytes = opened.credit_bytes or CREDIT_BYTES
        self._heard_at = _now()
        self.held_by = ""
        self.is_open = True
        self._reconnects.progress = True
        self._report.settled(settled)
        self._report.changed()
        self._wake.set()

    async def _write_or_drop(self, call: Any) -> None:
        """Send; what goes wrong here ends the stream."""
        try:
            await self._write(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # it has ended, and the reader is told why
        except DiskFull:
            self._drop_reason = errors.Unavailable("the disk of the spool is full")
        except SynclineError as error:
            self._fatal = error
        call.cancel()

    async def _write(self, call: Any) -> None:
        """Send whatever there is and may be sent."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._may_send():
                limit = 1 if self._one_by_one else MESSAGE_RECORDS
                first, records = await self._keep.take(
                    records=limit, size_bytes=MESSAGE_BYTES, credit_bytes=self._credit_bytes
                )
                if not records:
                    break
                if self._outbox.written == len(records):
                    self._heard_at = _now()  # an answer is due from now on
                readings = Readings(first_sequence=first, records=records)
                await call.write(PushStreamRequest(readings=readings))
                if len(records) < limit:
                    await self._gather()

    async def _gather(self) -> None:
        """Let a little more come together, while what was sent is under way."""
        self._all_settled.clear()
        if self._outbox.written:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PACE_SECONDS):
                    await self._all_settled.wait()

    def _may_send(self) -> bool:
        if self.held_by or self._going_away or not self._outbox.has_more:
            return False
        if self._one_by_one and self._outbox.written:
            return False
        return _now() >= self._paused_until

    async def _watch(self, call: Any) -> None:
        """Give up a stream on which an acknowledgement is due and nothing comes."""
        silence = self._options.silence_seconds
        while True:
            await asyncio.sleep(silence / 3)
            due = self._outbox.written and not self.held_by
            if due and _now() - self._heard_at > silence:
                self._drop_reason = errors.Unavailable(f"nothing was acknowledged for {silence:g} s")
                call.cancel()
                return

    # -- what the server says -----------------------------------------------------------------------------

    async def _read(self, call: Any) -> SynclineError:
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                return self._drop_reason or errors.Unavailable("the stream ended")
            self._heard_at = _now()
            if message.HasField("opened"):
                raise OutboxViolation("the producer was opened a second time")
            if message.HasField("ack"):
                self._take_ack(message.ack)
            if message.HasField("control"):
                self._take_control(message.control)

    def _take_ack(self, ack: ReadingsAck) -> None:
        outbox = self._outbox
        count = ack.last_sequence - ack.first_sequence + 1
        if len(ack.statuses) != max(count, 0):
            raise OutboxViolation(
                f"{len(ack.statuses)} verdicts on readings {ack.first_sequence} to {ack.last_sequence}"
            )
        first = outbox.next_sequence
        readings = outbox.acknowledged(ack.last_sequence)
        if not readings:
            return
        self._keep.settled(readings)
        self._reconnects.settle()
        self._one_by_one = False
        self.revision = max(self.revision, ack.revision)
        refused = refused_readings(readings, first, ack.first_sequence, to_violations(ack.violations))
        self._report.settled(len(readings) - len(refused))
        for reading in refused:
            self._report.refused(reading)
        self._report.changed()
        self._wake.set()
        if not outbox.written:
            self._all_settled.set()

    def _take_control(self, control: ProducerControl) -> None:
        if control.HasField("pause"):
            seconds = control.pause.seconds + control.pause.nanos / 1e9
            self._paused_until = _now() + seconds
            asyncio.get_running_loop().call_later(seconds, self._wake.set)
        if control.HasField("refused"):
            error = to_part_error(control.refused, self._caller.endpoint)
            self.held_by = error.reason or error.code
            LOG.warning("producer %s: the source takes no readings: %s", self._producer_id, error.message)
            self._outbox.rewind(control.expected_sequence)
        elif control.expected_sequence:
            self.held_by = ""
            self._outbox.rewind(control.expected_sequence)
            self._wake.set()
        if control.going_away:
            self._going_away = True
        self._report.changed()


class _Contradiction(errors.ServerError):
    """The server acknowledges what was never sent."""


def _now() -> float:
    return asyncio.get_running_loop().time()
