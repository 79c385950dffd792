"""What the application reads of an UpdateFeed stream: the events of one dataset, in order.

Parts wait in a subscription's queue until they are asked for, and only then is their size granted again: so its
window bounds what waits here, and a reader that stands still holds up nobody else.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, Literal, Self, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from syncline._events import FeedViolation, Order
from syncline._reconnect import FeedOptions, Reconnects
from syncline._wire import to_duration
from syncline.errors import FeedBroken, SynclineError, UnknownEvent
from syncline.events import ChangeBatch, Checkpoint, Reset
from syncline.v1 import feed_pb2, update_feed_pb2

if TYPE_CHECKING:
    from syncline._entry import Entry

T = TypeVar("T")

Part = ChangeBatch[T] | Checkpoint | Reset
"""What ``next_part()`` gives."""

DeliveryMode = Literal["latest", "max_rate", "on_checkpoint"]
"""When a subscription sends: at once; at most one batch each interval; whole consistent states only."""

_MODES: Final[Mapping[DeliveryMode, update_feed_pb2.DeliveryMode.ValueType]] = {
    "latest": update_feed_pb2.DELIVERY_MODE_LATEST,
    "max_rate": update_feed_pb2.DELIVERY_MODE_MAX_RATE,
    "on_checkpoint": update_feed_pb2.DELIVERY_MODE_ON_CHECKPOINT,
}

WINDOW_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a subscription asks for; the fields are those of AddSubscription."""

    filter: str = ""
    fields: Sequence[str] = ()
    """Dotted paths of a projection; empty: whole records."""
    mode: DeliveryMode = "latest"
    min_interval: timedelta = timedelta(0)
    """With ``max_rate``: the shortest time between two batches."""
    from_now: bool = False
    min_revision: int = 0
    replica_id: str = ""
    window_bytes: int = WINDOW_BYTES
    """Most that waits here unread; one event, which is never cut, may go beyond."""

    @property
    def is_filtered(self) -> bool:
        """Whether the copy is not the whole dataset."""
        return bool(self.filter or self.fields)

    def to_wire(self, subscription_id: int, dataset: str) -> update_feed_pb2.AddSubscription:
        """Without the place to go on from."""
        return update_feed_pb2.AddSubscription(
            subscription_id=subscription_id,
            dataset=dataset,
            filter=self.filter,
            read_mask=FieldMask(paths=self.fields) if self.fields else None,
            delivery_mode=_MODES[self.mode],
            min_interval=to_duration(self.min_interval) if self.min_interval else None,
            replica_id=self.replica_id,
            credit_bytes=self.window_bytes,
        )


