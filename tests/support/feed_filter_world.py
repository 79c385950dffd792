"""A dataset and filtered copies of it on the real feed, where a test decides what happens next."""

import asyncio
import contextlib
import copy as copying
from dataclasses import replace

import pytest

from support.feed_encoder import Copy
from support.feed_house import House
from support.feed_store import MemoryStore, Table
from syncline_server.feed import filtered_channel, filtered_first, filtered_hub
from syncline_server.feed.filtered_rows import select
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.subscription import Host
from syncline_server.filters.selection import Row, parse_selection
from syncline_server.model import Appended

SELECTIONS = [
    parse_selection("even = true", []),
    parse_selection("v = 1", []),
    parse_selection('record_id = "a*" OR v > 2', []),
    parse_selection("v = 9", []),
    parse_selection("even = true", ["v"]),
    parse_selection("", ["even"]),
]
VALUES = [b'{"even":%s,"v":%d}' % (b"false" if v % 2 else b"true", v) for v in range(4)]


class Records(Table):
    """A table that also keeps what simpler rules about removes would look at."""

    def __init__(self, head, commit_ids):
        super().__init__(head=head, commit_ids=commit_ids)
        self.created = {}
        self.replaced = {}

    def commit(self, actions):
        for record_id, data in dict(actions).items():
            old = self.rows.get(record_id)
            if old is None or old.data is None:
                self.created[record_id] = self.head.revision + 1
            if (old.data if old else None) != data:
                self.replaced[record_id] = old.data if old else None
        super().commit(actions)


class Follower(Host):
    """A client, and its subscription (None: not connected)."""

    def __init__(self, selection):
        self.selection = selection
        self.copy = Copy()
        self.subscription = None

    def wake(self):
        pass

    def ask_read(self, subscription):
        subscription.begin_read()

    def end_read(self, subscription):
        pass


