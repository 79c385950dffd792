"""The ring: encoded frames of the newest groups of commits of one dataset, bounded in bytes and number.

It is a cache. Dropping any of it costs reads of the store and nothing else: a subscriber whose position no
frame starts from reads there.
"""

from collections import deque

from syncline_server.feed.frames import Frame, FrameMaker
from syncline_server.feed.tokens import Position, at_head
from syncline_server.model import Appended, Changes, Head


class FrameCache:
    """Frames by the position that they start from; the oldest leave first."""

    def __init__(self, *, max_bytes: int, max_frames: int, room: "FrameRoom | None" = None) -> None:
        self._room = room
        self._frames: dict[Position | None, Frame] = {}
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self.keeps = max_bytes > 0
        """Whether it keeps anything at all."""
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, start: Position | None) -> Frame | None:
        """Frame that starts from this position."""
        return self._frames.get(start)

    def add(self, frame: Frame) -> None:
        """Keep a frame, in place of another one from the same position."""
        self.discard(frame.start)
        if len(frame.body) > self._max_bytes:
            return
        self._frames[frame.start] = frame
        self.size_bytes += len(frame.body)
        while self.size_bytes > self._max_bytes or len(self._frames) > self._max_frames:
            self.discard(next(iter(self._frames)))
        if self._room is not None:
            self._room.note(self, frame)

    def discard(self, start: Position | None) -> None:
        """Forget the frame that starts from this position, if there is one."""
        frame = self._frames.pop(start, None)
        if frame is not None:
            self.size_bytes -= len(frame.body)

    def clear(self) -> None:
        """Forget all."""
        self._frames.clear()
        self.size_bytes = 0


class FrameRoom:
    """Bounds what many caches keep together, where each of them is small; the oldest frames leave first."""

    def __init__(self, *, max_bytes: int, max_frames: int) -> None:
        self._noted: deque[tuple[FrameCache, Frame]] = deque()
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self.size_bytes = 0
        """Of the frames noted, also those that have left their caches for other reasons."""

    def note(self, cache: FrameCache, frame: Frame) -> None:
        """Count a frame that was added to a cache."""
        self._noted.append((cache, frame))
        self.size_bytes += len(frame.body)
        while self.size_bytes > self._max_bytes or len(self._noted) > self._max_frames:
            cache, frame = self._noted.popleft()
            self.size_bytes -= len(frame.body)
            if cache.get(frame.start) is frame:
                cache.discard(frame.start)


class Ring:
    """Fed in the order of revisions. Where a group is missing or too large, a gap sends subscribers to the store."""

    def __init__(
        self,
        maker: FrameMaker,
        *,
        max_bytes: int,
        max_frames: int,
        max_frame_bytes: int,
        room: FrameRoom | None = None,
    ) -> None:
        self._maker = maker
        self._frames = FrameCache(max_bytes=max_bytes, max_frames=max_frames, room=room)
        self._max_frame_bytes = max_frame_bytes
        self.head: Head | None = None
        """Newest head taken in; a later group must follow it."""
        self.tail: Position | None = None
        """Position of a copy at ``head``."""
        self._bookmark: tuple[int, bytes] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the frames."""
        return self._frames.size_bytes

    def append(self, appended: Appended, *, folded: int | None = None) -> None:
        """Take a group of commits. One that is older than the tail is passed over; ``folded``: see FrameMaker."""
        tail = self.tail
        if tail is not None and appended.head.revision <= tail.revision:
            return
        changes = appended.changes
        if (
            tail is not None
            and changes is not None
            and appended.from_revision == tail.revision
            and _size_bytes(changes) <= self._max_frame_bytes
        ):
            self._frames.add(self._maker.group(tail, appended, changes, folded=folded))
        self._move(appended.head)

    def skip_to(self, head: Head) -> None:
        """Go on from ``head``, with a gap before it, unless the tail is as new."""
        if self.tail is None or self.tail.revision < head.revision:
            self._move(head)

    def follow(self, start: Position, *, max_bytes: int) -> list[Frame]:
        """Frames that follow ``start`` one upon another, of about ``max_bytes`` together; one at least if any."""
        frames: list[Frame] = []
        size_bytes = 0
        position: Position | None = start
        while (frame := self._frames.get(position)) is not None:
            size_bytes += len(frame.body)
            if frames and size_bytes > max_bytes:
                break
            frames.append(frame)
            position = frame.end
        return frames

    def holds(self, position: Position) -> bool:
        """Whether this very position was passed in this process."""
        return position == self.tail or self._frames.get(position) is not None

    def bookmark(self, head: Head) -> bytes:
        """Encode a checkpoint at ``head``; the newest one is encoded once for all."""
        if self._bookmark is None or self._bookmark[0] != head.revision:
            self._bookmark = (head.revision, self._maker.checkpoint(head))
        return self._bookmark[1]

    def clear(self) -> None:
        """Forget everything."""
        self._frames.clear()
        self.head = self.tail = self._bookmark = None

    def _move(self, head: Head) -> None:
        self.head = head
        self.tail = at_head(self._maker.origin, head)


def _size_bytes(changes: Changes) -> int:
    return sum(map(len, changes.data)) + sum(map(len, changes.record_ids)) + 16 * len(changes)
