"""Datasets and sources over a real store: checks, etags, retries, caches, re-keying."""

import asyncio
import json
from dataclasses import replace

import pytest

from support.store_values import request
from syncline_server.catalog import catalog as module
from syncline_server.catalog.catalog import MAX_AGE_SECONDS, Catalog
from syncline_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SynclineError,
)
from syncline_server.ingest.records import Limits, RecordReader, record_id_rule
from syncline_server.model import Commit, Identity, IdentityKind, Reason, RecordScope, Retention, Upserts
from syncline_server.notify.local import LocalNotifier

KEY = Identity(kind=IdentityKind.KEY, key_fields=("id",))


def key(*fields):
    return Identity(kind=IdentityKind.KEY, key_fields=fields)


class Watched:
    """A store that counts reads, and lets something happen right after one."""

    def __init__(self, store):
        self._store = store
        self.reads = []
        self.after_read = {}

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def get_dataset(self, dataset_id):
        found = await self._store.get_dataset(dataset_id)
        await self._happen("dataset")
        return found

    async def get_source(self, dataset_id, source_id):
        found = await self._store.get_source(dataset_id, source_id)
        await self._happen("source")
        return found

    async def _happen(self, name):
        self.reads.append(name)
        if name in self.after_read:
            await self.after_read.pop(name)()


class Room:
    def __init__(self, store, clock):
        self.clock = clock
        self.store = Watched(store)
        self.announced = []
        notifier = LocalNotifier()
        notifier.listen(self.announced.append)
        self.catalog = Catalog(self.store, notifier, clock, record_id_rule=record_id_rule(Limits()))
        self.other_node = Catalog(store, LocalNotifier(), clock, record_id_rule=record_id_rule(Limits()))

    async def push(self, dataset_id, *values, source_id="default"):
        opened = await self.catalog.dataset(dataset_id)
        source = await self.catalog.source(dataset_id, source_id)
        dataset = opened.dataset
        reader = RecordReader(dataset.identity, dataset.record_scope, opened.schema, Limits())
        checked = reader.read([json.dumps(value).encode() for value in values], source_id)
        assert not checked.violations
        unique = dict(zip(checked.record_ids, zip(checked.data, checked.hashes, strict=True), strict=True))
        write = Upserts(
            record_ids=list(unique),
            data=[data for data, _ in unique.values()],
            hashes=[digest for _, digest in unique.values()],
        )
        group = await self.store.commit(
            [
                Commit(
                    dataset_number=dataset.number,
                    generation=dataset.generation,
                    source_number=source.number,
                    write=write,
                )
            ]
        )
        assert not isinstance(group.results[0], SynclineError), group.results[0]
        return group.results[0]

    async def records(self, dataset_id):
        dataset = await self.catalog.get_dataset(dataset_id)
        found, more, _ = await self.store.list_records(
            dataset.number, after="", limit=1_000, max_bytes=1 << 20
        )
        assert not more
        return {record.record_id: json.loads(record.data) for record in found}


@pytest.fixture
async def room(durable):
    async with durable.open() as store:
        yield Room(store, durable.clock)


def fields_of(refused):
    return [field for field, _ in refused.value.fields]


# -- datasets --------------------------------------------------------------------------------------------------


async def test_a_new_dataset_has_its_settings_a_uid_and_a_default_source(room):
    settings = {
        "identity": key("a.b", "c"),
        "record_scope": RecordScope.PER_SOURCE,
        "schema": '{"type":"object"}',
        "display_name": "Books",
        "description": "All\nof them",
        "retention": Retention(min_age_us=5, min_revisions=7),
        "annotations": {"owner": "x"},
    }
    made = await room.catalog.create_dataset("books", settings)
    assert {name: getattr(made, name) for name in settings} == settings
    assert len(made.incarnation) == 16 and made.create_time_us == room.clock.now_us()
    assert await room.catalog.get_dataset("books") == made
    assert (await room.catalog.source("books", "default")).dataset_number == made.number
    again = await room.catalog.create_dataset("other", {})
    assert (again.identity, again.record_scope) == (Identity(kind=IdentityKind.CONTENT), RecordScope.SHARED)
    assert again.incarnation != made.incarnation


@pytest.mark.parametrize("validate_only", [False, True])
async def test_a_dataset_is_made_once(room, validate_only):
    await room.catalog.create_dataset("books", {})
    with pytest.raises(AlreadyExists) as refused:
        await room.catalog.create_dataset("books", {}, validate_only=validate_only)
    assert refused.value.reason == "DATASET_EXISTS"


