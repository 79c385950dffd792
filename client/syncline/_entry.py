"""What an UpdateFeed stream knows under one subscription id: a dataset, or which datasets there are."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syncline._events import FeedViolation
from syncline._reconnect import FeedOptions, Reconnects, is_fault, may_pass
from syncline._subscription import Subscription, Terms
from syncline.errors import SynclineError
from syncline.names import dataset_name, parse_dataset_name
from syncline.v1 import update_feed_pb2

if TYPE_CHECKING:
    from syncline._update_feed import UpdateFeed


class Entry(ABC):
    """What a stream knows under one subscription id."""

    def __init__(self, feed: "UpdateFeed", entry_id: int, terms: Terms, options: FeedOptions) -> None:
        self.entry_id = entry_id
        self.is_paused = False
        """It is not to be added yet, because of something that went wrong."""
        self._feed = feed
        self._terms = terms
        self._options = options
        self._credit = terms.window_bytes  # as the server knows it, when it has heard of all grants
        self._consumed = 0  # read, and not granted again yet

    # -- what differs ---------------------------------------------------------------------------------------

    @abstractmethod
    def members(self) -> Iterable[Subscription[Any]]:
        """Its subscriptions."""

    @abstractmethod
    def to_wire(self) -> update_feed_pb2.AddSubscription:
        """The request that begins it where it stands."""

    @abstractmethod
    def take(self, part: update_feed_pb2.FeedPart, size_bytes: int, now: float, *, exceeded: bool) -> None:
        """Handle a part; ``exceeded``: there was no credit for events. Raises FeedViolation."""

    @abstractmethod
    def violated(self, error: SynclineError) -> None:
        """The server broke the rules."""

    @abstractmethod
    def fail(self, error: SynclineError) -> None:
        """End it with an error."""

    @abstractmethod
    def close(self) -> None:
        """End it, because nobody wants it any more."""

    # -- from the stream ------------------------------------------------------------------------------------

    def receive(self, part: update_feed_pb2.FeedPart, now: float) -> None:
        """Take in a part. Raises FeedViolation when it cannot be."""
        if self.is_paused:
            return
        size = part.ByteSize()
        exceeded = self._credit <= 0 and bool(part.events)
        self._credit -= size
        self.take(part, size, now, exceeded=exceeded)

    def restart(self, now: float) -> None:
        """The stream broke, or it is to begin again on this one."""
        self._credit = self._terms.window_bytes
        self._consumed = 0
        for subscription in self.members():
            subscription.restart(now)

    def check_silence(self, now: float) -> Subscription[Any] | None:
        """One that ought to have heard something, if there is one."""
        if self.is_paused or self._credit <= 0:
            return None
        silence = self._options.silence_seconds + self._terms.min_interval.total_seconds()
        for subscription in self.members():
            waits = self._terms.mode == "on_checkpoint" and subscription.awaits_ack
            if subscription.is_overdue(now, silence) and not waits:
                return subscription
        return None

    # -- from its subscriptions -----------------------------------------------------------------------------

    def consumed(self, size_bytes: int) -> None:
        """So much was read: let as much come again, when it is worth a message."""
        self._consumed += size_bytes
        if self._consumed and (self._consumed * 4 >= self._terms.window_bytes or self._credit <= 0):
            if self._credit <= 0:
                now = asyncio.get_running_loop().time()
                for subscription in self.members():
                    subscription.heard_at = now  # nothing could come until now
            self._credit += self._consumed
            self._feed.grant(self, self._consumed)
            self._consumed = 0

    def ack(self, revision: int) -> None:
        """The copy has come so far."""
        self._feed.ack(self, revision, urgent=self._terms.mode == "on_checkpoint")

    def leave(self) -> None:
        """The subscription has ended."""
        self._feed.remove(self)

    def renew(self, pause_seconds: float, error: SynclineError) -> None:
        """Begin it again on this stream, after a pause."""
        self.restart(asyncio.get_running_loop().time())
        self._feed.renew(self, pause_seconds, error)

    def settle(self) -> None:
        """A checkpoint came: the stream is good."""
        self._feed.settle()


class SingleEntry(Entry):
    """One dataset."""

    def __init__(
        self,
        feed: "UpdateFeed",
        entry_id: int,
        terms: Terms,
        options: FeedOptions,
        *,
        dataset: str,
        token: bytes,
        decode: Callable[[bytes], Any],
    ) -> None:
        super().__init__(feed, entry_id, terms, options)
        self.subscription: Subscription[Any] = Subscription(
            self, dataset, token=token, decode=decode, terms=terms, options=options
        )

    def members(self) -> Iterable[Subscription[Any]]:
        """The one."""
        return (self.subscription,)

    def to_wire(self) -> update_feed_pb2.AddSubscription:
        """The request that begins it where it stands."""
        subscription = self.subscription
        request = self._terms.to_wire(self.entry_id, dataset_name(subscription.dataset))
        request.min_revision = subscription.min_revision
        request.token = subscription.resume
        request.from_now = self._terms.from_now and not subscription.has_begun
        return request

    def take(self, part: update_feed_pb2.FeedPart, size_bytes: int, now: float, *, exceeded: bool) -> None:
        """Hand it to the reader. Raises FeedViolation when the server does not keep to the credit."""
        if part.dataset:
            raise FeedViolation(f"a part of {part.dataset!r} for a subscription without a prefix")
        if part.HasField("error"):
            self.consumed(size_bytes)
            self._take_error(self._feed.to_error(part.error))
            return
        if part.HasField("accepted"):
            self.subscription.accepted(part.accepted, now)
        if not self.subscription.receive(part.events, size_bytes, now):
            self.consumed(size_bytes)
        elif exceeded:
            raise FeedViolation(f"{size_bytes} bytes came where there was no credit left")

    def _take_error(self, error: SynclineError) -> None:
        fault = is_fault(error)
        if fault or may_pass(error):
            self.subscription.renew(error, counts=fault)
        else:
            self.subscription.fail(error)

    def violated(self, error: SynclineError) -> None:
        """The server broke the rules."""
        self.subscription.renew(error, counts=True)

    def fail(self, error: SynclineError) -> None:
        """End it with an error."""
        self.subscription.fail(error)

    def close(self) -> None:
        """End it."""
        self.subscription.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """News of a dataset that the key may read."""

    dataset: str
    is_there: bool
    """It was there when the stream was opened, or was created; otherwise it was deleted, or is not to be read."""


class DirectoryEntry(Entry):
    """Which datasets there are whose ids begin with a prefix: a subscription to all of them, without their data.

    Each begins at its newest revision, and sends whole states only, of which the first one is never acknowledged: so
    nothing comes but that it has begun, and that it has ended.
    """

    def __init__(self, feed: "UpdateFeed", entry_id: int, options: FeedOptions, *, prefix: str) -> None:
        super().__init__(feed, entry_id, Terms(from_now=True, mode="on_checkpoint"), options)
        self._prefix = prefix
        self._reconnects = Reconnects(options)
        self.sightings: asyncio.Queue[Sighting | SynclineError | None] = asyncio.Queue()
        """What was seen, then how it ended."""

    def members(self) -> Iterable[Subscription[Any]]:
        """None: nobody reads its events."""
        return ()

    def to_wire(self) -> update_feed_pb2.AddSubscription:
        """The request, which is the same at each beginning: what is there is told anew."""
        request = self._terms.to_wire(self.entry_id, f"{dataset_name(self._prefix)}*")
        request.from_now = True
        return request

    def take(self, part: update_feed_pb2.FeedPart, size_bytes: int, now: float, *, exceeded: bool) -> None:
        """Note what it tells. Raises FeedViolation."""
        del now, exceeded
        self.consumed(size_bytes)
        if part.HasField("error"):
            self._take_error(part)
        elif part.HasField("accepted"):
            self._see(part, is_there=True)

    def _take_error(self, part: update_feed_pb2.FeedPart) -> None:
        error = self._feed.to_error(part.error)
        fault = is_fault(error)
        if fault or may_pass(error):  # also of one dataset, which is there still
            self._again(error, counts=fault)
        elif part.dataset:
            self._see(part, is_there=False)
        else:
            self.fail(error)

    def _again(self, error: SynclineError, *, counts: bool) -> None:
        now = asyncio.get_running_loop().time()
        try:
            self.renew(self._reconnects.pause_seconds(error, now, counts=counts), error)
        except SynclineError:
            self.fail(error)

    def violated(self, error: SynclineError) -> None:
        """The server broke the rules."""
        self._again(error, counts=True)

    def _see(self, part: update_feed_pb2.FeedPart, *, is_there: bool) -> None:
        try:
            dataset = parse_dataset_name(part.dataset)
        except ValueError as error:
            raise FeedViolation(str(error)) from None
        if not dataset.startswith(self._prefix):
            raise FeedViolation(f"a part of {dataset!r}, which does not begin with {self._prefix!r}")
        self._reconnects.settle()
        self.sightings.put_nowait(Sighting(dataset=dataset, is_there=is_there))

    def fail(self, error: SynclineError) -> None:
        """End it."""
        self.sightings.put_nowait(error)
        self._feed.remove(self)

    def close(self) -> None:
        """Nobody wants it any more."""
        self.sightings.put_nowait(None)
        self._feed.remove(self)
