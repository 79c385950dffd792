"""``Dataset.load``: any number of rows in bounded memory.

One batch is being filled while the others are under way, so at most ``in_flight + 1`` batches are held.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from syncline._call import PATIENT, PATIENT_TIMEOUT_SECONDS, move_violations
from syncline._convert import Codec
from syncline.errors import EncodeError, SynclineError
from syncline.models import LoadResult, PushResult, RecordStatus
from syncline.v1.push_service_pb2 import PushRequest

if TYPE_CHECKING:
    from syncline.dataset import Dataset

BATCH_BYTES: Final = 1 << 20
"""A batch is sent at this size, whatever its number of rows: a quarter of what a call may bring by default."""

MAX_KEPT_VIOLATIONS: Final = 1_000
"""Memory stays bounded also when every row is refused."""


async def encoded_batches(
    rows: Iterable[Any] | AsyncIterable[Any], codec: Codec[Any], *, batch: int
) -> AsyncGenerator[list[bytes], None]:
    """Rows as JSON, in lists of at most ``batch`` rows and about BATCH_BYTES.

    Raises EncodeError naming the row.
    """
    records: list[bytes] = []
    size_bytes = count = 0
    encode = codec.encode
    async with aclosing(_each(rows, batch)) as chunks:
        async for chunk in chunks:
            for row in chunk:
                try:
                    data = encode(row)
                except EncodeError as error:
                    raise EncodeError(f"rows[{count}]: {error.message}") from error.__cause__
                if records and (len(records) >= batch or size_bytes + len(data) > BATCH_BYTES):
                    yield records
                    records, size_bytes = [], 0
                records.append(data)
                size_bytes += len(data)
                count += 1
    if records:
        yield records


async def _each(rows: Iterable[Any] | AsyncIterable[Any], batch: int) -> AsyncGenerator[Iterable[Any], None]:
    """Rows of either kind of iterable, in handfuls; between those of a plain one the event loop has its turn."""
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield (row,)
        return
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) >= min(batch, 1_000):
            yield chunk
            chunk = []
            await asyncio.sleep(0)
    yield chunk


class Loader:
    """One load."""

    def __init__(
        self,
        dataset: "Dataset[Any]",
        codec: Codec[Any],
        source: str,
        *,
        batch: int,
        in_flight: int,
        partial: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        if batch < 1 or in_flight < 1:
            raise ValueError("load(): batch and in_flight must be at least 1")
        self._dataset = dataset
        self._codec = codec
        self._source = source
        self._batch = batch
        self._in_flight = in_flight
        self._partial = partial
        self._progress = progress
        self._result = LoadResult()

    async def run(self, rows: Iterable[Any] | AsyncIterable[Any]) -> LoadResult:
        """Push all rows. What fails first is raised, once the batches under way have ended."""
        if isinstance(rows, (str, bytes, dict)):
            raise TypeError("load() takes an iterable of records; put the one that you have in a list")
        running: set[asyncio.Task[None]] = set()
        try:
            await self._push_all(rows, running)
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise
        except BaseException as error:
            await asyncio.gather(*running, return_exceptions=True)  # the first failure speaks for all
            error.add_note(f"{self._result.records} rows had been accepted by then")
            raise
        return self._result

    async def _push_all(
        self, rows: Iterable[Any] | AsyncIterable[Any], running: set[asyncio.Task[None]]
    ) -> None:
        offset = 0
        async with aclosing(encoded_batches(rows, self._codec, batch=self._batch)) as batches:
            async for records in batches:
                await _wait_until_fewer(running, self._in_flight)
                running.add(asyncio.create_task(self._push(records, offset), name="load"))
                offset += len(records)
        await _wait_until_fewer(running, 1)

    async def _push(self, records: list[bytes], offset: int) -> None:
        request = PushRequest(source=self._source, records=records, partial=self._partial)
        try:
            result = await self._dataset.push_request(
                request, timeout_seconds=PATIENT_TIMEOUT_SECONDS, policy=PATIENT
            )
        except SynclineError as error:
            error.violations = move_violations(error.violations, offset)
            raise
        self._add(result, offset)
        if self._progress is not None:
            self._progress(self._result.records)

    def _add(self, result: PushResult, offset: int) -> None:
        statuses = list(result.results.statuses)
        total = self._result
        invalid = statuses.count(RecordStatus.INVALID)
        room = MAX_KEPT_VIOLATIONS - len(total.violations)
        self._result = replace(
            total,
            records=total.records + len(statuses) - invalid,
            calls=total.calls + 1,
            created=total.created + statuses.count(RecordStatus.CREATED),
            updated=total.updated + statuses.count(RecordStatus.UPDATED),
            unchanged=total.unchanged + statuses.count(RecordStatus.UNCHANGED),
            superseded=total.superseded + statuses.count(RecordStatus.SUPERSEDED),
            invalid=total.invalid + invalid,
            revision=max(total.revision, result.revision),
            violations=total.violations + move_violations(result.violations[:room], offset),
        )


async def _wait_until_fewer(running: set[asyncio.Task[None]], limit: int) -> None:
    """Wait until fewer than ``limit`` tasks run. Raises what one of those that ended has raised."""
    while len(running) >= limit:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        running -= done
        failures = [failure for task in done if (failure := task.exception()) is not None]
        if failures:
            raise failures[0]
