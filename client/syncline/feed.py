"""Following a dataset: ``Dataset.changes`` and ``Dataset.sync``.

A feed resumes from the newest token whose events were all handed out, so nothing is ever skipped; after a
reconnect some events may come twice.
"""

import asyncio
import contextlib
import warnings
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from typing import Any, Final, Generic, Self, TypeVar

import grpc.aio

from syncline import errors
from syncline._call import LOG, Caller
from syncline._events import FeedViolation, Order
from syncline._reconnect import FeedOptions, Reconnects, is_fault, may_pass
from syncline._selection import EVERYTHING, Selection
from syncline._status import silent, to_error
from syncline.errors import FeedBroken, SynclineError
from syncline.events import PUT, Change, ChangeBatch, ChangeReason, Checkpoint, Event, Reset, SyncPage
from syncline.names import dataset_name
from syncline.v1 import feed_pb2
from syncline.v1.sync_service_pb2 import SubscribeRequest, SyncRequest, SyncResponse
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub

T = TypeVar("T")

Part = ChangeBatch[T] | Checkpoint | Reset
"""What ``batches()`` gives."""


API: Final = int(ChangeReason.API)


class ChangeFeed(Generic[T]):
    """Events of one dataset, live and for ever: iterate it, or its ``batches()``.

    Connects at the first step, and again whenever the connection breaks, the server stops or stays silent.
    Leave it by ``async with``, ``aclose()``, or by dropping it; a client that is closed closes its feeds.

    Raises what a new connection cannot mend: NotAuthenticated, PermissionDenied, NotFound, TokenInvalid,
    UnknownEvent, FeedBroken.
    """

    def __init__(
        self,
        stub: SyncServiceStub,
        caller: Caller,
        dataset: str,
        *,
        token: bytes | None,
        from_now: bool,
        min_revision: int,
        decode: Callable[[bytes], T],
        options: FeedOptions,
        selection: Selection = EVERYTHING,
    ) -> None:
        if token and from_now:
            raise ValueError("changes() starts from a token or from now, not both")
        self._stub = stub
        self._caller = caller
        self._dataset = dataset_name(dataset)
        self._from_now = from_now
        self._min_revision = min_revision
        self._selection = selection
        self._options = options
        self._token = token or b""
        self._order = Order(self._token, decode, from_now=from_now, filtered=selection.is_filtered)
        self._call: grpc.aio.UnaryStreamCall[Any, Any] | None = None
        self._reconnects = Reconnects(options)
        self._received: Iterator[feed_pb2.FeedEvent] = iter(())
        self._events: Iterator[Change[T]] = iter(())
        self._closing = asyncio.Event()

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again."""
        return self._reconnects.total

    @property
    def token(self) -> bytes:
        """Resumes with nothing skipped of what has not been handed out; empty at the beginning."""
        return self._token

    @property
    def is_connected(self) -> bool:
        """Whether something came on the present stream."""
        return self._call is not None and self._reconnects.progress

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[T]:
        for event in self._events:
            self._token = event.token
            return event
        while True:
            part = await self._next_part()
            if isinstance(part, ChangeBatch):
                self._events = iter(part)
                for event in self._events:
                    self._token = event.token
                    return event
            else:
                self._token = part.token
                return part

    def batches(self) -> "Batches[T]":
        """The same as whole batches, whose events are made only when they are looked at: the fast way."""
        return Batches(self)

    async def next_part(self) -> Part[T]:
        """The next batch, checkpoint or reset. Raises StopAsyncIteration when the feed was closed."""
        part = await self._next_part()
        self._token = part.token
        return part

    async def aclose(self) -> None:
        """End it. Iterating on ends at once."""
        self._closing.set()
        self._events = iter(())
        self._drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # gRPC does not collect a call that nobody reads any more: the server would keep its stream for ever.
        call = getattr(self, "_call", None)
        if call is not None and not call.done():
            with contextlib.suppress(Exception):  # the loop is gone, and the call with it
                call.cancel()
            warnings.warn(
                "a change feed was dropped without aclose(); use `async with` to say when it ends",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    # -- one part -------------------------------------------------------------------------------------------

    async def _next_part(self) -> Part[T]:
        while True:
            if self._closing.is_set():
                raise StopAsyncIteration
            if self._call is None and (reset := self._connect()) is not None:
                return reset
            for event in self._received:
                try:
                    part = self._order.accept(event)
                except FeedViolation as violation:
                    await self._recover(FeedBroken(f"the feed contradicts itself: {violation}"), counts=True)
                    break
                except errors.UnknownEvent:
                    self._drop()
                    raise
                self._note_progress(part)
                return part
            else:
                await self._receive()

    async def _receive(self) -> None:
        """Read one message, or deal with what came instead of it."""
        call = self._call
        assert call is not None
        try:
            async with asyncio.timeout(self._options.silence_seconds):
                message: Any = await call.read()
        except TimeoutError:
            await self._recover(silent(self._options.silence_seconds, self._caller.endpoint))
        except asyncio.CancelledError:
            self._drop()
            if self._closing.is_set() and not _is_cancelling():
                return  # closed by another task, while this one was reading
            raise
        except grpc.aio.AioRpcError as error:
            await self._handle(to_error(error, self._caller.endpoint))
        else:
            if message is grpc.aio.EOF:
                # A clean end without a word is none of ours; the status tells when there is one.
                await self._recover(errors.Unavailable("the stream ended"))
            else:
                self._received = iter(message.events)

    def _connect(self) -> Reset | None:
        """Open a stream; a reset, if what was handed out cannot be continued."""
        reset = self._order.reconnect()
        request = SubscribeRequest(
            dataset=self._dataset,
            min_revision=self._min_revision,
            filter=self._selection.filter,
            read_mask=self._selection.mask,
        )
        if self._order.resume:
            request.token = self._order.resume
        elif self._from_now and not self._order.has_begun:
            request.from_now = True
        self._reconnects.connected(_now())
        self._call = self._stub.Subscribe(request, metadata=self._caller.metadata)
        return reset

    def _drop(self) -> None:
        """End the present stream; what it brought and was not looked at will come again."""
        call, self._call = self._call, None
        self._received = iter(())
        if call is not None:
            call.cancel()

    def _note_progress(self, part: Part[T]) -> None:
        self._reconnects.progress = True
        if isinstance(part, Checkpoint):
            self._reconnects.settle()
            if part.revision >= self._min_revision:
                self._min_revision = 0

    # -- coming back ----------------------------------------------------------------------------------------

    async def _handle(self, error: SynclineError) -> None:
        fault = is_fault(error)
        if not (fault or may_pass(error)):
            self._drop()
            raise error
        await self._recover(error, counts=fault)

    async def _recover(self, error: SynclineError, *, counts: bool = False) -> None:
        """Pause before the next connection. Raises the error when it counts and has come too often."""
        self._drop()
        pause = self._reconnects.pause_seconds(error, _now(), counts=counts)
        LOG.info("feed of %s: connecting again in %.2f s: %s", self._dataset, pause, error.message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._closing.wait()


class Batches(Generic[T]):
    """A feed in whole batches. Not a generator: one of those would outlive the loop that it is left by."""

    __slots__ = ("_feed",)

    def __init__(self, feed: ChangeFeed[T]) -> None:
        self._feed = feed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part[T]:
        return await self._feed.next_part()


async def sync_page(
    stub: SyncServiceStub,
    caller: Caller,
    dataset: str,
    order: Order,
    *,
    min_revision: int,
    page_size: int,
    timeout_seconds: float | None,
    selection: Selection = EVERYTHING,
) -> SyncPage[Any]:
    """One page since ``order.token``. Raises FeedBroken when it contradicts what came before."""
    request = SyncRequest(
        dataset=dataset_name(dataset),
        token=order.token,
        min_revision=min_revision,
        page_size=page_size,
        filter=selection.filter,
        read_mask=selection.mask,
    )
    response: SyncResponse = await caller.read(stub.Sync, request, timeout_seconds=timeout_seconds)
    before = order.token
    batches: list[ChangeBatch[Any]] = []
    checkpoint: Checkpoint | None = None
    reset: Reset | None = None
    try:
        for event in response.events:
            part = order.accept(event)
            if isinstance(part, ChangeBatch):
                batches.append(part)
            elif isinstance(part, Reset):
                reset, checkpoint = part, None
                before = part.token
                batches.clear()
            else:
                checkpoint = part
        order.confirm(response.token)
    except FeedViolation as violation:
        raise FeedBroken(f"the page contradicts itself: {violation}") from None
    return SyncPage(
        changes=join_batches(batches, order, previous_token=before),
        token=response.token,
        checkpoint=checkpoint,
        reset=reset,
    )


async def sync_all(next_page: Callable[[], Awaitable[SyncPage[Any]]], order: Order) -> SyncPage[Any]:
    """Pages up to the next checkpoint, as one."""
    before = order.token
    batches: list[ChangeBatch[Any]] = []
    reset: Reset | None = None
    while True:
        page = await next_page()
        if page.reset is not None:
            reset = page.reset
            before = reset.token
            batches.clear()
        if page.changes:
            batches.append(page.changes)
        if page.checkpoint is not None:
            return SyncPage(
                changes=join_batches(batches, order, previous_token=before),
                token=page.token,
                checkpoint=page.checkpoint,
                reset=reset,
            )


def join_batches(batches: list[ChangeBatch[Any]], order: Order, *, previous_token: bytes) -> ChangeBatch[Any]:
    """One batch of all, up to where ``order`` stands. Inside, its events resume at its beginning."""
    kinds: list[int] = []
    reasons: list[int] = []
    if any(batch.kinds for batch in batches):
        kinds = [kind for batch in batches for kind in batch.kinds or [PUT] * len(batch)]
    if any(batch.reasons for batch in batches):
        reasons = [reason for batch in batches for reason in batch.reasons or [API] * len(batch)]
    return ChangeBatch(
        record_ids=list(chain.from_iterable(batch.record_ids for batch in batches)),
        json=list(chain.from_iterable(batch.json for batch in batches)),
        revisions=list(chain.from_iterable(batch.revisions for batch in batches)),
        commit_times_us=list(chain.from_iterable(batch.commit_times_us for batch in batches)),
        kinds=kinds,
        reasons=reasons,
        from_revision=batches[0].from_revision if batches else order.revision,
        to_revision=order.revision,
        partial=bool(batches) and batches[-1].partial,
        previous_token=previous_token,
        token=order.token,
        decode=order.decode,
        folded=sum(batch.folded for batch in batches),
    )


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _now() -> float:
    return asyncio.get_running_loop().time()
