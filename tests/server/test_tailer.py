"""Commits of other nodes in the rings of this one: read once, in order, whoever follows."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from support.feed_encoder import Copy
from support.feed_house import House, follow_to, rows
from support.feed_store import MemoryStore
from support.hints import Hints
from syncline_server.clock import SystemClock
from syncline_server.errors import NotFound, Unavailable
from syncline_server.feed.feed import Feed
from syncline_server.feed.settings import FeedSettings
from syncline_server.filters.selection import parse_selection
from syncline_server.metrics import Metrics


class Node(House):
    """A node that is not alone, over a store in memory."""

    def __init__(self, **settings):
        super().__init__(MemoryStore())
        self.notifier = Hints()
        self.metrics = Metrics()
        self.feed = Feed(
            self.store,
            self.notifier,
            SystemClock(),
            self.encoder,
            FeedSettings(**settings),
            self.metrics,
            alone=False,
        )

    async def commit_elsewhere(self, *numbers, hint=True, **how):
        """Another node commits, and says so."""
        appended = await self.write(rows(*numbers, **how), announce=False)
        if hint:
            self.notifier.hint({self.dataset.number: appended.head.revision})
        return appended.head.revision

    @property
    def tail_reads(self):
        return self.metrics.tail_reads._value.get()


@asynccontextmanager
async def node(**settings):
    made = Node(**settings)
    await made.create()
    await made.write(rows(0))
    async with made.feed.run():
        yield made


@asynccontextmanager
async def followers(home, *, whole, filtered=0):
    """Copies at the head, with their messages."""
    async with AsyncExitStack() as stack:
        made = []
        for place in range(whole + filtered):
            selection = parse_selection("v >= 0", []) if place >= whole else None
            messages = await stack.enter_async_context(home.subscribe(selection=selection))
            copy = Copy()
            await follow_to(copy, messages, 1)
            made.append((copy, messages))
        yield made


async def all_at(made, revision):
    await asyncio.gather(*(follow_to(copy, messages, revision) for copy, messages in made))


async def test_a_hint_costs_one_read_for_all_who_follow():
    async with node() as home, followers(home, whole=20, filtered=5) as made:
        before = home.store.reads
        last = await home.commit_elsewhere(1, 2)
        await all_at(made, last)
        assert home.store.reads == before + 1
        assert home.tail_reads == 1
        for copy, _ in made:
            assert len(copy.records) == 3


async def test_several_commits_between_two_looks_come_as_one_stretch():
    async with node() as home, followers(home, whole=1) as made:
        for version in range(5):
            await home.commit_elsewhere(1, version=version, hint=False)
        last = await home.commit_elsewhere(2)
        await all_at(made, last)
        copy = made[0][0]
        assert copy.checkpoints[-2:] == [1, last]
        assert copy.folded == 4, "what was overwritten meanwhile is counted"


async def test_a_commit_of_its_own_waits_for_those_of_others_before_it():
    """Between the tail and what was committed here lies what nobody hinted at: it is read, and nothing twice."""
    async with node() as home, followers(home, whole=3, filtered=2) as made:
        before = home.store.reads
        await home.commit_elsewhere(1, hint=False)
        own = await home.write(rows(2))
        await all_at(made, own.head.revision)
        assert home.store.reads == before + 1
        for copy, _ in made:
            assert set(copy.records) == {"k0", "k1", "k2"}
        before = home.store.reads
        own = await home.write(rows(3))
        await all_at(made, own.head.revision)
        assert home.store.reads == before, "what follows the tail needs no look"


async def test_what_comes_while_it_looks_is_looked_at_again():
    async with node() as home, followers(home, whole=2) as made:
        reading, go_on = asyncio.Event(), asyncio.Event()

        async def hold(page):
            del page
            reading.set()
            await go_on.wait()

        home.store.after_read = hold
        await home.commit_elsewhere(1)
        await reading.wait()
        await home.commit_elsewhere(2, hint=False)
        own = await home.write(rows(3))
        go_on.set()
        await all_at(made, own.head.revision)
        for copy, _ in made:
            assert set(copy.records) == {"k0", "k1", "k2", "k3"}


async def test_what_is_too_much_for_a_page_is_read_by_those_who_follow():
    async with node(page_changes=10) as home, followers(home, whole=2, filtered=1) as made:
        last = await home.commit_elsewhere(*range(35))
        await all_at(made, last)
        for copy, _ in made:
            assert len(copy.records) == 35
        before = home.store.reads
        last = await home.commit_elsewhere(7, version=1)
        await all_at(made, last)
        assert home.store.reads == before + 1, "the ring stands at the head again"


async def test_a_read_that_fails_does_not_lose_what_was_committed_here():
    async with node() as home, followers(home, whole=1) as made:
        failing = True

        async def fail(after):
            nonlocal failing
            if failing:
                failing = False
                raise Unavailable("STORE_UNAVAILABLE", "away")

        home.store.before_read = fail
        await home.commit_elsewhere(1, hint=False)
        own = await home.write(rows(2))
        await all_at(made, own.head.revision)
        assert not failing
        assert home.metrics.background_failures.labels("feed")._value.get() == 1


async def test_t81_hints_at_nothing_are_looked_at_now_and_then():
    """T81: whoever makes them up costs a read in a while, and nobody who follows."""
    async with node() as home, followers(home, whole=1) as made:
        begun = asyncio.get_running_loop().time()
        told = 0
        while asyncio.get_running_loop().time() < begun + 0.3:
            told += 1
            home.notifier.hint({home.dataset.number: 1_000_000 + told})
            await asyncio.sleep(0)
        assert told > 100
        assert 1 <= home.tail_reads <= 16
        last = await home.commit_elsewhere(1)
        await all_at(made, last)
        assert made[0][0].checkpoints == [1, last]


async def test_hints_at_what_is_known_or_not_followed_are_passed_over():
    async with node() as home, followers(home, whole=1):
        for hint in ({home.dataset.number: 1}, {home.dataset.number: 0}, {home.dataset.number + 1: 9}, {}):
            home.notifier.hint(hint)
        await asyncio.sleep(0.05)
        assert home.tail_reads == 0


async def test_who_waits_for_a_revision_hears_of_it_though_nobody_follows():
    async with node() as home:
        waiting = asyncio.ensure_future(home.feed.wait_revision(home.dataset.number, 2, timeout_seconds=10))
        await asyncio.sleep(0)
        await home.commit_elsewhere(1)
        await waiting


async def test_a_dataset_that_is_gone_ends_those_who_follow():
    async with node() as home, followers(home, whole=1, filtered=1) as made:
        await home.delete(tell=False)
        home.notifier.hint({home.dataset.number: 9})
        for _, messages in made:
            with pytest.raises(NotFound):
                await anext(messages)


async def test_a_look_at_all_finds_what_is_behind_and_says_so():
    async with node() as home, followers(home, whole=1) as made:
        last = await home.commit_elsewhere(1, hint=False)
        head = await home.store.read_head(home.dataset.number)
        assert home.feed.notice({home.dataset.number: head}) == {home.dataset.number: 1}
        await all_at(made, last)
        assert home.feed.notice({home.dataset.number: head}) == {}
        await home.delete(tell=False)
        assert home.feed.notice({}) == {}
        with pytest.raises(NotFound):
            await anext(made[0][1])


@pytest.mark.parametrize("begun", [False, True])
async def test_nothing_is_left_of_looks_when_it_stops(begun):
    async with node() as home:
        async with followers(home, whole=1):
            never, reading = asyncio.Event(), asyncio.Event()

            async def hold(after):
                del after
                reading.set()
                await never.wait()

            home.store.before_read = hold
            await home.commit_elsewhere(1)
            assert home.feed._tailer._looks
            if begun:
                await reading.wait()
    assert not home.feed._tailer._looks
