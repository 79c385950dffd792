"""Pages of scans, kept for those who scan the same dataset a little later.

A copy from nothing is a scan of the dataset, page by page. Clients that all begin anew within seconds (a fleet that is
rolled out, a store that was restored) would read the same pages once each. Here the frames of these pages are kept for
a few seconds, bounded in bytes over all datasets, so that whoever comes later walks the way of the first one until it
has caught up with it; from there on they share the reads under way.

**What a client is given is as if it had read it when it was read.** A page serves a copy at exactly the position that
it was read from: cursor, base revision S, newest head seen V with its commit id, and origin. The proof is that
nothing else matters. Let a copy stand at position p, with ``covered`` = max(S, c) as in ``Position.covered_revision``;
by induction over its pages:

1. a record whose last change, as of V, lies up to the cursor c is in the copy as that change left it, or is not there;
2. any other record is not in the copy, or in a version not newer than V;
3. a record that is in the copy, and whose last change as of some head from V on is a delete beyond the cursor, was
   deleted at a revision > covered. For when S was the head, the copy was empty or equal to the dataset, so the record
   lived after S; and what lies beyond the cursor is later than what is complete up to it.

A page beyond c that is read at a head H with watermark P gives 1 to 3 for c' and V' = H, provided that V <= H, that V
is in the history of H, and that P <= covered, for then the tombstones of 3 are still there. These are conditions on p,
H and P alone, and the page was held against them (``tokens.judge``) in its own snapshot when it was read from p. They
do not speak of the time at which a copy comes to p, nor of what others read between. So every copy at p may take the
page whenever it gets there, and stands at the same p' afterwards, with the same S and V. In particular S is never
newer than the snapshot of a kept page: S <= V <= H. What watermark and history do later concerns the next page, which
the store reads from p' and which is judged by S and V; a RESET there is what this client would have got, had it been
slow.

Pages by cursor alone would be the naive form of this, and copies diverge by it (``tests/server/test_page_cache.py``
has the models): a scan that began after a delete takes a page from before it, with the deleted record, while its S says that
this delete cannot concern it, so the tombstone may be gone when it gets there. And a V that goes back hides from the
history rule what the copy has seen.

**What is not as if it had come in time** are checkpoints: to a client that has seen a newer revision an old
checkpoint is a step back (G12), and a read that begins after a commit was acknowledged finds it. So a page that
reached the head is never kept here, and each copy reads its last page itself, or shares one whose head is not older
than it may have seen (``Progress.suits``).

**It comes to an end.** A scan on kept pages meets the store after at most ``seconds``, where it goes on like one that
was that much slower. Pages that lead to a position below a watermark that was seen are dropped, so a copy that was
reset for that reason does not walk into it again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from syncline_server.clock import Clock
from syncline_server.feed.frames import Frame
from syncline_server.feed.ring import FrameCache
from syncline_server.feed.tokens import Position

KEPT_SECONDS: Final = 5.0
"""How long a page is kept. The longer, the more has changed since for those who come late."""

OVERHEAD_BYTES: Final = 1 << 10
"""What a page weighs beside its bytes."""

_Key = tuple[int, Position | None]
"""Number of a dataset, and a position in it."""


class PageCache:
    """Keeps the pages of scans of all datasets; the oldest leave first."""

    def __init__(self, clock: Clock, *, max_bytes: int, seconds: float = KEPT_SECONDS) -> None:
        """``max_bytes`` 0: nothing is kept, and reads under way are shared all the same."""
        self._clock = clock
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._frames: OrderedDict[_Key, tuple[float, Frame]] = OrderedDict()
        self._watermarks: dict[int, int] = {}
        """By dataset, of those that have pages here: the newest watermark that a page has shown."""
        self._reads: dict[_Key, asyncio.Task[Frame]] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    # -- what is kept -------------------------------------------------------------------------------------

    def get(self, dataset_number: int, start: Position | None) -> Frame | None:
        """The page that was read from this position, if it is kept."""
        self.expire()
        kept = self._frames.get((dataset_number, start))
        return None if kept is None else kept[1]

    def add(self, dataset_number: int, frame: Frame) -> None:
        """Keep a page that leads from one position of a scan to the next. Any other frame is passed over."""
        end = frame.end
        if end is None or end.complete or end.covered_revision < self._watermarks.get(dataset_number, 0):
            return
        self._discard((dataset_number, frame.start))
        self._frames[dataset_number, frame.start] = (self._clock.monotonic(), frame)
        self._watermarks.setdefault(dataset_number, 0)
        self.size_bytes += _weight(frame)
        self.expire()

    def purged(self, dataset_number: int, revision: int) -> None:
        """Hear of a watermark: pages that lead to where no copy can go on are dropped."""
        known = self._watermarks.get(dataset_number)
        if known is None or revision <= known:
            return
        self._watermarks[dataset_number] = revision
        for key, (_, frame) in tuple(self._frames.items()):
            if key[0] == dataset_number and frame.end and frame.end.covered_revision < revision:
                self._discard(key)

    def drop(self, dataset_number: int) -> None:
        """Forget the pages of a dataset, those under way too."""
        for key in [key for key in self._frames if key[0] == dataset_number]:
            self._discard(key)
        for key in [key for key in self._reads if key[0] == dataset_number]:
            del self._reads[key]
        self._watermarks.pop(dataset_number, None)

    def expire(self) -> None:
        """Let go of what is too old or too much."""
        kept_since = self._clock.monotonic() - self._seconds
        while self._frames:
            key, (added_at, _) = next(iter(self._frames.items()))
            if added_at >= kept_since and self.size_bytes <= self._max_bytes:
                return
            self._discard(key)
        self._watermarks.clear()

    def _discard(self, key: _Key) -> None:
        kept = self._frames.pop(key, None)
        if kept is not None:
            self.size_bytes -= _weight(kept[1])

    # -- what is being read -------------------------------------------------------------------------------

    async def page(
        self, dataset_number: int, start: Position | None, read: Callable[[], Awaitable[Frame]]
    ) -> Frame:
        """The page that follows a position: one that is kept, one that somebody is reading, or the one of ``read``.

        A page that reaches the head comes from a read that began after this call. Raises what ``read`` raises.
        """
        kept = self.get(dataset_number, start)
        if kept is not None:
            return kept
        key = (dataset_number, start)
        under_way = self._reads.get(key)
        if under_way is not None:
            frame = await asyncio.shield(under_way)
            if not frame.is_exact:
                return frame
        task = asyncio.ensure_future(read())
        self._reads[key] = task
        task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(task)

    def _end(self, key: _Key, task: asyncio.Task[Frame]) -> None:
        if self._reads.get(key) is task:
            del self._reads[key]
        if not task.cancelled():
            task.exception()  # whoever awaited it has it; all of them may be gone

    async def aclose(self) -> None:
        """Cancel the reads under way."""
        tasks = tuple(self._reads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _weight(frame: Frame) -> int:
    return len(frame.body) + OVERHEAD_BYTES


class Shelf:
    """Where a subscriber of a channel looks for its next page: among those of the channel, then among the scans'."""

    __slots__ = ("_dataset_number", "_pages", "_shared")

    def __init__(self, shared: FrameCache, pages: PageCache | None, dataset_number: int) -> None:
        self._shared = shared
        self._pages = pages
        self._dataset_number = dataset_number

    def get(self, start: Position | None) -> Frame | None:
        """Page that starts from this position."""
        frame = self._shared.get(start)
        if frame is None and self._pages is not None and (start is None or not start.complete):
            frame = self._pages.get(self._dataset_number, start)
        return frame