async def test_validate_only_makes_nothing(room):
    checked = await room.catalog.create_dataset("books", {"identity": KEY}, validate_only=True)
    assert checked.identity == KEY
    with pytest.raises(NotFound):
        await room.catalog.get_dataset("books")
    with pytest.raises(InvalidArgument):
        await room.catalog.create_dataset("books", {"schema": "["}, validate_only=True)


BAD_SETTINGS = [
    ({"identity": Identity(kind=IdentityKind.KEY)}, ["identity.key_fields"]),
    ({"identity": key(*"abcdefghi")}, ["identity.key_fields"]),
    ({"identity": Identity(kind=IdentityKind.CONTENT, key_fields=("a",))}, ["identity.key_fields"]),
    ({"identity": Identity(kind=IdentityKind.APPEND, key_fields=("a",))}, ["identity.key_fields"]),
    ({"identity": key("a", "")}, ["identity.key_fields[1]"]),
    ({"identity": key("a..b", ".a", "a.")}, [f"identity.key_fields[{i}]" for i in range(3)]),
    ({"identity": key("a", "b", "a")}, ["identity.key_fields[2]"]),
    ({"identity": key("a\0b", "x" * 201)}, ["identity.key_fields[0]", "identity.key_fields[1]"]),
    ({"display_name": "x" * 201}, ["display_name"]),
    ({"display_name": "a\nb"}, ["display_name"]),
    ({"display_name": "\x1b[31mred"}, ["display_name"]),
    ({"description": "x" * 4_001}, ["description"]),
    ({"description": "a\0b"}, ["description"]),
    ({"annotations": {str(i): "" for i in range(65)}}, ["annotations"]),
    ({"annotations": {"": "x"}}, ["annotations"]),
    ({"annotations": {"k" * 64: "x"}}, ["annotations"]),
    ({"annotations": {"a\nb": "x"}}, ["annotations"]),
    ({"annotations": {"k": "x" * 1_025}}, ["annotations"]),
    ({"retention": Retention(min_age_us=-1)}, ["retention.min_age"]),
    ({"retention": Retention(min_revisions=1_000_000_001)}, ["retention.min_revisions"]),
    ({"retention": Retention(min_revisions=-1)}, ["retention.min_revisions"]),
    ({"number": 5}, ["number"]),
    ({"nonsense": 5, "head": 1}, ["head", "nonsense"]),
    ({"display_name": "a\nb", "retention": Retention(min_age_us=-1)}, ["display_name", "retention.min_age"]),
]


@pytest.mark.parametrize(("settings", "fields"), BAD_SETTINGS, ids=range(len(BAD_SETTINGS)))
async def test_every_wrong_setting_is_told(room, settings, fields):
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.create_dataset("books", settings)
    assert refused.value.reason == "INVALID_REQUEST"
    assert sorted(fields_of(refused)) == fields
    await room.catalog.create_dataset("books", {})
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.update_dataset("books", settings)
    assert sorted(fields_of(refused)) == fields


