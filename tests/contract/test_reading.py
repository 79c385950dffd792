"""Pages of changes, heads, records."""

from itertools import accumulate

import pytest

from support.store_values import Bench, body, deletes, upserts
from syncline_server.model import ChangeKind, Upserts


@pytest.mark.on_both
async def test_pages_follow_each_other(bench: Bench) -> None:
    await bench.put([f"k{i}" for i in range(10)])
    await bench.put({"k3": 2})
    await bench.remove("k5")
    first = await bench.page(max_changes=4)
    assert (list(first.changes.record_ids), first.complete) == (["k0", "k1", "k2", "k4"], False)
    assert (first.last_revision, len(first.changes)) == (1, 4)
    assert first.head == await bench.head()
    second = await bench.page(first.last_position, max_changes=4)
    third = await bench.page(second.last_position, max_changes=4)
    assert list(third.changes.record_ids) == ["k3", "k5"]
    assert third.complete
    assert list(third.changes.kinds) == [ChangeKind.PUT, ChangeKind.DELETE]
    assert list(third.changes.data) == [body("k3", 2), b""]
    assert list(third.changes.revisions) == [2, 3]
    last = await bench.page(third.last_position)
    assert (len(last.changes), last.complete) == (0, True)
    assert (last.last_position, last.last_revision) == (third.last_position, 0)


async def test_pages_that_end_exactly_at_the_head_are_complete(bench: Bench) -> None:
    assert (await bench.page()).complete, "an empty dataset"
    await bench.put(["a", "b"])
    assert (await bench.page(max_changes=2)).complete
    assert not (await bench.page(max_changes=1)).complete


@pytest.mark.on_both
async def test_a_page_is_bounded_in_bytes(bench: Bench) -> None:
    size = len("é0") + 1 + len(body("é0"))  # é is two bytes, in the id and in the data
    await bench.put([f"é{i}" for i in range(6)])
    for limit, expected in ((1, 1), (2 * size - 1, 1), (2 * size, 2), (99 * size, 6)):
        page = await bench.page(max_bytes=limit)
        assert len(page.changes) == expected, limit
        assert page.complete is (expected == 6)


async def test_a_large_record_travels_alone(bench: Bench) -> None:
    """The bound is kept also when records are a megabyte each."""
    from hashlib import blake2b

    data = [b'{"v":"' + bytes([97 + i]) * (1 << 20) + b'"}' for i in range(4)]
    write = Upserts(
        record_ids=["a", "b", "c", "d"],
        data=data,
        hashes=[blake2b(one, digest_size=16).digest() for one in data],
    )
    await bench.write(write)
    page = await bench.page(max_bytes=256 << 10)
    assert (list(page.changes.record_ids), list(page.changes.data)) == (["a"], [data[0]])
    page = await bench.page(page.last_position, max_bytes=(2 << 20) + 100)
    assert list(page.changes.record_ids) == ["b", "c"]
    records, left, _ = await bench.store.get_records(bench.dataset.number, list("dcba"), max_bytes=1 << 21)
    assert {r.record_id for r in records} | set(left) == set("abcd")
    assert sum(len(r.data) for r in records) <= 1 << 21
    records, more, _ = await bench.store.list_records(
        bench.dataset.number, after="", limit=10, max_bytes=(2 << 20) + 100
    )
    assert ([r.record_id for r in records], more) == (["a", "b"], True)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([10] * 40, id="all small"),
        pytest.param([10] * 20 + [900] * 20, id="larger than the first ones tell"),
        pytest.param([900] * 10 + [10] * 30, id="smaller than the first ones tell"),
        pytest.param([10] * 15 + [50_000] + [10] * 24, id="one that is far larger"),
        pytest.param([10] * 39 + [50_000], id="the last one far larger"),
        pytest.param([50_000] + [10] * 39, id="the first one far larger"),
    ],
)
async def test_pages_hold_as_much_as_fits_whatever_the_sizes(bench: Bench, sizes: list[int]) -> None:
    """However a store finds the end of a page, it is the longest run of changes within both bounds."""
    names = [f"r{number:02}" for number in range(len(sizes))]
    weight = {name: len(name) + len(body(name, "9" * size)) for name, size in zip(names, sizes, strict=True)}
    await bench.put({name: "9" * size for name, size in zip(names, sizes, strict=True)})
    await bench.remove(*names[::5])
    order = [name for index, name in enumerate(names) if index % 5] + names[::5]
    weight |= {name: len(name) for name in names[::5]}
    weights = [weight[name] for name in order]
    for max_changes, max_bytes in ((40, 1_000), (40, 6_000), (10, 4_000), (40, 200_000), (1, 10)):
        seen: list[str] = []
        after, complete = 0, False
        while not complete:
            page = await bench.page(after, max_changes=max_changes, max_bytes=max_bytes)
            rest = weights[len(seen) :][:max_changes]
            fitting = sum(1 for total in accumulate(rest) if total <= max_bytes)
            assert len(page.changes.record_ids) == max(fitting, 1)
            seen += page.changes.record_ids
            after, complete = page.last_position, page.complete
        assert seen == order


