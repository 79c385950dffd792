"""Who hears of changes: callbacks, and iterators."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Self, TypeVar

from syncline.errors import ReplicaStopped
from syncline.events import Change

T = TypeVar("T")

LOG: Final = logging.getLogger("syncline.replica")

Callback = Callable[[Change[T]], object]
"""Takes one change; may be a coroutine function."""

OnError = Callable[[Exception, Change[T]], object]
"""Takes what a callback raised and the change that it raised it for; may be a coroutine function."""


class ReplicaChanges(Generic[T]):
    """The changes of a replica from the moment it was made: iterate it, leave it by ``async with``.

    Whoever is slow gets the newest change of each record, those before it are left out.

    Raises ReplicaStopped when the replica stops by an error; ends when it is closed.
    """

    __slots__ = ("_arrived", "_ended", "_leave", "_waiting")

    def __init__(self, leave: Callable[["ReplicaChanges[T]"], None]) -> None:
        self._waiting: dict[str, Change[T]] = {}
        self._arrived = asyncio.Event()
        self._ended: BaseException | None = None
        self._leave = leave

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[T]:
        while not self._waiting:
            if self._ended is not None:
                raise self._ended
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    async def aclose(self) -> None:
        """Hear no more. Iterating on ends at once."""
        self._waiting.clear()
        self.end(StopAsyncIteration())
        self._leave(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def take(self, changes: Sequence[Change[T]]) -> None:
        """Keep changes for the iterator."""
        for change in changes:
            self._waiting.pop(change.record_id, None)
            self._waiting[change.record_id] = change
        self._arrived.set()

    def end(self, error: BaseException) -> None:
        """Raise this when all that came was handed out."""
        if self._ended is None:
            self._ended = error
        self._arrived.set()


class Listeners(Generic[T]):
    """All that hear of the changes of one replica."""

    def __init__(self, on_error: OnError[T] | None) -> None:
        self._on_error = on_error
        self._callbacks: dict[object, Callback[T]] = {}
        self._iterators: set[ReplicaChanges[T]] = set()

    def __bool__(self) -> bool:
        return bool(self._callbacks or self._iterators)

    def add(self, callback: Callback[T]) -> Callable[[], None]:
        """Call it for every change. Returns the function that ends this."""
        mark = object()
        self._callbacks[mark] = callback
        return lambda: self._callbacks.pop(mark, None) and None

    def iterator(self) -> ReplicaChanges[T]:
        """One more iterator."""
        changes: ReplicaChanges[T] = ReplicaChanges(self._iterators.discard)
        self._iterators.add(changes)
        return changes

    def end(self, error: ReplicaStopped | None) -> None:
        """No more changes will come."""
        for iterator in tuple(self._iterators):
            iterator.end(StopAsyncIteration() if error is None else error)

    async def tell(self, changes: Sequence[Change[T]]) -> None:
        """Hand out changes in order. Raises what a callback raised, unless there is a handler for that."""
        for iterator in self._iterators:
            iterator.take(changes)
        if not self._callbacks:
            return
        for change in changes:
            for callback in tuple(self._callbacks.values()):
                await self._call(callback, change)

    async def _call(self, callback: Callback[T], change: Change[T]) -> None:
        try:
            await _call(callback, change)
        except Exception as error:
            if self._on_error is None:
                error.add_note(f"raised by a callback of a replica for {change!r:.200}")
                raise
            LOG.warning("a callback raised %r for %s; its handler has it", error, change.record_id)
            await _call(self._on_error, error, change)


async def _call(function: Callable[..., object], *args: Any) -> None:
    result = function(*args)
    if inspect.isawaitable(result):
        await result


async def end_quietly(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended; what it raises is known elsewhere."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
