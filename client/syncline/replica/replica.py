"""``Dataset.replica``: an exact copy that keeps itself."""

import asyncio
import contextlib
import enum
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar, overload

from syncline.errors import OutcomeUnknown, ReplicaReadOnly, ReplicaStopped, StaleData
from syncline.events import Put
from syncline.replica._changes import LOG, Callback, Listeners, OnError, ReplicaChanges
from syncline.replica._copy import CopyStore, now_us
from syncline.replica._follow import Follower
from syncline.replica._memory import MemoryCopy
from syncline.replica._origin import Origin
from syncline.replica._repair import Repair

T = TypeVar("T")
D = TypeVar("D")

FRESH_TIMEOUT_SECONDS: Final = 10.0

_PAUSE_SECONDS: Final = 0.2

_LOOK_SECONDS: Final = 0.05
"""How often a read-only replica looks whether there is something new."""

_PATIENCE_SECONDS: Final = 0.25
"""How long a filtered replica waits for a revision before it asks."""

_TAKE_OVER_SECONDS: Final = 1.0
"""How often it tries whether the writing process is gone."""


class ReplicaState(enum.Enum):
    """What a replica is doing."""

    COPYING = "copying"
    """A complete new copy is under way. An old one, if there is one, can be read."""
    CATCHING_UP = "catching up"
    """It holds a copy, which was not yet brought up to date on the present connection."""
    LIVE = "live"
    """It is brought up to date as the dataset changes."""
    MENDING = "mending"
    """A checkpoint did not prove it; what differs is being fetched. What was proven before can be read."""
    DISCONNECTED = "disconnected"
    """There is no connection; a new one is tried for ever."""
    READ_ONLY = "read only"
    """Another process brings the file up to date."""
    STOPPED = "stopped"
    """An error ended it."""
    CLOSED = "closed"
    """It was not opened yet, or its block was left."""