class FilterWorld:
    """One dataset in memory, one feed at a time, any number of copies. Use as a context manager.

    Every checkpoint is compared with what the dataset held at its revision, and its count and digest with the copy.
    """

    settings = FeedSettings(
        page_changes=2, page_bytes=200, ring_frames=4, ring_bytes=3_000, shared_bytes=2_000
    )

    def __init__(self, *, narrow=4, **settings):
        """``narrow``: copies of at most one in so many records start by their members. 0: all do."""
        self.narrow = narrow
        self.settings = replace(self.settings, **settings)
        self.followers = []
        self.tokens = []
        """(selection, copy) wherever a copy could be continued."""
        self.oracle = {0: {}}
        self.now = 0.0

    def __enter__(self):
        self.constants = pytest.MonkeyPatch()
        self.constants.setattr(filtered_first, "_NARROW", self.narrow)
        self.constants.setattr(filtered_hub, "_UNVERIFIED_SECONDS", 0.0)
        self.runner = asyncio.Runner()
        self.runner.run(self._begin())
        return self

    def __exit__(self, *error):
        self.runner.run(self._stop())
        self.runner.close()
        self.constants.undo()

    # -- the server ---------------------------------------------------------------------------------------

    async def _begin(self):
        self.store = MemoryStore()
        self.house = House(self.store)
        self.dataset = await self.house.create()
        number = self.dataset.number
        old = self.store.tables[number]
        self.table = self.store.tables[number] = Records(old.head, old.commit_ids)
        await self._start()

    async def _start(self):
        house = House(self.store)
        house.dataset = self.dataset
        house.feed = type(house.feed)(
            house.store, house.notifier, house.feed._clock, house.encoder, self.settings
        )
        self.house, self.stack = house, contextlib.AsyncExitStack()
        await self.stack.enter_async_context(house.feed.run())

    async def _stop(self):
        for follower in self.followers:
            self.leave(follower)
        await self.stack.aclose()

    def restart(self):
        """Nothing in memory is left."""

        async def restart():
            await self._stop()
            self.store.restart()
            await self._start()

        self.runner.run(restart())

    def spin(self, turns=1):
        """Let the loop go on."""

        async def spin():
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(spin())

    # -- the dataset --------------------------------------------------------------------------------------

    def write(self, actions, *, announced=True, carried=True):
        async def write():
            before = self.table.head
            self.table.commit(actions)
            if self.table.head == before:
                return
            self.oracle[self.table.head.revision] = self.table.live()
            if announced:
                self.house.notifier.announce(
                    Appended(
                        dataset_number=self.dataset.number,
                        from_revision=before.revision,
                        head=self.table.head,
                        changes=self.table.changes(before.last_position) if carried else None,
                    )
                )

        self.runner.run(write())

    def look(self):
        """What the feed does every few seconds: hear of what no wake-up told."""

        async def look():
            self.house.feed._channels.hear(self.dataset.number, self.table.head.revision)

        self.runner.run(look())

    def purge(self, revision):
        self.table.purge(revision)

    def drop_frames(self):
        """The ring and the pages kept are caches: what is in them may go at any time."""
        for channel in self.house.feed._channels:
            channel.ring._frames.clear()
            channel.shared.clear()

    def drop(self):
        """Everything is forgotten, as when records get other ids."""

        async def drop():
            self.house.feed.dropped(self.dataset.number)

        self.runner.run(drop())

    # -- the copies ---------------------------------------------------------------------------------------

    def come(self, selection):
        self.followers.append(Follower(selection))
        return self.followers[-1]

    def come_with(self, place):
        """Somebody goes on from a place where a copy once was."""
        selection, copy = place
        follower = self.come(selection)
        follower.copy = copying.deepcopy(copy)
        return follower

    def leave(self, follower):
        if follower.subscription is not None:
            self.house.feed.close(follower.subscription)
            follower.subscription = None

    def poll(self, follower, *, due=False):
        """One message, if there is one; so much later that a checkpoint is ``due``."""
        self.now += 100.0 * due

        async def poll():
            if follower.subscription is None:
                feed = self.house.feed
                follower.subscription = feed.open(
                    replace(self.dataset, head=self.table.head),
                    follower,
                    selection=follower.selection,
                    start=feed.decode(follower.copy.token),
                )
            return follower.subscription.poll(self.now)

        bodies = self.runner.run(poll())
        for body in bodies:
            self.take(follower, body)

    def take(self, follower, body):
        copy = follower.copy
        copy.take(body)
        if copy.exact:
            assert copy.records == self.selected(follower.selection, copy.revision), "G7"
        if copy.token:
            self.tokens.append((follower.selection, copying.deepcopy(copy)))

    def selected(self, selection, revision):
        """The oracle: what a copy holds at a revision."""
        rows = [Row(k, revision, revision, data) for k, (revision, data) in self.oracle[revision].items()]
        return {
            row.record_id: (row.revision, selection.project(row)) for row in rows if selection.matches(row)
        }

    def reach_the_head(self, follower):
        """Whatever happened before, a bounded number of messages makes the copy exact at the head."""
        self.look()
        for _ in range(100 + 20 * len(self.table.rows)):
            self.poll(follower, due=True)
            copy = follower.copy
            if copy.exact and copy.revision == self.table.head.revision:
                return
            self.spin(3)
        raise AssertionError("the copy does not get to the head")


# -- simpler rules ------------------------------------------------------------------------------------------


def _suppressing(world, is_sent):
    """The rule of the server, less the removes that ``is_sent(world, record_id, ...)`` does not want."""

    def simpler(selection, changes, base_revision, columns):
        before = len(columns)
        select(selection, changes, base_revision, columns)
        kept = [
            index
            for index, (record_id, data) in enumerate(zip(columns.record_ids, columns.data, strict=True))
            if index < before or data or is_sent(world, selection, record_id, base_revision)
        ]
        for name in ("record_ids", "data", "revisions", "commit_times_us", "kinds", "reasons"):
            column = getattr(columns, name)
            column[:] = [column[index] for index in kept]

    return simpler


def _matched_before(world, selection, record_id, base_revision):
    data = world.table.replaced[record_id]
    return data is not None and selection.matches(Row(record_id, 0, 0, data))


def _created_before(world, selection, record_id, base_revision):
    return world.table.created.get(record_id, 0) <= base_revision


def _newest_head_as_base(selection, changes, base_revision, columns):
    select(selection, changes, max([base_revision, *changes.revisions]), columns)


SIMPLER_RULES = {
    "matched before": lambda world: _suppressing(world, _matched_before),
    "created before": lambda world: _suppressing(world, _created_before),
    "page as base": lambda world: _newest_head_as_base,
}


@contextlib.contextmanager
def removing_by(rule, world):
    """Let the feed follow a simpler rule."""
    filtered_channel.select = SIMPLER_RULES[rule](world)
    try:
        yield
    finally:
        filtered_channel.select = select
