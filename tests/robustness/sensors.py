"""Producers: readings over a bad link, new epochs, and clones that should have been fenced."""

import asyncio
import contextlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import grpc

import syncline
from robustness.clients import SILENCE_SECONDS, Run, code_of, now
from robustness.history import Opening, Operation
from robustness.readers import FOLLOWING
from robustness.writers import record
from support.wire import Refused, Wire
from syncline.v1 import push_service_pb2 as pb

WINDOW = 40
"""Readings that may be unacknowledged."""
IN_ORDER = {"OK", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "LEFT"}


class Fenced(Exception):
    """A newer epoch was opened, perhaps by an attempt of our own whose answer was lost."""


class Sensor:
    """One producer that loses nothing: it keeps each reading until it is acknowledged, and numbers it as it is told."""

    def __init__(self, run: Run, wire: Wire, name: str, dataset: str) -> None:
        self.run = run
        self.wire = wire
        self.name = name
        self.dataset = dataset
        self.rng = run.chooser(f"{type(self).__name__} {name}")
        self.epoch = 0
        self.first = 1
        """Number of the first reading that is kept."""
        self.kept: OrderedDict[int, Operation] = OrderedDict()
        """Readings by the order in which they were made; the k-th of them has the sequence ``first`` + k."""
        self._restarts = True

    @property
    def path(self) -> str:
        """Resource name of the source."""
        return f"datasets/{self.dataset}/sources/default"

    async def work(self) -> None:
        """Make and send readings until told to stop and all are acknowledged."""
        while not (self.run.stopping.is_set() and not self.kept):
            try:
                await self._stream()
            except Fenced:
                self._restarts = True
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                refused = Refused(error)
                if code_of(refused) not in IN_ORDER:
                    raise AssertionError(f"{self.name}: {refused}") from error
            await self.run.pause(self.rng, 0.1)

    async def _stream(self) -> None:
        begun = now()
        restarts = self._restarts or self.rng.random() < 0.2
        call = self.wire.push.PushStream(metadata=self.wire.metadata)
        try:
            opened = (await self._ask(call, restarts)).opened
            self._opened(opened, begun, is_new=restarts)
            self._restarts = False
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(call))
                group.create_task(self._hear(call))
        except ExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            call.cancel()

    async def _ask(self, call: Any, restarts: bool) -> pb.PushStreamResponse:
        epoch, previous = (0, self.epoch) if restarts else (self.epoch, 0)
        opening = pb.OpenProducer(
            source=self.path, producer_id=self.name, epoch=epoch, previous_epoch=previous
        )
        await _write(call, pb.PushStreamRequest(open=opening))
        return await _read(call)

    def _opened(self, opened: pb.Opened, begun: float, *, is_new: bool) -> None:
        """Forget what is durable, and number the rest as the server says."""
        durable = opened.previous_last_sequence if is_new and self.epoch else opened.last_sequence
        self._acknowledge(durable)
        self.first = opened.last_sequence + 1
        if is_new:
            self.epoch = opened.epoch
            self.run.history.openings.append(
                Opening(owner=self.name, epoch=opened.epoch, invoked=begun, returned=now())
            )
        for operation in self.kept.values():
            operation.epoch = self.epoch

    def _acknowledge(self, sequence: int) -> None:
        while self.kept and self.first <= sequence:
            _, operation = self.kept.popitem(last=False)
            operation.outcome, operation.changed, operation.returned = "ok", True, now()
            self.first += 1

    def _make(self) -> Operation:
        number = self.run.history.next_number()
        key = f"{self.name}-{number}"
        operation = self.run.history.invoke(
            "reading",
            self.dataset,
            number=number,
            puts={key: record(self.rng, key, number)},
            owner=self.name,
            epoch=self.epoch,
        )
        self.kept[number] = operation
        return operation

    async def _send(self, call: Any) -> None:
        sequence, waiting = self.first, list(self.kept.values())
        for _ in range(self.rng.randint(5, 60)):
            if not waiting:
                if self.run.stopping.is_set():
                    break
                waiting = [self._make() for _ in range(self.rng.randint(1, 4))]
            rows = [data for operation in waiting for data in operation.puts.values()]
            readings = pb.Readings(first_sequence=sequence, records=rows)
            if not await _write(call, pb.PushStreamRequest(readings=readings)):
                return
            sequence += len(rows)
            waiting = []
            while len(self.kept) > WINDOW:
                await asyncio.sleep(0.01)
            if self.rng.random() < 0.3:
                await asyncio.sleep(self.rng.uniform(0, 0.03))
        with contextlib.suppress(asyncio.InvalidStateError):
            await call.done_writing()

    async def _hear(self, call: Any) -> None:
        while True:
            answer = await _read(call, end_is_fine=True)
            if answer is None:
                return
            if answer.HasField("ack"):
                self._acknowledge(answer.ack.last_sequence)


