"""When a stream gives up on its connection, and how it comes back; shared by all streams, without I/O.

Two counts decide. Failures in a row make the pauses longer, until a stream has lived for a while. Faults, which a
new connection should not bring again, end the matter when too many come with nothing good between them.
"""

from dataclasses import dataclass
from typing import Final

from syncline import errors
from syncline._call import RetryPolicy
from syncline.errors import SynclineError

RECONNECT: Final = RetryPolicy(attempts=None, first_seconds=0.2, max_seconds=5.0)
"""For ever, with pauses drawn from zero up to 5 s in the end: a copy must not stay stale for long after the server is
back, and ten thousand clients that try every 2.5 s are no burden to one that refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """When a feed gives up on a connection, and how it comes back."""

    checkpoint_seconds: float = 10.0
    """The server's interval between checkpoints (its setting of that name)."""
    missed_checkpoints: int = 3
    """A stream that is silent for so many intervals is dead."""
    reconnect: RetryPolicy = RECONNECT
    healthy_seconds: float = 10.0
    """A stream that lived so long and brought something starts the pauses anew."""
    faults: int = 5
    """Contradictions, or errors of the server itself, with no checkpoint between them; then the feed raises."""

    @property
    def silence_seconds(self) -> float:
        """How long nothing may come."""
        return self.checkpoint_seconds * self.missed_checkpoints


DEFAULT_OPTIONS: Final = FeedOptions()


class Reconnects:
    """Counts what went wrong, and says how long to wait."""

    __slots__ = ("_connected_at", "_failures", "_faults", "_options", "progress", "total")

    def __init__(self, options: FeedOptions) -> None:
        self._options = options
        self._connected_at = 0.0
        self._failures = 0  # in a row, for the pauses
        self._faults = 0  # in a row, for giving up
        self.progress = False
        """Something came on the present stream."""
        self.total = 0
        """How often it was begun again."""

    def connected(self, now: float) -> None:
        """A stream was opened."""
        self._connected_at = now
        self.progress = False

    def settle(self) -> None:
        """Something good came: faults before it do not count any more."""
        self._faults = 0

    def pause_seconds(self, error: SynclineError, now: float, *, counts: bool = False) -> float:
        """How long to wait after this. Raises the error when it counts as a fault and has come too often."""
        if counts:
            self._faults += 1
            if self._faults >= self._options.faults:
                error.add_note(f"gave up after {self._faults} of these in a row; the token is good still")
                raise error
        self._failures = 1 if self._was_healthy(now) else self._failures + 1
        self.total += 1
        return max(self._options.reconnect.pause_seconds(self._failures), error.retry_after_seconds or 0.0)

    def orderly_pause_seconds(self, told_seconds: float, now: float) -> float:
        """How long to wait after the server said that it goes away, and for how long; no failure, if it lasted."""
        self.total += 1
        if self._was_healthy(now):
            self._failures = 0
            return told_seconds
        self._failures += 1
        return max(told_seconds, self._options.reconnect.pause_seconds(self._failures))

    def _was_healthy(self, now: float) -> bool:
        return self.progress and now - self._connected_at >= self._options.healthy_seconds


def is_fault(error: SynclineError) -> bool:
    """Whether the server itself failed: tried again a few times, then told."""
    return isinstance(error, errors.ServerError) or (not error.reason and error.code == "INTERNAL")


def may_pass(error: SynclineError) -> bool:
    """Whether a later connection can be better off."""
    return isinstance(error, errors.OutcomeUnknown) or (
        isinstance(error, errors.Overloaded) and error.retry_after_seconds is not None
    )