async def test_the_longest_settings_fit(room):
    settings = {
        "identity": key(*"abcdefgh"),
        "display_name": "é" * 200,
        "description": "😀" * 4_000,
        "annotations": {f"{i:063}": "x" * 1_024 for i in range(64)},
        "retention": Retention(min_age_us=0, min_revisions=1_000_000_000),
        "schema": json.dumps({"description": "x" * 65_000}),
    }
    made = await room.catalog.create_dataset("a" * 63, settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize("dataset_id", ["", "A", "a/b", "a" * 64, "1a", "a.", "a\n", "../a"])
async def test_ids_outside_of_the_rule_are_refused(room, dataset_id):
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.create_dataset(dataset_id, {})
    assert fields_of(refused) == ["dataset_id"]
    await room.catalog.create_dataset("books", {})
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.create_source("books", dataset_id, {})
    assert fields_of(refused) == ["source_id"]


async def test_a_wrong_schema_is_refused_at_registration(room):
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.create_dataset("books", {"schema": '{"$ref":"http://127.0.0.1:1/"}'})
    assert refused.value.reason == "SCHEMA_INVALID"


async def test_an_update_changes_the_fields_given_and_no_others(room):
    made = await room.catalog.create_dataset("books", {"display_name": "Books", "description": "d"})
    room.clock.pass_seconds(5)
    updated = await room.catalog.update_dataset("books", {"description": "", "annotations": {"a": "b"}})
    assert (updated.display_name, updated.description, updated.annotations) == ("Books", "", {"a": "b"})
    assert updated.generation == made.generation + 1 and updated.etag != made.etag
    assert updated.update_time_us == room.clock.now_us() != made.update_time_us
    assert updated.create_time_us == made.create_time_us


async def test_the_record_scope_cannot_be_changed(room):
    await room.catalog.create_dataset("books", {})
    await room.catalog.update_dataset("books", {"record_scope": RecordScope.SHARED})
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.update_dataset("books", {"record_scope": RecordScope.PER_SOURCE})
    assert refused.value.fields == (("record_scope", "cannot be changed"),)


@pytest.mark.parametrize("validate_only", [False, True])
async def test_an_old_etag_is_refused(room, validate_only):
    made = await room.catalog.create_dataset("books", {})
    await room.catalog.update_dataset("books", {"display_name": "x"}, etag=made.etag)
    for etag in (made.etag, "nonsense", '"00000000-2"', '"-2"', made.etag[:-2] + 'x"', "2"):
        for call in (
            room.catalog.update_dataset(
                "books", {"display_name": "y"}, etag=etag, validate_only=validate_only
            ),
            room.catalog.delete_dataset("books", etag=etag, validate_only=validate_only),
        ):
            with pytest.raises(Aborted) as refused:
                await call
            assert refused.value.reason == "ETAG_MISMATCH"
    assert (await room.catalog.get_dataset("books")).display_name == "x"


async def test_two_updates_of_different_fields_both_stay(room):
    """Without an etag the caller wants these fields set, whatever else was changed meanwhile."""
    await room.catalog.create_dataset("books", {})

    async def meanwhile():
        await room.other_node.update_dataset("books", {"description": "theirs"})

    room.store.after_read["dataset"] = meanwhile
    updated = await room.catalog.update_dataset("books", {"display_name": "ours"})
    assert (updated.display_name, updated.description) == ("ours", "theirs")


async def test_a_race_is_told_to_those_who_gave_an_etag(room):
    made = await room.catalog.create_dataset("books", {})

    async def meanwhile():
        await room.other_node.update_dataset("books", {"description": "theirs"})

    room.store.after_read["dataset"] = meanwhile
    with pytest.raises(Aborted):
        await room.catalog.update_dataset("books", {"display_name": "ours"}, etag=made.etag)
    assert (await room.catalog.get_dataset("books")).display_name == ""


async def test_g5_retried_changes_have_one_effect(room):
    """T05 for the catalog: the retry comes with the etag of before, and gets the present state."""
    first = await room.catalog.create_dataset("books", {}, identity=request("create"))
    assert await room.catalog.create_dataset("books", {}, identity=request("create")) == first
    update = {"etag": first.etag, "identity": request("update")}
    changed = await room.catalog.update_dataset("books", {"display_name": "x"}, **update)
    assert await room.catalog.update_dataset("books", {"display_name": "x"}, **update) == changed
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.update_dataset(
            "books", {"display_name": "y"}, identity=request("update", b"other")
        )
    assert refused.value.reason == "REQUEST_ID_REUSED"
    source = await room.catalog.create_source("books", "feed", {}, identity=request("source"))
    assert await room.catalog.create_source("books", "feed", {}, identity=request("source")) == source
    await room.catalog.delete_source("books", "feed", identity=request("delete source"))
    await room.catalog.delete_source("books", "feed", identity=request("delete source"))
    with pytest.raises(NotFound):
        await room.catalog.delete_source("books", "feed", identity=request("another delete"))
    delete = {"etag": changed.etag, "identity": request("delete")}
    assert await room.catalog.delete_dataset("books", **delete) == first.number
    assert await room.catalog.delete_dataset("books", **delete) is None
    with pytest.raises(NotFound):
        await room.catalog.delete_dataset("books", identity=request("another delete of it"))
    with pytest.raises(NotFound):
        await room.catalog.delete_dataset("books", identity=request("delete"), validate_only=True)


async def test_g5_a_retried_delete_spares_the_dataset_made_since(room):
    await room.catalog.create_dataset("books", {})
    await room.catalog.delete_dataset("books", identity=request("delete"))
    second = await room.catalog.create_dataset("books", {})
    assert await room.catalog.delete_dataset("books", identity=request("delete")) is None
    assert await room.catalog.get_dataset("books") == second


async def test_validate_only_deletes_nothing(room):
    await room.catalog.create_dataset("books", {})
    await room.catalog.delete_source("books", "default", validate_only=True)
    await room.catalog.delete_dataset("books", validate_only=True)
    assert await room.catalog.get_source("books", "default")
    with pytest.raises(NotFound):
        await room.catalog.delete_source("books", "missing", validate_only=True)


async def test_lists_follow_each_other(room):
    for name in ("b", "a", "c"):
        await room.catalog.create_dataset(name, {})
        await room.catalog.create_source("b" if name == "c" else name, f"s-{name}", {})
    assert [d.dataset_id for d in await room.catalog.list_datasets(limit=2)] == ["a", "b"]
    assert [d.dataset_id for d in await room.catalog.list_datasets(after="b", limit=2)] == ["c"]
    assert [s.source_id for s in await room.catalog.list_sources("b", limit=5)] == ["default", "s-b", "s-c"]
    assert [s.source_id for s in await room.catalog.list_sources("b", after="s-b", limit=5)] == ["s-c"]


# -- re-keying -------------------------------------------------------------------------------------------------

RECORDS = [{"id": "1", "isbn": "x"}, {"id": "2", "isbn": "y"}, {"id": "3", "isbn": "x"}]


@pytest.mark.parametrize("validate_only", [False, True])
async def test_an_identity_in_use_is_changed_only_by_rekeying(room, validate_only):
    await room.catalog.create_dataset("books", {"identity": KEY})
    await room.catalog.update_dataset("books", {"identity": key("isbn")})
    await room.catalog.update_dataset("books", {"identity": KEY})
    await room.push("books", *RECORDS)
    with pytest.raises(FailedPrecondition) as refused:
        await room.catalog.update_dataset("books", {"identity": key("isbn")}, validate_only=validate_only)
    assert refused.value.reason == "IDENTITY_IN_USE"
    assert (await room.catalog.get_dataset("books")).identity == KEY


@pytest.mark.parametrize("scope", list(RecordScope))
async def test_rekeying_is_one_commit_that_is_announced(room, scope):
    """O-32. Of records that come to share an id the newest stays."""
    await room.catalog.create_dataset("books", {"identity": KEY, "record_scope": scope})
    for record in RECORDS:
        await room.push("books", record)
    updated = await room.catalog.update_dataset("books", {"identity": key("isbn")}, rekey=True)
    prefix = "default/" if scope is RecordScope.PER_SOURCE else ""
    assert await room.records("books") == {f"{prefix}x": RECORDS[2], f"{prefix}y": RECORDS[1]}
    assert updated.head.revision == 4
    (appended,) = room.announced
    assert (appended.from_revision, appended.head.revision) == (3, 4)
    assert set(appended.changes.reasons) == {int(Reason.SOURCE)}
    await room.push("books", {"isbn": "y", "id": "new"})
    assert len(await room.records("books")) == 2


async def test_rekeying_to_content_and_to_append(room):
    await room.catalog.create_dataset("books", {"identity": KEY})
    await room.push("books", *RECORDS)
    await room.catalog.update_dataset("books", {"identity": Identity(kind=IdentityKind.CONTENT)}, rekey=True)
    assert {len(record_id) for record_id in await room.records("books")} == {40}
    await room.catalog.update_dataset("books", {"identity": Identity(kind=IdentityKind.APPEND)}, rekey=True)
    assert {len(record_id) for record_id in await room.records("books")} == {36}


@pytest.mark.parametrize("validate_only", [False, True])
async def test_a_rekey_is_refused_whole_and_every_error_told(room, validate_only, monkeypatch):
    monkeypatch.setattr(module, "REKEY_PAGE_RECORDS", 2)
    await room.catalog.create_dataset("books", {"identity": KEY})
    await room.push("books", *RECORDS, {"id": "4"}, {"id": "5", "isbn": None}, {"id": "6\n"})
    with pytest.raises(InvalidArgument) as refused:
        await room.catalog.update_dataset(
            "books", {"identity": key("isbn")}, rekey=True, validate_only=validate_only
        )
    assert refused.value.reason == "RECORD_INVALID"
    assert refused.value.total_violations == 3
    assert [(v.pointer, v.keyword) for v in refused.value.violations] == [("/isbn", "key")] * 3
    assert [v.message.split(":")[0] for v in refused.value.violations] == [
        'record "4"',
        'record "5"',
        'record "6~u000a"',
    ]
    assert (await room.catalog.get_dataset("books")).identity == KEY
    assert len(await room.records("books")) == 6
    assert not room.announced


async def test_a_validated_rekey_changes_nothing(room):
    await room.catalog.create_dataset("books", {"identity": KEY})
    await room.push("books", *RECORDS)
    await room.catalog.update_dataset("books", {"identity": key("isbn")}, rekey=True, validate_only=True)
    assert set(await room.records("books")) == {"1", "2", "3"}


async def test_g5_a_retried_rekey_has_one_effect(room):
    made = await room.catalog.create_dataset("books", {"identity": KEY})
    await room.push("books", *RECORDS)
    call = {"rekey": True, "etag": made.etag, "identity": request("rekey")}
    first = await room.catalog.update_dataset("books", {"identity": key("isbn")}, **call)
    assert await room.catalog.update_dataset("books", {"identity": key("isbn")}, **call) == first
    assert len(room.announced) == 1


# -- sources ---------------------------------------------------------------------------------------------------


async def test_sources_are_made_changed_and_deleted(room):
    dataset = await room.catalog.create_dataset("books", {})
    made = await room.catalog.create_source("books", "feed", {"display_name": "Feed", "disabled": True})
    assert (made.dataset_number, made.display_name, made.disabled) == (dataset.number, "Feed", True)
    room.clock.pass_seconds(1)
    updated = await room.catalog.update_source("books", "feed", {"disabled": False}, etag=made.etag)
    assert (updated.display_name, updated.disabled, updated.generation) == (
        "Feed",
        False,
        made.generation + 1,
    )
    assert updated.update_time_us == room.clock.now_us()
    with pytest.raises(Aborted):
        await room.catalog.update_source("books", "feed", {"disabled": True}, etag=made.etag)
    with pytest.raises(Aborted):
        await room.catalog.delete_source("books", "feed", etag=made.etag)
    await room.catalog.delete_source("books", "feed", etag=updated.etag)
    with pytest.raises(NotFound) as missing:
        await room.catalog.get_source("books", "feed")
    assert missing.value.reason == "SOURCE_NOT_FOUND"


async def test_deleting_a_source_deletes_its_records_in_one_announced_commit(room):
    await room.catalog.create_dataset("books", {"identity": KEY})
    await room.catalog.create_source("books", "feed", {})
    await room.push("books", *RECORDS, source_id="feed")
    await room.push("books", {"id": "4"})
    await room.catalog.delete_source("books", "feed")
    assert set(await room.records("books")) == {"4"}
    (appended,) = room.announced
    assert (appended.from_revision, appended.head.revision, appended.head.record_count) == (2, 3, 1)
    await room.catalog.delete_source("books", "default")
    assert len(room.announced) == 2


@pytest.mark.parametrize("validate_only", [False, True])
async def test_wrong_sources_are_refused(room, validate_only):
    await room.catalog.create_dataset("books", {})
    with pytest.raises(AlreadyExists) as refused:
        await room.catalog.create_source("books", "default", {}, validate_only=validate_only)
    assert refused.value.reason == "SOURCE_EXISTS"
    with pytest.raises(NotFound) as missing:
        await room.catalog.create_source("films", "feed", {}, validate_only=validate_only)
    assert missing.value.reason == "DATASET_NOT_FOUND"
    for settings, field in (({"display_name": "a\nb"}, "display_name"), ({"number": 1}, "number")):
        with pytest.raises(InvalidArgument) as wrong:
            await room.catalog.create_source("books", "feed", settings, validate_only=validate_only)
        assert fields_of(wrong) == [field]
        with pytest.raises(InvalidArgument):
            await room.catalog.update_source("books", "default", settings, validate_only=validate_only)
    assert (await room.catalog.create_source("books", "feed", {}, validate_only=True)).source_id == "feed"
    with pytest.raises(NotFound):
        await room.catalog.get_source("books", "feed")


# -- caches ----------------------------------------------------------------------------------------------------


async def test_calls_find_datasets_and_sources_without_asking_the_store(room):
    await room.catalog.create_dataset("books", {"schema": '{"required":["id"]}'})
    room.store.reads.clear()
    opened = [await room.catalog.dataset("books") for _ in range(5)]
    sources = [await room.catalog.source("books", "default") for _ in range(5)]
    assert room.store.reads == ["dataset", "source"]
    assert {id(one) for one in opened} == {id(opened[0])}
    assert {one.number for one in sources} == {sources[0].number}
    assert not opened[0].schema.is_valid({})


async def test_what_other_nodes_change_is_seen_after_a_while(room):
    await room.catalog.create_dataset("books", {})
    before = await room.catalog.dataset("books")
    source = await room.catalog.source("books", "default")
    await room.other_node.update_dataset("books", {"schema": '{"required":["id"]}'})
    await room.other_node.update_source("books", "default", {"disabled": True})
    room.clock.pass_seconds(MAX_AGE_SECONDS - 0.1)
    assert await room.catalog.dataset("books") is before
    assert await room.catalog.source("books", "default") is source
    room.clock.pass_seconds(0.1)
    assert not (await room.catalog.dataset("books")).schema.is_valid({})
    assert (await room.catalog.source("books", "default")).disabled


async def test_unchanged_settings_are_not_compiled_again(room):
    await room.catalog.create_dataset("books", {"identity": KEY})
    before = await room.catalog.dataset("books")
    await room.push("books", *RECORDS)
    room.clock.pass_seconds(MAX_AGE_SECONDS)
    room.store.reads.clear()
    assert await room.catalog.dataset("books") is before
    assert room.store.reads == ["dataset"]


async def test_own_changes_count_at_once(room):
    await room.catalog.create_dataset("books", {})
    await room.catalog.dataset("books")
    await room.catalog.source("books", "default")
    await room.catalog.update_dataset("books", {"schema": '{"required":["id"]}'})
    assert not (await room.catalog.dataset("books")).schema.is_valid({})
    await room.catalog.update_source("books", "default", {"disabled": True})
    assert (await room.catalog.source("books", "default")).disabled
    await room.catalog.delete_source("books", "default")
    with pytest.raises(NotFound):
        await room.catalog.source("books", "default")
    first = (await room.catalog.dataset("books")).dataset
    await room.catalog.delete_dataset("books")
    with pytest.raises(NotFound):
        await room.catalog.dataset("books")
    await room.catalog.create_dataset("books", {})
    assert (await room.catalog.dataset("books")).dataset.number != first.number


async def test_what_was_read_before_a_change_is_not_kept_after_it(room):
    """The read began before the change and ended after it."""
    await room.catalog.create_dataset("books", {})

    async def meanwhile():
        await room.catalog.update_dataset("books", {"display_name": "new"})
        await room.catalog.update_source("books", "default", {"disabled": True})

    room.store.after_read["dataset"] = meanwhile
    assert (await room.catalog.dataset("books")).dataset.display_name == ""
    assert (await room.catalog.dataset("books")).dataset.display_name == "new"
    room.store.after_read["source"] = meanwhile
    await room.catalog.source("books", "default")
    assert (await room.catalog.source("books", "default")).generation == 3


async def test_the_cache_does_not_grow_without_end(room, monkeypatch):
    monkeypatch.setattr(module, "CACHE_ENTRIES", 2)
    for name in "abc":
        await room.catalog.create_dataset(name, {})
    for name in "abcabc":
        await room.catalog.dataset(name)
        await room.catalog.source(name, "default")
        assert len(room.catalog._datasets) <= 2 and len(room.catalog._sources) <= 2


async def test_many_callers_may_ask_at_once(room):
    await room.catalog.create_dataset("books", {})
    opened = await asyncio.gather(*(room.catalog.dataset("books") for _ in range(20)))
    assert {one.dataset.number for one in opened} == {opened[0].dataset.number}


async def test_a_stored_schema_that_is_accepted_no_more_stops_writes_and_not_reads(room):
    made = await room.catalog.create_dataset("books", {"identity": KEY})
    await room.push("books", *RECORDS)
    await room.store.update_dataset(
        replace(made, schema='{"pattern":"(?=x)"}'), expected_generation=made.generation
    )
    room.clock.pass_seconds(MAX_AGE_SECONDS)
    opened = await room.catalog.dataset("books")
    reader = RecordReader(opened.dataset.identity, opened.dataset.record_scope, opened.schema, Limits())
    checked = reader.read([b'{"id":"9"}', b"{}"], "default")
    assert checked.record_ids == ["", ""]
    assert [v.keyword for v in checked.violations] == ["size", "key", "size"]
    assert "schema is replaced" in checked.violations[0].message
    await room.catalog.update_dataset("books", {"schema": ""})
    await room.push("books", {"id": "9"})
