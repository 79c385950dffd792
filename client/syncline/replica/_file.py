"""A replica's records in a SQLite file: written on a thread of its own, read on any."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from syncline._digest import Tally
from syncline._file_lock import FileLock
from syncline._selection import Selection
from syncline.errors import ReplicaUnusable
from syncline.events import Change, ChangeBatch, Checkpoint, Put
from syncline.replica._changes import LOG
from syncline.replica._copy import Point, Range
from syncline.replica._file_read import Reader, is_replica
from syncline.replica._file_schema import check, connect, told
from syncline.replica._file_write import Writer

T = TypeVar("T")
V = TypeVar("V")

ROWS_BUFFERED: Final = 5_000
"""Changes that wait in memory before they go to the file."""

BYTES_BUFFERED: Final = 4 << 20

RECOUNTED_AT_OPEN: Final = 200_000
"""A file of up to so many records is computed anew from its bytes when it is opened: a second at most."""

_OTHERS_FIRST_SECONDS: Final = 10.0
"""How long to wait for the process that is making the file."""

_LOOK_SECONDS: Final = 0.02


class FileCopy(Generic[T]):
    """See CopyStore. ``open`` makes one."""

    def __init__(self, path: Path, dataset: str, selection: Selection, decode: Callable[[bytes], T]) -> None:
        self._path = path
        self._dataset = dataset
        self._selection = selection
        self._decode = decode
        self._lock = FileLock(path)
        self._thread: ThreadPoolExecutor | None = None
        self._writer: Writer[T] | None = None
        self._reader: Reader[T] | None = None
        self._point = Point()
        self._buffer: list[ChangeBatch[T]] = []
        self._rows = self._bytes = 0
        self._token = b""
        self._flight: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, dataset: str, selection: Selection, decode: Callable[[bytes], T]
    ) -> "AsyncIterator[FileCopy[T]]":
        """Open a file for the length of a block; read only, when another process writes it.

        Raises ReplicaUnusable, OSError.
        """
        copy = cls(path, dataset, selection, decode)
        try:
            if not await copy.take_over():
                await copy._wait_for_file()
                copy._check_file()
                copy._reader = Reader(path, decode)
            yield copy
        finally:
            await copy._close()

    async def take_over(self) -> bool:
        """Write the file from now on, if no other process does."""
        if not self._lock.take():
            return False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"replica {self._path.name}")
        writer: Writer[T] = await self._run(
            lambda: Writer(
                self._path,
                self._dataset,
                self._selection.text,
                is_filtered=bool(self._selection.filter),
            )
        )
        self._writer, self._point = writer, writer.point
        if self._point.is_complete and self._point.record_count <= RECOUNTED_AT_OPEN:
            await self.recount()
        if self._reader is None:
            self._reader = Reader(self._path, self._decode)
        return True

    async def _wait_for_file(self) -> None:
        async with asyncio.timeout(_OTHERS_FIRST_SECONDS):
            while not is_replica(self._path):  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(_LOOK_SECONDS)

    def _check_file(self) -> None:
        with told(self._path):
            connection = connect(self._path, read_only=True)
            try:
                check(connection, self._path, self._dataset)
                (selection,) = connection.execute("SELECT selection FROM state").fetchone()
            finally:
                connection.close()
        if selection != self._selection.text:
            raise ReplicaUnusable(
                f"{self._path} is brought up to date by another process, with another filter or other fields"
            )

    async def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._flight is not None:
            await asyncio.wait((self._flight,))
            if not self._flight.cancelled():
                self._flight.exception()  # the next add or settle would have raised it
        if self._thread is not None:
            if self._writer is not None:
                await asyncio.shield(self._run(self._writer.close))
            self._thread.shutdown(wait=False)  # nothing is left for it to do
        self._lock.release()

    async def _run(self, function: Callable[[], V]) -> V:
        def run() -> V:
            with told(self._path):
                return function()

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    # -- the copy that is worked on -------------------------------------------------------------------------

    @property
    def _open_writer(self) -> Writer[T]:
        assert self._writer is not None, "a file that another process writes"
        return self._writer

    @property
    def point(self) -> Point:
        """What is visible."""
        if self._writer is None and self._reader is not None:
            return self._reader.point()
        return self._point

    @property
    def is_read_only(self) -> bool:
        """Whether another process writes the file."""
        return self._writer is None

    @property
    def has_new_copy(self) -> bool:
        """Whether a new copy was begun before the last crash or stop."""
        return bool(self._open_writer.new_token)

    @property
    def resume(self) -> bytes:
        """The token to go on with."""
        return self._open_writer.new_token or self._point.token

    async def begin(self) -> None:
        """Work on a new copy."""
        await self._land()
        self._clear()
        await self._run(self._open_writer.begin)

    async def add(self, batch: ChangeBatch[T], token: bytes) -> None:
        """Take in changes. They wait here until there are enough of them; then they are written meanwhile."""
        self._buffer.append(batch)
        self._token = token
        self._rows += len(batch)
        self._bytes += sum(map(len, batch.json))
        if self._rows >= ROWS_BUFFERED or self._bytes >= BYTES_BUFFERED:
            await self._land()
            batches, token = self._buffer, self._token
            self._clear()
            self._flight = asyncio.ensure_future(self._run(lambda: self._open_writer.take(batches, token)))

    def _clear(self) -> None:
        self._buffer = []
        self._rows = self._bytes = 0
        self._token = b""

    async def _land(self) -> None:
        """Wait for what is being written."""
        if self._flight is not None:
            flight, self._flight = self._flight, None
            await flight

    async def settle(self, checkpoint: Checkpoint, *, want_changes: bool) -> Tally:
        """Write what waits; make it visible if it agrees: in one transaction with the checkpoint's token."""
        await self._land()
        batches = self._buffer
        self._clear()
        writer = self._open_writer
        tally = await self._run(lambda: writer.settle(batches, checkpoint, want_changes=want_changes))
        self._point = writer.point
        return tally

    async def take_changes(self) -> Sequence[Change[T]]:
        """The next changes that became visible."""
        return await self._run(lambda: self._open_writer.take_changes(self._decode))

    async def touch(self, checkpoint: Checkpoint) -> None:
        """The dataset is still what is visible."""
        await self._run(lambda: self._open_writer.touch(checkpoint.token))
        self._point = self._open_writer.point

    # -- finding out where it differs -----------------------------------------------------------------------

    async def summarise(self, ranges: Sequence[Range]) -> Sequence[Tally]:
        """Count and digest of ranges."""
        return await self._run(lambda: self._open_writer.summarise(ranges))

    async def entries(self, part: Range) -> dict[str, bytes]:
        """Digests of a small range."""
        return await self._run(lambda: self._open_writer.entries(part))

    async def mend(self, puts: Sequence[Put[Any]], gone: Sequence[str]) -> None:
        """Put and drop records."""
        await self._run(lambda: self._open_writer.mend(puts, gone))

    async def recount(self) -> bool:
        """Compute count and digest from the bytes."""
        writer = self._open_writer
        as_before = await self._run(writer.recount)
        self._point = writer.point
        if not as_before:
            LOG.warning("%s is not what was written; it will be mended at the next checkpoint", self._path)
        return as_before

    # -- reads ----------------------------------------------------------------------------------------------

    @property
    def _open_reader(self) -> Reader[T]:
        assert self._reader is not None
        return self._reader

    def version(self) -> int:
        """Another number after each commit of another process."""
        return self._open_reader.version()

    def get(self, record_id: str) -> Put[T] | None:
        """A record."""
        return self._open_reader.get(record_id)

    def has(self, record_id: str) -> bool:
        """Whether it is there."""
        return self._open_reader.has(record_id)

    def count(self) -> int:
        """Number of records."""
        return self._open_reader.count()

    def record_ids(self) -> Iterator[str]:
        """All ids of one state."""
        return self._open_reader.record_ids()

    def records(self) -> Iterator[Put[T]]:
        """All records of one state."""
        return self._open_reader.records()
