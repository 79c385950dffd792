"""Finds the subscriptions that are due for a checkpoint, without looking at the others."""

import math
from typing import Final

from syncline_server.feed.subscription import Subscription

_REACH: Final = 1.25
"""Of the wheel, in intervals: the latest is due after 1.1 of them."""


class BookmarkWheel:
    """Each subscription sits in the slot of the time when it will be due; a turn empties the slots passed.

    A checkpoint that is sent meanwhile moves nothing: whoever is found before the time goes to a later slot, and
    one that has ended is let go then, after an interval at most.
    """

    def __init__(self, seconds: float, *, ticks: int) -> None:
        self._seconds = seconds
        self._tick_seconds = seconds / ticks
        self._slots: list[list[Subscription]] = [[] for _ in range(math.ceil(ticks * _REACH))]
        self._passed: int | None = None
        """Number of the last tick whose slot was emptied."""

    def add(self, subscription: Subscription, now: float) -> None:
        """Watch a subscription until it has ended."""
        self._put(subscription, subscription.bookmark_at, now)

    def turn(self, now: float) -> None:
        """Wake those that are due."""
        tick = math.floor(now / self._tick_seconds)
        passed = tick - 1 if self._passed is None else self._passed
        self._passed = tick
        for number in range(max(passed + 1, tick - len(self._slots) + 1), tick + 1):
            slot = number % len(self._slots)
            due, self._slots[slot] = self._slots[slot], []
            for subscription in due:
                if subscription.closed:
                    continue
                at = subscription.bookmark_at
                if at <= now:
                    subscription.wake()
                    at = now + subscription.bookmark_seconds
                self._put(subscription, at, now)

    def _put(self, subscription: Subscription, at: float, now: float) -> None:
        earliest = math.floor(now / self._tick_seconds) + 1
        number = max(earliest, math.ceil(at / self._tick_seconds))
        self._slots[min(number, earliest + len(self._slots) - 2) % len(self._slots)].append(subscription)
