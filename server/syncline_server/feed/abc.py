"""What the feed needs from the room that knows the wire."""

from abc import ABC, abstractmethod

from syncline_server.model import Changes, Head, ResetReason


class EventEncoder(ABC):
    """Serialises events. Each result is a message that holds one event; joining results joins the events.

    (In protobuf terms: ``SubscribeResponse`` and ``SyncResponse`` both have ``repeated FeedEvent events = 1``, and
    the concatenation of two serialised messages is their merge.)
    """

    @abstractmethod
    def changes(
        self,
        changes: Changes,
        *,
        from_revision: int,
        to_revision: int,
        partial: bool,
        token: bytes,
        folded: int = 0,
    ) -> bytes:
        """``Changes``; the token may be empty when a checkpoint follows in the same frame.

        ``folded``: number of changes of this stretch that newer ones of the same records replaced.
        """

    @abstractmethod
    def checkpoint(self, head: Head, *, token: bytes, going_away: bool = False) -> bytes:
        """``Checkpoint`` at ``head``. A record count of -1: without count and digest."""

    @abstractmethod
    def reset(self, reason: ResetReason, message: str) -> bytes:
        """``Reset``."""


class PartEncoder(ABC):
    """Frames what a stream of many subscriptions sends, around bodies that an ``EventEncoder`` made.

    A message is any number of parts; a part is what ``begin`` gives for its size, then bodies, then an address, joined.
    """

    @abstractmethod
    def begin(self, size_bytes: int) -> bytes:
        """Begin a part whose bodies and address have this size together."""

    @abstractmethod
    def address(self, subscription_id: int, dataset_id: str) -> bytes:
        """Whose part it is; ``dataset_id`` empty: of the subscription as a whole."""

    @abstractmethod
    def accepted(self, head_revision: int, *, cost_class: int, unverified: bool) -> bytes:
        """Body that tells that a subscription has begun."""

    @abstractmethod
    def error(self, error: Exception) -> bytes:
        """Body that tells why a subscription has ended. One that is no SynclineError is told by an incident id."""

    @abstractmethod
    def going_away(self) -> bytes:
        """Message that tells that the stream is about to end."""
