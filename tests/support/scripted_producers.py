"""PushStream by the book, in memory, with faults where a test wants them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from support.scripted_server import Refuse, ScriptedServer
from syncline.v1.push_service_pb2 import (
    Opened,
    OpenProducer,
    ProducerControl,
    PushStreamRequest,
    PushStreamResponse,
    ReadingsAck,
)
from syncline.v1.record_pb2 import RecordViolation

CREATED, INVALID = 1, 8


@dataclass
class Book:
    """What is durable of one producer."""

    epoch: int = 0
    last_sequence: int = 0
    readings: list[bytes] = field(default_factory=list)
    """Applied, in order; a reading that is applied twice is in it twice."""
    ends: dict[int, int] = field(default_factory=dict)
    """Last number of each epoch that was fenced."""


class ProducerStream:
    """One stream, from the server's side."""

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self.open: OpenProducer | None = None
        self.messages: list[tuple[int, list[bytes]]] = []
        """First number and readings of each."""
        self.end: asyncio.Future[Refuse | None] = asyncio.get_running_loop().create_future()
        self._send = send
        self._turn = asyncio.Lock()  # one write at a time, or gRPC breaks the stream

    async def send(self, message: PushStreamResponse) -> None:
        async with self._turn:
            await self._send(message)

    async def control(
        self, *, pause: float | None = None, refused: Refuse | None = None, **given: Any
    ) -> None:
        control = ProducerControl(refused=refused.status if refused else None, **given)
        if pause is not None:
            control.pause.CopyFrom(Duration(nanos=int(pause * 1e9)))
        await self.send(PushStreamResponse(control=control))

    def close(self, refusal: Refuse | None = None) -> None:
        if not self.end.done():
            self.end.set_result(refusal)


class ScriptedProducers:
    """Serves PushStream for one producer.

    ``before_apply`` and ``before_ack`` are asked with the number of readings applied and of those that would be; what
    they raise ends the stream there.
    """

    def __init__(self, scripted: ScriptedServer) -> None:
        self.book = Book()
        self.streams: list[ProducerStream] = []
        self.before_open: Callable[[OpenProducer], None] = lambda opening: None
        self.before_apply: Callable[[int, list[bytes]], None] = lambda first, records: None
        self.before_ack: Callable[[int, list[bytes]], None] = lambda first, records: None
        self.is_silent = False
        """Readings are not even looked at."""
        self.credit_bytes = 1 << 20
        self._scripted = scripted
        scripted.on["PushStream"] = self._serve

    @property
    def last(self) -> ProducerStream:
        return self.streams[-1]

    async def until(self, condition: Callable[[], object]) -> None:
        await self._scripted.until(lambda _: bool(condition()))

    async def _serve(
        self, requests: AsyncIterator[PushStreamRequest], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        stream = ProducerStream(send)
        while True:
            # A write must not be cancelled, or the status that follows could not be sent: only reading is.
            reading = asyncio.ensure_future(anext(requests, None))
            await asyncio.wait([reading, stream.end], return_when=asyncio.FIRST_COMPLETED)
            if stream.end.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                if (refusal := stream.end.result()) is not None:
                    raise refusal
                return
            if (request := reading.result()) is None:
                return
            await self._answer(stream, request)
            await self._scripted.note(lambda: None)

    async def _answer(self, stream: ProducerStream, request: PushStreamRequest) -> None:
        if stream.open is None:
            stream.open = request.open
            opened = self._open(request.open)
            self.streams.append(stream)
            await stream.send(PushStreamResponse(opened=opened))
            return
        first, records = request.readings.first_sequence, list(request.readings.records)
        stream.messages.append((first, records))
        if not self.is_silent:
            await stream.send(PushStreamResponse(ack=self._apply(stream, first, records)))

    def _open(self, opening: OpenProducer) -> Opened:
        self.before_open(opening)
        book = self.book
        if opening.epoch and opening.epoch != book.epoch:
            raise Refuse(
                "FAILED_PRECONDITION", "PRODUCER_FENCED", f"epoch {book.epoch} was opened", epoch=book.epoch
            )
        if not opening.epoch:
            book.ends[book.epoch] = book.last_sequence
            book.epoch += 1
        previous = opening.previous_epoch
        return Opened(
            epoch=book.epoch,
            last_sequence=book.last_sequence,
            previous_last_sequence=max((end for e, end in book.ends.items() if e <= previous), default=0),
            credit_bytes=self.credit_bytes,
        )

    def _apply(self, stream: ProducerStream, first: int, records: list[bytes]) -> ReadingsAck:
        book = self.book
        assert stream.open is not None
        if first > book.last_sequence + 1:
            raise Refuse("OUT_OF_RANGE", "SEQUENCE_GAP", expected=book.last_sequence + 1)
        self.before_apply(first, records)
        fresh = records[book.last_sequence + 1 - first :]
        start = book.last_sequence + 1
        bad = [index for index, data in enumerate(fresh) if b'"bad"' in data]
        book.readings += [data for index, data in enumerate(fresh) if index not in bad]
        book.last_sequence += len(fresh)
        self.before_ack(first, records)
        return ReadingsAck(
            last_sequence=book.last_sequence,
            revision=len(book.readings) if fresh else 0,
            first_sequence=start,
            statuses=[INVALID if index in bad else CREATED for index in range(len(fresh))],
            violations=[
                RecordViolation(index=index, pointer="/bad", keyword="type", message="is bad")
                for index in bad
            ],
        )
