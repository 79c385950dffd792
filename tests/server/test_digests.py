"""Digests of ranges: what they sum, how they are cut, with and without a filter."""

import random
from hashlib import blake2b

import pytest

from support.store_model import ModelStore
from support.store_values import Bench, HeldClock
from syncline_server.digests import digest_sum
from syncline_server.filters.selection import parse_selection
from syncline_server.model import DIGEST_MODULUS
from syncline_server.query.digests import Digests


@pytest.fixture
async def bench():
    clock = HeldClock()
    return await Bench.make(ModelStore(clock), clock)


async def _cut(bench, ranges, **more):
    (cut, revision) = await Digests(bench.store, feed=None).ranges(
        await bench.store.get_dataset("books"), ranges, **more
    )
    return [[(p.through, p.record_count, p.digest) for p in parts] for parts in cut], revision


def _sum(copy, after, through):
    chosen = [
        (record_id, revision, blake2b(data, digest_size=16).digest())
        for record_id, (revision, data) in copy.items()
        if record_id.encode() > after.encode() and (not through or record_id.encode() <= through.encode())
    ]
    return len(chosen), digest_sum(chosen) % DIGEST_MODULUS


async def test_few_records_get_a_part_each_and_the_rest_of_the_range(bench):
    await bench.put(["a", "b", "d"])
    copy = await bench.copy()
    one = {name: _sum({name: copy[name]}, "", "")[1] for name in copy}
    assert await _cut(bench, [("", "")]) == (
        [[("a", 1, one["a"]), ("b", 1, one["b"]), ("d", 1, one["d"]), ("", 0, 0)]],
        1,
    )
    assert (await _cut(bench, [("", "a"), ("b", "c"), ("c", "d")]))[0] == [
        [("a", 1, one["a"])],
        [("c", 0, 0)],
        [("d", 1, one["d"])],
    ]


@pytest.mark.parametrize("parts", [1, 2, 7, 16])
async def test_parts_of_about_equal_counts_cover_the_range_and_sum_what_is_in_them(bench, parts):
    chance = random.Random(parts)
    await bench.put({f"k{chance.randrange(10_000)}": chance.random() for _ in range(300)})
    copy = await bench.copy()
    for after, through in (("", ""), ("k2", "k7"), ("k5", ""), ("", "k3")):
        ((cut,), _) = await _cut(bench, [(after, through)], parts=parts)
        assert len(cut) <= parts
        assert cut[-1][0] == through
        begin = after
        for end, count, digest in cut:
            assert (count, digest) == _sum(copy, begin, end)
            begin = end
        counts = [count for _, count, _ in cut[:-1]]
        assert len(set(counts)) <= 1, "all but the last are equal"


async def test_under_a_filter_and_a_mask_they_are_those_of_that_copy(bench):
    await bench.put({f"k{i:03}": i for i in range(100)})
    copy = await bench.copy()
    selection = parse_selection("v >= 50 AND v < 60", ["v"])
    ((cut,), _) = await _cut(bench, [("", "")], selection=selection, parts=4)
    chosen = {
        record_id: (revision, b'{"v":%d}' % int(record_id[1:]))
        for record_id, (revision, _) in copy.items()
        if 50 <= int(record_id[1:]) < 60
    }
    begin = ""
    for end, count, digest in cut:
        assert (count, digest) == _sum(chosen, begin, end)
        begin = end
    assert sum(count for _, count, _ in cut) == 10
    ((cut,), _) = await _cut(bench, [("k048", "k052")], selection=selection)
    assert [(end, count) for end, count, _ in cut] == [("k050", 1), ("k051", 1), ("k052", 1)]