class Replica(Generic[T]):
    """An exact copy of a dataset, or of what a filter selects, in memory or in a SQLite file.

    Made by ``Dataset.replica`` and entered with ``async with``; from then on it follows the dataset by itself. Reads
    are those of a dict from record id to record, and need no ``await``. What they see changes only at checkpoints,
    all at once, and only when count and digest prove the copy; so it is always a state that the dataset had.

    A file replica holds at once what the file holds. It is for one writing process at a time; others that open it
    are read only, see what that one commits, and take over when it ends.
    """

    def __init__(
        self, origin: Origin[T], path: str | PathLike[str] | None, *, on_error: OnError[T] | None
    ) -> None:
        self._origin = origin
        self._path = None if path is None else Path(path)
        self._listeners: Listeners[T] = Listeners(on_error)
        self._was_opened = False
        self._store: CopyStore[T] | None = None
        self._follower: Follower[T] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self._moved = asyncio.Event()
        self._stopped: BaseException | None = None
        self._stop_was_told = False
        self._equal_at: float | None = None  # time.monotonic() when last known equal, in this process
        self._repairs: list[Repair] = []

    def __repr__(self) -> str:
        place = "memory" if self._path is None else str(self._path)
        return f"<replica of {self._origin.dataset!r} in {place}, {self.state.value}>"

    # -- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._was_opened:
            raise RuntimeError("a replica is opened once; dataset.replica() makes another one")
        self._was_opened = True
        async with AsyncExitStack() as stack:
            self._store = await self._open_store(stack)
            self._stack = stack.pop_all()
        self._task = asyncio.create_task(self._run(self._store), name=f"replica of {self._origin.dataset}")
        return self

    async def _open_store(self, stack: AsyncExitStack) -> CopyStore[T]:
        if self._path is None:
            return MemoryCopy(is_filtered=bool(self._origin.selection.filter))
        from syncline.replica._file import FileCopy  # sqlite3 only where it is used

        origin = self._origin
        opened = FileCopy.open(self._path, origin.dataset, origin.selection, origin.decode)
        copy: FileCopy[T] = await stack.enter_async_context(opened)
        return copy

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait((closing,))  # or a file would stay locked, and its thread would never end
            raise
        if exc_type is None and self._stopped is not None and not self._stop_was_told:
            raise self._stop_error()

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self._listeners.end(None)
        self._store = None
        await self._stack.aclose()
        self._notify()

    async def _run(self, store: CopyStore[T]) -> None:
        try:
            await self._follow(store)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # raised from everything that is awaited of the replica
            LOG.exception("replica of %s: stopped", self._origin.dataset)
            self._stopped = error
            self._listeners.end(self._stop_error(told=False))
            self._notify()
            if not isinstance(error, Exception):
                raise

    async def _look_on(self, store: CopyStore[T]) -> None:
        """Tell who waits when another process has written; until that one ends."""
        version, next_try = store.version(), time.monotonic()
        while True:
            if time.monotonic() >= next_try:
                if await store.take_over():
                    LOG.info("replica of %s: taken over from another process", self._origin.dataset)
                    return
                next_try += _TAKE_OVER_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            if (newer := store.version()) != version:
                version = newer
                self._notify()

    async def _follow(self, store: CopyStore[T]) -> None:
        if store.is_read_only:
            await self._look_on(store)
        mender = self._origin.mender()

        async def mend(worked_on: CopyStore[T], revision: int) -> int:
            repair = await mender.mend(worked_on, revision)
            self._repairs.append(repair)
            LOG.warning("replica of %s: %s", self._origin.dataset, repair)
            return repair.revision

        self._follower = Follower(
            self._origin.dataset,
            store,
            self._origin.open_feed,
            mend=mend,
            listeners=self._listeners,
            moved=self._note,
        )
        await self._follower.run()

    def _note(self, equal: bool) -> None:
        """Told by the follower: the copy equals the dataset now, or something else has changed."""
        if equal:
            self._equal_at = time.monotonic()
        self._notify()

    def _notify(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # -- reads ----------------------------------------------------------------------------------------------

    @property
    def _copy(self) -> CopyStore[T]:
        if self._store is None:
            raise RuntimeError(
                "the replica is not open: use it inside `async with dataset.replica(…) as replica:`"
            )
        return self._store

    def __getitem__(self, record_id: str) -> T:
        return self.record(record_id).data

    @overload
    def get(self, record_id: str) -> T | None: ...
    @overload
    def get(self, record_id: str, default: D) -> T | D: ...
    def get(self, record_id: str, default: Any = None) -> Any:
        """The record with this id, or ``default``. Raises DecodeError."""
        put = self._copy.get(record_id)
        return default if put is None else put.data

    def record(self, record_id: str) -> Put[T]:
        """The record with its revision, commit time and JSON text. Raises KeyError."""
        put = self._copy.get(record_id)
        if put is None:
            raise KeyError(record_id)
        return put

    def __contains__(self, record_id: object) -> bool:
        return isinstance(record_id, str) and self._copy.has(record_id)

    def __iter__(self) -> Iterator[str]:
        return self._copy.record_ids()

    def __len__(self) -> int:
        return self._copy.count()

    def keys(self) -> Iterator[str]:
        """All record ids, of one state of the copy, however long the loop takes."""
        return self._copy.record_ids()

    def records(self) -> Iterator[Put[T]]:
        """All records with revision and JSON text, of one state of the copy."""
        return self._copy.records()

    def items(self) -> Iterator[tuple[str, T]]:
        """All ids with their records, of one state of the copy. Raises DecodeError."""
        return ((put.record_id, put.data) for put in self._copy.records())

    def values(self) -> Iterator[T]:
        """All records, of one state of the copy. Raises DecodeError."""
        return (put.data for put in self._copy.records())

    def where(self, predicate: Callable[[T], object]) -> list[T]:
        """The records for which ``predicate`` is true. Looks at all of them."""
        return [data for data in self.values() if predicate(data)]

    # -- where it is ----------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision that the copy equals; 0 before there is one."""
        return self._copy.point.revision

    @property
    def digest(self) -> bytes:
        """16 bytes; see ``Digest``."""
        return self._copy.point.digest

    @property
    def token(self) -> bytes:
        """Goes on after the revision, for ``changes`` and ``sync`` with the same filter and fields."""
        return self._copy.point.token

    @property
    def is_complete(self) -> bool:
        """Whether there is a copy: of this run, or of an earlier one in the file."""
        return self._copy.point.is_complete

    @property
    def is_verified(self) -> bool:
        """Whether count and digest of the copy were those of its checkpoint.

        False where there is none yet, and where the server keeps none, because its filters select too many records.
        """
        return self._copy.point.is_verified

    @property
    def is_read_only(self) -> bool:
        """Whether another process brings the file up to date."""
        return self._copy.is_read_only

    @property
    def staleness(self) -> timedelta | None:
        """How long ago the copy was last known to be the same as the dataset; None: never, or the clock was changed.

        While nothing happens the server says so every 10 seconds (its setting), and this begins at zero again.
        """
        ages: list[timedelta] = []
        if self._equal_at is not None:
            ages.append(timedelta(seconds=time.monotonic() - self._equal_at))
        if self._equal_at is None or self.is_read_only:  # what an earlier run, or another process, knew
            equal_us = self._copy.point.equal_time_us
            age_us = now_us() - equal_us
            ages += [timedelta(microseconds=age_us)] if equal_us and age_us >= 0 else []
        return min(ages, default=None)

    @property
    def state(self) -> ReplicaState:
        """What it is doing."""
        if self._store is None or self._task is None:
            return ReplicaState.CLOSED
        if self._stopped is not None:
            return ReplicaState.STOPPED
        if self.is_read_only:
            return ReplicaState.READ_ONLY
        return self._following()

    def _following(self) -> ReplicaState:
        follower = self._follower
        if follower is None or not follower.is_connected:
            return ReplicaState.DISCONNECTED
        if follower.is_mending:
            return ReplicaState.MENDING
        if follower.is_copying:
            return ReplicaState.COPYING
        return ReplicaState.CATCHING_UP if self._equal_at is None else ReplicaState.LIVE

    @property
    def repairs(self) -> list[Repair]:
        """What the repairs of this run took, oldest first."""
        return list(self._repairs)

    # -- waiting --------------------------------------------------------------------------------------------

    async def ready(self, *, timeout_seconds: float | None = None) -> None:
        """Wait until it was brought up to date once since it was opened. Raises StaleData, ReplicaStopped.

        Where another process brings it up to date: until there is a copy.
        """
        await self._until(
            lambda: self._equal_at is not None or (self.is_read_only and self.is_complete),
            timeout_seconds,
            "it was not brought up to date once",
        )

    async def verify(self) -> bool:
        """Compute count and digest anew from the bytes of all records; whether they are as they were.

        Where they are not, the copy is mended. A file of up to 200,000 records is looked at in this way whenever it
        is opened. Takes some 4 s for a million. Raises ReplicaReadOnly, ReplicaUnusable.
        """
        self._refuse_read_only()
        is_intact = await self._copy.recount()
        if not is_intact and self._follower is not None:
            await self._follower.look_again()
        return is_intact

    async def wait_for(self, revision: int, *, timeout_seconds: float | None = None) -> None:
        """Wait until it has a revision, such as that of a push. Raises StaleData, ReplicaStopped."""

        def is_reached() -> bool:
            return self.is_complete and self.revision >= revision

        missing = f"it has not reached revision {revision}"
        patience = _PATIENCE_SECONDS if timeout_seconds is None else min(timeout_seconds, _PATIENCE_SECONDS)
        if self._origin.selection.filter and patience < (timeout_seconds or math.inf):
            # Of a revision that its filter does not concern it would hear at the next checkpoint only, up to 10 s later.
            with contextlib.suppress(StaleData):
                await self._until(is_reached, patience, missing)
                return
            if self.state is ReplicaState.LIVE and self._follower is not None:
                await self._follower.look_again()
            timeout_seconds = None if timeout_seconds is None else timeout_seconds - patience
        await self._until(is_reached, timeout_seconds, missing)

    async def fresh(self, max_age: timedelta, *, timeout_seconds: float = FRESH_TIMEOUT_SECONDS) -> None:
        """Make sure that it was the same as the dataset at most ``max_age`` before this call.

        Where that is not known, asks the server for its newest revision and waits for it. Raises StaleData when that
        takes longer than ``timeout_seconds``, ReplicaStopped.
        """
        self._raise_if_stopped()
        age = self.staleness
        if self.is_complete and age is not None and age <= max_age:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                asked_at, head = await self._ask_for_head()
                await self.wait_for(head)
        except TimeoutError:
            age = self.staleness
            known = "never" if age is None else f"{age.total_seconds():.1f} s ago"
            raise StaleData(
                f"replica of {self._origin.dataset!r}: last known to be up to date {known}, and not within "
                f"{timeout_seconds:g} s ({self.state.value}, at revision {self.revision})"
            ) from None
        # It has everything that there was when the question was asked.
        self._equal_at = max(self._equal_at or 0.0, asked_at)

    async def _ask_for_head(self) -> tuple[float, int]:
        """The newest revision of the dataset, and when it was asked for."""
        while True:
            self._raise_if_stopped()
            asked_at = time.monotonic()
            try:
                return asked_at, await self._origin.head()
            except OutcomeUnknown:
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _until(
        self, condition: Callable[[], bool], timeout_seconds: float | None, missing: str
    ) -> None:
        self._raise_if_stopped()
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    await self._moved.wait()
                    self._raise_if_stopped()
        except TimeoutError:
            raise StaleData(
                f"replica of {self._origin.dataset!r}: {missing} in {timeout_seconds:g} s ({self.state.value}, "
                f"at revision {self.revision})"
            ) from None

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stop_error()
        if self._store is None or self._task is None:
            raise RuntimeError(
                "the replica is not open: use it inside `async with dataset.replica(…) as replica:`"
            )

    def _stop_error(self, *, told: bool = True) -> ReplicaStopped:
        self._stop_was_told |= told
        error = ReplicaStopped(f"the replica of {self._origin.dataset!r} was stopped: {self._stopped}")
        error.__cause__ = self._stopped
        return error

    # -- hearing of changes ---------------------------------------------------------------------------------

    def on_change(self, callback: Callback[T]) -> Callable[[], None]:
        """Call ``callback`` with every change (Put, Delete, Remove) from now on; returns the function that ends this.

        It is called after the change has become visible, in order, also for what a new copy brings or lacks. The
        replica waits for it, and for what it returns if that can be awaited. What it raises stops the replica, or
        goes to its ``on_error``. A crash in between may lose calls: what counts is the copy.

        Raises ReplicaReadOnly where another process brings the file up to date.
        """
        self._refuse_read_only()
        return self._listeners.add(callback)

    def changes(self) -> ReplicaChanges[T]:
        """The changes from now on, as an asynchronous iterator; whoever is slow gets the newest ones.

        Raises ReplicaReadOnly where another process brings the file up to date.
        """
        self._refuse_read_only()
        return self._listeners.iterator()

    def _refuse_read_only(self) -> None:
        if self._copy.is_read_only:
            raise ReplicaReadOnly(
                f"another process brings {self._path} up to date, and only there changes are known; here, read it"
            )
