"""Point reads and lists, on a store in memory and on the real ones."""

import asyncio
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.feed_house import rows, running
from syncline_server.errors import InvalidArgument, NotFound, Unavailable
from syncline_server.query import page_tokens
from syncline_server.query.records import Records


@pytest.fixture
def house(feed_backend_name, tmp_path):
    return lambda **settings: running(feed_backend_name, tmp_path, **settings)


def records_of(home):
    return Records(home.store, home.feed)


async def test_get_tells_everything_about_a_record(house):
    async with house() as home:
        await home.write(rows(1))
        await home.write(rows(1, version=2))
        record = await records_of(home).get(home.dataset, "k1")
        assert (record.record_id, record.data, record.revision) == ("k1", b'{"p":"","v":2}', 2)
        assert record.source_id == "default"
        assert record.update_time_us >= record.create_time_us > 0


async def test_get_of_what_is_not_there(house):
    async with house() as home:
        await home.write(rows(1))
        await home.write([("k1", None)])
        for record_id in ("k1", "k2", "", "x" * 600):
            with pytest.raises(NotFound, check=lambda e: e.reason == "RECORD_NOT_FOUND"):
                await records_of(home).get(home.dataset, record_id)
        await home.delete()
        with pytest.raises(NotFound, check=lambda e: e.reason == "DATASET_NOT_FOUND"):
            await records_of(home).get(home.dataset, "k1")


async def test_g14_min_revision_waits(house):
    async with house() as home:
        records = records_of(home)
        reading = [
            asyncio.ensure_future(read)
            for read in (
                records.get(home.dataset, "k1", min_revision=1),
                records.batch_get(home.dataset, ["k1"], min_revision=1),
                records.list(home.dataset, min_revision=1),
            )
        ]
        await asyncio.sleep(0)
        await home.write(rows(1))
        record, batch, page = await asyncio.gather(*reading)
        assert record.revision == batch.revision == page.revision == 1
        with pytest.raises(Unavailable, check=lambda e: e.reason == "REVISION_NOT_REACHED"):
            await records.get(home.dataset, "k1", min_revision=2, timeout_seconds=0.01)


async def test_batch_keeps_the_order_asked_for(house):
    async with house() as home:
        await home.write(rows(*range(10)))
        await home.write([("k3", None)])
        batch = await records_of(home).batch_get(home.dataset, ["k7", "nope", "k1", "k3", "k7"])
        assert [record.record_id for record in batch.records] == ["k7", "k1"]
        assert list(batch.missing_record_ids) == ["nope", "k3"]
        assert list(batch.unread_record_ids) == []
        assert batch.revision == 2


async def test_batch_stays_below_a_mebibyte_and_says_what_is_left(house):
    async with house() as home:
        await home.write(rows(*range(5), size=300_000))
        wanted, seen = [f"k{n}" for n in (4, 0, 3, 1, 2)] + ["nope"], []
        while wanted:
            batch = await records_of(home).batch_get(home.dataset, wanted)
            assert sum(len(record.data) for record in batch.records) <= 1 << 20
            assert batch.records or batch.missing_record_ids
            seen += [record.record_id for record in batch.records]
            wanted = batch.unread_record_ids
        assert seen == ["k4", "k0", "k3", "k1", "k2"]


async def test_a_record_larger_than_any_answer_is_read_alone(house):
    async with house() as home:
        await home.write(rows(1, 2, size=(1 << 20) + 5))
        records = records_of(home)
        assert len((await records.get(home.dataset, "k2")).data) > 1 << 20
        batch = await records.batch_get(home.dataset, ["k1", "k2"])
        assert ([r.record_id for r in batch.records], batch.unread_record_ids) == (["k1"], ["k2"])


@pytest.mark.parametrize(
    ("record_ids", "reason"), [([], "INVALID_REQUEST"), (["k"] * 1_001, "LIMIT_EXCEEDED")]
)
async def test_batch_size_is_bounded(house, record_ids, reason):
    async with house() as home:
        with pytest.raises(InvalidArgument, check=lambda e: e.reason == reason):
            await records_of(home).batch_get(home.dataset, record_ids)


async def test_list_goes_through_all_in_order_of_bytes(house):
    async with house() as home:
        ids = ["a", "B", "é", "z", "Z", "~", "a b", "😀"]
        await home.write([(record_id, b"{}") for record_id in ids])
        seen, token = [], ""
        while True:
            page = await records_of(home).list(home.dataset, page_size=3, page_token=token)
            assert len(page.records) <= 3
            seen += [record.record_id for record in page.records]
            token = page.next_page_token
            if not token:
                break
        assert seen == sorted(ids, key=str.encode)


@pytest.mark.parametrize(("page_size", "expected"), [(0, 100), (7, 7), (5_000, 1_000)])
async def test_list_page_size(house, page_size, expected):
    async with house() as home:
        await home.write(rows(*range(1_100)))
        page = await records_of(home).list(home.dataset, page_size=page_size)
        assert len(page.records) == expected
        with pytest.raises(InvalidArgument, check=lambda e: e.reason == "INVALID_REQUEST"):
            await records_of(home).list(home.dataset, page_size=-1)


async def test_list_is_whole_at_the_exact_end(house):
    async with house() as home:
        await home.write(rows(*range(6)))
        page = await records_of(home).list(home.dataset, page_size=6)
        assert (len(page.records), page.next_page_token) == (6, "")


async def test_page_token_is_bound_to_its_dataset(house):
    async with house() as home:
        await home.write(rows(1, 2))
        page = await records_of(home).list(home.dataset, page_size=1)
        await home.create("films")
        await home.write(rows(1, 2))
        with pytest.raises(InvalidArgument, check=lambda e: e.reason == "PAGE_TOKEN_INVALID"):
            await records_of(home).list(home.dataset, page_token=page.next_page_token)


SECRET, INCARNATION = b"s" * 32, b"i" * 16


@given(st.text(min_size=1, max_size=200).filter(lambda s: s.isprintable()))
def test_page_token_round_trip(after):
    token = page_tokens.encode(after, incarnation=INCARNATION, secret=SECRET)
    assert page_tokens.decode(token, incarnation=INCARNATION, secret=SECRET) == after
    assert token.isascii()
    assert not set(token) & set("+/=")


@given(
    st.one_of(
        st.text(max_size=60), st.binary(max_size=60).map(lambda b: base64.urlsafe_b64encode(b).decode())
    )
)
def test_t58_page_token_random(token):
    with pytest.raises(InvalidArgument, check=lambda e: e.reason == "PAGE_TOKEN_INVALID"):
        page_tokens.decode(token, incarnation=INCARNATION, secret=SECRET)


@given(st.data())
def test_t58_page_token_changed(data):
    token = page_tokens.encode("k17", incarnation=INCARNATION, secret=SECRET)
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidArgument):
        page_tokens.decode(base64.urlsafe_b64encode(raw).decode(), incarnation=INCARNATION, secret=SECRET)
