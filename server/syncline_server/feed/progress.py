"""Where one subscriber stands and what it needs next. No I/O, so that models can drive it."""

from typing import Protocol

from syncline_server.feed.frames import Frame
from syncline_server.feed.ring import Ring
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Position
from syncline_server.model import Head

_MAX_DOUBLINGS = 3


class Pages(Protocol):
    """Where pages that were read for others are kept."""

    def get(self, start: Position | None) -> Frame | None:
        """Page that starts from this position."""


class Progress:
    """The state of a subscription between two frames."""

    __slots__ = (
        "_lap_goal",
        "_scan_floor_revision",
        "_settings",
        "confirmed",
        "floor_revision",
        "head",
        "laps",
        "position",
    )

    def __init__(self, position: Position | None, *, settings: FeedSettings, floor_revision: int = 0) -> None:
        self.position = position
        self.head: Head | None = None
        """Of the last checkpoint; None before the first."""
        self.confirmed = position is None
        """Nothing has called the position into question since the last read began."""
        self.floor_revision = floor_revision
        """Frames that tell of an older head than this are not for this subscriber."""
        self.laps = 0
        self._lap_goal: int | None = None
        self._scan_floor_revision = 0
        """A scan after a reset must not begin with what led to it."""
        self._settings = settings

    @property
    def is_exact(self) -> bool:
        """The copy equals the dataset at ``head``."""
        return self.confirmed and self.position is not None and self.position.complete

    def confirm(self, head: Head | None = None) -> None:
        """Take the position for good.

        Either a read of what follows begins, which will judge it, or the copy is known to be exact at ``head``.
        """
        self.confirmed = True
        if head is not None:
            self.head = head

    def doubt(self) -> None:
        """Look into the store before anything else is sent."""
        self.confirmed = False

    def ready(self, ring: Ring, pages: Pages) -> list[Frame]:
        """Frames that are at hand and follow; empty: there are none."""
        if not self.confirmed:
            return []
        if self.position is not None and self.position.complete:
            frames = ring.follow(self.position, max_bytes=self._settings.message_bytes)
            if frames:
                return frames
        page = pages.get(self.position)
        return [page] if page is not None and self.suits(page) else []

    def suits(self, frame: Frame) -> bool:
        """Whether it was read late enough for this subscriber.

        A page inside a scan tells of no head, so it may be older than what the subscriber has seen: see ``pages``.
        """
        floor = self._scan_floor_revision if frame.is_inside else self.floor_revision
        return frame.head.revision >= floor

    def must_read(self, known_revision: int) -> bool:
        """Whether the store has, or may have, what follows."""
        return not self.is_exact or self.position is None or self.position.revision < known_revision

    @property
    def page_changes(self) -> int:
        """Most changes for the next page: more with every lap, so that a scan outruns the writers."""
        return self._settings.page_changes << min(self.laps, _MAX_DOUBLINGS)

    @property
    def page_bytes(self) -> int:
        """Most bytes for the next page."""
        settings = self._settings
        return min(
            settings.page_bytes << min(self.laps, _MAX_DOUBLINGS),
            max(settings.page_bytes, settings.scan_page_bytes),
        )

    def take(self, frame: Frame) -> None:
        """Note that a frame from this position is being sent."""
        if frame.start != self.position:
            raise ValueError("the frame does not follow")
        self.position = frame.end
        if frame.end is None:
            self._scan_floor_revision = frame.head.revision
            self.floor_revision = max(self.floor_revision, frame.head.revision)
            self._start_laps()
        elif frame.end.complete:
            self.head = frame.head
            self._start_laps()
        else:
            self._count_laps(frame.end.revision, frame.head.revision)

    def _start_laps(self) -> None:
        self.laps = 0
        self._lap_goal = None

    def _count_laps(self, revision: int, head_revision: int) -> None:
        """A lap is over when a scan has passed the head that it began with and there is more."""
        if self._lap_goal is None:
            self._lap_goal = head_revision
        elif revision > self._lap_goal:
            self.laps += 1
            self._lap_goal = head_revision
