"""The loop of one subscription.

*Frames at hand follow the position: send them. The store has more: read it. Otherwise wait.* The wait is
registered in the same step as the check, so no commit can fall between them, and a wake-up only means
"look again".
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from syncline_server.feed.channel import Channel
from syncline_server.feed.frames import Frame
from syncline_server.feed.progress import Progress
from syncline_server.metrics import Metrics


class Subscription:
    """One subscriber that is being served."""

    def __init__(
        self,
        channel: Channel,
        progress: Progress,
        *,
        monotonic: Callable[[], float],
        checkpoint_seconds: float,
        metrics: Metrics,
    ) -> None:
        self.channel = channel
        self.progress = progress
        self._monotonic = monotonic
        self._checkpoint_seconds = checkpoint_seconds
        self._metrics = metrics
        self._checkpoint_at: float | None = None
        self._ahead: asyncio.Task[Frame] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._draining = False

    @property
    def bookmark_due_at(self) -> float:
        """When it should have another checkpoint, on the monotonic clock."""
        return 0.0 if self._checkpoint_at is None else self._checkpoint_at + self._checkpoint_seconds

    def wake(self) -> None:
        """Let it look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def drain(self) -> None:
        """Let it end after the next message."""
        self._draining = True
        self.wake()

    async def messages(self) -> AsyncGenerator[bytes]:
        """Messages in order, until it is drained. Raises NotFound(DATASET_NOT_FOUND)."""
        if self.progress.head is not None:
            yield self._bookmark()
        while True:
            draining = self._draining
            frames = await self._next_frames()
            if frames:
                yield self._take(frames)
            if draining:
                break
            if not frames:
                if self._monotonic() >= self.bookmark_due_at:
                    yield self._bookmark()
                else:
                    await self._wait()
        if self.progress.is_exact and self.progress.head is not None:
            yield self.channel.maker.checkpoint(self.progress.head, going_away=True)

    async def _next_frames(self) -> Sequence[Frame]:
        """Frames that follow; none when there is nothing new. Gives way to others only when it has to read."""
        progress, channel = self.progress, self.channel
        task, self._ahead = self._ahead, None
        if task is None:
            frames = progress.ready(channel.ring, channel.shared)
            if frames:
                self._metrics.ring_hits.inc(len(frames))
                return frames
            if not progress.must_read(channel.known_revision):
                return ()
            progress.confirm()
            task = channel.start_read(progress)
        return (await channel.finish_read(progress, task),)

    def _take(self, frames: Sequence[Frame]) -> bytes:
        progress, channel = self.progress, self.channel
        for frame in frames:
            laps = progress.laps
            progress.take(frame)
            if progress.laps > laps:
                self._metrics.scan_laps.inc()
            if frame.reset is not None:
                self._metrics.resets[frame.reset].inc()
        if progress.is_exact:
            self._checkpoint_at = self._monotonic()
        elif not progress.ready(channel.ring, channel.shared):
            # The next page is read while this message is being sent.
            self._ahead = channel.start_read(progress)
        return frames[0].body if len(frames) == 1 else b"".join(frame.body for frame in frames)

    def _bookmark(self) -> bytes:
        assert self.progress.head is not None
        self._checkpoint_at = self._monotonic()
        return self.channel.ring.bookmark(self.progress.head)

    async def _wait(self) -> None:
        self._waiter = waiter = self.channel.wait()
        try:
            await waiter
        finally:
            self._waiter = None
            self.channel.forget(waiter)
