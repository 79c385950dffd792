"""Subscriptions over a store in memory."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest
from support.feed_encoder import Copy, LineEncoder, parse
from support.feed_store import MemoryStore

from syncline_server.clock import SystemClock
from syncline_server.feed.feed import Feed
from syncline_server.feed.settings import FeedSettings
from syncline_server.notify.local import LocalNotifier


def rows(*numbers, version=0):
    return [(f"k{n}", b'{"v":%d}' % version) for n in numbers]


class House:
    """A feed and what it stands on."""

    def __init__(self, **settings):
        self.store = MemoryStore()
        self.notifier = LocalNotifier()
        self.encoder = LineEncoder()
        self.feed = Feed(
            self.store, self.notifier, SystemClock(), self.encoder, FeedSettings(**settings)
        )
        self.dataset = self.store.create()

    @property
    def table(self):
        return self.store.tables[self.dataset.number]

    def write(self, actions, *, announce=True):
        appended = self.store.write(self.dataset.number, actions)
        if announce and appended:
            self.notifier.announce(appended)
        return appended

    def assert_equal(self, copy):
        assert copy.exact
        assert copy.records == self.table.live()


@asynccontextmanager
async def running(**settings):
    house = House(**settings)
    async with house.feed.run():
        yield house


async def follow(copy, messages, *, until):
    async with asyncio.timeout(10):
        while not until():
            copy.take(await anext(messages))


async def test_g7_cold_start_then_live():
    async with running(page_changes=10) as house:
        house.write(rows(*range(25)))
        copy = Copy()
        async with aclosing(house.feed.subscribe(house.dataset)) as messages:
            await follow(copy, messages, until=lambda: copy.exact)
            house.assert_equal(copy)
            reads = house.store.reads
            house.write(rows(1, 2, version=1))
            house.write([("k3", None)])
            await follow(copy, messages, until=lambda: copy.exact and copy.revision == 3)
            house.assert_equal(copy)
            assert house.store.reads == reads, "live frames come from the ring"


async def test_g11_resume_from_token_through_sync():
    async with running(page_changes=10) as house:
        house.write(rows(*range(25)))
        copy = Copy()
        while not copy.exact:
            events, token = await house.feed.sync(house.dataset, copy.token, min_revision=0, page_size=0)
            copy.take(events)
            assert token == copy.token
        house.assert_equal(copy)
