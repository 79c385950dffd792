"""What an UpdateFeed stream knows under one subscription id: one dataset, or with a prefix any number of them.

Those of a prefix share its credit.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from syncline._events import FeedViolation
from syncline._reconnect import FeedOptions, is_fault, may_pass
from syncline._subscription import Subscription, Terms
from syncline.errors import SynclineError
from syncline.events import Reset, ResetReason
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

    # -- what differs with a prefix -------------------------------------------------------------------------

    @abstractmethod
    def members(self) -> Iterable[Subscription[Any]]:
        """Its subscriptions."""

    @abstractmethod
    def to_wire(self) -> update_feed_pb2.AddSubscription:
        """The request that begins it where it stands."""

    @abstractmethod
    def find(self, part: update_feed_pb2.FeedPart) -> Subscription[Any] | None:
        """Whose part it is. Raises FeedViolation when it cannot be any's."""

    @abstractmethod
    def find_failed(self, part: update_feed_pb2.FeedPart) -> Subscription[Any] | None:
        """Whose error it is; None: of all of it. Raises FeedViolation when it cannot be any's."""

    @abstractmethod
    def fail(self, error: SynclineError) -> None:
        """End all of it."""

    @abstractmethod
    def leave(self, subscription: Subscription[Any]) -> None:
        """A subscription has ended."""

    @abstractmethod
    def wire_dataset(self, subscription: Subscription[Any]) -> str:
        """What an ack says of whom it is."""

    # -- from the stream ------------------------------------------------------------------------------------

    def receive(self, part: update_feed_pb2.FeedPart, now: float) -> None:
        """Hand a part to its reader. Raises FeedViolation when the server does not keep to the credit."""
        if self.is_paused:
            return
        size = part.ByteSize()
        exceeded = self._credit <= 0
        self._credit -= size
        if part.HasField("error"):
            self.consumed(size)
            self._handle_error(part)
            return
        subscription = self.find(part)
        if part.HasField("accepted") and subscription is not None:
            subscription.accepted(part.accepted, now)
        if subscription is None or not subscription.receive(part.events, size, now):
            self.consumed(size)
        elif exceeded and part.events:
            raise FeedViolation(f"{size} bytes came where there was no credit left")

    def restart(self, now: float) -> None:
        """The stream broke, or it is to begin again on this one."""
        self._credit = self._terms.window_bytes
        self._consumed = 0
        for subscription in self.members():
            subscription.restart(now)

    def violated(self, error: SynclineError) -> None:
        """The server broke the rules for the entry as a whole."""
        for subscription in self.members():
            subscription.renew(error, counts=True)
            return
        self.fail(error)

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

    def _handle_error(self, part: update_feed_pb2.FeedPart) -> None:
        error = self._feed.to_error(part.error)
        subscription = self.find_failed(part)
        fault = is_fault(error)
        if subscription is None:
            self.fail(error)
        elif fault or may_pass(error):
            subscription.renew(error, counts=fault)
        else:
            subscription.fail(error)

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

    def ack(self, subscription: Subscription[Any], revision: int) -> None:
        """A copy has come so far."""
        urgent = self._terms.mode == "on_checkpoint"
        self._feed.ack(self, self.wire_dataset(subscription), revision, urgent=urgent)

    def renew(self, pause_seconds: float, error: SynclineError | None) -> None:
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

    def find(self, part: update_feed_pb2.FeedPart) -> Subscription[Any] | None:
        """The one."""
        if part.dataset:
            raise FeedViolation(f"a part of {part.dataset!r} for a subscription without a prefix")
        return self.subscription

    def find_failed(self, part: update_feed_pb2.FeedPart) -> Subscription[Any] | None:
        """The one."""
        return self.find(part)

    def fail(self, error: SynclineError) -> None:
        """End it."""
        self.subscription.fail(error)

    def leave(self, subscription: Subscription[Any]) -> None:
        """It has ended."""
        del subscription
        self._feed.remove(self)

    def wire_dataset(self, subscription: Subscription[Any]) -> str:
        """Nothing: the id says it."""
        del subscription
        return ""


class PrefixEntry(Entry):
    """All datasets whose ids begin with a prefix, now and later."""

    def __init__(
        self,
        feed: "UpdateFeed",
        entry_id: int,
        terms: Terms,
        options: FeedOptions,
        *,
        prefix: str,
        tokens: Mapping[str, bytes],
        decode: Callable[[bytes], Any],
    ) -> None:
        super().__init__(feed, entry_id, terms, options)
        self._prefix = prefix
        self._decode = decode
        self._tokens = dict(tokens)  # of those that have not come up yet
        self._members: dict[str, Subscription[Any]] = {}
        self._known: set[str] = set()
        self.appeared: asyncio.Queue[Subscription[Any] | SynclineError | None] = asyncio.Queue()
        """Those that have begun, then how it ended."""

    def members(self) -> Iterable[Subscription[Any]]:
        """Those that have come up and not ended."""
        return tuple(self._members.values())

    def to_wire(self) -> update_feed_pb2.AddSubscription:
        """The request that begins it where it stands."""
        request = self._terms.to_wire(self.entry_id, f"{dataset_name(self._prefix)}*")
        tokens = self._tokens | {name: one.resume for name, one in self._members.items()}
        for name, token in tokens.items():  # also the empty ones: of those that are gone an error comes back
            request.tokens[dataset_name(name)] = token
        request.from_now = self._terms.from_now and not tokens
        return request

    def find(self, part: update_feed_pb2.FeedPart) -> Subscription[Any] | None:
        """The one of its dataset; made when the server accepts it for the first time."""
        try:
            dataset = parse_dataset_name(part.dataset)
        except ValueError as error:
            raise FeedViolation(str(error)) from None
        if not dataset.startswith(self._prefix):
            raise FeedViolation(f"a part of {dataset!r}, which does not begin with {self._prefix!r}")
        known = self._members.get(dataset)
        if known is not None or not part.HasField("accepted"):
            return known
        return self._begin(dataset)

    def find_failed(self, part: update_feed_pb2.FeedPart) -> Subscription[Any] | None:
        """The one of its dataset; made to tell the error, where there was only a token so far."""
        if not part.dataset:
            return None
        return self.find(part) or self._begin(parse_dataset_name(part.dataset))

    def _begin(self, dataset: str) -> Subscription[Any]:
        token = self._tokens.pop(dataset, b"")
        subscription: Subscription[Any] = Subscription(
            self, dataset, token=token, decode=self._decode, terms=self._terms, options=self._options
        )
        subscription.heard_at = asyncio.get_running_loop().time()
        if dataset in self._known:
            # It was deleted and is there again: what its readers hold is of the one before.
            message = "the dataset was deleted and created again"
            subscription.push_reset(Reset(reason=ResetReason.DATASET_REPLACED, message=message, token=b""))
        self._known.add(dataset)
        self._members[dataset] = subscription
        self.appeared.put_nowait(subscription)
        return subscription

    def fail(self, error: SynclineError) -> None:
        """End all of it."""
        for subscription in self.members():
            subscription.fail(error)
        self.appeared.put_nowait(error)
        self._feed.remove(self)

    def leave(self, subscription: Subscription[Any]) -> None:
        """One has ended; the others go on."""
        if self._members.get(subscription.dataset) is subscription:
            del self._members[subscription.dataset]

    def wire_dataset(self, subscription: Subscription[Any]) -> str:
        """Its name."""
        return dataset_name(subscription.dataset)

    def end(self) -> None:
        """Nobody wants it any more."""
        self.appeared.put_nowait(None)
        self._feed.remove(self)