@pytest.mark.on_both
async def test_g13_the_commit_id_of_a_revision_is_told_with_the_page(bench: Bench) -> None:
    await bench.put(["a"])
    first = (await bench.head()).commit_id
    await bench.put(["b"])
    second = (await bench.head()).commit_id
    assert first != second
    assert len(first) == len(second) == 8
    for revision, expected in (
        (0, bench.dataset.incarnation[:8]),
        (1, first),
        (2, second),
        (3, None),
    ):
        page = await bench.page(seen_revision=revision)
        assert page.seen_commit_id == expected


@pytest.mark.on_both
async def test_heads_agree_everywhere(bench: Bench) -> None:
    group = await bench.group(bench.commit(upserts(["a", "b"])), bench.commit(deletes("a")))
    head = await bench.head()
    assert (head.revision, head.record_count, head.commit_time_us) == (2, 1, bench.clock.us)
    assert group.appended[0].head == head
    assert (await bench.store.get_dataset("books")).head == head
    assert (await bench.store.list_datasets(limit=1))[0].head == head
    assert (await bench.page()).head == head


@pytest.mark.on_both
async def test_get_records(bench: Bench) -> None:
    other = await bench.second_source()
    await bench.put(["a", "b"])
    await other.put({"c": 2})
    await bench.remove("b")
    records, left, revision = await bench.store.get_records(
        bench.dataset.number, ["c", "b", "nothing", "a"], max_bytes=1 << 20
    )
    found = {r.record_id: r for r in records}
    assert (set(found), list(left), revision) == ({"a", "c"}, [], 3)
    assert (found["c"].data, found["c"].source_id, found["c"].revision) == (body("c", 2), "other", 2)
    assert found["a"].create_time_us == found["a"].update_time_us == bench.clock.us
    records, left, _ = await bench.store.get_records(bench.dataset.number, ["c", "b", "a"], max_bytes=1)
    assert (len(records), set(left)) == (1, {"a", "c"} - {records[0].record_id})
    nothing = await bench.store.get_records(bench.dataset.number, [], max_bytes=1)
    assert (list(nothing[0]), list(nothing[1])) == ([], [])


@pytest.mark.on_both
async def test_t32_ids_are_ordered_as_bytes(bench: Bench) -> None:
    names = [
        "a",
        "Z",
        "\u00e9",
        "e\u0301",
        "\U0001f600",
        "\uff5e",
        "a/b",
        "a b",
        "\ufb00",
        "~c",
        "\u00df",
        "\u65e5\u672c",
    ]
    await bench.put(names)
    await bench.put(["gone"])
    await bench.remove("gone")
    ordered = sorted(names, key=str.encode)
    records, more, revision = await bench.store.list_records(
        bench.dataset.number, after="", limit=99, max_bytes=1 << 20
    )
    assert ([r.record_id for r in records], more, revision) == (ordered, False, 3)
    seen: list[str] = []
    while True:
        records, more, _ = await bench.store.list_records(
            bench.dataset.number, after=seen[-1] if seen else "", limit=5, max_bytes=1 << 20
        )
        seen += [r.record_id for r in records]
        if not more:
            break
    assert seen == ordered
    one, more, _ = await bench.store.list_records(bench.dataset.number, after="", limit=5, max_bytes=1)
    assert (len(one), more) == (1, True)


@pytest.mark.parametrize("name", ["it's", 'q"uote', "back\\slash", "tab~t", "%_", "\u2028", "a" * 512])
async def test_t32_ids_survive_every_way(bench: Bench, name: str) -> None:
    """T32: no id is special to a look-up, a page or a change of owner."""
    other = await bench.second_source()
    await bench.put([name])
    await other.put([name])
    await bench.put({name: 2})
    assert set(await bench.copy()) == {name}
    records, _, _ = await bench.store.get_records(bench.dataset.number, [name], max_bytes=1 << 20)
    assert [r.record_id for r in records] == [name]
    await bench.remove(name)
    assert await bench.copy() == {}


async def test_datasets_do_not_see_each_other(bench: Bench) -> None:
    other = await Bench.make(bench.store, bench.clock, dataset_id="other")
    await bench.put(["a", "b"])
    await other.put({"a": 9})
    await bench.remove("b")
    assert await bench.copy() == {"a": (1, body("a"))}
    assert await other.copy() == {"a": (1, body("a", 9))}
    assert (await other.page()).complete
