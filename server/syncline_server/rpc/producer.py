"""ProducerService: who writes, and whether they are heard from."""

# ruff: noqa: N802 - methods are named by the proto

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from syncline.names import parse_producer_name, producer_name
from syncline.v1 import producer_pb2
from syncline.v1 import producer_service_pb2 as pb
from syncline.v1.producer_service_pb2_grpc import ProducerServiceServicer
from syncline_server.catalog.catalog import Catalog
from syncline_server.errors import NotFound, PermissionDenied, Unavailable
from syncline_server.freshness.board import Standing
from syncline_server.freshness.liveness import Liveness, Told
from syncline_server.ingest.producers import ProducerStreams
from syncline_server.model import Producer, Role, Source
from syncline_server.query import page_tokens
from syncline_server.rpc.calls import allow_while, caller
from syncline_server.rpc.convert import (
    Problems,
    RequestIds,
    begin,
    check_may_read,
    dataset_of,
    source_of,
    timestamp,
)
from syncline_server.store.abc import Store

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
RETURN_SECONDS: Final = 1.0
"""Watchers of a server that goes come back within this, not all in the same moment."""


class ProducerService(ProducerServiceServicer):
    """See the proto."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        liveness: Liveness,
        streams: ProducerStreams,
        request_ids: RequestIds,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._liveness = liveness
        self._streams = streams
        self._request_ids = request_ids

    async def GetProducer(self, request: pb.GetProducerRequest, context: Any) -> pb.GetProducerResponse:
        """Read a producer."""
        del context
        problems = begin(request)
        dataset_id, source_id, producer_id = _producer_of(request.name, problems)
        problems.raise_any()
        source = await self._source_to_look_at(dataset_id, source_id)
        producer = await self._store.get_producer(source.number, producer_id)
        return pb.GetProducerResponse(producer=_producer_out(self._liveness.standing(source, producer)))

    async def ListProducers(self, request: pb.ListProducersRequest, context: Any) -> pb.ListProducersResponse:
        """Read a page of the producers of a source, ordered by id."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.parent, problems, "parent")
        if request.page_size < 0:
            problems.add("page_size", "must not be negative")
        problems.raise_any()
        source = await self._source_to_look_at(dataset_id, source_id)
        # The number belongs to this source alone, also when another one is made under its name.
        scope, secret = b"producers/%d" % source.number, self._store.info.token_secret
        after = ""
        if request.page_token:
            after = page_tokens.decode(request.page_token, incarnation=scope, secret=secret)
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        found = await self._store.list_producers(source.number, after=after, limit=size + 1)
        page, more = found[:size], found[size:]
        return pb.ListProducersResponse(
            producers=[_producer_out(self._liveness.standing(source, producer)) for producer in page],
            next_page_token=page_tokens.encode(page[-1].producer_id, incarnation=scope, secret=secret)
            if more
            else "",
        )

    async def WatchProducers(
        self, request: pb.WatchProducersRequest, context: Any
    ) -> AsyncGenerator[pb.WatchProducersResponse, None]:
        """All producers of a dataset, then those whose state or epoch changes."""
        del context
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        problems.raise_any()
        check_may_read(caller(), dataset_id)
        allow_while(lambda principal: principal.may_read(dataset_id))
        dataset = await self._catalog.get_dataset(dataset_id)
        async with aclosing(self._liveness.watch(dataset)) as messages:
            async for told in messages:
                yield _told_out(told)
        raise Unavailable(
            "SHUTTING_DOWN",
            "the server is shutting down; watch again",
            retry_after_seconds=random.uniform(0.1, RETURN_SECONDS),  # noqa: S311 - spreads load, hides nothing
        )

    async def DeleteProducer(
        self, request: pb.DeleteProducerRequest, context: Any
    ) -> pb.DeleteProducerResponse:
        """Forget a producer."""
        del context
        problems = begin(request)
        dataset_id, source_id, producer_id = _producer_of(request.name, problems)
        identity = self._request_ids.identity("DeleteProducer", request, problems)
        problems.raise_any()
        if caller().role is not Role.ADMIN:
            raise _not_allowed()
        source = await self._catalog.source(dataset_id, source_id)
        producer: Producer | None = None
        try:
            producer = await self._store.get_producer(source.number, producer_id)
        except NotFound:
            if identity is None or request.validate_only:
                raise
        if not request.validate_only:
            await self._store.delete_producer(source.number, producer_id, identity=identity)
            if producer is not None and not await self._is_there(producer):
                self._streams.deleted(producer)
                self._liveness.producer_deleted(source.dataset_number, producer)
        return pb.DeleteProducerResponse()

    async def _source_to_look_at(self, dataset_id: str, source_id: str) -> Source:
        """The source, for whoever may read the dataset or push into the source."""
        principal = caller()
        may_read = principal.may_read(dataset_id)
        if not (may_read or principal.may_push(dataset_id, source_id)):
            raise _not_allowed()
        source = await self._catalog.source(dataset_id, source_id)
        if not may_read and principal.source_number != source.number:
            raise _not_allowed()  # a source made again under the name is another one
        return source

    async def _is_there(self, producer: Producer) -> bool:
        """Whether a retry found its work done, and this is one that was opened since."""
        try:
            found = await self._store.get_producer(producer.source_number, producer.producer_id)
        except NotFound:
            return False
        return found.number == producer.number


def _producer_of(name: str, problems: Problems) -> tuple[str, str, str]:
    if name:
        try:
            return parse_producer_name(name)
        except ValueError as error:
            problems.add("name", f"is {error}")
    return "", "", ""


def _not_allowed() -> PermissionDenied:
    return PermissionDenied("PERMISSION_DENIED", "this key may not do this, or there is no such thing")


def _told_out(told: Told) -> pb.WatchProducersResponse:
    return pb.WatchProducersResponse(
        producers=map(_producer_out, told.standings),
        deleted_names=map(_name, told.deleted),
        complete=told.complete,
    )


def _name(producer: Producer) -> str:
    return producer_name(producer.dataset_id, producer.source_id, producer.producer_id)


def _producer_out(standing: Standing) -> producer_pb2.Producer:
    producer = standing.producer
    return producer_pb2.Producer(
        name=_name(producer),
        epoch=producer.epoch,
        last_sequence=producer.last_sequence,
        create_time=timestamp(producer.create_time_us),
        open_time=timestamp(producer.open_time_us),
        last_received_time=timestamp(producer.last_received_us),
        state=producer_pb2.Producer.State.ValueType(standing.state),
        state_time=timestamp(standing.state_time_us),
    )
