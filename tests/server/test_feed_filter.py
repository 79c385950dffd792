"""Filtered copies over the feed, on a store in memory and on the real one. Every checkpoint is checked by digest."""

import pytest

from support.feed_encoder import Copy
from support.feed_house import follow, follow_to, running
from syncline_server.filters.selection import Row, parse_selection


@pytest.fixture(params=["memory", "sqlite"])
def backend(request):
    return request.param


@pytest.fixture
def house(backend, tmp_path):
    return lambda **settings: running(backend, tmp_path, **settings)


def books(*numbers, genre="a", version=0):
    """Puts of ``k<number>`` with a genre."""
    return [(f"k{number}", b'{"genre":"%s","v":%d}' % (genre.encode(), version)) for number in numbers]


GENRE_A = parse_selection('genre = "a"', [])


async def assert_equal(home, copy, selection):
    """The copy equals what a reader sees, under its filter and mask."""
    assert copy.exact
    records, _, revision = await home.store.list_records(
        home.dataset.number, after="", limit=1 << 20, max_bytes=1 << 40
    )
    assert copy.revision <= revision
    seen = [Row(record.record_id, record.revision, record.update_time_us, record.data) for record in records]
    assert copy.records == {
        row.record_id: (row.revision, selection.project(row)) for row in seen if selection.matches(row)
    }


async def test_t52_g7_cold_start_then_live(house):
    async with house(page_changes=10) as home:
        await home.write([*books(*range(25)), *books(*range(25, 50), genre="b")])
        copy = Copy()
        async with home.subscribe(selection=GENRE_A) as messages:
            await follow(copy, messages)
            await assert_equal(home, copy, GENRE_A)
            assert len(copy.records) == 25
            await follow_to(copy, messages, (await home.write(books(3, genre="b"))).head.revision)
            await assert_equal(home, copy, GENRE_A)
            await home.write(books(30, genre="b", version=1))
            await follow_to(copy, messages, (await home.write(books(30, version=2))).head.revision)
            await assert_equal(home, copy, GENRE_A)
            await follow_to(copy, messages, (await home.write([("k4", None)])).head.revision)
            await assert_equal(home, copy, GENRE_A)
            assert len(copy.records) == 24
