"""Readings on their way, in order, and their numbers; without I/O.

::

    settled | in flight: numbered, written or to be written again | ahead: not numbered | beyond: in the spool only

A reading gets its number when it is sent for the first time, and keeps it as long as it is not settled; so one that
may have arrived is never dropped, and never sent under another number, except when a new epoch makes sure that
the old number will not be applied.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from syncline.models import RefusedReading, Violation

READING_OVERHEAD_BYTES: Final = 8
"""What a reading costs in a message beside its bytes, at most."""


class OutboxViolation(Exception):
    """The server acknowledges or asks for what was never sent. Not for users."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One that is not durable yet."""

    position: int
    """In the order of ``send``; without gaps only as long as none is dropped."""
    data: bytes


class Outbox:
    """What is not settled."""

    def __init__(self, *, next_position: int = 1) -> None:
        self.next_sequence = 1
        """The number that the first reading in flight has, or the next one to fly will have."""
        self.flying: deque[Reading] = deque()
        self.written = 0
        """How many of those in flight were written to the present stream."""
        self.ahead: deque[Reading] = deque()
        self.beyond = 0
        """Readings that are in the spool and not in memory."""
        self.first_beyond = next_position
        """No reading beyond has a lower position."""
        self.records = 0
        self.size_bytes = 0
        self._flying_bytes = 0
        self._ahead_bytes = 0
        self._next_position = next_position

    # -- what comes in ------------------------------------------------------------------------------------

    def make(self, data: bytes) -> Reading:
        """A reading at the next position, counted from now on."""
        reading = Reading(self._next_position, data)
        self._next_position += 1
        self.records += 1
        self.size_bytes += len(data)
        return reading

    def inherit(self, records: int, size_bytes: int, *, first_position: int) -> None:
        """Count what the spool holds of earlier runs."""
        self.beyond += records
        self.records += records
        self.size_bytes += size_bytes
        self.first_beyond = first_position

    def push(self, readings: Iterable[Reading]) -> None:
        """Put readings into memory behind the others, where nothing is beyond."""
        for reading in readings:
            self.ahead.append(reading)
            self._ahead_bytes += len(reading.data)

    def load(self, readings: list[Reading]) -> None:
        """What was beyond is in memory now."""
        self.push(readings)
        self.beyond -= len(readings)
        if readings:
            self.first_beyond = readings[-1].position + 1

    @property
    def last_position(self) -> int:
        """Position of the newest reading; 0: there never was one."""
        return self._next_position - 1

    @property
    def ahead_bytes(self) -> int:
        """Size of what is in memory and not numbered."""
        return self._ahead_bytes

    @property
    def last_known_position(self) -> int:
        """Position of the last reading in memory, 0 when there is none."""
        for readings in (self.ahead, self.flying):
            if readings:
                return readings[-1].position
        return 0

    def oldest_position(self, waiting: "deque[Reading]") -> int:
        """No reading before this one is unsettled; ``waiting`` are those that are not in the spool yet."""
        for readings in (self.flying, self.ahead):
            if readings:
                return readings[0].position
        if self.beyond:
            return self.first_beyond
        return waiting[0].position if waiting else self._next_position

    # -- what goes out ------------------------------------------------------------------------------------

    @property
    def has_more(self) -> bool:
        """Whether anything is to be written."""
        return self.written < len(self.flying) or bool(self.ahead) or self.beyond > 0

    def take(self, *, records: int, size_bytes: int, credit_bytes: int) -> tuple[int, list[bytes]]:
        """Number of the first, and the readings for the next message; empty: the window is closed.

        One reading may always fly, however large.
        """
        first = self.next_sequence + self.written
        message: list[bytes] = []
        size = 0
        while len(message) < records:
            if self.written < len(self.flying):
                data = self.flying[self.written].data
                if message and size + len(data) > size_bytes:
                    break
            elif self.ahead:
                data = self.ahead[0].data
                full = self._flying_bytes + len(data) + READING_OVERHEAD_BYTES > credit_bytes
                if (message and size + len(data) > size_bytes) or (self.flying and full):
                    break
                self.flying.append(self.ahead.popleft())
                self._ahead_bytes -= len(data)
                self._flying_bytes += len(data) + READING_OVERHEAD_BYTES
            else:
                break
            self.written += 1
            message.append(data)
            size += len(data)
        return first, message

    @property
    def last_written(self) -> int:
        """Number of the last reading written to the present stream."""
        return self.next_sequence + self.written - 1

    # -- what the server says -----------------------------------------------------------------------------

    def opened(self, last_sequence: int, *, durable_through: int | None = None) -> int:
        """A stream was opened: what is in flight up to a number is durable, and the rest is to be sent again.

        That number is ``last_sequence``, with a new epoch ``durable_through``. Returns how many were settled. The next
        number is ``last_sequence + 1`` whatever it was here: also of a store that was restored, to which earlier
        numbers never came.
        """
        settled = 0
        durable = last_sequence if durable_through is None else durable_through
        while self.flying and self.next_sequence <= durable:
            self._settle_first()
            settled += 1
        self.next_sequence = last_sequence + 1
        self.written = 0
        return settled

    def acknowledged(self, last_sequence: int) -> list[Reading]:
        """Everything up to here is settled; the readings that were not before. Raises OutboxViolation."""
        if last_sequence > self.last_written:
            raise OutboxViolation(
                f"the server acknowledges reading {last_sequence}, the last one sent was {self.last_written}"
            )
        return [self._settle_first() for _ in range(last_sequence - self.next_sequence + 1)]

    def rewind(self, expected_sequence: int) -> None:
        """Send again from here. Raises OutboxViolation."""
        written = expected_sequence - self.next_sequence
        if not 0 <= written <= self.written:
            raise OutboxViolation(
                f"the server expects reading {expected_sequence}, those sent and not acknowledged are "
                f"{self.next_sequence} to {self.last_written}"
            )
        self.written = written

    def discard_first(self) -> Reading:
        """Give up the first in flight, which the server does not even read; its number goes to the next one."""
        reading = self._settle_first()
        self.next_sequence -= 1
        self.written = 0
        return reading

    def _settle_first(self) -> Reading:
        reading = self.flying.popleft()
        self._count_out(1, len(reading.data))
        self._flying_bytes -= len(reading.data) + READING_OVERHEAD_BYTES
        self.next_sequence += 1
        self.written = max(self.written - 1, 0)
        return reading

    # -- what is given up ---------------------------------------------------------------------------------

    def drop_first_ahead(self) -> bool:
        """Drop the oldest reading that was never sent. False: there is none in memory."""
        if not self.ahead:
            return False
        size = len(self.ahead.popleft().data)
        self._ahead_bytes -= size
        self._count_out(1, size)
        return True

    def dropped(self, records: int, size_bytes: int, *, through: int) -> None:
        """The spool dropped the oldest that were never sent, up to this position."""
        in_memory = 0
        while self.ahead and self.ahead[0].position <= through:
            self._ahead_bytes -= len(self.ahead.popleft().data)
            in_memory += 1
        self.beyond -= records - in_memory
        self.first_beyond = max(self.first_beyond, through + 1)
        self._count_out(records, size_bytes)

    def adopted(self, records: int, size_bytes: int) -> None:
        """Readings of earlier runs turned out to be durable."""
        self.beyond -= records
        self._count_out(records, size_bytes)

    def forget(self, reading: Reading) -> None:
        """One that is in none of the queues was dropped."""
        self._count_out(1, len(reading.data))

    def _count_out(self, records: int, size_bytes: int) -> None:
        self.records -= records
        self.size_bytes -= size_bytes


def refused_readings(
    readings: list[Reading], first_settled: int, first_sequence: int, violations: Iterable[Violation]
) -> list[RefusedReading]:
    """The readings that violations speak of, whose ``index`` counts from ``first_sequence``.

    ``readings`` were settled by the same acknowledgement, the first of them with the number ``first_settled``.
    """
    by_sequence: dict[int, list[Violation]] = {}
    for one in violations:
        told = Violation(index=0, pointer=one.pointer, keyword=one.keyword, message=one.message)
        by_sequence.setdefault(first_sequence + one.index, []).append(told)
    return [
        RefusedReading(
            json=readings[sequence - first_settled].data, sequence=sequence, violations=tuple(told)
        )
        for sequence, told in sorted(by_sequence.items())
        if 0 <= sequence - first_settled < len(readings)
    ]
