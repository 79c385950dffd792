"""The ring and the pace of scans, by themselves."""

from dataclasses import replace

import pytest

from support.feed_encoder import LineEncoder, parse
from support.feed_store import Table
from syncline_server.feed.frames import FrameMaker
from syncline_server.feed.progress import Progress
from syncline_server.feed.ring import FrameCache, Ring
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Origin, at_head
from syncline_server.model import Appended, Head

ORIGIN = Origin(store_id=b"store-id", history_id=b"history1", incarnation=b"i" * 16)


class Writer:
    """Commits to a table and announces."""

    def __init__(self):
        self.table = Table(head=Head(commit_id=b"i" * 8), commit_ids={0: b"i" * 8})
        self.encoder = LineEncoder()
        self.maker = FrameMaker(self.encoder, ORIGIN, b"s" * 32)

    def ring(self, *, max_bytes=1 << 20, max_frames=100, max_frame_bytes=1 << 20):
        ring = Ring(self.maker, max_bytes=max_bytes, max_frames=max_frames, max_frame_bytes=max_frame_bytes)
        ring.skip_to(self.table.head)
        return ring

    def commit(self, size=10):
        before = self.table.head
        self.table.commit([(f"k{before.revision}", b"x" * size)])
        return Appended(
            dataset_number=1,
            from_revision=before.revision,
            head=self.table.head,
            changes=self.table.changes(before.last_position),
        )

    @property
    def position(self):
        return at_head(ORIGIN, self.table.head)


@pytest.fixture
def writer():
    return Writer()


def revisions(frames):
    return [frame.end.revision for frame in frames]


def test_frames_follow_one_another(writer):
    ring, start = writer.ring(), writer.position
    for _ in range(3):
        ring.append(writer.commit())
    frames = ring.follow(start, max_bytes=1 << 20)
    assert revisions(frames) == [1, 2, 3]
    assert [e["event"] for e in parse(b"".join(f.body for f in frames))] == ["changes", "checkpoint"] * 3
    assert ring.follow(frames[1].end, max_bytes=1 << 20) == [frames[2]]
    assert ring.follow(writer.position, max_bytes=1 << 20) == []


def test_joined_frames_stay_near_the_limit_but_one_always_goes(writer):
    ring, start = writer.ring(), writer.position
    for _ in range(10):
        ring.append(writer.commit(size=1_000))
    one = len(ring.follow(start, max_bytes=0)[0].body)
    assert revisions(ring.follow(start, max_bytes=0)) == [1]
    frames = ring.follow(start, max_bytes=3 * one + 100)
    assert revisions(frames) == [1, 2, 3]


def test_f35_bounded_in_bytes_and_number(writer):
    ring = writer.ring(max_bytes=20_000)
    few = writer.ring(max_frames=4)
    start = writer.position
    for _ in range(50):
        appended = writer.commit(size=1_000)
        ring.append(appended)
        few.append(appended)
        assert ring.size_bytes <= 20_000
    assert ring.follow(start, max_bytes=1 << 20) == []
    newest = at_head(ORIGIN, replace(appended.head))
    assert few.tail == ring.tail == newest
    assert few.size_bytes < 4 * 2_000


def test_f28_a_group_too_large_leaves_a_gap(writer):
    ring, start = writer.ring(max_frame_bytes=500), writer.position
    ring.append(writer.commit())
    ring.append(writer.commit(size=1_000))
    after = writer.position
    ring.append(writer.commit())
    assert revisions(ring.follow(start, max_bytes=1 << 20)) == [1]
    assert revisions(ring.follow(after, max_bytes=1 << 20)) == [3]


def test_a_group_without_its_changes_leaves_a_gap(writer):
    ring, start = writer.ring(), writer.position
    ring.append(replace(writer.commit(), changes=None))
    assert (ring.follow(start, max_bytes=1), ring.tail) == ([], writer.position)


def test_f11_only_what_follows_is_taken(writer):
    ring, start = writer.ring(), writer.position
    first, second, third = writer.commit(), writer.commit(), writer.commit()
    ring.append(first)
    ring.append(third)
    ring.append(second)
    ring.append(first)
    assert revisions(ring.follow(start, max_bytes=1 << 20)) == [1]
    assert ring.tail == writer.position


def test_bookmarks_are_encoded_once_for_each_head(writer):
    ring = writer.ring()
    first = ring.bookmark(writer.table.head)
    assert ring.bookmark(writer.table.head) is first
    writer.commit()
    assert parse(ring.bookmark(writer.table.head))[0]["revision"] == 1


def test_cache_replaces_and_forgets(writer):
    ring, start = writer.ring(), writer.position
    ring.append(writer.commit())
    (frame,) = ring.follow(start, max_bytes=1)
    cache = FrameCache(max_bytes=len(frame.body), max_frames=10)
    cache.add(frame)
    cache.add(frame)
    assert (len(cache), cache.size_bytes) == (1, len(frame.body))
    cache.add(replace(frame, start=frame.end, body=frame.body + b"x"))
    assert cache.get(start) is frame, "what can never fit pushes nothing out"
    cache.clear()
    assert (len(cache), cache.size_bytes, cache.get(start)) == (0, 0, None)


def test_f4_pages_grow_while_a_scan_does_not_catch_up(writer):
    for _ in range(100):
        writer.commit()
    settings = FeedSettings(page_changes=2, page_bytes=100, scan_page_bytes=350)
    progress = Progress(None, settings=settings)
    sizes = []
    while progress.position is None or not progress.position.complete:
        sizes.append((progress.page_changes, progress.page_bytes))
        start = progress.position
        page = writer.table.page(start.position if start else 0, progress.page_changes, 1 << 20, 0)
        progress.take(writer.maker.page(start, page))
        if len(sizes) < 500:
            for _ in range(3):
                writer.commit()
    assert sizes[0] == (2, 100)
    assert sizes[-1] == (16, 350)
    assert len(sizes) < 200, "three commits for each page of two never end, for each page of sixteen they do"
    assert (progress.laps, progress.page_changes) == (0, 2)


def test_a_frame_that_does_not_follow_is_refused(writer):
    ring, start = writer.ring(), writer.position
    ring.append(writer.commit())
    (frame,) = ring.follow(start, max_bytes=1)
    with pytest.raises(ValueError, match="does not follow"):
        Progress(frame.end, settings=FeedSettings()).take(frame)
