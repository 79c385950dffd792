"""F15: copies that begin soon after each other cost little more than one, and none of them is told anything wrong."""

import asyncio
import random
from dataclasses import replace

import pytest

from support.feed_encoder import Copy
from support.feed_house import follow, rows, running
from support.feed_store import Table
from support.store_values import HeldClock
from syncline_server.errors import NotFound
from syncline_server.feed import tokens
from syncline_server.feed.frames import Frame
from syncline_server.feed.pages import OVERHEAD_BYTES, PageCache
from syncline_server.feed.tokens import Origin
from syncline_server.model import Head

PAGES = 40
PAGE_CHANGES = 10


@pytest.fixture
def house(tmp_path):
    return lambda **settings: running("memory", tmp_path, page_changes=PAGE_CHANGES, **settings)


async def cold(home):
    async with home.subscribe() as messages:
        return await follow(Copy(), messages)


# -- what it saves ------------------------------------------------------------------------------------------


async def test_f15_cold_starts_one_after_the_other_while_others_write(house):
    """Each begins when the one before it is through, and finds one more commit."""
    async with house() as home:
        await home.write(rows(*range(PAGES * PAGE_CHANGES + 1)))
        for start in range(10):
            copy = await cold(home)
            await home.assert_equal(copy)
            await home.write(rows(start, version=1))
        assert home.store.reads <= PAGES + 2 * 10, "the pages once, and of each copy the last one"


async def test_f15_a_second_scan_that_begins_in_the_middle_of_the_first(house):
    async with house() as home:
        await home.write(rows(*range(PAGES * PAGE_CHANGES + 1)))
        halfway, go_on = asyncio.Event(), asyncio.Event()

        async def hold(after):
            if after == PAGES * PAGE_CHANGES // 2:
                halfway.set()
                await go_on.wait()

        home.store.before_read = hold
        first = asyncio.create_task(cold(home))
        await halfway.wait()
        await home.write(rows(0, version=1))
        reads = home.store.reads
        second = asyncio.create_task(cold(home))
        while sum(channel.users for channel in home.feed._channels) < 2:
            await asyncio.sleep(0)
        for _ in range(500):
            await asyncio.sleep(0)
        assert home.store.reads == reads, "it walks on what the first one left, and joins its read"
        go_on.set()
        for copy in await asyncio.gather(first, second):
            await home.assert_equal(copy)
        assert home.store.reads <= PAGES + 4


async def test_f15_unary_calls_share_as_well(house):
    async with house() as home:
        await home.write(rows(*range(PAGES * PAGE_CHANGES + 1)))
        for copy in await asyncio.gather(*(home.sync(Copy()) for _ in range(10))):
            await home.assert_equal(copy)
        assert home.store.reads <= PAGES + 10
        before = home.store.reads
        await home.assert_equal(await cold(home))
        assert home.store.reads <= before + 1, "and a stream goes on where they were"


async def test_a_scan_that_was_broken_off_goes_on_with_kept_pages(house):
    async with house() as home:
        await home.write(rows(*range(PAGES * PAGE_CHANGES + 1)))
        broken = await home.sync(Copy(), until=lambda: True)
        await cold(home)
        await home.write(rows(0, version=1))
        reads = home.store.reads
        await home.sync(broken)
        await home.assert_equal(broken)
        assert home.store.reads == reads + 1


# -- what it must not do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", [cold, lambda home: home.sync(Copy())], ids=["Subscribe", "Sync"])
async def test_g12_g14_kept_pages_end_at_the_newest_head(house, door):
    """What was acknowledged before a copy began is in it, though its first pages are older."""
    async with house() as home:
        await home.write(rows(*range(35)))
        await door(home)
        await home.write([("k1", None), ("k34", b"1"), *rows(99)])
        copy = await door(home)
        assert copy.checkpoints == [await home.revision()]
        await home.assert_equal(copy)


