"""Datasets, sources, keys and point reads: what is sent, and what is made of the answers."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import syncline
from support.scripted_server import (
    Refuse,
    ScriptedServer,
    a_dataset,
    a_key,
    a_source,
    changes,
    checkpoint,
    reset,
    server_info,
)
from syncline.v1 import catalog_service_pb2 as wire
from syncline.v1 import record_pb2, record_service_pb2, sync_service_pb2
from syncline.v1.dataset_pb2 import Identity, Retention

THEN = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


async def test_create_dataset(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script(
        "CreateDataset",
        lambda request: wire.CreateDatasetResponse(
            dataset=a_dataset(
                identity=request.dataset.identity,
                record_scope=request.dataset.record_scope,
                schema=request.dataset.schema,
                retention=request.dataset.retention,
                annotations=request.dataset.annotations,
            )
        ),
    )

    info = await client.create_dataset(
        "books",
        identity=syncline.by_key("isbn", "edition.number"),
        scope="per_source",
        schema={"type": "object"},
        retention=syncline.Retention(min_age=timedelta(days=3)),
        annotations={"team": "a"},
    )

    (request,) = scripted.requests["CreateDataset"]
    assert request.dataset_id == "books"
    assert request.request_id
    assert info.dataset == "books"
    assert info.identity == syncline.by_key("isbn", "edition.number")
    assert info.scope == "per_source"
    assert info.schema == {"type": "object"}
    assert info.retention == syncline.Retention(min_age=timedelta(days=3), min_revisions=None)
    assert info.annotations == {"team": "a"}
    assert (info.create_time, info.commit_time, info.revision, info.digest) == (THEN, None, 0, bytes(16))


@pytest.mark.parametrize(
    ("identity", "kind"),
    [(syncline.by_content(), "KIND_CONTENT"), (syncline.append(), "KIND_APPEND"), (None, "KIND_UNSPECIFIED")],
)
async def test_identities(
    scripted: ScriptedServer, client: syncline.Client, identity: syncline.Identity | None, kind: str
) -> None:
    scripted.script("CreateDataset", wire.CreateDatasetResponse(dataset=a_dataset()))

    await client.create_dataset("books", identity=identity)

    assert Identity.Kind.Name(scripted.requests["CreateDataset"][0].dataset.identity.kind) == kind


async def test_wrong_words_are_found_here(client: syncline.Client) -> None:
    with pytest.raises(ValueError, match="'shared', 'per_source'"):
        await client.create_dataset("books", scope="private")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names of the key fields"):
        syncline.by_key()
    with pytest.raises(ValueError, match="'admin', 'push', 'read'"):
        await client.create_key("owner")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name its dataset"):
        await client.create_key("push")
    with pytest.raises(ValueError, match="takes no source"):
        await client.create_key("read", dataset="books", source="feed")
    with pytest.raises(ValueError, match="time zone"):
        await client.create_key("admin", expire_time=datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake


async def test_updates_name_what_they_change(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script("UpdateDataset", wire.UpdateDatasetResponse(dataset=a_dataset()))
    scripted.script("UpdateSource", wire.UpdateSourceResponse(source=a_source(disabled=True)))
    scripted.script("UpdateKey", wire.UpdateKeyResponse(key=a_key(role=3, datasets=["b*"])))

    await client.update_dataset(
        "books", schema={}, description="", identity=syncline.append(), rekey=True, etag="e"
    )
    source = await client.update_source("books", "default", disabled=True)
    key = await client.update_key("k1", datasets=["b*"])

    request = scripted.requests["UpdateDataset"][0]
    assert sorted(request.update_mask.paths) == ["description", "identity", "schema"]
    assert (request.dataset.schema, request.dataset.etag, request.rekey) == ("{}", "e", True)
    assert list(scripted.requests["UpdateSource"][0].update_mask.paths) == ["disabled"]
    assert source.disabled
    assert source.last_received_time is None
    assert list(scripted.requests["UpdateKey"][0].update_mask.paths) == ["datasets"]
    assert key.datasets == ("b*",)


async def test_keys_show_their_secret_once(scripted: ScriptedServer, client: syncline.Client) -> None:
    made = a_key(role=2, source="datasets/books/sources/feed", expire_time=Timestamp(seconds=1_700_000_000))
    scripted.script("CreateKey", wire.CreateKeyResponse(key=made, secret="sl_k1_secret"))
    scripted.script("RotateKey", wire.RotateKeyResponse(key=made))
    scripted.script("GetKey", wire.GetKeyResponse(key=made))

    key = await client.create_key("push", dataset="books", source="feed", expire_time=THEN)
    rotated = await client.rotate_key("k1", expire_time=THEN)
    read = await client.get_key("k1")

    assert (key.key_id, key.role, key.dataset, key.source) == ("k1", "push", "books", "feed")
    assert (key.secret, rotated.secret, read.secret) == ("sl_k1_secret", None, None)
    assert "secret" not in repr(key)
    assert key.expire_time == THEN
    assert scripted.requests["CreateKey"][0].key.source == "datasets/books/sources/feed"
    assert scripted.requests["RotateKey"][0].expire_time.seconds == 1_700_000_000


async def test_lists_read_all_pages(scripted: ScriptedServer, client: syncline.Client) -> None:
    """A page may be empty and still not be the last."""
    scripted.script(
        "ListDatasets",
        wire.ListDatasetsResponse(datasets=[a_dataset("a"), a_dataset("b")], next_page_token="p1"),
        wire.ListDatasetsResponse(next_page_token="p2"),
        wire.ListDatasetsResponse(datasets=[a_dataset("c")]),
    )
    scripted.script("ListSources", wire.ListSourcesResponse(sources=[a_source()]))
    scripted.script("ListKeys", wire.ListKeysResponse(keys=[a_key(role=1)]))

    assert [info.dataset for info in await client.list_datasets()] == ["a", "b", "c"]
    assert [request.page_token for request in scripted.requests["ListDatasets"]] == ["", "p1", "p2"]
    assert [info.source for info in await client.list_sources("books")] == ["default"]
    assert [info.role for info in await client.list_keys()] == ["admin"]


async def test_deletes(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script("DeleteDataset", Refuse("NOT_FOUND", "DATASET_NOT_FOUND"))
    scripted.script("DeleteSource", wire.DeleteSourceResponse())
    scripted.script("DeleteKey", wire.DeleteKeyResponse())

    await client.delete_dataset("books", missing_ok=True)
    with pytest.raises(syncline.NotFound):
        await client.delete_dataset("books")
    await client.delete_source("books", "feed", etag="e")
    await client.delete_key("k1")

    assert scripted.requests["DeleteSource"][0].etag == "e"
    assert scripted.requests["DeleteKey"][0].name == "keys/k1"


async def test_server_info(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script("GetServerInfo", server_info())

    info = await client.server_info()

    assert (info.server_time, info.role, info.writable) == (THEN, "admin", True)


# -- point reads and sync -----------------------------------------------------------------------------------


def a_record(record_id: str, data: bytes = b'{"v":1}') -> record_pb2.Record:
    now = Timestamp(seconds=1_700_000_000)
    return record_pb2.Record(
        record_id=record_id,
        data=data,
        revision=3,
        source="datasets/books/sources/feed",
        create_time=now,
        update_time=now,
    )


async def test_get(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script("GetRecord", record_service_pb2.GetRecordResponse(record=a_record("a")))

    record = await client.dataset("books").get("a", min_revision=2)

    assert (record.record_id, record.key, record.data, record.revision, record.source) == (
        "a",
        "a",
        {"v": 1},
        3,
        "feed",
    )
    assert (record.create_time, record.update_time) == (THEN, THEN)
    assert scripted.requests["GetRecord"][0].min_revision == 2
    assert repr(record) == "Record('a', {\"v\":1}, revision=3)"


async def test_get_many_asks_again_for_what_did_not_fit(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.script(
        "BatchGetRecords",
        record_service_pb2.BatchGetRecordsResponse(
            records=[a_record("0")], missing_record_ids=["1"], unread_record_ids=["2"]
        ),
        lambda request: record_service_pb2.BatchGetRecordsResponse(
            records=[a_record(record_id) for record_id in request.record_ids]
        ),
    )

    found = await client.dataset("books").get_many([str(n) for n in range(1_500)])

    assert set(found) == {"0", "2", *map(str, range(1_000, 1_500))}
    assert [len(request.record_ids) for request in scripted.requests["BatchGetRecords"]] == [1_000, 501]


async def test_records_reads_page_by_page(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script(
        "ListRecords",
        record_service_pb2.ListRecordsResponse(records=[a_record("a")], next_page_token="p"),
        record_service_pb2.ListRecordsResponse(records=[a_record("b")]),
    )

    assert [record.record_id async for record in client.dataset("books").records()] == ["a", "b"]
    assert [request.page_token for request in scripted.requests["ListRecords"]] == ["", "p"]


def page(token: bytes, *events: object) -> sync_service_pb2.SyncResponse:
    return sync_service_pb2.SyncResponse(events=events, token=token)  # type: ignore[arg-type]


A, B = ("a", b"{}", 1), ("b", b"{}", 2)


async def test_sync_pages(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script(
        "Sync",
        page(b"t1", changes(0, 1, [A], partial=True)),
        page(b"c2", changes(1, 2, [B], token=b""), checkpoint(2, [A, B])),
        page(b"c2", checkpoint(2, [A, B])),
    )
    books = client.dataset("books")

    first = await books.sync(page_size=1, min_revision=1)
    second = await books.sync(first.token)
    third = await books.sync(second.token)

    assert (first.checkpoint, first.token, [e.record_id for e in first.changes]) == (None, b"t1", ["a"])
    assert second.checkpoint is not None
    assert (second.checkpoint.revision, second.token, second.changes[0].token) == (2, b"c2", b"c2")
    assert (len(third.changes), third.reset) == (0, None)
    assert [request.token for request in scripted.requests["Sync"]] == [b"", b"t1", b"c2"]


async def test_sync_all_is_one_page(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script(
        "Sync",
        page(b"t1", changes(5, 6, [("old", b"{}", 6)], partial=True)),
        page(b"t1", reset(), changes(0, 1, [A])),
        page(b"c2", changes(1, 2, [("b", None, 2)], token=b""), checkpoint(2, [A])),
    )

    whole = await client.dataset("books").sync(b"t0", all=True)

    assert [event.record_id for event in whole.changes] == ["a", "b"]
    # After a reset the old token is of no use: another node might go on from it with what was reset.
    assert [event.token for event in whole.changes] == [b"", b"c2"]
    assert whole.reset is not None
    assert whole.token == b"c2"
    copy: syncline.Copy[object] = syncline.Copy()
    copy.apply(whole.reset)
    copy.apply(whole.changes)
    assert whole.checkpoint is not None
    copy.apply(whole.checkpoint)
    assert list(copy) == ["a"]


@pytest.mark.parametrize(
    "broken",
    [
        page(b"", checkpoint(0)),
        page(b"t", changes(3, 4, [("x", b"{}", 4)])),
        page(b"t", checkpoint(7)),
    ],
    ids=["no token", "gap", "wrong checkpoint"],
)
async def test_g8_sync_page_that_contradicts_itself(
    scripted: ScriptedServer, client: syncline.Client, broken: sync_service_pb2.SyncResponse
) -> None:
    scripted.script("Sync", broken)

    with pytest.raises(syncline.FeedBroken):
        await client.dataset("books").sync()


def test_retention_that_is_not_set_stays_absent() -> None:
    from syncline._wire import from_retention

    assert from_retention(syncline.Retention()) == Retention()
