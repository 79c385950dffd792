"""What the subscribers of one dataset share: ring, pages, wake-ups, and what is known of the head."""

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

from syncline_server.feed import tokens
from syncline_server.feed.frames import Frame, FrameMaker
from syncline_server.feed.pages import PageCache, Shelf
from syncline_server.feed.progress import Progress
from syncline_server.feed.ring import FrameCache, FrameRoom, Ring
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Position
from syncline_server.metrics import Metrics
from syncline_server.model import Appended, Page, ResetReason
from syncline_server.store.abc import Store

_WAKE_AT_ONCE: Final = 256
"""Waiters woken in one turn of the event loop, so that ten thousand do not hold up everything else."""


class Waiter(Protocol):
    """Who waits for a wake-up."""

    def wake(self) -> None:
        """Look again. Must not block, and may come for nothing."""


class Channel:
    """One dataset that is followed."""

    def __init__(
        self,
        store: Store,
        dataset_number: int,
        maker: FrameMaker,
        settings: FeedSettings,
        metrics: Metrics,
        room: FrameRoom | None = None,
        pages: PageCache | None = None,
    ) -> None:
        """``room`` bounds what this one keeps together with others. ``pages``: of scans, shared by all datasets."""
        self.maker = maker
        self.ring = Ring(
            maker,
            max_bytes=settings.ring_bytes,
            max_frames=settings.ring_frames,
            max_frame_bytes=settings.frame_bytes,
            room=room,
        )
        self.shared = FrameCache(max_bytes=settings.shared_bytes, max_frames=settings.ring_frames, room=room)
        self.shelf = Shelf(self.shared, pages, dataset_number)
        self.known_revision = 0
        """Newest revision heard of. Wrong at worst until a page is read."""
        self.followers: dict[Progress, None] = {}
        """A dict, because a set of thousands takes three times the memory."""
        self.users = 0
        """Calls that hold on to this; at 0 it may go."""
        self.left_at = 0.0
        """When the last of them left, on the monotonic clock."""
        self._store = store
        self._dataset_number = dataset_number
        self._metrics = metrics
        self._pages = pages
        self._page_limits = (settings.page_changes, settings.page_bytes)
        self._reads: dict[Position | None, asyncio.Task[Frame]] = {}
        self._demanded: dict[Position | None, None] = {}
        """Positions from which a subscriber has asked to go on, until their page has been read."""
        self._tasks: dict[asyncio.Task[Frame], None] = {}
        self._waiters: dict[Waiter, None] = {}
        self._to_wake: list[Waiter] = []

    # -- what is heard ------------------------------------------------------------------------------------

    def take(self, appended: Appended) -> None:
        """Hear of a group of commits. It is encoded here, once, if anybody follows."""
        if self.followers:
            self.ring.append(appended)
        else:
            self.ring.skip_to(appended.head)
        self.hear(appended.head.revision)

    def hear(self, revision: int) -> None:
        """Hear that the dataset has reached a revision."""
        if revision > self.known_revision:
            self.known_revision = revision
            self.wake()

    def settle(self) -> None:
        """Before a checkpoint that is due: move on what stood still. Frames may be at hand then.

        Nothing to do here, where every commit moves the ring.
        """

    def drop(self) -> None:
        """Forget everything kept; whoever follows looks into the store next."""
        self.ring.clear()
        self.shared.clear()
        if self._pages is not None:
            self._pages.drop(self._dataset_number)
        self._reads.clear()
        self._demanded.clear()
        for progress in self.followers:
            progress.doubt()
        self.wake()

    @property
    def unverified(self) -> bool:
        """Checkpoints come without count and digest."""
        return False

    @property
    def newest_revision(self) -> int:
        """Newest revision of the dataset heard of."""
        return self.known_revision

    @property
    def lag_revisions(self) -> int:
        """How far behind the slowest follower is."""
        revisions = (0 if p.position is None else p.position.revision for p in self.followers)
        return max((self.known_revision - revision for revision in revisions), default=0)

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, waiter: Waiter, revision: int = 0) -> None:
        """Register for the next wake-up, in the same step as the look that found nothing.

        ``revision``: also when the dataset has it, whether anything concerned the copy or not.
        """
        del revision  # every commit wakes all here
        self._waiters[waiter] = None

    def forget(self, waiter: Waiter) -> None:
        """Take back a ``wait``."""
        self._waiters.pop(waiter, None)

    def wake(self) -> None:
        """Wake all who wait."""
        if not self._waiters:
            return
        under_way = bool(self._to_wake)
        self._to_wake.extend(self._waiters)
        self._waiters.clear()
        if not under_way:
            self._wake_some()

    def _wake_some(self) -> None:
        first = self._to_wake[:_WAKE_AT_ONCE]
        del self._to_wake[:_WAKE_AT_ONCE]
        for waiter in first:
            waiter.wake()
        if self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_some)

    # -- reading ------------------------------------------------------------------------------------------

    def start_read(self, progress: Progress, *, afresh: bool = False) -> asyncio.Task[Frame]:
        """Begin to read what follows, or join a read that is under way from the same position.

        ``afresh``: do not join one, because it was begun before this subscriber came; one begun now sees what the
        subscriber may have seen. The task raises NotFound(DATASET_NOT_FOUND) and the store's troubles.
        """
        self._demanded[progress.position] = None
        under_way = None if afresh else self._reads.get(progress.position)
        return under_way or self._begin(progress.position, progress.page_changes, progress.page_bytes)

    def _begin(self, position: Position | None, max_changes: int, max_bytes: int) -> asyncio.Task[Frame]:
        task = asyncio.get_running_loop().create_task(self._read(position, max_changes, max_bytes))
        self._reads[position] = task
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._end(position, done))
        return task

    def _end(self, position: Position | None, task: asyncio.Task[Frame]) -> None:
        self._tasks.pop(task, None)
        if self._reads.get(position) is task:
            del self._reads[position]
        if not task.cancelled():
            task.exception()  # whoever awaited it has it; all of them may be gone

    async def read_on(self, start: Position | None, *, max_changes: int, max_bytes: int) -> Frame:
        """Read what follows ``start``, for a caller that keeps the position itself.

        Raises NotFound(DATASET_NOT_FOUND) and the store's troubles.
        """
        if self._pages is None or (max_changes, max_bytes) != self._page_limits:
            return await self._read_apart(start, max_changes, max_bytes)
        return await self._pages.page(
            self._dataset_number, start, lambda: self._read_apart(start, max_changes, max_bytes)
        )

    async def _read_apart(self, start: Position | None, max_changes: int, max_bytes: int) -> Frame:
        page = await read_page(
            self._store, self._dataset_number, start, max_changes=max_changes, max_bytes=max_bytes
        )
        reason = judge_page(self.maker, start, page, self._store.info.histories)
        frame = frame_of(self.maker, start, page, reason)
        self._keep(frame, page, max_changes, max_bytes)
        return frame

    def _keep(self, frame: Frame, page: Page, max_changes: int, max_bytes: int) -> None:
        """Keep a page of the usual size for those who scan a little later."""
        if self._pages is not None:
            self._pages.purged(self._dataset_number, page.head.purge_revision)
            if (max_changes, max_bytes) == self._page_limits:
                self._pages.add(self._dataset_number, frame)

    async def _read(self, start: Position | None, max_changes: int, max_bytes: int) -> Frame:
        known_revision = self.known_revision
        page = await read_page(
            self._store, self._dataset_number, start, max_changes=max_changes, max_bytes=max_bytes
        )
        if self.known_revision == known_revision:
            # Nothing was heard meanwhile, so the page knows better, also when it knows of less.
            self.known_revision = page.head.revision
        self._metrics.ring_misses.inc()
        reason = judge_page(self.maker, start, page, self._store.info.histories)
        demanded = start in self._demanded
        self._demanded.pop(start, None)
        if demanded and reason is None and not page.complete and self.shared.keeps:
            # The store's thread reads the next page while this one is encoded and sent. One page, no further:
            # that one begins the next only when a subscriber has asked for it.
            following = tokens.advance(start, page, self.maker.origin)
            if following not in self._reads and self.shelf.get(following) is None:
                self._begin(following, max_changes, max_bytes)
        frame = frame_of(self.maker, start, page, reason)
        self._keep(frame, page, max_changes, max_bytes)
        if frame.reset is None and frame.start != frame.end:
            self.shared.add(frame)
        if self.ring.head is None:
            self.ring.skip_to(page.head)
        return frame

    async def aclose(self) -> None:
        """Cancel the reads under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_page(
    store: Store, dataset_number: int, start: Position | None, *, max_changes: int, max_bytes: int
) -> Page:
    """Read the page that follows ``start``, with what is needed to judge it."""
    return await store.read_changes(
        dataset_number,
        after=0 if start is None else start.position,
        max_changes=max_changes,
        max_bytes=max_bytes,
        seen_revision=0 if start is None else start.seen_revision,
    )


def judge_page(
    maker: FrameMaker, start: Position | None, page: Page, histories: Collection[bytes]
) -> ResetReason | None:
    """Whether a copy at ``start`` can be continued with this page; if not, why."""
    if start is None:
        return None
    return tokens.judge(
        start,
        origin=maker.origin,
        histories=histories,
        head=page.head,
        seen_commit_id=page.seen_commit_id,
    )


def frame_of(maker: FrameMaker, start: Position | None, page: Page, reason: ResetReason | None) -> Frame:
    """Frame of a page, or of the reset that it calls for."""
    if start is not None and reason is not None:
        return maker.reset(start, reason, page.head)
    return maker.page(start, page)