@pytest.mark.parametrize("door", [cold, lambda home: home.sync(Copy())], ids=["Subscribe", "Sync"])
async def test_f1_f2_kept_pages_below_the_watermark_are_no_trap(house, door):
    """A copy that was reset because of a purge does not begin again with what led to the reset."""
    async with house() as home:
        await home.write(rows(*range(35)))
        await door(home)
        await home.write([(f"k{n}", None) for n in range(5)])
        await home.purge()
        copy = await door(home)
        assert copy.resets in ([], ["COMPACTED"])
        await home.assert_equal(copy)
        later = await door(home)
        assert later.resets == [], "by now the watermark is known"
        await home.assert_equal(later)


async def test_a_page_has_no_more_changes_than_the_caller_asked_for(house):
    async with house() as home:
        await home.write(rows(*range(35)))
        await home.sync(Copy())
        small = await home.sync(Copy(), page_size=4)
        assert small.batches == 9
        await home.assert_equal(small)
        assert (await home.sync(Copy())).batches == 4


async def test_nothing_of_a_dataset_that_is_gone(house):
    async with house() as home:
        await home.write(rows(*range(35)))
        await cold(home)
        await home.delete()
        with pytest.raises(NotFound):
            await home.sync(Copy())


async def test_a_caller_that_goes_away_takes_nobody_with_it(house):
    async with house() as home:
        await home.write(rows(*range(35)))
        held, go_on = asyncio.Event(), asyncio.Event()

        async def hold(_page):
            held.set()
            await go_on.wait()

        home.store.after_read = hold
        first = asyncio.create_task(home.sync(Copy()))
        await held.wait()
        second = asyncio.create_task(home.sync(Copy()))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        go_on.set()
        await home.assert_equal(await second)
        assert home.store.reads == 4


# -- its bounds ---------------------------------------------------------------------------------------------

ORIGIN = Origin(store_id=b"store-id", history_id=b"history1", incarnation=b"i" * 16)


def frame(place, size=100, *, base=5, complete=False):
    """A page of a scan that was begun at revision 5 with the dataset at 9."""
    head = Head(revision=9, commit_id=b"commit-9", last_position=1_000)
    ends = tokens.at_head(ORIGIN, head)
    start, end = (
        replace(ends, position=at, revision=7, complete=False, base_revision=base)
        for at in (place, place + 1)
    )
    return Frame(start=start, end=ends if complete else end, head=head, body=bytes(size))


def test_the_oldest_pages_leave_when_there_are_too_many_bytes():
    cache = PageCache(HeldClock(), max_bytes=250 + 2 * OVERHEAD_BYTES)
    frames = [frame(place) for place in range(3)]
    for one in frames:
        cache.add(1, one)
    assert [cache.get(1, one.start) for one in frames] == [None, *frames[1:]]
    cache.add(1, frames[1])
    assert (len(cache), cache.size_bytes) == (2, 200 + 2 * OVERHEAD_BYTES), (
        "the same again takes no more room"
    )
    cache.add(2, frame(9, size=251 + OVERHEAD_BYTES))
    assert (len(cache), cache.size_bytes) == (0, 0), "what does not fit alone leaves nothing"


def test_pages_are_kept_for_some_seconds():
    clock = HeldClock()
    cache = PageCache(clock, max_bytes=1 << 20, seconds=5)
    early, late = frame(1), frame(2)
    cache.add(1, early)
    clock.pass_seconds(3)
    cache.add(1, late)
    clock.pass_seconds(2.5)
    assert cache.get(1, early.start) is None
    assert cache.get(1, late.start) is late
    clock.pass_seconds(3)
    cache.expire()
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_only_pages_that_lead_to_where_a_scan_can_go_on():
    cache = PageCache(HeldClock(), max_bytes=1 << 20)
    inside, exact = frame(1), frame(2, complete=True)
    cache.add(1, inside)
    cache.add(1, exact)
    assert cache.get(1, exact.start) is None, "checkpoints are told to those who may hear them"
    assert cache.get(2, inside.start) is None, "another dataset"
    assert cache.get(1, replace(inside.start, base_revision=4)) is None, "another scan"
    cache.purged(1, 6)
    assert cache.get(1, inside.start) is inside, "up to 6 it is complete"
    cache.add(1, frame(3, base=8))
    cache.purged(1, 7)
    assert cache.get(1, inside.start) is None
    cache.add(1, frame(4))
    assert len(cache) == 1, "also one that was under way when the watermark was heard of"
    cache.drop(1)
    assert (len(cache), cache.size_bytes) == (0, 0)


