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
        self, changes: Changes, *, from_revision: int, to_revision: int, partial: bool, token: bytes
    ) -> bytes:
        """``Changes``; the token may be empty when a checkpoint follows in the same frame."""

    @abstractmethod
    def checkpoint(self, head: Head, *, token: bytes, going_away: bool = False) -> bytes:
        """``Checkpoint`` at ``head``."""

    @abstractmethod
    def reset(self, reason: ResetReason, message: str) -> bytes:
        """``Reset``."""
