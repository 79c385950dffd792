"""Datasets, sources, keys."""

from dataclasses import replace

import pytest

from support.store_values import START_US, Bench, dataset, key, request, source, upserts
from syncline_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from syncline_server.model import Identity, IdentityKind, RecordScope, Retention, Role, SessionMode
from syncline_server.store.abc import Store


async def test_a_new_dataset_is_empty_and_has_the_source_default(store: Store) -> None:
    asked = dataset(
        display_name="Books ☃",
        description="d",
        schema="{}",
        record_scope=RecordScope.PER_SOURCE,
        retention=Retention(min_age_us=5, min_revisions=7),
        annotations={"owner": "me"},
    )
    made = await store.create_dataset(asked)
    assert made == replace(asked, number=made.number, generation=1, head=made.head)
    assert (made.head.revision, made.head.record_count, made.head.digest) == (0, 0, 0)
    assert made.head.commit_id == asked.incarnation[:8]
    assert await store.get_dataset("books") == made
    default = await store.get_source("books", "default")
    assert (default.dataset_number, default.dataset_id, default.disabled) == (made.number, "books", False)
    assert default.last_received_us is None


async def test_dataset_ids_are_taken_once(store: Store) -> None:
    await store.create_dataset(dataset())
    with pytest.raises(AlreadyExists) as raised:
        await store.create_dataset(dataset())
    assert raised.value.reason == "DATASET_EXISTS"


async def test_what_is_not_there_is_not_found(store: Store) -> None:
    made = await store.create_dataset(dataset())
    for reason, question in (
        ("DATASET_NOT_FOUND", store.get_dataset("nothing")),
        ("DATASET_NOT_FOUND", store.get_source("nothing", "default")),
        ("SOURCE_NOT_FOUND", store.get_source("books", "nothing")),
        ("DATASET_NOT_FOUND", store.list_sources("nothing", limit=1)),
        ("DATASET_NOT_FOUND", store.read_head(99)),
        ("DATASET_NOT_FOUND", store.read_changes(99, after=0, max_changes=1, max_bytes=1)),
        ("DATASET_NOT_FOUND", store.get_records(99, ["a"], max_bytes=1)),
        ("DATASET_NOT_FOUND", store.list_records(99, after="", limit=1, max_bytes=1)),
        ("DATASET_NOT_FOUND", store.update_dataset(replace(made, number=99), expected_generation=1)),
        ("DATASET_NOT_FOUND", store.delete_dataset(99, expected_generation=None)),
        ("DATASET_NOT_FOUND", store.create_source(source(replace(made, number=99), "s"))),
        ("DATASET_NOT_FOUND", store.purge(99, before_us=0, min_revisions=0, max_tombstones=1)),
        ("KEY_NOT_FOUND", store.get_key("nothing")),
        ("KEY_NOT_FOUND", store.update_key(key("nothing"), expected_generation=1)),
        ("KEY_NOT_FOUND", store.delete_key("nothing", expected_generation=None)),
        ("SOURCE_NOT_FOUND", store.create_key(key("k", Role.PUSH, source_number=99))),
    ):
        with pytest.raises(NotFound) as raised:
            await question
        assert raised.value.reason == reason


async def test_lists_go_by_id_as_bytes_in_pages(store: Store) -> None:
    for name in ("b", "a", "a.b", "a-b", "a_b", "ab"):
        await store.create_dataset(dataset(name))
    ordered = sorted(("b", "a", "a.b", "a-b", "a_b", "ab"), key=str.encode)
    assert [d.dataset_id for d in await store.list_datasets(limit=10)] == ordered
    first = await store.list_datasets(limit=2)
    assert [d.dataset_id for d in first] == ordered[:2]
    rest = await store.list_datasets(after=first[-1].dataset_id, limit=10)
    assert [d.dataset_id for d in rest] == ordered[2:]
    home = await store.get_dataset("b")
    for name in ("z", "f"):
        await store.create_source(source(home, name))
    assert [s.source_id for s in await store.list_sources("b", limit=2)] == ["default", "f"]
    assert [s.source_id for s in await store.list_sources("b", after="f", limit=2)] == ["z"]
    for name in ("k2", "k1"):
        await store.create_key(key(name))
    assert [k.key_id for k in await store.list_keys(limit=5)] == ["k1", "k2"]
    assert [k.key_id for k in await store.list_keys(after="k1", limit=5)] == ["k2"]


async def test_an_update_needs_the_present_generation(bench: Bench) -> None:
    store = bench.store
    changed = await store.update_dataset(
        replace(bench.dataset, display_name="new", schema="{}", update_time_us=START_US + 1),
        expected_generation=1,
    )
    assert (changed.generation, changed.display_name, changed.schema) == (2, "new", "{}")
    assert changed.etag != bench.dataset.etag
    with pytest.raises(Aborted) as raised:
        await store.update_dataset(changed, expected_generation=1)
    assert raised.value.reason == "ETAG_MISMATCH"
    moved = await store.update_source(replace(bench.source, disabled=True), expected_generation=1)
    assert (moved.disabled, moved.generation) == (True, 2)
    with pytest.raises(Aborted):
        await store.update_source(moved, expected_generation=1)
    with pytest.raises(Aborted):
        await store.delete_source(moved, expected_generation=1)
    made = await store.create_key(key("k", Role.READ, patterns=("a*",)))
    again = await store.update_key(
        replace(made, patterns=("b", "c*"), expire_time_us=9, display_name="K"), expected_generation=1
    )
    assert (again.patterns, again.expire_time_us, again.display_name) == (("b", "c*"), 9, "K")
    for refused in (
        store.update_key(again, expected_generation=1),
        store.delete_key("k", expected_generation=1),
        store.delete_dataset(bench.dataset.number, expected_generation=1),
    ):
        with pytest.raises(Aborted):
            await refused