# -- the rule, against random histories ---------------------------------------------------------------------

RUNS = 1_500


class Scans:
    """Copies that scan a table a row a page, break off, begin anew, and take pages that others have read."""

    def __init__(self, rule, seed):
        self.rule = rule
        self.choose = random.Random(seed)
        self.table = Table(head=Head(commit_id=bytes(8)), commit_ids={0: bytes(8)})
        self.positions = [None] * 3
        self.copies = [{} for _ in range(3)]
        self.kept = {}
        self.used = 0

    def key(self, position):
        if self.rule == "position" or position is None:
            return position
        return position.revision, position.position

    def page(self, number):
        """One page for one copy; False when it should be exact now and is not."""
        position = self.positions[number]
        kept = self.kept.get(self.key(position))
        if kept is not None and self.may_take(position, kept):
            page, end = kept
            self.used += 1
        else:
            page = self.read(position)
            if position is not None and not judged(position, page):
                self.positions[number], self.copies[number] = position, _ = None, {}
                page = self.read(None)
            end = tokens.advance(position, page, ORIGIN)
            if not page.complete:
                self.kept[self.key(position)] = page, end
        changes, copy = page.changes, self.copies[number]
        for record_id, data, revision, kind in zip(
            changes.record_ids, changes.data, changes.revisions, changes.kinds, strict=True
        ):
            if kind == 1:
                copy[record_id] = (revision, data)
            else:
                copy.pop(record_id, None)
        self.positions[number] = end if position is None else self.led(position, end)
        return not page.complete or copy == self.table.live()

    def read(self, position):
        after, seen = (0, 0) if position is None else (position.position, position.seen_revision)
        return self.table.page(after, 1, 1 << 20, seen)

    def may_take(self, position, kept):
        """Whether a page read from one position may be taken at another with the same cursor."""
        if position is None or self.rule in ("position", "cursor", "cursor, own base"):
            return True
        page, _ = kept
        return (
            position.base_revision <= page.head.revision
            and position.covered_revision >= page.head.purge_revision
        )

    def led(self, position, end):
        """Where the copy stands then."""
        if end.complete or self.rule in ("position", "cursor"):
            return end
        seen = max(position, end, key=lambda one: one.seen_revision)
        return replace(
            end,
            base_revision=position.base_revision,
            seen_revision=seen.seen_revision,
            seen_commit_id=seen.seen_commit_id,
        )

    def run(self):
        choose = self.choose
        for step in range(80):
            number = choose.randrange(3)
            match choose.choice(["write", "write", "page", "page", "page", "page", "begin", "purge"]):
                case "write":
                    ids = choose.sample("abcd", choose.randint(1, 2))
                    self.table.commit([(one, b"%d" % step if choose.random() < 0.6 else None) for one in ids])
                case "page":
                    if not self.page(number):
                        return False
                case "begin":
                    self.positions[number], self.copies[number] = None, {}
                case "purge":
                    self.table.purge(choose.randint(self.table.head.purge_revision, self.table.head.revision))
                    self.kept = {
                        key: kept
                        for key, kept in self.kept.items()
                        if key is not None or choose.random() < 0.5  # an old first page may stay, or not
                    }
        return True


def judged(position, page):
    return (
        tokens.judge(
            position,
            origin=ORIGIN,
            histories=[ORIGIN.history_id],
            head=page.head,
            seen_commit_id=page.seen_commit_id,
        )
        is None
    )


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("position", True),
        ("cursor", False),
        ("cursor, own base", False),
        ("cursor, own base, not newer than the page", True),
    ],
)
def test_t48_f15_pages_serve_the_position_that_they_were_read_from(rule, holds):
    """By cursor alone copies diverge. The last rule would do too, with tokens made anew for each copy."""
    models = [Scans(rule, seed) for seed in range(RUNS)]
    outcomes = [model.run() for model in models]
    assert all(outcomes) is holds
    assert sum(model.used for model in models) > RUNS
