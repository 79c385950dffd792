"""Purge, re-keying, and what is left of them."""

from dataclasses import replace

import pytest

from support.store_values import Bench, body, request, upserts
from syncline_server.errors import Aborted, PermissionDenied
from syncline_server.model import Identity, IdentityKind, Reason, SessionMode

LATER = 1 << 60


async def _tombstones(bench: Bench) -> list[str]:
    page = await bench.page()
    return [r for r, data in zip(page.changes.record_ids, page.changes.data, strict=True) if not data]


async def test_purge_is_contiguous_and_moves_the_watermark(bench: Bench) -> None:
    await bench.put(["a", "b", "c"])
    await bench.remove("a")
    bench.clock.pass_seconds(10)
    await bench.remove("b")
    bench.clock.pass_seconds(10)
    await bench.put(["d"])
    before = bench.clock.us
    result = await bench.store.purge(
        bench.dataset.number, before_us=before - 10_000_000, min_revisions=0, max_tombstones=10
    )
    assert (result.purge_revision, result.tombstones, result.more) == (2, 1, False)
    assert await _tombstones(bench) == ["b"]
    head = await bench.head()
    assert (head.purge_revision, head.revision, head.record_count) == (2, 4, 2)
    for revision, known in ((1, False), (2, True), (4, True)):
        page = await bench.page(seen_revision=revision)
        assert (page.seen_commit_id is not None) is known
    again = await bench.store.purge(bench.dataset.number, before_us=0, min_revisions=0, max_tombstones=10)
    assert (again.purge_revision, again.tombstones) == (2, 0), "never back"
    kept = await bench.store.purge(bench.dataset.number, before_us=LATER, min_revisions=1, max_tombstones=10)
    assert kept.purge_revision == 3
    assert set(await bench.copy()) == {"c", "d"}


async def test_purge_is_capped_but_never_stuck(bench: Bench) -> None:
    await bench.put([f"k{i}" for i in range(8)])
    await bench.remove("k0")
    await bench.remove("k1", "k2")
    await bench.remove("k3", "k4", "k5")
    await bench.put(["last"])
    runs = []
    while True:
        result = await bench.store.purge(
            bench.dataset.number, before_us=LATER, min_revisions=0, max_tombstones=2
        )
        runs.append((result.purge_revision, result.tombstones, result.more))
        if not result.more:
            break
    assert runs == [(2, 1, True), (3, 2, True), (4, 3, True), (5, 0, False)]
    assert await _tombstones(bench) == []
    assert set(await bench.copy()) == {"k6", "k7", "last"}


async def test_after_the_last_tombstone_went_a_page_is_still_complete(bench: Bench) -> None:
    await bench.put(["a", "b"])
    await bench.remove("b")
    await bench.store.purge(bench.dataset.number, before_us=LATER, min_revisions=0, max_tombstones=9)
    page = await bench.page()
    assert (list(page.changes.record_ids), page.complete, page.head.revision) == (["a"], True, 2)
    assert (await bench.put(["c"])).revision == 3
    assert (await bench.page()).last_position > page.head.last_position


async def test_a_record_may_come_back_after_its_tombstone_went(bench: Bench) -> None:
    await bench.put(["a"])
    await bench.remove("a")
    await bench.store.purge(bench.dataset.number, before_us=LATER, min_revisions=0, max_tombstones=9)
    await bench.put(["a"])
    assert await bench.copy() == {"a": (3, body("a"))}


async def test_purge_of_an_empty_dataset(bench: Bench) -> None:
    result = await bench.store.purge(bench.dataset.number, before_us=LATER, min_revisions=0, max_tombstones=9)
    assert (result.purge_revision, result.tombstones, result.more) == (0, 0, False)


# -- re-keying --------------------------------------------------------------------------------------------

OTHER = Identity(kind=IdentityKind.KEY, key_fields=("other",))


async def _rekey(bench: Bench, names: dict[bytes, str], **more):
    changed = replace(bench.dataset, identity=OTHER)
    return await bench.store.rekey(
        changed, lambda data, source_id: names[data], expected_generation=1, **more
    )


async def test_rekey_moves_every_record_in_one_commit(bench: Bench) -> None:
    await bench.put({"a": 1, "b": 2, "c": 3})
    await bench.put({"d": 4})
    session = await bench.open(SessionMode.ACCRUE)
    names = {body("a", 1): "x", body("b", 2): "b", body("c", 3): "a", body("d", 4): "d"}
    changed, appended = await _rekey(bench, names, identity=request("r"))
    assert (changed.identity, changed.generation, changed.head.revision) == (OTHER, 2, 3)
    assert await bench.copy() == {
        "x": (3, body("a", 1)),
        "b": (1, body("b", 2)),
        "a": (3, body("c", 3)),
        "d": (2, body("d", 4)),
    }
    assert appended is not None
    assert (appended.from_revision, appended.head) == (2, changed.head)
    assert appended.changes is not None
    assert list(appended.changes.record_ids) == ["x", "a", "c"]
    assert set(appended.changes.reasons) == {Reason.SOURCE}
    with pytest.raises(PermissionDenied):
        await bench.stage(session, upserts(["z"]))
    assert await _rekey(bench, names, identity=request("r")) == (changed, None)
    with pytest.raises(Aborted) as raised:
        await bench.put(["z"])
    assert raised.value.reason == "DATASET_CHANGED"


async def test_of_records_that_meet_the_newest_stays(bench: Bench) -> None:
    await bench.put({"a": 1, "b": 2, "c": 3})
    await bench.put({"a": 9})
    names = {body("a", 9): "one", body("b", 2): "one", body("c", 3): "c"}
    await _rekey(bench, names)
    assert await bench.copy() == {"one": (3, body("a", 9)), "c": (1, body("c", 3))}


async def test_a_rekey_that_fails_undoes_everything(bench: Bench) -> None:
    await bench.put({"a": 1, "b": 2})
    session = await bench.open(SessionMode.ACCRUE)
    page = await bench.page()
    with pytest.raises(KeyError):
        await _rekey(bench, {body("a", 1): "x"})
    assert await bench.page() == page
    assert (await bench.store.get_dataset("books")).generation == 1
    await bench.stage(session, upserts(["z"]))
    with pytest.raises(Aborted):
        await bench.store.rekey(bench.dataset, lambda data, source_id: "x", expected_generation=2)


async def test_a_rekey_that_moves_nothing_is_no_commit(bench: Bench) -> None:
    await bench.put({"a": 1})
    changed, appended = await _rekey(bench, {body("a", 1): "a"})
    assert (appended, changed.head.revision, changed.generation) == (None, 1, 2)


async def test_probe_and_maintain_are_quiet_when_all_is_well(bench: Bench) -> None:
    for _ in range(3):
        await bench.put(["a"])
        await bench.store.maintain()
        await bench.store.probe()