async def test_the_identity_changes_only_while_nothing_is_there(bench: Bench) -> None:
    other = Identity(kind=IdentityKind.CONTENT)
    changed = await bench.store.update_dataset(replace(bench.dataset, identity=other), expected_generation=1)
    assert changed.identity == other
    bench.dataset = changed
    await bench.put(["a"])
    await bench.remove("a")  # the tombstone still has an id made by the old rule
    with pytest.raises(FailedPrecondition) as raised:
        await bench.store.update_dataset(
            replace(changed, identity=Identity(kind=IdentityKind.APPEND)), expected_generation=2
        )
    assert raised.value.reason == "IDENTITY_IN_USE"
    assert (await bench.store.get_dataset("books")).generation == 2


async def test_a_deleted_dataset_is_gone_with_everything_in_it(bench: Bench) -> None:
    store = bench.store
    await bench.put(["a", "b"])
    await bench.open(SessionMode.ACCRUE)
    await store.create_key(key("k", Role.PUSH, source_number=bench.source.number))
    await store.delete_dataset(bench.dataset.number, expected_generation=1)
    with pytest.raises(NotFound):
        await store.get_dataset("books")
    with pytest.raises(NotFound):
        await store.get_key("k")
    with pytest.raises(NotFound):
        await bench.put(["c"])
    assert await store.count_sessions() == 0
    again = await Bench.make(store, bench.clock)
    assert again.dataset.number != bench.dataset.number, "numbers are never used again"
    assert again.source.number != bench.source.number
    assert await again.copy() == {}
    await store.maintain()
    assert (await again.put(["a"])).revision == 1
    await store.maintain()
    assert set(await again.copy()) == {"a"}


async def test_a_deleted_source_takes_its_records_keys_and_session_along(bench: Bench) -> None:
    store = bench.store
    other = await bench.second_source()
    await bench.put(["a", "b"])
    await other.put(["c", "b"])  # b goes over to the other source: SHARED and unchanged
    session = await other.open()
    await store.create_key(key("k", Role.PUSH, source_number=other.source.number))
    before = await bench.head()
    appended = await store.delete_source(other.source, expected_generation=None)
    assert appended is not None
    assert (appended.from_revision, appended.head.revision) == (before.revision, before.revision + 1)
    assert appended.head == await bench.head()
    assert appended.changes is not None
    assert set(appended.changes.record_ids) == {"b", "c"}
    assert set(appended.changes.reasons) == {4}
    assert set(appended.changes.data) == {b""}
    assert set(await bench.copy()) == {"a"}
    with pytest.raises(NotFound):
        await store.get_key("k")
    with pytest.raises(NotFound):
        await store.get_source("books", "other")
    assert await store.count_sessions() == 0
    with pytest.raises(PermissionDenied):
        await other.stage(session, upserts(["x"]))
    empty = await bench.second_source("empty")
    assert await store.delete_source(empty.source, expected_generation=1) is None


async def test_keys_know_the_source_by_number(bench: Bench) -> None:
    made = await bench.store.create_key(key("k", Role.PUSH, source_number=bench.source.number))
    assert (made.dataset_id, made.source_id, made.source_number) == ("books", "default", bench.source.number)
    assert await bench.store.get_key("k") == made
    await bench.store.touch_keys({"k": 5, "gone": 6})
    await bench.store.touch_keys({"k": 3})
    assert (await bench.store.get_key("k")).last_used_us == 5
    await bench.store.delete_key("k", expected_generation=1)
    with pytest.raises(NotFound):
        await bench.store.get_key("k")


async def test_g5_a_retried_catalog_request_returns_the_present_state(store: Store) -> None:
    made = await store.create_dataset(dataset(), identity=request("r1"))
    assert (await store.create_dataset(dataset(), identity=request("r1"))) == made
    with pytest.raises(InvalidArgument) as raised:
        await store.create_dataset(dataset("b"), identity=request("r1", b"other"))
    assert raised.value.reason == "REQUEST_ID_REUSED"
    changed = await store.update_dataset(
        replace(made, display_name="x"), expected_generation=1, identity=request("r2")
    )
    assert await store.update_dataset(made, expected_generation=1, identity=request("r2")) == changed
    first = await store.create_source(source(made, "s"), identity=request("r3"))
    assert await store.create_source(source(made, "s"), identity=request("r3")) == first
    first = await store.update_source(
        replace(first, disabled=True), expected_generation=1, identity=request("r4")
    )
    assert await store.update_source(first, expected_generation=1, identity=request("r4")) == first
    one = await store.create_key(key("k1"), identity=request("r5"))
    assert await store.create_key(key("k2"), identity=request("r5")) == one
    await store.update_key(one, expected_generation=1, identity=request("r6"))
    assert (await store.update_key(one, expected_generation=1, identity=request("r6"))).generation == 2
    for _ in range(2):
        await store.delete_key("k1", expected_generation=2, identity=request("r7"))
        assert await store.delete_source(first, expected_generation=2, identity=request("r8")) is None
        await store.delete_dataset(made.number, expected_generation=2, identity=request("r9"))
