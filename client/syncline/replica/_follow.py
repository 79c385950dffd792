"""The loop that brings a replica up to date, proves it at each checkpoint, and mends it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar

from syncline._digest import Tally
from syncline.errors import FeedBroken, NotOffered, OutcomeUnknown, Overloaded, ReplicaStopped
from syncline.events import ChangeBatch, Checkpoint, Reset
from syncline.replica._apply import Course, Verdict
from syncline.replica._changes import LOG, Listeners
from syncline.replica._copy import CopyStore

T = TypeVar("T")


class Feed(Protocol):
    """What the loop needs of a feed."""

    @property
    def is_connected(self) -> bool:
        """Whether something came on the present stream."""

    def ack(self, revision: int) -> None:
        """Tell the server that the copy was brought to a checkpoint."""

    async def aclose(self) -> None:
        """End it; who reads it is told."""

    async def next_part(self) -> ChangeBatch[Any] | Checkpoint | Reset:
        """The next part. Raises StopAsyncIteration when the feed was closed."""


OpenFeed = Callable[[bytes], AbstractAsyncContextManager[Feed]]
"""Opens a feed that goes on after a token."""


class Follower(Generic[T]):
    """Follows one dataset into one store."""

    def __init__(
        self,
        name: str,
        store: CopyStore[T],
        open_feed: OpenFeed,
        *,
        mend: Callable[[CopyStore[T], int], Awaitable[int]],
        listeners: Listeners[T],
        moved: Callable[[bool], None],
    ) -> None:
        self._name = name
        self._store = store
        self._open_feed = open_feed
        self._mend = mend
        self._listeners = listeners
        self._moved = moved
        self._course = Course(is_complete=store.point.is_complete and not store.has_new_copy)
        self._feed: Feed | None = None
        self._looks_again = False
        self.is_mending = False

    @property
    def is_connected(self) -> bool:
        """Whether the feed has a connection that brought something."""
        return self._feed is not None and self._feed.is_connected

    @property
    def is_copying(self) -> bool:
        """Whether a complete new copy is under way."""
        return self._course.is_new_copy

    async def run(self) -> None:
        """Follow until cancelled. Raises what a new connection cannot mend, and what a callback raised."""
        if self._course.is_new_copy and not self._store.has_new_copy:
            await self._store.begin()
        token = self._store.resume
        while True:
            async with self._open_feed(token) as feed:
                self._feed = feed
                token = await self._take(feed)

    async def look_again(self) -> None:
        """Have the copy compared with the dataset now, and not only at the next checkpoint."""
        if self._feed is not None and not self.is_copying:
            self._looks_again = True
            await self._feed.aclose()

    async def _take(self, feed: Feed) -> bytes:
        """Follow one feed until a new one is needed; the token for that."""
        while True:
            try:
                part = await feed.next_part()
            except StopAsyncIteration:
                if not self._looks_again:
                    raise ReplicaStopped("the client was closed, and the replica with it") from None
                self._looks_again = False
                return self._store.resume
            if isinstance(part, ChangeBatch):
                await self._store.add(part, part.token)
            elif isinstance(part, Reset):
                LOG.info("replica of %s: a complete new copy follows: %s", self._name, part.message)
                self._course.reset()
                await self._store.begin()
            elif not await self._settle(part):
                return b""

    async def _settle(self, checkpoint: Checkpoint) -> bool:
        """Deal with a checkpoint. False: a new feed without a token is needed."""
        if self._says_nothing(checkpoint):
            await self._store.touch(checkpoint)
            self._shown(checkpoint)
            return True
        while True:
            tally = await self._store.settle(checkpoint, want_changes=bool(self._listeners))
            match self._course.judge(checkpoint, tally):
                case Verdict.SHOW:
                    self.is_mending = False
                    self._shown(checkpoint)
                    await self._tell()
                    return True
                case Verdict.WAIT:
                    return True
                case Verdict.MEND:
                    if not await self._find(checkpoint, tally):
                        return True
                case Verdict.RENEW:
                    LOG.error(
                        "replica of %s: at revision %d it differs still; everything is fetched anew",
                        self._name,
                        checkpoint.revision,
                    )
                    self._course.renew(checkpoint, tally)
                    await self._store.begin()
                    return False

    def _shown(self, checkpoint: Checkpoint) -> None:
        self._moved(True)
        if self._feed is not None:
            self._feed.ack(checkpoint.revision)

    def _says_nothing(self, checkpoint: Checkpoint) -> bool:
        """Whether nothing has happened since the last checkpoint, and that one was shown."""
        point = self._store.point
        return (
            not self._course.is_new_copy
            and not self.is_mending
            and checkpoint.token == point.token
            and point.is_verified == bool(checkpoint.digest)
        )

    async def _find(self, checkpoint: Checkpoint, tally: Tally) -> bool:
        """Mend the copy that is worked on; False: not now, try again at the next checkpoint."""
        LOG.warning(
            "replica of %s: at revision %d it has %d records with digest %s, the dataset %d with %s; "
            "looking for what differs",
            self._name,
            checkpoint.revision,
            tally.count,
            tally.digest.hex(),
            checkpoint.record_count,
            checkpoint.digest.hex(),
        )
        self.is_mending = True
        self._moved(False)
        try:
            revision = await self._mend(self._store, checkpoint.revision)
        except (OutcomeUnknown, Overloaded) as error:
            LOG.warning("replica of %s: the server cannot tell what differs: %s", self._name, error.message)
            return False
        except (NotOffered, FeedBroken) as error:
            LOG.warning("replica of %s: it cannot be found out what differs: %s", self._name, error.message)
            revision = 0
        self._course.mended(revision)
        return True

    async def _tell(self) -> None:
        while changes := await self._store.take_changes():
            if self._listeners:
                await self._listeners.tell(changes)
