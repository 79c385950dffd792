"""One subscriber that is being served: a state machine that is polled.

*Frames at hand follow the position: send them. The store has more: read it. Otherwise wait.* The wait is
registered in the same step as the check, so no commit can fall between them, and a wake-up only means
"look again". It has no task of its own and no future, so that one stream can hold thousands.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from syncline_server.errors import Unavailable
from syncline_server.feed.channel import Channel
from syncline_server.feed.frames import Frame
from syncline_server.feed.progress import Progress
from syncline_server.metrics import Metrics


class Host(ABC):
    """Who polls a subscription."""

    __slots__ = ()

    @abstractmethod
    def wake(self) -> None:
        """Poll it again, soon. May come for nothing, and more than once."""

    @abstractmethod
    def ask_read(self, subscription: "Subscription") -> None:
        """It needs a read: call its ``begin_read``, now or when there is room."""

    @abstractmethod
    def end_read(self, subscription: "Subscription") -> None:
        """Hear that a read that was begun is over, or that nobody waits for it any more."""


class Pace(ABC):
    """When a subscription may go on from one checkpoint towards the next. What is pending then is conflated."""

    __slots__ = ()

    @abstractmethod
    def holds(self, subscription: "Subscription", now: float) -> bool:
        """Whether it has to wait. Whoever answers yes wakes it later."""

    @abstractmethod
    def reached(self, now: float) -> None:
        """Hear that a checkpoint with new content is being sent."""

    @abstractmethod
    def close(self) -> None:
        """Hear that the subscription has ended."""


class Subscription:
    """One subscriber of one channel. ``poll`` it when its host is woken; ``close`` it at the end."""

    __slots__ = (
        "_bookmark_at",
        "_first",
        "_metrics",
        "_min_revision",
        "_read",
        "_rereads",
        "_wants_read",
        "bookmark_seconds",
        "channel",
        "closed",
        "host",
        "pace",
        "progress",
        "reached_revision",
        "waits",
    )

    def __init__(
        self,
        channel: Channel,
        progress: Progress,
        host: Host,
        *,
        bookmark_seconds: float,
        metrics: Metrics,
        first: Frame | None = None,
        min_revision: int = 0,
        pace: Pace | None = None,
    ) -> None:
        self.channel = channel
        self.progress = progress
        self.host = host
        self.bookmark_seconds = bookmark_seconds
        self.closed = False
        position = progress.position
        self.reached_revision = position.revision if position is not None and position.complete else 0
        """Of the newest checkpoint sent, or of the one that the token came with."""
        self.waits = False
        """It has registered for the next wake-up: polling it before brings nothing."""
        self._metrics = metrics
        self._first = first
        self._min_revision = min_revision
        self.pace = pace
        self._bookmark_at = 0.0
        self._read: asyncio.Task[Frame] | None = None
        self._rereads = False
        self._wants_read = False

    # -- what the host calls ------------------------------------------------------------------------------

    def poll(self, now: float) -> Sequence[bytes]:
        """Bodies that follow; none: nothing for now, and the host is woken when it is worth another look.

        Raises what ends the subscription: NotFound(DATASET_NOT_FOUND), the store's troubles.
        """
        self.waits = False
        if self._first is not None:
            first, self._first = self._first, None
            return self._take((first,), now)
        if self._read is not None:
            frame = self._finish_read(self._read)
            return () if frame is None else self._take((frame,), now)
        if self._wants_read:
            return ()
        if self.channel.newest_revision < self._min_revision:
            self.channel.wait(self, self._min_revision)
            return ()
        self._min_revision = 0
        return self._follow(now)

    def _follow(self, now: float) -> Sequence[bytes]:
        progress, channel = self.progress, self.channel
        if not self._bookmark_at and progress.is_exact and progress.head is not None:
            return self._bookmark(now)  # where it starts, before what has come since
        held = self.pace is not None and progress.is_exact and self.pace.holds(self, now)
        if not held:
            frames = self._ready()
            if frames:
                return self._take_ready(frames, now)
            if frames is None or progress.must_read(channel.known_revision):
                self._ask_read()
                return ()
        if now >= self._bookmark_at and progress.is_exact and progress.head is not None:
            if not held:
                # What stood still because nothing concerned it moves now, which may bring frames.
                channel.settle()
                frames = self._ready()
            return self._bookmark(now) if held or not frames else self._take_ready(frames, now)
        self._wait()
        return ()

    def _wait(self) -> None:
        self.channel.wait(self)
        self.waits = True

    def begin_read(self) -> None:
        """Begin the read that was asked for."""
        self._wants_read = False
        self.progress.confirm()
        self._start_read(afresh=False)

    @property
    def wants_read(self) -> bool:
        """Whether it has asked for a read that was not begun."""
        return self._wants_read

    def give_up_read(self) -> None:
        """Drop what was read or is being read; ask for it again when there is a use for it."""
        if self._read is not None:
            self._drop_read(self._read)
            self._wants_read = True

    def wake(self) -> None:
        """Hear from the channel, the clock or the pace that it is worth a look."""
        if not self.closed:
            self.host.wake()

    @property
    def going_away(self) -> bytes | None:
        """The last checkpoint before the server goes; None when the copy is not exact."""
        progress = self.progress
        if not progress.is_exact or progress.head is None:
            return None
        return self.channel.maker.checkpoint(progress.head, going_away=True)

    def close(self) -> None:
        """Wait for nothing any more."""
        if self.closed:
            return
        self.closed = True
        self.channel.forget(self)
        if self.pace is not None:
            self.pace.close()
        if self._read is not None:
            self._drop_read(self._read)

    # -- bookmarks ----------------------------------------------------------------------------------------

    @property
    def bookmark_at(self) -> float:
        """When it should have another checkpoint, on the monotonic clock."""
        return self._bookmark_at

    def _bookmark(self, now: float) -> Sequence[bytes]:
        head = self.progress.head
        assert head is not None
        self._bookmark_at = now + self.bookmark_seconds
        self.reached_revision = max(self.reached_revision, head.revision)
        return (self.channel.ring.bookmark(head),)

    # -- frames -------------------------------------------------------------------------------------------

    def _ready(self) -> Sequence[Frame] | None:
        """Frames to send now; None: a read is to be made of what is at hand."""
        progress, channel = self.progress, self.channel
        frames = progress.ready(channel.ring, channel.shelf)
        if self.pace is None or not frames or not progress.is_exact:
            return frames
        end = frames[-1].end
        if len(frames) == 1 and (end is None or not channel.ring.follow(end, max_bytes=1)):
            return frames
        return None  # in a page of the store each record is once

    def _take_ready(self, frames: Sequence[Frame], now: float) -> Sequence[bytes]:
        self._metrics.ring_hits.inc(len(frames))
        return self._take(frames, now)

    def _take(self, frames: Sequence[Frame], now: float) -> Sequence[bytes]:
        progress, channel = self.progress, self.channel
        for frame in frames:
            laps = progress.laps
            progress.take(frame)
            if progress.laps > laps:
                self._metrics.scan_laps.inc()
            if frame.reset is not None:
                self._metrics.resets[frame.reset].inc()
        if progress.is_exact:
            assert progress.head is not None
            self._bookmark_at = now + self.bookmark_seconds
            self.reached_revision = max(self.reached_revision, progress.head.revision)
            if self.pace is not None:
                self.pace.reached(now)
            elif not progress.must_read(channel.known_revision) and not self._ready():
                self._wait()
        elif not progress.ready(channel.ring, channel.shelf):
            # The next page is read while this one is being sent.
            self._ask_read()
        return [frame.body for frame in frames]

    # -- reads --------------------------------------------------------------------------------------------

    def _ask_read(self) -> None:
        self._wants_read = True
        self.host.ask_read(self)

    def _start_read(self, *, afresh: bool) -> None:
        self._read = self.channel.start_read(self.progress, afresh=afresh)
        self._read.add_done_callback(self._read_ended)

    def _drop_read(self, task: asyncio.Task[Frame]) -> None:
        task.remove_done_callback(self._read_ended)
        self._read = None
        self._rereads = False
        self.host.end_read(self)

    def _read_ended(self, task: asyncio.Task[Frame]) -> None:
        del task
        self.wake()

    def _finish_read(self, task: asyncio.Task[Frame]) -> Frame | None:
        if not task.done():
            return None
        if task.cancelled():
            raise Unavailable("SHUTTING_DOWN", "the server is shutting down: connect again")
        frame = task.result()
        if not self.progress.suits(frame) and not self._rereads:
            self._rereads = True
            self._start_read(afresh=True)
            return None
        self._rereads = False
        self._read = None
        self.host.end_read(self)
        return frame
