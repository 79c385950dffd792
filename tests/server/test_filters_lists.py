"""Lists and batches under a filter or a mask, on a store in memory and on the real ones."""

import asyncio

import pytest

from support.feed_house import running
from syncline_server.errors import InvalidArgument, NotFound
from syncline_server.filters.selection import parse_selection
from syncline_server.filters.syntax import Metadata, Path
from syncline_server.filters.terms import Terms
from syncline_server.query import selecting
from syncline_server.query.id_ranges import IdRanges
from syncline_server.query.records import Records


@pytest.fixture
def house(feed_backend_name, tmp_path):
    return lambda **settings: running(feed_backend_name, tmp_path, **settings)


class Counting:
    """A store that counts the records that are read for lists, and may do something before each read."""

    def __init__(self, store, before=None):
        self._store = store
        self._before = before
        self.reads = []

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def list_records(self, dataset_number, **how):
        if self._before:
            await self._before(len(self.reads))
        found = await self._store.list_records(dataset_number, **how)
        self.reads.append(len(found[0]))
        return found


def numbered(count, prefix="k"):
    return [(f"{prefix}{n:05}", b'{"n":%d,"rest":"r","tens":%d}' % (n, n // 10)) for n in range(count)]


async def all_pages(home, filter="", mask=(), store=None, **how):  # noqa: A002
    """Ids page by page."""
    selection = parse_selection(filter, mask)
    pages, token = [], ""
    while True:
        page = await Records(store or home.store, home.feed).list(
            home.dataset, selection=selection, page_token=token, **how
        )
        pages.append([record.record_id for record in page.records])
        token = page.next_page_token
        if not token:
            return pages


def flat(pages):
    return [record_id for page in pages for record_id in page]


async def test_pages_hold_what_matches(house):
    async with house() as home:
        await home.write(numbered(95))
        pages = await all_pages(home, "tens IN (1, 3) AND n != 15", page_size=8)

    expected = [f"k{n:05}" for n in (*range(10, 20), *range(30, 40)) if n != 15]
    assert [len(page) for page in pages] == [8, 8, 3]
    assert flat(pages) == expected


@pytest.mark.parametrize(
    ("filter", "expected"),
    [("n < 5", 5), ("n >= 100", 0), ("record_id = k00003", 1), ("record_id = k0000*", 10), ("", 40)],
)
async def test_a_list_ends(house, filter, expected):  # noqa: A002
    async with house() as home:
        await home.write(numbered(40))
        pages = await all_pages(home, filter, ["n"], page_size=5)

    assert len(flat(pages)) == expected
    assert all(len(page) == 5 for page in pages[:-1])


async def test_a_page_looks_through_a_bounded_number_of_records(house, monkeypatch):
    """And may come short, or empty, with a next one."""
    monkeypatch.setattr(selecting, "MAX_SEEN_RECORDS", 40)
    monkeypatch.setattr(selecting, "_READ_RECORDS", 16)
    async with house() as home:
        await home.write(numbered(100))
        store = Counting(home.store)
        pages = await all_pages(home, "n > 90", page_size=5, store=store)

    assert pages == [
        [],
        [],
        ["k00091", "k00092", "k00093", "k00094", "k00095"],
        ["k00096", "k00097", "k00098", "k00099"],
    ]
    assert store.reads[:6] == [16, 16, 16] * 2  # of the third read 8 are looked at


async def test_a_page_looks_through_a_bounded_number_of_bytes(house, monkeypatch):
    monkeypatch.setattr(selecting, "MAX_SEEN_BYTES", 1_000)
    async with house() as home:
        await home.write([(f"k{n}", b'{"n":%d,"x":"%s"}' % (n, b"x" * 400)) for n in range(9)])
        pages = await all_pages(home, "n > 6")

    assert pages == [[], [], ["k7", "k8"]]


async def test_a_masked_page_is_measured_as_it_is_sent(house):
    """256 KiB of what is left, not of what is stored."""
    async with house() as home:
        await home.write([(f"k{n}", b'{"n":%d,"x":"%s"}' % (n, b"x" * 100_000)) for n in range(9)])
        whole = await all_pages(home, "n >= 0")
        masked = await all_pages(home, mask=["n"])

    assert [len(page) for page in whole] == [3, 3, 3]
    assert [len(page) for page in masked] == [9]


async def test_a_page_is_of_one_snapshot(house, monkeypatch):
    """A write between two reads ends the page before the second."""
    monkeypatch.setattr(selecting, "_READ_RECORDS", 10)
    async with house() as home:
        await home.write(numbered(40))

        async def write_before_the_third(reads):
            if reads == 2:
                await home.write([("k00025", None)])

        store = Counting(home.store, write_before_the_third)
        records = Records(store, home.feed)
        selection = parse_selection("n >= 0", ())
        first = await records.list(home.dataset, selection=selection)
        second = await records.list(home.dataset, selection=selection, page_token=first.next_page_token)

    assert [record.record_id for record in first.records] == [f"k{n:05}" for n in range(20)]
    assert (first.revision, second.revision) == (1, 2)
    assert [record.record_id for record in second.records] == [f"k{n:05}" for n in range(20, 40) if n != 25]


async def test_others_get_their_turn_while_a_page_is_looked_through(monkeypatch, tmp_path):
    monkeypatch.setattr(selecting, "_TURN_SECONDS", -1)
    async with running("memory", tmp_path) as home:
        await home.write(numbered(320))
        turns = []

        async def other():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await all_pages(home, "n < 0")
        task.cancel()

    assert len(turns) >= 320 // selecting._TURN_RECORDS


@pytest.mark.parametrize(
    ("filter", "reads"),
    [
        ("record_id = b*", 1),
        ("record_id = b* AND n > 3", 1),
        ("record_id IN (a00004, c00002)", 2),
        ("record_id = 'a*' OR record_id = 'c*'", 2),
        ("record_id = nothing*", 1),
    ],
)
async def test_ids_are_sought_and_not_searched(house, monkeypatch, filter, reads):  # noqa: A002
    monkeypatch.setattr(selecting, "_READ_RECORDS", 25)
    async with house() as home:
        await home.write([*numbered(20, "a"), *numbered(20, "b"), *numbered(20, "c")])
        store = Counting(home.store)
        found = await all_pages(home, filter, store=store)
        plain = parse_selection(filter, ())
        everything = (await Records(home.store, home.feed).list(home.dataset)).records

    assert found == [[r.record_id for r in everything if plain.matches(selecting._row(r))]]
    assert len(store.reads) == reads


LAST = "\U0010ffff" * 4


@pytest.mark.parametrize(
    ("prefix", "place"),
    [("b", "a" + LAST), ("xb", "xa" + LAST), ("b\0", "b"), ("\ue000", "\ud7ff" + LAST), ("😁", "😀" + LAST)],
)
def test_seeking_begins_right_before_the_text(prefix, place):
    ranges = IdRanges(Terms(path=Path(metadata=Metadata.RECORD_ID), prefixes=(prefix,)))

    assert ranges.seek("") == place
    assert place.encode() < prefix.encode()  # the order of ids is that of their bytes
    assert ranges.seek(prefix) == prefix
    assert ranges.seek(prefix + "x") == prefix + "x"
    assert ranges.seek(prefix[:-1] + chr(ord(prefix[-1]) + 1)) is None


async def test_t53_a_page_token_belongs_to_its_filter_and_mask(house):
    async with house() as home:
        await home.write(numbered(20))
        records = Records(home.store, home.feed)
        ways = [parse_selection(*way) for way in (("", ()), ("n >= 0", ()), ("", ["n"]), ("n >= 0", ["n"]))]
        for made in ways:
            page = await records.list(home.dataset, page_size=5, selection=made)
            for used in ways:
                how = {"page_size": 5, "selection": used, "page_token": page.next_page_token}
                if used == made:
                    assert len((await records.list(home.dataset, **how)).records) == 5
                    continue
                with pytest.raises(InvalidArgument, check=lambda e: e.reason == "PAGE_TOKEN_INVALID"):
                    await records.list(home.dataset, **how)
        other_words = parse_selection("NOT NOT (n>=0.0)", ())
        page = await records.list(home.dataset, page_size=5, selection=ways[1])
        again = await records.list(home.dataset, selection=other_words, page_token=page.next_page_token)
        assert len(again.records) == 15


async def test_a_batch_is_masked(house):
    async with house() as home:
        await home.write(numbered(3))
        batch = await Records(home.store, home.feed).batch_get(
            home.dataset, ["k00002", "k00000", "k9"], selection=parse_selection("", ["n", "none"])
        )

    assert [(r.record_id, r.data) for r in batch.records] == [("k00002", b'{"n":2}'), ("k00000", b'{"n":0}')]
    assert list(batch.missing_record_ids) == ["k9"]


async def test_a_filtered_list_of_a_deleted_dataset(house):
    async with house() as home:
        await home.write(numbered(3))
        await home.delete()
        with pytest.raises(NotFound, check=lambda e: e.reason == "DATASET_NOT_FOUND"):
            await all_pages(home, "n > 0")
