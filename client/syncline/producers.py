"""Who writes into the sources of a dataset, and whether they are heard from."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import grpc.aio

from syncline import errors
from syncline._call import LOG, Caller
from syncline._reconnect import DEFAULT_OPTIONS, FeedOptions, Reconnects, is_fault, may_pass
from syncline._status import silent, to_error
from syncline._wire import required_time, to_time
from syncline.errors import SynclineError
from syncline.names import dataset_name, parse_producer_name, producer_name, source_name
from syncline.v1 import producer_pb2
from syncline.v1 import producer_service_pb2 as pb
from syncline.v1.producer_service_pb2_grpc import ProducerServiceStub

ProducerState = Literal["unknown", "alive", "late", "lost"]
"""``alive``: heard from within ``expect_every`` of its source; ``late``: not; ``lost``: not for three times as long;
``unknown``: the source does not say, or the server's clock cannot tell."""

_STATES: Final[Mapping[int, ProducerState]] = {1: "unknown", 2: "alive", 3: "late", 4: "lost"}
_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerInfo:
    """A producer, as the server knows it."""

    dataset: str
    source: str
    producer: str
    epoch: int
    """The newest that was opened: one for each start of its process."""
    last_sequence: int
    """Number of its last durable reading."""
    create_time: datetime
    open_time: datetime
    """When the newest epoch was opened."""
    last_received_time: datetime | None
    """When a reading of it last became durable, changed or not."""
    state: ProducerState
    state_time: datetime
    """Since when it is late or lost; else its last sign of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerForgotten:
    """A producer was deleted, or its source was."""

    dataset: str
    source: str
    producer: str


async def list_producers(
    caller: Caller, stub: ProducerServiceStub, dataset: str, source: str
) -> list[ProducerInfo]:
    """All producers of a source, ordered by id. Raises NotFound."""
    found: list[ProducerInfo] = []
    request = pb.ListProducersRequest(parent=source_name(dataset, source), page_size=_PAGE)
    while True:
        page = await caller.read(stub.ListProducers, request)
        found += map(to_producer, page.producers)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def delete_producer(
    caller: Caller, stub: ProducerServiceStub, dataset: str, source: str, producer: str
) -> None:
    """Forget a producer. Raises NotFound."""
    name = producer_name(dataset, source, producer)
    await caller.write(stub.DeleteProducer, pb.DeleteProducerRequest(name=name))


class ProducerWatch:
    """Every producer of a dataset, then each whose state or epoch changes, over broken connections.

    Iterate it in one task, and leave it with ``async with`` or ``aclose``; closing the client ends it too. Raises
    NotFound when the dataset is deleted.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_caller",
        "_dataset",
        "_known",
        "_news",
        "_options",
        "_reconnects",
        "_stub",
    )

    def __init__(
        self,
        caller: Caller,
        stub: ProducerServiceStub,
        dataset: str,
        options: FeedOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._caller = caller
        self._stub = stub
        self._dataset = dataset
        self._options = options
        self._known = _Known()
        self._reconnects = Reconnects(options)
        self._news: deque[ProducerInfo | ProducerForgotten] = deque()
        self._call: Any = None

    async def __aenter__(self) -> "ProducerWatch":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it."""
        self._drop()

    def __aiter__(self) -> "ProducerWatch":
        return self

    async def __anext__(self) -> ProducerInfo | ProducerForgotten:
        while not self._news:
            try:
                await self._read()
            except TimeoutError:
                await self._recover(silent(self._options.silence_seconds, self._caller.endpoint))
            except grpc.aio.AioRpcError as error:
                await self._recover(to_error(error, self._caller.endpoint))
            except BaseException:
                self._drop()
                raise
        return self._news.popleft()

    async def _read(self) -> None:
        if self._call is None:
            self._known.begin()
            self._reconnects.connected(_now())
            request = pb.WatchProducersRequest(dataset=dataset_name(self._dataset))
            self._call = self._stub.WatchProducers(request, metadata=self._caller.metadata)
        async with asyncio.timeout(self._options.silence_seconds):
            message: Any = await self._call.read()
        if message is grpc.aio.EOF:
            await self._recover(errors.Unavailable("the stream ended"))
            return
        self._reconnects.progress = True
        self._reconnects.settle()
        self._news.extend(self._known.take(message))

    async def _recover(self, error: SynclineError) -> None:
        """Pause before the next connection. Raises what a new one would not help against."""
        self._drop()
        fault = is_fault(error)
        if not (fault or may_pass(error)):
            raise error
        pause = self._reconnects.pause_seconds(error, _now(), counts=fault)
        LOG.info("producers of %s: connecting again in %.2f s: %s", self._dataset, pause, error.message)
        await asyncio.sleep(pause)

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None


class _Known:
    """What was handed out, so that a new stream tells what is new, and what went while there was none."""

    def __init__(self) -> None:
        self._infos: dict[str, ProducerInfo] = {}
        self._unseen: set[str] | None = None

    def begin(self) -> None:
        """A stream begins, with everything that there is."""
        self._unseen = set(self._infos)

    def take(self, message: pb.WatchProducersResponse) -> list[ProducerInfo | ProducerForgotten]:
        """What a message tells that was not told before."""
        news: list[ProducerInfo | ProducerForgotten] = []
        for name in message.deleted_names:
            news += self._forget(name)
        for told in message.producers:
            info = to_producer(told)
            if self._unseen is not None:
                self._unseen.discard(told.name)
            before = self._infos.get(told.name)
            if before is None or (before.state, before.epoch) != (info.state, info.epoch):
                news.append(info)
            self._infos[told.name] = info
        if message.complete and self._unseen is not None:
            for name in sorted(self._unseen):
                news += self._forget(name)
            self._unseen = None
        return news

    def _forget(self, name: str) -> list[ProducerForgotten]:
        info = self._infos.pop(name, None)
        if info is None:
            return []
        return [ProducerForgotten(dataset=info.dataset, source=info.source, producer=info.producer)]


def to_producer(message: producer_pb2.Producer) -> ProducerInfo:
    """A producer from the wire."""
    dataset, source, producer = parse_producer_name(message.name)
    return ProducerInfo(
        dataset=dataset,
        source=source,
        producer=producer,
        epoch=message.epoch,
        last_sequence=message.last_sequence,
        create_time=required_time(message, "create_time"),
        open_time=required_time(message, "open_time"),
        last_received_time=to_time(message, "last_received_time"),
        state=_STATES.get(message.state, "unknown"),
        state_time=required_time(message, "state_time"),
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
