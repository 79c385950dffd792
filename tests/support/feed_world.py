"""A dataset and its copies on the I/O-free core of the feed, for tests that let anything happen in any order."""

import copy as copying
import os
from dataclasses import replace

from support.feed_encoder import Copy, LineEncoder
from support.feed_store import Table
from syncline_server.clock import SystemClock
from syncline_server.feed import tokens
from syncline_server.feed.channel import frame_of, judge_page
from syncline_server.feed.frames import FrameMaker
from syncline_server.feed.pages import OVERHEAD_BYTES, PageCache, Shelf
from syncline_server.feed.progress import Progress
from syncline_server.feed.ring import FrameCache, Ring
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import NO_FILTER, Origin
from syncline_server.model import Appended, Head

SECRET = b"s" * 32
SETTINGS = FeedSettings(page_changes=2, page_bytes=60, scan_page_bytes=60, message_bytes=600)
CACHE_BYTES = 2_000


class Follower:
    """A client, and the server's view of its stream (None: not connected)."""

    def __init__(self):
        self.copy = Copy()
        self.progress = None


class World:
    """One dataset, one process that serves it, any number of copies.

    A copy checks every batch and, by digest, every checkpoint; ``reach_the_head`` checks that it gets there.
    """

    def __init__(self):
        self.store_id, self.histories = b"store-id", []
        self.filter_fingerprint = NO_FILTER
        self.backup = None
        self.followers = []
        self.create()

    def create(self):
        self.incarnation = os.urandom(16)
        self.table = Table(head=Head(commit_id=self.incarnation[:8]), commit_ids={0: self.incarnation[:8]})
        self.restart()

    def restart(self):
        """Nothing in memory is left."""
        self.histories = [*self.histories, os.urandom(8)]
        self.origin = Origin(
            store_id=self.store_id,
            history_id=self.histories[-1],
            incarnation=self.incarnation,
            filter_fingerprint=self.filter_fingerprint,
        )
        self.maker = FrameMaker(LineEncoder(), self.origin, SECRET)
        self.ring = Ring(self.maker, max_bytes=CACHE_BYTES, max_frames=4, max_frame_bytes=700)
        self.shared = FrameCache(max_bytes=CACHE_BYTES, max_frames=4)
        self.pages = PageCache(SystemClock(), max_bytes=CACHE_BYTES + 4 * OVERHEAD_BYTES)
        self.shelf = Shelf(self.shared, self.pages, 1)
        for follower in self.followers:
            follower.progress = None

    # -- the dataset --------------------------------------------------------------------------------------

    def write(self, actions, *, announced=True):
        before = self.table.head
        self.table.commit(actions)
        if announced and self.table.head != before:
            self.announce(
                Appended(
                    dataset_number=1,
                    from_revision=before.revision,
                    head=self.table.head,
                    changes=self.table.changes(before.last_position),
                )
            )

    def announce(self, appended):
        self.ring.append(appended)

    def replace(self, kept):
        gone = {record_id: None for record_id in self.table.live() if record_id not in kept}
        self.write([*kept.items(), *gone.items()])

    def purge(self, revision):
        self.table.purge(revision)

    def keep_a_backup(self):
        self.backup = (copying.deepcopy(self.table), list(self.histories), self.incarnation)

    def restore(self):
        table, self.histories, self.incarnation = self.backup
        self.table = copying.deepcopy(table)
        self.restart()

    def change_filter(self, fingerprint):
        self.filter_fingerprint = fingerprint
        self.restart()

    # -- the copies ---------------------------------------------------------------------------------------

    def come(self):
        self.followers.append(Follower())
        return self.followers[-1]

    def step(self, follower):
        """One message, as a subscription would send it."""
        if follower.progress is None:
            self.connect(follower)
        progress = follower.progress
        frames = progress.ready(self.ring, self.shelf)
        if not frames:
            progress.confirm()
            frames = [self.read(progress)]
        for frame in frames:
            progress.take(frame)
            follower.copy.take(frame.body)

    def connect(self, follower):
        token = follower.copy.token
        position = tokens.decode(token, store_id=self.store_id, secret=SECRET) if token else None
        follower.progress = Progress(position, settings=SETTINGS, floor_revision=self.table.head.revision)

    def read(self, progress):
        start = progress.position
        after, seen = (start.position, start.seen_revision) if start else (0, 0)
        page = self.table.page(after, progress.page_changes, progress.page_bytes, seen)
        frame = self.judge(start, page)
        if frame.reset is None and frame.start != frame.end:
            self.shared.add(frame)
        self.pages.purged(1, page.head.purge_revision)
        self.pages.add(1, frame)
        if self.ring.head is None:
            self.ring.skip_to(page.head)
        return frame

    def judge(self, start, page):
        return frame_of(self.maker, start, page, judge_page(self.maker, start, page, self.histories))

    def reach_the_head(self, follower):
        """Whatever happened before, a bounded number of messages makes the copy exact."""
        for _ in range(10 + 2 * len(self.table.rows)):
            self.step(follower)
            if follower.copy.exact and follower.copy.revision == self.table.head.revision:
                break
        assert follower.copy.exact
        assert follower.copy.records == self.table.live()


class ForgetsPurges(World):
    """Goes on from a position below the watermark."""

    def judge(self, start, page):
        if start is not None and start.covered_revision < page.head.purge_revision:
            page = replace(page, seen_commit_id=page.seen_commit_id or start.seen_commit_id)
            page = replace(page, head=replace(page.head, purge_revision=0))
        return super().judge(start, page)


class TrustsCommitsInProgress(World):
    """Counts a commit as sent when a part of it was."""

    def judge(self, start, page):
        trusted = start and replace(start, base_revision=max(start.base_revision, start.revision))
        return replace(super().judge(trusted, page), start=start)


class ForgetsHistory(World):
    """Looks at revisions only, which are used again after a restore."""

    def judge(self, start, page):
        if start is not None and start.seen_revision <= page.head.revision:
            page = replace(page, seen_commit_id=start.seen_commit_id)
            self.histories = [*self.histories, start.origin.history_id]
        return super().judge(start, page)


class RingTakesAnything(World):
    """Appends what does not follow as if it did."""

    def announce(self, appended):
        if self.ring.head is not None:
            appended = replace(appended, from_revision=self.ring.head.revision)
        self.ring.append(appended)


class ChecksOnConnectOnly(World):
    """Judges a token when it comes, and no page after that."""

    def connect(self, follower):
        super().connect(follower)
        self.unjudged = follower.progress.position

    def judge(self, start, page):
        return super().judge(start, page) if start is self.unjudged else self.maker.page(start, page)


FAULTY = [ForgetsPurges, TrustsCommitsInProgress, ForgetsHistory, RingTakesAnything, ChecksOnConnectOnly]