class Subscription(Generic[T]):
    """The events of one dataset. One task reads it: ``next_part()``, or ``batches()``.

    Goes on by itself when the connection breaks or the server's events contradict each other. Raises what cannot be
    mended: NotAuthenticated, PermissionDenied, NotFound, InvalidArgument, UnknownEvent, FeedBroken; the other
    subscriptions of the stream go on.
    """

    __slots__ = (
        "__weakref__",
        "_acked",
        "_awaits_accept",
        "_closed",
        "_entry",
        "_error",
        "_events",
        "_held",
        "_newest",
        "_order",
        "_queue",
        "_reconnects",
        "_token",
        "_waiter",
        "dataset",
        "head_revision",
        "heard_at",
        "is_unverified",
        "min_revision",
    )

    def __init__(
        self,
        entry: "Entry",
        dataset: str,
        *,
        token: bytes,
        decode: Callable[[bytes], T],
        terms: Terms,
        options: FeedOptions,
    ) -> None:
        self.dataset = dataset
        """Id of the dataset."""
        self.head_revision = 0
        """The newest revision of the dataset when the subscription was last accepted; 0: not yet."""
        self.is_unverified = False
        """Checkpoints come without count and digest; the server keeps no account of this filter."""
        self.min_revision = terms.min_revision
        self.heard_at = 0.0
        """When the last part came, in the event loop's time."""
        self._entry = entry
        self._order = Order(token, decode, from_now=terms.from_now, filtered=terms.is_filtered)
        self._reconnects = Reconnects(options)
        self._token = token
        self._queue: deque[tuple[int, Iterable[feed_pb2.FeedEvent]] | Reset] = deque()
        self._events: Iterator[feed_pb2.FeedEvent] = iter(())
        self._held = 0  # bytes of the part that is being read
        self._awaits_accept = True
        self._newest = -1  # revision of the newest checkpoint handed out since it was accepted
        self._acked = 0
        self._error: SynclineError | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def token(self) -> bytes:
        """Resumes with nothing skipped of what has not been handed out; empty at the beginning."""
        return self._token

    @property
    def is_connected(self) -> bool:
        """Whether the server has accepted it on the present stream."""
        return not (self._awaits_accept or self._closed or self._error)

    @property
    def reconnects(self) -> int:
        """How often it was begun again for its own reasons, beside those of the stream."""
        return self._reconnects.total

    async def next_part(self) -> Part[T]:
        """The next batch, checkpoint or reset. Raises StopAsyncIteration when it was closed."""
        while not self._closed:
            for event in self._events:
                part = self._accept(event)
                if part is None:
                    break
                self._token = part.token
                return part
            else:
                if (reset := await self._next_events()) is not None:
                    self._token = reset.token
                    return reset
        raise StopAsyncIteration

    def batches(self) -> "Parts[T]":
        """All parts, for ``async for``."""
        return Parts(self)

    def ack(self, revision: int) -> None:
        """Say that the copy has been brought to the checkpoint at ``revision``. Returns at once."""
        self._acked = max(self._acked, revision)
        if self._acked <= self._newest:
            self._entry.ack(self._acked)

    async def aclose(self) -> None:
        """End it. Who reads it is told at once."""
        self.close()

    def close(self) -> None:
        """The same, where nothing can be awaited."""
        if not self._closed:
            self._closed = True
            self._events = iter(())
            self._held = 0
            self._queue.clear()
            self._entry.leave()
            self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # -- the reader's side ----------------------------------------------------------------------------------

    def _accept(self, event: feed_pb2.FeedEvent) -> Part[T] | None:
        """One event, checked. None: it contradicts what came before, and the subscription begins again."""
        try:
            part = self._order.accept(event)
        except FeedViolation as violation:
            self.renew(FeedBroken(f"the feed contradicts itself: {violation}"), counts=True)
            return None
        except UnknownEvent as error:
            self.fail(error)
            raise
        self._reconnects.progress = True
        if isinstance(part, Checkpoint):
            self._settle(part)
        return part

    def _settle(self, checkpoint: Checkpoint) -> None:
        self._reconnects.settle()
        self._entry.settle()
        self._newest = checkpoint.revision
        if checkpoint.revision >= self.min_revision:
            self.min_revision = 0
        if 0 < self._acked <= self._newest:  # acknowledged before the stream broke, and perhaps not heard
            self._entry.ack(self._acked)

    async def _next_events(self) -> Reset | None:
        """Wait for a part. A reset, when what was handed out cannot be continued."""
        held, self._held = self._held, 0
        self._entry.consumed(held)
        while not self._queue:
            if self._closed:
                return None
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._queue.popleft()
        if isinstance(item, Reset):
            return item
        self._held, events = item
        self._events = iter(events)
        return None

    # -- the stream's side ----------------------------------------------------------------------------------

    @property
    def resume(self) -> bytes:
        """Where a new stream has to go on."""
        return self._order.resume

    @property
    def has_begun(self) -> bool:
        """Whether there is a token, also one that was refused."""
        return self._order.has_begun

    @property
    def is_over(self) -> bool:
        """Closed or failed."""
        return self._closed or self._error is not None

    def accepted(self, accepted: update_feed_pb2.Accepted, now: float) -> None:
        """The server has begun it."""
        self._awaits_accept = False
        self.head_revision = accepted.head_revision
        self.is_unverified = accepted.unverified
        self._reconnects.connected(now)

    def receive(self, events: Sequence[feed_pb2.FeedEvent], size_bytes: int, now: float) -> bool:
        """Take in what came. False: it was not wanted, being of an earlier beginning."""
        if self._awaits_accept or self.is_over:
            return False
        self.heard_at = now
        self._queue.append((size_bytes, events))
        self._wake()
        return True

    def restart(self, now: float) -> None:
        """Go back to what has been handed out: everything after it will come again."""
        self._queue.clear()
        self._events = iter(())
        self._held = 0
        self._newest = -1
        self._awaits_accept = True
        self.heard_at = now
        if (reset := self._order.reconnect()) is not None:
            self._queue.append(reset)
            self._wake()

    def renew(self, error: SynclineError, *, counts: bool) -> None:
        """Begin again after a pause; or fail, when this has come too often."""
        try:
            pause = self._reconnects.pause_seconds(error, asyncio.get_running_loop().time(), counts=counts)
        except SynclineError:
            self.fail(error)
            return
        self._entry.renew(pause, error)

    def fail(self, error: SynclineError) -> None:
        """End it with an error, which is raised after what waits was handed out."""
        if not self.is_over:
            self._error = error
            self._entry.leave()
            self._wake()

    def is_overdue(self, now: float, silence_seconds: float) -> bool:
        """Whether it ought to have heard something."""
        return not self.is_over and not self.min_revision and now - self.heard_at > silence_seconds

    @property
    def awaits_ack(self) -> bool:
        """A checkpoint was handed out that is not acknowledged."""
        return self._newest > self._acked

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Parts(Generic[T]):
    """A subscription part by part. Not a generator: one of those would outlive the loop that it is left by."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription[T]) -> None:
        self._subscription = subscription

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part[T]:
        return await self._subscription.next_part()
