"""Pages of named records."""

from support.store_values import Bench, body


async def named(bench: Bench, *record_ids: str, after: int = 0, through: int = 1 << 40, most: int = 1 << 20):
    return await bench.store.read_named_changes(
        bench.dataset.number, record_ids, after=after, through_revision=through, max_bytes=most
    )


async def test_named_changes_are_those_of_a_page(bench: Bench) -> None:
    await bench.put([f"k{i}" for i in range(6)])
    await bench.put({"k1": 2, "k2": 2})
    await bench.remove("k3")
    whole = (await bench.page()).changes
    page = await named(bench, "k5", "k4", "k2", "nowhere", "k3")
    assert list(page.changes.record_ids) == ["k4", "k5", "k2"], "in order, without what is gone"
    assert list(page.changes.data) == [body("k4"), body("k5"), body("k2", 2)]
    assert list(page.changes.revisions) == [1, 1, 2]
    for name in ("commit_times_us", "revisions"):
        column = dict(zip(whole.record_ids, getattr(whole, name), strict=True))
        assert list(getattr(page.changes, name)) == [column[k] for k in page.changes.record_ids]
    assert (page.complete, page.head) == (True, await bench.head())
    assert page.last_revision == 2


async def test_named_changes_after_a_position_and_through_a_revision(bench: Bench) -> None:
    await bench.put(["a", "b", "c"])
    await bench.put({"a": 2})
    first = await bench.page(max_changes=1)
    assert list(first.changes.record_ids) == ["b"]
    page = await named(bench, "a", "b", "c", after=first.last_position, through=1)
    assert list(page.changes.record_ids) == ["c"]
    none = await named(bench, "b", after=first.last_position)
    assert (len(none.changes), none.last_position, none.last_revision) == (0, first.last_position, 0)
    assert none.complete


async def test_named_changes_are_bounded_in_bytes_and_asked_for_a_commit_id(bench: Bench) -> None:
    await bench.put(["a", "b", "c"])
    size = len("a") + len(body("a"))
    page = await named(bench, "a", "b", "c", most=2 * size)
    assert (list(page.changes.record_ids), page.complete) == (["a", "b"], False)
    page = await named(bench, "a", "b", most=1)
    assert (list(page.changes.record_ids), page.complete) == (["a"], False)
    head = await bench.head()
    seen = await bench.store.read_named_changes(
        bench.dataset.number, ["a"], after=0, through_revision=9, max_bytes=99, seen_revision=head.revision
    )
    assert seen.seen_commit_id == head.commit_id
