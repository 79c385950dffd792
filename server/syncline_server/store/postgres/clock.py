"""The time of the database, told between two looks at it.

No node's own wall clock decides what is stored, purged or expired (hazard F56): nodes whose clocks differ would
disagree. What a node has is its monotonic clock and how far the database's time is from it.
"""

import time
from collections.abc import Callable
from typing import Final

from syncline_server.store.postgres.connection import Connection

NOW_US: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""The time of the database, the only one that is stored."""


class DatabaseClock:
    """A Clock: the database's wall time, by the monotonic time that has passed since it was asked."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        """Seconds on a clock that never goes back."""
        self._offset_us: int | None = None

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC, once ``measure`` was called."""
        assert self._offset_us is not None, "opening the store measures it"
        return self._local_us() + self._offset_us

    async def measure(self, connection: Connection) -> None:
        """Ask the database. What is known stays as long as the answer does not contradict it, so that time runs evenly.

        The answer was true at some moment between question and reply: the middle is off by half of that at most.
        """
        asked_us = self._local_us()
        told_us = int(await connection.fetchval(NOW_US))
        answered_us = self._local_us()
        low_us, high_us = told_us - answered_us, told_us - asked_us
        if self._offset_us is None or not low_us <= self._offset_us <= high_us:
            self._offset_us = (low_us + high_us) // 2

    def _local_us(self) -> int:
        return round(self.monotonic() * 1e6)
