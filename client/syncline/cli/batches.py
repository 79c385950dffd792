"""Batches of records from a reader that may block, for a loop that may not.

A thread reads ahead by at most two batches. A batch is handed out when it is full, when the input ends, or
when nothing more has come for a while, so that records of a slow pipe are on their way soon.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Final

from syncline.cli.files import BadRecord, Record

LINGER_SECONDS: Final = 0.2
"""How long a batch that is not full waits for more."""

_READ_AHEAD_BATCHES: Final = 2


@dataclass(slots=True)
class Batch:
    """Records that are sent in one call, and those between them that could not be read."""

    records: list[Record] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def data(self) -> list[bytes]:
        """The JSON texts of the records."""
        return [record.data for record in self.records]

    def __len__(self) -> int:
        return len(self.records) + len(self.bad)


class _ReadAhead:
    """What the thread and the loop share; every access is under ``changed``."""

    def __init__(self, rows: Iterable[Record | BadRecord], most_records: int, most_bytes: int) -> None:
        self.changed = threading.Condition()
        self.full: deque[Batch] = deque()
        self.growing = Batch()
        self.ended = False
        self.error: Exception | None = None
        self.abandoned = False
        self._rows = rows
        self._most_records = most_records
        self._most_bytes = most_bytes

    def read(self) -> None:
        """Read all rows; runs on the thread."""
        error: Exception | None = None
        try:
            for row in self._rows:
                if not self._add(row):
                    return
        except Exception as caught:  # noqa: BLE001 - the loop raises it, after the batches before it
            error = caught
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def _add(self, row: Record | BadRecord) -> bool:
        size = len(row.data) if isinstance(row, Record) else 0
        with self.changed:
            batch = self.growing
            if len(batch) >= self._most_records or (
                len(batch) and batch.size_bytes + size > self._most_bytes
            ):
                self.full.append(batch)
                self.growing = batch = Batch()
                self.changed.notify_all()
                while len(self.full) >= _READ_AHEAD_BATCHES and not self.abandoned:
                    self.changed.wait()
            if isinstance(row, Record):
                batch.records.append(row)
                batch.size_bytes += size
            else:
                batch.bad.append(row)
            return not self.abandoned

    def take(self, linger_seconds: float) -> Batch | None:
        """The next batch, or None at the end. Blocks; raises what the reader raised."""
        with self.changed:
            while True:
                self.changed.wait_for(lambda: self.full or self.ended or self.abandoned, linger_seconds)
                if self.full:
                    batch = self.full.popleft()
                    self.changed.notify_all()
                    return batch
                if len(self.growing):
                    batch, self.growing = self.growing, Batch()
                    return batch
                if self.error is not None:
                    raise self.error
                if self.ended or self.abandoned:
                    return None

    def abandon(self) -> None:
        """Let both sides go."""
        with self.changed:
            self.abandoned = True
            self.changed.notify_all()


async def batches(
    rows: Iterable[Record | BadRecord],
    *,
    most_records: int,
    most_bytes: int,
    linger_seconds: float = LINGER_SECONDS,
) -> AsyncGenerator[Batch, None]:
    """Batches of at most so many records and bytes; a record that is larger than that goes alone."""
    shared = _ReadAhead(rows, most_records, most_bytes)
    # A daemon: one that waits for a pipe must not hold up the end of the process.
    threading.Thread(target=shared.read, name="syncline-input", daemon=True).start()
    try:
        while (batch := await asyncio.to_thread(shared.take, linger_seconds)) is not None:
            yield batch
    finally:
        shared.abandon()
