"""A gRPC server that says what a test tells it to, also what no good server would say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

import syncline
from syncline.names import dataset_name, source_name
from syncline.v1 import (
    catalog_service_pb2,
    dataset_pb2,
    feed_pb2,
    key_pb2,
    push_service_pb2,
    record_service_pb2,
    server_service_pb2,
    session_pb2,
    session_service_pb2,
    source_pb2,
    sync_service_pb2,
)

_MODULES = [
    catalog_service_pb2,
    push_service_pb2,
    record_service_pb2,
    server_service_pb2,
    session_service_pb2,
    sync_service_pb2,
]
_CODES = {code.name: code for code in grpc.StatusCode}


class Refuse(Exception):
    """Raised by a script: end the call with this status. Without a reason: as something foreign would."""

    def __init__(
        self,
        code: str,
        reason: str = "",
        message: str = "refused",
        *,
        retry_seconds: float | None = None,
        fields: Sequence[tuple[str, str, str]] = (),
        domain: str = "syncline",
        details_code: str | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.code = _CODES[code]
        self.message = message
        self.status = Status(code=_CODES[details_code or code].value[0], message=message)
        if reason:
            self._add(
                ErrorInfo(reason=reason, domain=domain, metadata={k: str(v) for k, v in metadata.items()})
            )
        if retry_seconds is not None:
            nanos = int(retry_seconds * 1_000_000_000)
            self._add(
                RetryInfo(retry_delay=Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000))
            )
        if fields:
            self._add(
                BadRequest(
                    field_violations=[
                        BadRequest.FieldViolation(field=name, description=text, reason=keyword)
                        for name, text, keyword in fields
                    ]
                )
            )

    def _add(self, detail: Any) -> None:
        self.status.details.add().Pack(detail)

    async def end(self, context: grpc.aio.ServicerContext) -> None:
        trailers = ()
        if self.status.details:
            trailers = (("grpc-status-details-bin", self.status.SerializeToString()),)
        await context.abort(self.code, self.message, trailers)


Script = Callable[..., Awaitable[Any]]


@dataclass
class ScriptedServer:
    """``on`` maps a method's name to ``async def script(request)``; streams take ``(request, send)``, those of both directions ``(requests, send)``."""

    address: str = ""
    on: dict[str, Script] = field(default_factory=dict)
    requests: dict[str, list[Any]] = field(default_factory=dict)
    """Every request by method, in the order of arrival."""
    metadata: list[dict[str, str]] = field(default_factory=list)
    open_streams: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def script(self, method: str, *steps: Any) -> None:
        """Answer the n-th call of a unary method with the n-th step, the last one for ever.

        A step is a response, an exception, or a function of the request (plain or async).
        """

        async def answer(request: Any) -> Any:
            number = len(self.requests[method])
            step = steps[min(number, len(steps)) - 1]
            if isinstance(step, BaseException):
                raise step
            result = step(request) if callable(step) else step
            return await result if isinstance(result, Awaitable) else result

        self.on[method] = answer

    def streams(self, *steps: Any) -> None:
        """Serve the n-th Subscribe by the n-th step, the last one for ever.

        A step is a list of messages, each a list of events; after them the stream stays open. An exception among
        them ends it, None ends it with OK.
        """

        async def serve(request: Any, send: Callable[[Any], Awaitable[None]]) -> None:
            number = len(self.requests["Subscribe"])
            step = steps[min(number, len(steps)) - 1]
            for message in step(request) if callable(step) else step:
                if isinstance(message, BaseException):
                    raise message
                if message is None:
                    return
                await send(sync_service_pb2.SubscribeResponse(events=message))
            await asyncio.Event().wait()

        self.on["Subscribe"] = serve

    async def until(self, condition: Callable[["ScriptedServer"], bool]) -> None:
        """Wait until calls or streams make this true."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: condition(self)), 10)

    async def note(self, change: Callable[[], None]) -> None:
        async with self.changed:
            change()
            self.changed.notify_all()

    async def note_request(self, method: str, request: Any, context: grpc.aio.ServicerContext) -> None:
        def change() -> None:
            self.requests.setdefault(method, []).append(request)
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})

        await self.note(change)

    def add_streams(self, number: int) -> None:
        self.open_streams += number

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[syncline.Client]:
        """A client of this server."""
        async with syncline.connect(self.address, key="sl_test", **options) as client:
            yield client


@asynccontextmanager
async def scripted_server(
    address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for module in _MODULES:
        for name, service in module.DESCRIPTOR.services_by_name.items():
            handlers = {method.name: _handler(scripted, method) for method in service.methods}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"syncline.v1.{name}", handlers),)
            )
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    scripted.address = f"{address.rpartition(':')[0]}:{port}"
    await server.start()
    try:
        yield scripted
    finally:
        await server.stop(None)


def _handler(scripted: ScriptedServer, method: Any) -> grpc.RpcMethodHandler:
    request_class, response_class = (method.input_type._concrete_class, method.output_type._concrete_class)
    codec = (request_class.FromString, response_class.SerializeToString)

    async def unary(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await scripted.note_request(method.name, request, context)
        if method.name not in scripted.on:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no script for {method.name}")
        try:
            return await scripted.on[method.name](request)
        except Refuse as refusal:
            await refusal.end(context)

    async def stream(request: Any, context: grpc.aio.ServicerContext) -> None:
        await scripted.note_request(method.name, request, context)
        await scripted.note(lambda: scripted.add_streams(1))
        try:
            await scripted.on[method.name](request, context.write)
        except Refuse as refusal:
            await refusal.end(context)
        except grpc.aio.InternalError:
            pass  # the client went away during a write
        finally:
            await scripted.note(lambda: scripted.add_streams(-1))

    async def talk(requests: Any, context: grpc.aio.ServicerContext) -> None:
        async def receive() -> AsyncIterator[Any]:
            async for request in requests:
                await scripted.note_request(method.name, request, context)
                yield request

        await scripted.note(lambda: scripted.add_streams(1))
        try:
            await scripted.on[method.name](receive(), context.write)
        except Refuse as refusal:
            await refusal.end(context)
        except grpc.aio.InternalError:
            pass  # the client went away during a write
        finally:
            await scripted.note(lambda: scripted.add_streams(-1))

    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(talk, *codec)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, *codec)
    return grpc.unary_unary_rpc_method_handler(unary, *codec)


# -- what a good server would say ---------------------------------------------------------------------------


def changes(
    from_revision: int,
    to_revision: int,
    records: Iterable[tuple[str, bytes | None, int]] = (),
    *,
    partial: bool = False,
    token: bytes | None = None,
) -> feed_pb2.FeedEvent:
    """A batch of (record id, JSON or None for a delete, revision)."""
    rows = list(records)
    kinds = [1 if data is not None else 2 for _, data, _ in rows]
    return feed_pb2.FeedEvent(
        changes=feed_pb2.Changes(
            from_revision=from_revision,
            to_revision=to_revision,
            partial=partial,
            record_ids=[record_id for record_id, _, _ in rows],
            data=[data or b"" for _, data, _ in rows],
            revisions=[revision for _, _, revision in rows],
            commit_times_us=[revision * 1_000_000 for _, _, revision in rows],
            kinds=kinds if 2 in kinds else [],
            token=b"t%d" % to_revision if token is None else token,
        )
    )


def checkpoint(
    revision: int, records: Iterable[tuple[str, bytes, int]] = (), *, going_away: bool = False, **given: Any
) -> feed_pb2.FeedEvent:
    """A checkpoint whose count and digest are those of (record id, JSON, revision)."""
    digest = syncline.Digest()
    for record_id, data, made in records:
        digest.put(record_id, made, data)
    values = {
        "revision": revision,
        "record_count": len(digest),
        "digest": digest.value,
        "commit_time": Timestamp(seconds=revision) if revision else None,
        "token": b"c%d" % revision,
        "going_away": going_away,
    }
    return feed_pb2.FeedEvent(checkpoint=feed_pb2.Checkpoint(**(values | given)))


def reset(reason: int = 1, message: str = "too old") -> feed_pb2.FeedEvent:
    return feed_pb2.FeedEvent(reset=feed_pb2.Reset(reason=reason, message=message))


def created(request: push_service_pb2.PushRequest) -> push_service_pb2.PushResponse:
    """Every record is new."""
    count = len(request.records)
    return push_service_pb2.PushResponse(
        revision=1, record_ids=[f"r{i}" for i in range(count)], statuses=[1] * count
    )


def a_dataset(dataset: str = "books", **given: Any) -> dataset_pb2.Dataset:
    now = Timestamp(seconds=1_700_000_000)
    return dataset_pb2.Dataset(
        name=dataset_name(dataset), uid="u", create_time=now, update_time=now, etag='"1"', **given
    )


def a_source(dataset: str = "books", source: str = "default", **given: Any) -> source_pb2.Source:
    now = Timestamp(seconds=1_700_000_000)
    return source_pb2.Source(name=source_name(dataset, source), create_time=now, update_time=now, **given)


def a_key(**given: Any) -> key_pb2.Key:
    return key_pb2.Key(name="keys/k1", create_time=Timestamp(seconds=1_700_000_000), **given)


def a_session(mode: int = 3, session_id: str = "s-1", **given: Any) -> session_pb2.Session:
    return session_pb2.Session(
        session_id=session_id,
        source=source_name("books", "default"),
        mode=mode,
        create_time=Timestamp(seconds=1_700_000_000),
        **given,
    )


def server_info(seconds: int = 1_700_000_000) -> server_service_pb2.GetServerInfoResponse:
    return server_service_pb2.GetServerInfoResponse(
        version="0", store="sqlite", server_time=Timestamp(seconds=seconds), role="admin", writable=True
    )
