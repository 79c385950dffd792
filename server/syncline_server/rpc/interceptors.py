"""The edge: what every call passes, whichever service it is for.

Each method's handler is wrapped once, when it is registered, and gets raw bytes, so that a call is weighed
before it is parsed. The wrapper authenticates, turns domain errors into statuses in one place, and closes
what grpc.aio leaves open:

* ``context.abort`` inside a task group ends in an exception group that grpc reports as a fault of ours:
  handlers raise, only the wrapper aborts, outside of every group.
* A CancelledError that is not the caller's doing would be swallowed and leave the caller waiting until its
  deadline: it becomes UNAVAILABLE, outcome unknown (hazard M10).
* An unexpected exception would reach the caller as text: it becomes INTERNAL with an incident id, and the
  text goes to the log.
* Async generators are not closed when the peer leaves: they are driven here, in the handler's own task, and
  closed in it.
* ``server.stop`` returns before the cleanup of cancelled handlers is done (hazard M11): the tasks are kept,
  and ``finished`` waits for them.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from syncline_server.errors import (
    InvalidArgument,
    ResourceExhausted,
    SynclineError,
    Unauthenticated,
    Unavailable,
)
from syncline_server.metrics import Metrics
from syncline_server.rpc.calls import Authenticate, Call, OpenStreams, enter_call
from syncline_server.rpc.status import Refusal, internal, refusal

_log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_ABORT_SECONDS: Final = 5.0

_BEARER: Final = "bearer "


class Edge:
    """Wraps handlers, and knows the calls that are going on."""

    def __init__(
        self,
        authenticate: Authenticate,
        streams: OpenStreams,
        metrics: Metrics,
        *,
        max_calls: int,
        max_bytes: int,
    ) -> None:
        self._authenticate = authenticate
        self._streams = streams
        self._metrics = metrics
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._calls = 0
        self._bytes = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        metrics.calls_in_flight.set_function(lambda: self._calls)
        metrics.bytes_in_flight.set_function(lambda: self._bytes)

    @property
    def open_calls(self) -> int:
        """Number of calls and streams that are going on."""
        return len(self._tasks)

    def close(self) -> None:
        """Refuse new calls from now on; those that are going on continue."""
        self._closing = True

    async def finished(self, *, within_seconds: float) -> bool:
        """Wait until every call has ended, its cleanup included; False when time was up before."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_seconds)
        return not self._tasks

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Wrap a handler; ``method`` is ``Service/Method``, for people and metrics."""
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream_both(method, handler))
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream_out(method, handler))
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._stream_in(method, handler))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler))

    def _unary(self, method: str, handler: Handler) -> Callable[[bytes, Context], Awaitable[bytes]]:
        behaviour: Any = handler.unary_unary
        loop = asyncio.get_running_loop()  # asked for once: until Python 3.12 the answer costs a system call
        parse: Any = handler.request_deserializer
        serialise: Any = handler.response_serializer
        done = self._metrics.calls.labels(method, "OK")

        async def call(data: bytes, context: Context) -> bytes:
            task = asyncio.current_task(loop)
            assert task is not None
            self._tasks.add(task)
            size = len(data)
            self._calls += 1
            self._bytes += size
            try:
                if self._calls > self._max_calls or self._bytes > self._max_bytes:
                    self._refuse_overload()
                await self._enter(context)
                try:
                    request = parse(data)
                except DecodeError:
                    raise _unreadable() from None
                response: bytes = await behaviour(request, context)
                if type(response) is not bytes:  # what is shared is serialised already
                    response = serialise(response)
            except BaseException as error:  # noqa: BLE001 - this is where all of them become statuses
                await self._refuse(method, error, context)
            finally:
                self._calls -= 1
                self._bytes -= size
                self._tasks.discard(task)
            done.inc()
            return response

        return call

    def _stream_out(self, method: str, handler: Handler) -> Callable[[bytes, Context], Awaitable[None]]:
        behaviour: Any = handler.unary_stream
        parse: Any = handler.request_deserializer
        serialise: Any = handler.response_serializer
        done = self._metrics.calls.labels(method, "OK")

        async def call(data: bytes, context: Context) -> None:
            task = _this_task()
            now = task.get_loop().time
            self._tasks.add(task)
            try:
                entered = await self._enter(context)
                try:
                    request = parse(data)
                except DecodeError:
                    raise _unreadable() from None
                async with self._streams.open(entered), aclosing(behaviour(request, context)) as messages:
                    async for message in messages:
                        entered.writing_since = now()
                        await context.write(message if type(message) is bytes else serialise(message))
                        entered.writing_since = None
                        del message  # not kept while it waits for the next one: 256 KiB for each stream
            except BaseException as error:  # noqa: BLE001 - this is where all of them become statuses
                await self._refuse(method, error, context)
            finally:
                self._tasks.discard(task)
            done.inc()

        return call

    def _stream_in(self, method: str, handler: Handler) -> Any:
        behaviour: Any = handler.stream_unary
        parse: Any = handler.request_deserializer
        serialise: Any = handler.response_serializer
        done = self._metrics.calls.labels(method, "OK")

        async def call(_messages: AsyncIterator[bytes], context: Context) -> bytes:
            task = _this_task()
            self._tasks.add(task)
            try:
                entered = await self._enter(context)
                async with self._streams.open(entered), self._requests(context, parse) as requests:
                    response: bytes = serialise(await behaviour(requests, context))
            except BaseException as error:  # noqa: BLE001 - this is where all of them become statuses
                await self._refuse(method, error, context)
            finally:
                self._tasks.discard(task)
            done.inc()
            return response

        return call

    def _stream_both(self, method: str, handler: Handler) -> Any:
        behaviour: Any = handler.stream_stream
        parse: Any = handler.request_deserializer
        serialise: Any = handler.response_serializer
        done = self._metrics.calls.labels(method, "OK")

        async def call(_messages: AsyncIterator[bytes], context: Context) -> None:
            task = _this_task()
            now = task.get_loop().time
            self._tasks.add(task)
            try:
                entered = await self._enter(context)
                async with (
                    self._streams.open(entered),
                    self._requests(context, parse) as requests,
                    # Closed first: whatever it has reading the requests must have ended before they are closed.
                    aclosing(behaviour(requests, context)) as responses,
                ):
                    async for message in responses:
                        entered.writing_since = now()
                        await context.write(message if type(message) is bytes else serialise(message))
                        entered.writing_since = None
                        del message
            except BaseException as error:  # noqa: BLE001 - this is where all of them become statuses
                await self._refuse(method, error, context)
            finally:
                self._tasks.discard(task)
            done.inc()

        return call

    @asynccontextmanager
    async def _requests(self, context: Context, parse: Callable[[bytes], Any]) -> AsyncIterator["_Requests"]:
        requests = _Requests(context.read, parse, self._weigh)
        try:
            yield requests
        finally:
            requests.let_go()

    def _weigh(self, size: int) -> None:
        """Note bytes that are held, or with a negative size no longer. Raises ResourceExhausted(OVERLOADED)."""
        self._bytes += size
        if size > 0 and self._bytes > self._max_bytes:
            self._refuse_overload()

    async def _enter(self, context: Context) -> Call:
        if self._closing:
            raise Unavailable("SHUTTING_DOWN", "the server is shutting down")
        secret = _secret(context.invocation_metadata())
        call = Call(await self._authenticate(secret), secret)
        enter_call(call)
        return call

    def _refuse_overload(self) -> NoReturn:
        raise ResourceExhausted("OVERLOADED", "too many calls are in progress; nothing was done, try again")

    async def _refuse(self, method: str, error: BaseException, context: Context) -> NoReturn:
        """End the call with the status that tells the error; raises in any case."""
        error = unwrap(error)
        if isinstance(error, asyncio.CancelledError):
            if _this_task().cancelling():
                self._metrics.calls.labels(method, "CANCELLED").inc()
                raise error
            error = Unavailable(
                "STORE_UNAVAILABLE", "the call was interrupted inside the server; outcome unknown"
            )
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            raise error
        if isinstance(error, grpc.aio.InternalError | grpc.aio.UsageError):
            self._metrics.calls.labels(method, "CANCELLED").inc()
            raise asyncio.CancelledError from error  # the peer left while a write was pending
        told = tell(method, error)
        self._metrics.calls.labels(method, told.code.name).inc()
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                await context.abort(told.code, told.message, told.trailers)
        except TimeoutError:
            # The client reads nothing. The status waits behind what was written, and nobody waits for it here.
            raise asyncio.CancelledError from error


def tell(method: str, error: Exception) -> Refusal:
    """Tell an error; one that nobody expected by an incident id, with which its text is in the log."""
    if isinstance(error, SynclineError):
        return refusal(error)
    incident_id = secrets.token_hex(6)
    _log.error("rpc.failed", incident_id=incident_id, method=method, exc_info=error)
    return internal(incident_id)


class EdgeServer:
    """Stands where generated ``add_…Servicer_to_server`` functions expect a server, and wraps what they add."""

    def __init__(self, edge: Edge, server: grpc.aio.Server) -> None:
        self._edge = edge
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: the same methods come again by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Register the methods of a service, each wrapped."""
        name = service.rpartition(".")[2]
        wrapped = {
            method: self._edge.wrap(f"{name}/{method}", handler) for method, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)


