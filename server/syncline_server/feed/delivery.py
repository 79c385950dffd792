"""What a client asks of one subscription of a stream, and when that lets it send."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from syncline_server.feed.subscription import Pace, Subscription
from syncline_server.filters.selection import Selection


class DeliveryMode(IntEnum):
    """When a subscription sends. The numbers are those of the wire."""

    LATEST = 1
    MAX_RATE = 2
    ON_CHECKPOINT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A subscription as it was asked for, checked in shape."""

    subscription_id: int
    dataset_id: str = ""
    """Empty: all datasets with the prefix."""
    prefix: str = ""
    token: bytes = b""
    tokens: Mapping[str, bytes] | None = None
    """By dataset id, with a prefix; None: no tokens."""
    from_now: bool = False
    selection: Selection | None = None
    mode: DeliveryMode = DeliveryMode.LATEST
    min_interval_seconds: float = 0.0
    min_revision: int = 0
    replica_id: str = ""
    credit_bytes: int = 0
    """0: the setting."""


class MaxRate(Pace):
    """At most one run from checkpoint to checkpoint in an interval."""

    __slots__ = ("_interval_seconds", "_next_at", "_timer")

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def holds(self, subscription: Subscription, now: float) -> bool:
        """See Pace."""
        if now >= self._next_at:
            return False
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._next_at - now, self._fire, subscription)
        return True

    def reached(self, now: float) -> None:
        """See Pace."""
        self._next_at = now + self._interval_seconds

    def close(self) -> None:
        """See Pace."""
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self, subscription: Subscription) -> None:
        self._timer = None
        subscription.wake()


class OnCheckpoint(Pace):
    """The next run begins when the checkpoint of the last one was acknowledged."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = False

    def holds(self, subscription: Subscription, now: float) -> bool:
        """See Pace."""
        del subscription, now
        return self._held

    def reached(self, now: float) -> None:
        """See Pace."""
        del now
        self._held = True

    def close(self) -> None:
        """See Pace."""

    def acknowledge(self, subscription: Subscription, revision: int) -> None:
        """Hear that the copy was brought to this revision."""
        if revision >= subscription.reached_revision:
            self._held = False
            subscription.wake()


def pace_of(wanted: Wanted) -> Pace | None:
    """Pace of a subscription; None: at once."""
    if wanted.mode is DeliveryMode.MAX_RATE:
        return MaxRate(wanted.min_interval_seconds)
    if wanted.mode is DeliveryMode.ON_CHECKPOINT:
        return OnCheckpoint()
    return None
