"""Filters and projections through the SDK against a real server."""

import asyncio

import pytest

import syncline
from syncline import errors

BOOKS = [
    {
        "isbn": "1",
        "title": "Emma",
        "year": 1815,
        "publisher": {"name": "Murray", "city": "London"},
        "tags": ["novel"],
    },
    {
        "isbn": "2",
        "title": "Ulysses",
        "year": 1922,
        "publisher": {"name": "Beach", "city": "Paris"},
        "tags": [],
    },
    {"isbn": "3", "title": "Zen", "year": 1974, "publisher": {"name": "Morrow"}, "tags": ["novel", "essay"]},
    {"isbn": "4", "title": "Zero", "year": None, "id": 123456789012345678901234567890},
]


@pytest.fixture
async def books(client):
    await client.create_dataset("books", identity=syncline.by_key("isbn"))
    dataset = client.dataset("books")
    await dataset.push(BOOKS)
    return dataset


async def ids(dataset, filter, **how):  # noqa: A002
    return [record.record_id async for record in dataset.records(filter=filter, **how)]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("year >= 1900", ["2", "3"]),
        ('title = "Ze*" AND NOT year = null', ["3"]),
        ("publisher.city:* OR year = null", ["1", "2", "4"]),
        ("tags:novel AND year IN (1815, 1974.0)", ["1", "3"]),
        ("id = 123456789012345678901234567890", ["4"]),
        ("id = 123456789012345678901234567891", []),
        ('record_id > "2"', ["3", "4"]),
        ("revision = 1", ["1", "2", "3", "4"]),
        ("update_time < 2001-01-01T00:00:00Z", []),
    ],
)
async def test_records_that_match(books, filter, expected):  # noqa: A002
    assert await ids(books, filter) == expected
    assert await ids(books, filter, page_size=1) == expected


async def test_fields(books):
    listed = [record.data async for record in books.records(fields=["id", "publisher.city", "year"])]
    many = await books.get_many(["4", "3", "9"], fields=["title"])

    assert listed == [
        {"publisher": {"city": "London"}, "year": 1815},
        {"publisher": {"city": "Paris"}, "year": 1922},
        {"year": 1974},
        {"id": 123456789012345678901234567890, "year": None},
    ]
    assert {record_id: record.data for record_id, record in many.items()} == {
        "4": {"title": "Zero"},
        "3": {"title": "Zen"},
    }


async def test_a_list_under_a_filter_goes_on_while_pages_are_empty(books):
    """5 of 12,000, of which a page looks through 10,000."""
    await books.load({"isbn": f"{n:05}", "year": 1, "rare": n % 2_400 == 2_399} for n in range(12_000))

    assert await ids(books, "rare = true") == ["02399", "04799", "07199", "09599", "11999"]
    assert await ids(books, 'record_id = "1199*"') == [f"{n:05}" for n in range(11_990, 12_000)]


async def test_an_error_says_where(books):
    with pytest.raises(errors.InvalidArgument) as raised:
        await ids(books, "year > 1900 AND titel")
    error = raised.value

    assert (error.reason, error.metadata["position"]) == ("FILTER_INVALID", "21")
    assert "year > 1900 AND titel\n                     ^" in str(error)
    assert "filter" in error.fields


async def test_what_is_no_path_is_refused(books):
    for call in (books.get_many(["1"], fields=["a."]), anext(books.records(fields=["a."]))):
        with pytest.raises(errors.InvalidArgument, match=r"read_mask.paths\[0\]"):
            await call
    with pytest.raises(TypeError, match="list of field names"):
        await books.get_many(["1"], fields="title")


async def test_writes_between_pages(books):
    """Each page is read anew: what stopped matching is not seen, what was passed is not seen again."""
    records = books.records(filter="year:*", page_size=1)
    seen = [(await anext(records)).record_id]
    await books.push([{"isbn": "2"}, {"isbn": "0", "year": 1}, {"isbn": "5", "year": 2}])
    async with asyncio.timeout(20):
        seen += [record.record_id async for record in records]

    assert seen == ["1", "3", "4", "5"]


async def test_g14_under_a_filter_a_write_is_seen_that_concerns_nobody(client):
    """The filtered copy that others follow stands still meanwhile; who comes with ``min_revision`` is not served from it."""
    await client.create_dataset("still", identity=syncline.by_key("id"))
    still = client.dataset("still")
    await still.push([{"id": "a", "x": 1}, {"id": "b", "x": 2}])
    async with still.changes(filter="x = 1") as follower:
        await _first_checkpoint(follower)
        for version in range(5):
            pushed = await still.push([{"id": "b", "x": 3 + version}])
            async with still.changes(filter="x = 1", min_revision=pushed.revision) as later:
                assert (await _first_checkpoint(later)).revision >= pushed.revision
            page = await still.sync(filter="x = 1", all=True, min_revision=pushed.revision)
            assert page.checkpoint is not None
            assert page.checkpoint.revision >= pushed.revision


async def _first_checkpoint(feed):
    async for event in feed:
        if isinstance(event, syncline.Checkpoint):
            return event
    raise AssertionError("the feed ended")