def unwrap(error: BaseException) -> BaseException:
    """The one error inside of exception groups that have one member."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _secret(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == "authorization":
            if isinstance(value, str) and value[:7].lower() == _BEARER:
                return value[7:].strip()
            break
    raise Unauthenticated(
        "KEY_MISSING", "no key came with this call: send metadata `authorization: Bearer <key>`"
    )


class _Requests:
    """The messages of a stream, each weighed before it is parsed and until the next one is asked for.

    An object and not a generator, and reading from the context and not from the iterator that grpc offers, which is
    two generators deep: a stream of single readings is little else than this.
    """

    __slots__ = ("_parse", "_read", "_size", "_weigh")

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        parse: Callable[[bytes], Any],
        weigh: Callable[[int], None],
    ) -> None:
        self._read = read
        self._parse = parse
        self._weigh = weigh
        self._size = 0

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:
        if self._size:
            self.let_go()
        data = await self._read()
        if data is grpc.aio.EOF:
            raise StopAsyncIteration
        self._size = len(data)
        self._weigh(self._size)
        try:
            return self._parse(data)
        except DecodeError:
            raise _unreadable() from None

    def let_go(self) -> None:
        """The message is done with."""
        self._weigh(-self._size)
        self._size = 0


def _unreadable() -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", "the request is not a message of this method")


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