class Clone(Sensor):
    """The same producer a second time, whose readings are refused once the original has opened anew.

    It sends on a stream that was opened before; nobody sends its readings again, so their outcome stays unknown.
    """

    async def work(self) -> None:
        """Open now and then, wait, and send when it is probably too late."""
        while not self.run.stopping.is_set():
            call = self.wire.push.PushStream(metadata=self.wire.metadata)
            try:
                opened = (await self._ask(call, restarts=True)).opened
                self.epoch = opened.epoch
                self.run.history.openings.append(
                    Opening(owner=self.name, epoch=opened.epoch, invoked=now(), returned=now())
                )
                await asyncio.sleep(self.rng.uniform(0, 0.3))
                operation = self._make()
                rows = list(operation.puts.values())
                readings = pb.Readings(first_sequence=opened.last_sequence + 1, records=rows)
                await _write(call, pb.PushStreamRequest(readings=readings))
                answer = await _read(call)
                if answer.ack.last_sequence > opened.last_sequence:
                    operation.outcome, operation.changed, operation.returned = "ok", True, now()
            except (grpc.aio.AioRpcError, TimeoutError, Fenced):
                pass
            finally:
                call.cancel()
                self.kept.clear()
            await self.run.pause(self.rng, 0.3)


class Crash(Exception):
    """The program ends without a word."""


class Gauge:
    """A producer of the SDK with a spool, whose program leaves, comes back, and crashes now and then.

    What it has saved arrives, in the order in which it was sent; what a crash found unsaved arrives or does not. When
    it is fenced, by an opening of its own that came late, it is started again like any program.
    """

    def __init__(
        self, run: Run, client: syncline.Client, name: str, dataset: str, spool: Path | None
    ) -> None:
        self.run = run
        self.client = client
        self.name = name
        self.dataset = dataset
        self.spool = spool
        self.rng = run.chooser(f"gauge {name}")
        self.sent: list[Operation] = []
        """Readings that are not known to be on the server."""
        self.saved = 0
        """How many of them are in the spool."""

    async def work(self) -> None:
        """Send readings until told to stop and all have arrived."""
        while not (self.run.stopping.is_set() and not self.sent):
            with contextlib.suppress(Crash, syncline.ReadingsLeft, syncline.ProducerFenced):
                producer = self.client.dataset(self.dataset).producer(
                    self.name, spool=self.spool, linger_seconds=0.5, options=FOLLOWING
                )
                async with producer:
                    await self._use(producer)
                self._arrived(producer)
            del self.sent[self.saved :]
            if self.spool is None:
                self.sent.clear()
            await self.run.pause(self.rng, 0.2)

    async def _use(self, producer: syncline.Producer) -> None:
        for _ in range(self.rng.choice([3, 10, 40])):
            if self.run.stopping.is_set():
                await producer.flush()
                self._arrived(producer)
                return
            for _ in range(self.rng.randint(1, 3)):
                await producer.send(self._make())
            if self.rng.random() < 0.3:
                await producer.saved()
                self.saved = len(self.sent)
            self._arrived(producer)
            await asyncio.sleep(self.rng.uniform(0, 0.03))
        if self.rng.random() < 0.3:
            raise Crash
        await producer.saved()
        self.saved = len(self.sent)

    def _make(self) -> bytes:
        number = self.run.history.next_number()
        key = f"{self.name}-{number}"
        data = record(self.rng, key, number)
        operation = self.run.history.invoke(
            "reading", self.dataset, number=number, puts={key: data}, owner=self.name
        )
        self.sent.append(operation)
        return data

    def _arrived(self, producer: syncline.Producer) -> None:
        """Note what is not waiting any more: the server has acknowledged it."""
        count = max(0, len(self.sent) - producer.stats.waiting)
        for operation in self.sent[:count]:
            operation.outcome, operation.changed, operation.returned = "ok", True, now()
        del self.sent[:count]
        self.saved = max(0, self.saved - count)


async def _write(call: Any, message: pb.PushStreamRequest) -> bool:
    """Send a message; False: the stream has ended, and whoever reads it will hear why."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            await call.write(message)
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        return False
    return True


async def _read(call: Any, *, end_is_fine: bool = False) -> Any:
    """The next message. Raises what ended the stream: AioRpcError, Fenced, TimeoutError."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):  # wait_for can swallow a cancellation before Python 3.12
            answer = await call.read()
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():
            raise
        raise TimeoutError from None
    except grpc.aio.AioRpcError as error:
        if Refused(error).reason == "PRODUCER_FENCED":
            raise Fenced from None
        raise
    if answer is grpc.aio.EOF:
        code = await call.code()
        if end_is_fine and code is grpc.StatusCode.OK:
            return None
        error = grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )
        if Refused(error).reason == "PRODUCER_FENCED":
            raise Fenced
        raise error
    return answer


def _first(group: ExceptionGroup) -> Exception:
    errors = group.exceptions
    return next((error for error in errors if isinstance(error, Fenced)), errors[0])
