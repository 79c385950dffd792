"""The services over the wire: shapes, rights, request ids, pages, masks (contract sections 4 to 6)."""

import asyncio
import time
import uuid

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from support.hosted import hosted
from support.wire import Refused, house
from syncline.names import new_request_id
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import dataset_pb2, key_pb2, record_pb2, source_pb2
from syncline.v1 import push_service_pb2 as push
from syncline.v1 import record_service_pb2 as record
from syncline.v1 import server_service_pb2 as server
from syncline.v1 import session_service_pb2 as session
from syncline.v1 import sync_service_pb2 as sync

DATASET = "datasets/books"
SOURCE = "datasets/books/sources/default"
BOOK = b'{"isbn":"1","title":"Zen"}'


@pytest.fixture
async def wire(tmp_path):
    async with hosted(house(tmp_path)) as running:
        yield running.wire


@pytest.fixture
async def books(wire):
    await wire.make_dataset()
    return wire


# -- the shape of a request --------------------------------------------------------------------------------


async def test_everything_that_is_wrong_with_a_request_is_told_at_once(wire):
    request = push.PushRequest(
        records=[BOOK],
        conditions=[
            record_pb2.Condition(index=7, if_absent=True),
            record_pb2.Condition(index=0),
            record_pb2.Condition(index=0, if_revision=-1),
        ],
        request_id="nonsense",
    )
    refused = await wire.refused(wire.push.Push, request)
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert set(refused.fields) == {
        "source",
        "request_id",
        "conditions[0].index",
        "conditions[1]",
        "conditions[2].if_revision",
    }


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Push", push.PushRequest(source="books")),
        ("DeleteByIds", push.DeleteByIdsRequest(source="datasets/B/sources/x")),
        ("DeleteByValues", push.DeleteByValuesRequest(source="datasets/a/sources/b/c")),
    ],
)
async def test_names_that_are_none(wire, method, request_):
    refused = await wire.refused(getattr(wire.push, method), request_)
    assert "expected datasets/{dataset}/sources/{source}" in refused.fields["source"]


async def test_fields_that_are_required_are_found_by_their_annotation(wire):
    cases = [
        (wire.catalog.CreateDataset, catalog.CreateDatasetRequest(), {"dataset_id"}),
        (wire.catalog.UpdateDataset, catalog.UpdateDatasetRequest(), {"dataset", "dataset.name"}),
        (wire.catalog.CreateSource, catalog.CreateSourceRequest(), {"parent", "source_id"}),
        (wire.catalog.CreateKey, catalog.CreateKeyRequest(), {"key"}),
        (wire.catalog.CreateKey, catalog.CreateKeyRequest(key=key_pb2.Key()), {"key.role"}),
        (wire.session.OpenSession, session.OpenSessionRequest(), {"source", "mode"}),
        (wire.session.WriteSession, session.WriteSessionRequest(), {"source", "session_id", "action"}),
        (wire.record.GetRecord, record.GetRecordRequest(), {"dataset", "record_id"}),
        (wire.record.BatchGetRecords, record.BatchGetRecordsRequest(), {"dataset", "record_ids"}),
        (wire.sync.Sync, sync.SyncRequest(), {"dataset"}),
    ]
    for method, request, fields in cases:
        assert set((await wire.refused(method, request)).fields) == fields, type(request).__name__


async def test_numbers_that_cannot_be(books):
    refused = await books.refused(
        books.sync.Sync, sync.SyncRequest(dataset=DATASET, min_revision=-1, page_size=-1)
    )
    assert set(refused.fields) == {"min_revision", "page_size"}
    refused = await books.refused(
        books.session.OpenSession,
        session.OpenSessionRequest(source=SOURCE, mode=77, idle_timeout=Duration(seconds=0)),
    )
    assert set(refused.fields) == {"mode", "idle_timeout"}


# -- request ids -------------------------------------------------------------------------------------------


async def test_g05_t21_a_retry_gets_the_first_answer(books):
    request = push.PushRequest(source=SOURCE, records=[BOOK], request_id=new_request_id())
    first = await books.call(books.push.Push, request)
    other = await books.call(books.push.Push, push.PushRequest(source=SOURCE, records=[b'{"isbn":"2"}']))
    assert other.revision == 2
    assert await books.call(books.push.Push, request) == first


async def test_g05_the_same_id_with_other_content_is_refused(books):
    request = push.PushRequest(source=SOURCE, records=[BOOK], request_id=new_request_id())
    await books.call(books.push.Push, request)
    request.records[0] = b'{"isbn":"1","title":"Another"}'
    assert (await books.refused(books.push.Push, request)).reason == "REQUEST_ID_REUSED"
    delete = push.DeleteByIdsRequest(source=SOURCE, record_ids=["1"], request_id=request.request_id)
    assert (await books.refused(books.push.DeleteByIds, delete)).reason == "REQUEST_ID_REUSED"


async def test_g05_an_id_older_than_the_memory_is_refused_by_the_time_inside_it(books):
    """Never a silent second application: what may have been forgotten is refused."""
    now_ms = time.time_ns() // 1_000_000
    request = push.PushRequest(
        source=SOURCE, records=[BOOK], request_id=new_request_id(now_ms - 86_400_000 - 1000)
    )
    refused = await books.refused(books.push.Push, request)
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REQUEST_ID_EXPIRED")
    assert abs(int(refused.metadata["server_time_ms"]) - now_ms) < 60_000
    request.request_id = new_request_id(now_ms - 86_400_000 + 60_000)
    assert (await books.call(books.push.Push, request)).revision == 1


async def test_an_id_from_the_future_or_of_another_version_is_refused(books):
    now_ms = time.time_ns() // 1_000_000
    for wrong in (new_request_id(now_ms + 3_700_000), str(uuid.uuid4()), "x", "urn:uuid:" + new_request_id()):
        request = push.PushRequest(source=SOURCE, records=[BOOK], request_id=wrong)
        assert set((await books.refused(books.push.Push, request)).fields) == {"request_id"}, wrong
    soon = push.PushRequest(source=SOURCE, records=[BOOK], request_id=new_request_id(now_ms + 3_000_000))
    assert (await books.call(books.push.Push, soon)).revision == 1


async def test_a_retried_create_gets_the_same_dataset(wire):
    request = catalog.CreateDatasetRequest(dataset_id="d", request_id=new_request_id())
    first = await wire.call(wire.catalog.CreateDataset, request)
    assert await wire.call(wire.catalog.CreateDataset, request) == first
    request.request_id = new_request_id()
    assert (await wire.refused(wire.catalog.CreateDataset, request)).reason == "DATASET_EXISTS"


# -- catalog -----------------------------------------------------------------------------------------------


async def test_a_dataset_as_it_was_asked_for(wire):
    wanted = dataset_pb2.Dataset(
        display_name="Books",
        description="All of them",
        identity=dataset_pb2.Identity(kind=dataset_pb2.Identity.KIND_KEY, key_fields=["isbn"]),
        record_scope=dataset_pb2.RECORD_SCOPE_PER_SOURCE,
        schema='{"type":"object"}',
        retention=dataset_pb2.Retention(min_age=Duration(seconds=60), min_revisions=5),
        annotations={"owner": "me"},
    )
    made = (
        await wire.call(
            wire.catalog.CreateDataset, catalog.CreateDatasetRequest(dataset_id="books", dataset=wanted)
        )
    ).dataset
    for field in (
        "display_name",
        "description",
        "identity",
        "record_scope",
        "schema",
        "retention",
        "annotations",
    ):
        assert getattr(made, field) == getattr(wanted, field), field
    assert made.name == DATASET
    assert uuid.UUID(made.uid)
    assert made.etag
    assert made.create_time == made.update_time
    assert not made.HasField("commit_time")
    got = await wire.call(wire.catalog.GetDataset, catalog.GetDatasetRequest(name=DATASET))
    assert got.dataset == made


async def test_defaults_of_a_dataset(wire):
    made = (await wire.call(wire.catalog.CreateDataset, catalog.CreateDatasetRequest(dataset_id="d"))).dataset
    assert made.identity.kind == dataset_pb2.Identity.KIND_CONTENT
    assert made.record_scope == dataset_pb2.RECORD_SCOPE_SHARED
    assert made.digest == bytes(16)
    sources = await wire.call(wire.catalog.ListSources, catalog.ListSourcesRequest(parent="datasets/d"))
    assert [source.name for source in sources.sources] == ["datasets/d/sources/default"]
    assert sources.sources[0].kind == source_pb2.Source.KIND_PUSH


async def test_a_name_that_disagrees_with_the_id_is_refused(wire):
    request = catalog.CreateDatasetRequest(dataset_id="d", dataset=dataset_pb2.Dataset(name="datasets/e"))
    assert set((await wire.refused(wire.catalog.CreateDataset, request)).fields) == {"dataset.name"}


async def update(wire, paths=None, **settings):
    request = catalog.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=DATASET, **settings))
    if paths is not None:
        request.update_mask.CopyFrom(FieldMask(paths=paths))
    return (await wire.call(wire.catalog.UpdateDataset, request)).dataset


async def test_the_mask_says_which_fields_are_taken(wire):
    await wire.make_dataset(display_name="a", description="b", annotations={"k": "v"})
    assert (await update(wire, display_name="c")).description == "b", "no mask: what is set"
    changed = await update(wire, ["description"], display_name="not this")
    assert (changed.display_name, changed.description) == ("c", "")
    changed = await update(wire, ["uid", "revision", "name", "display_name"], display_name="d", uid="x")
    assert changed.display_name == "d", "what the server sets is passed over"
    changed = await update(wire, ["*"], identity=changed.identity)
    assert (changed.display_name, dict(changed.annotations)) == ("", {})


async def test_a_mask_with_unknown_fields_is_refused(books):
    request = catalog.UpdateDatasetRequest(
        dataset=dataset_pb2.Dataset(name=DATASET),
        update_mask=FieldMask(paths=["colour", "retention.min_age"]),
    )
    refused = await books.refused(books.catalog.UpdateDataset, request)
    assert "colour" in refused.message
    assert "name the whole field" in refused.message


async def test_an_old_etag_is_refused(books):
    old = (await books.call(books.catalog.GetDataset, catalog.GetDatasetRequest(name=DATASET))).dataset
    assert (await update(books, display_name="x")).etag != old.etag
    request = catalog.UpdateDatasetRequest(dataset=old)
    refused = await books.refused(books.catalog.UpdateDataset, request)
    assert (refused.code, refused.reason) == ("ABORTED", "ETAG_MISMATCH")
    delete = catalog.DeleteDatasetRequest(name=DATASET, etag=old.etag)
    assert (await books.refused(books.catalog.DeleteDataset, delete)).reason == "ETAG_MISMATCH"


async def test_pages_of_a_list_and_their_tokens(wire):
    for index in range(5):
        await wire.make_dataset(f"d{index}")
    seen, token = [], ""
    while True:
        page = await wire.call(
            wire.catalog.ListDatasets, catalog.ListDatasetsRequest(page_size=2, page_token=token)
        )
        seen += [dataset.name for dataset in page.datasets]
        token = page.next_page_token
        if not token:
            break
        assert len(page.datasets) == 2
    assert seen == [f"datasets/d{index}" for index in range(5)]
    first = await wire.call(wire.catalog.ListDatasets, catalog.ListDatasetsRequest(page_size=1))
    for wrong in (first.next_page_token[:-2] + "AA", "x", "é"):
        request = catalog.ListDatasetsRequest(page_token=wrong)
        assert (await wire.refused(wire.catalog.ListDatasets, request)).reason == "PAGE_TOKEN_INVALID"
    keys = catalog.ListKeysRequest(page_token=first.next_page_token)
    assert (await wire.refused(wire.catalog.ListKeys, keys)).reason == "PAGE_TOKEN_INVALID"


async def test_sources_that_pull_are_not_offered(books):
    request = catalog.CreateSourceRequest(
        parent=DATASET, source_id="web", source=source_pb2.Source(kind=source_pb2.Source.KIND_HTTP)
    )
    refused = await books.refused(books.catalog.CreateSource, request)
    assert (refused.code, refused.reason) == ("UNIMPLEMENTED", "NOT_OFFERED")


async def test_a_disabled_source_refuses_and_keeps_its_data(books):
    await books.call(books.push.Push, push.PushRequest(source=SOURCE, records=[BOOK]))

    async def disable(value):
        source = source_pb2.Source(name=SOURCE, disabled=value)
        request = catalog.UpdateSourceRequest(source=source, update_mask=FieldMask(paths=["disabled"]))
        return (await books.call(books.catalog.UpdateSource, request)).source.disabled

    assert await disable(True)
    for method, request in (
        (books.push.Push, push.PushRequest(source=SOURCE, records=[BOOK])),
        (books.push.DeleteByIds, push.DeleteByIdsRequest(source=SOURCE, record_ids=["1"])),
        (books.session.OpenSession, session.OpenSessionRequest(source=SOURCE, mode=2)),
    ):
        refused = await books.refused(method, request)
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "SOURCE_DISABLED")
    assert (
        await books.call(books.record.GetRecord, record.GetRecordRequest(dataset=DATASET, record_id="1"))
    ).record
    assert not await disable(False)
    assert (await books.call(books.push.Push, push.PushRequest(source=SOURCE, records=[BOOK]))).revision == 1


async def test_validate_only_changes_nothing(books):
    request = catalog.CreateDatasetRequest(dataset_id="other", validate_only=True)
    assert (await books.call(books.catalog.CreateDataset, request)).dataset.name == "datasets/other"
    get = catalog.GetDatasetRequest(name="datasets/other")
    assert (await books.refused(books.catalog.GetDataset, get)).reason == "DATASET_NOT_FOUND"
    tried = await books.call(
        books.push.Push, push.PushRequest(source=SOURCE, records=[BOOK, b"{}"], validate_only=True)
    )
    assert [record_pb2.RecordStatus.Name(s)[14:] for s in tried.statuses] == ["CREATED", "INVALID"]
    assert [(v.index, v.keyword) for v in tried.violations] == [(1, "key")]
    assert (
        await books.call(books.catalog.GetDataset, catalog.GetDatasetRequest(name=DATASET))
    ).dataset.revision == 0


# -- records and sync --------------------------------------------------------------------------------------


async def test_t29_one_bad_record_refuses_the_call_and_every_error_is_told(books):
    records = [b'{"isbn":"%d"}' % i for i in range(1000)]
    records[17] = b'{"title":"no key"}'
    refused = await books.refused(books.push.Push, push.PushRequest(source=SOURCE, records=records))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "RECORD_INVALID")
    assert set(refused.fields) == {"records[17]/isbn"}
    listed = await books.call(books.record.ListRecords, record.ListRecordsRequest(dataset=DATASET))
    assert (len(listed.records), listed.revision) == (0, 0)


async def test_sync_answers_events_and_a_token(books):
    await books.call(books.push.Push, push.PushRequest(source=SOURCE, records=[BOOK]))
    page = await books.call(books.sync.Sync, sync.SyncRequest(dataset=DATASET))
    assert [event.WhichOneof("event") for event in page.events] == ["changes", "checkpoint"]
    assert page.events[0].changes.data == [BOOK]
    assert page.events[1].checkpoint.token == page.token
    after = await books.call(books.sync.Sync, sync.SyncRequest(dataset=DATASET, token=page.token))
    assert [event.WhichOneof("event") for event in after.events] == ["checkpoint"]


async def test_t58_a_damaged_token_is_refused(books):
    page = await books.call(books.sync.Sync, sync.SyncRequest(dataset=DATASET))
    for wrong in (page.token[:-1], b"x", page.token[:9] + bytes([page.token[9] ^ 1]) + page.token[10:]):
        request = sync.SyncRequest(dataset=DATASET, token=wrong)
        assert (await books.refused(books.sync.Sync, request)).reason == "TOKEN_INVALID"
        call = books.subscribe(sync.SubscribeRequest(dataset=DATASET, token=wrong))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert Refused(raised.value).reason == "TOKEN_INVALID"


async def test_g14_min_revision_waits_until_just_before_the_deadline(books):
    for method, request in (
        (books.catalog.GetDataset, catalog.GetDatasetRequest(name=DATASET, min_revision=1)),
        (books.record.GetRecord, record.GetRecordRequest(dataset=DATASET, record_id="1", min_revision=1)),
        (books.sync.Sync, sync.SyncRequest(dataset=DATASET, min_revision=1)),
    ):
        refused = await books.refused(method, request, timeout=0.5)
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "REVISION_NOT_REACHED")
    waiting = asyncio.create_task(
        books.call(books.catalog.GetDataset, catalog.GetDatasetRequest(name=DATASET, min_revision=1))
    )
    await books.call(books.push.Push, push.PushRequest(source=SOURCE, records=[BOOK]))
    assert (await waiting).dataset.revision == 1


async def test_from_now_false_is_refused(books):
    call = books.subscribe(sync.SubscribeRequest(dataset=DATASET, from_now=False))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert set(Refused(raised.value).fields) == {"from_now"}


async def test_a_deleted_dataset_ends_its_subscriptions(books):
    call = books.subscribe(sync.SubscribeRequest(dataset=DATASET))
    assert (await call.read()).events
    await books.call(books.catalog.DeleteDataset, catalog.DeleteDatasetRequest(name=DATASET))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(call.read(), 5)
    assert Refused(raised.value).reason == "DATASET_NOT_FOUND"


# -- sessions ----------------------------------------------------------------------------------------------


def upsert(*records):
    return session.SessionAction(upsert=session.UpsertAction(records=records))


async def open_session(wire, mode):
    request = session.OpenSessionRequest(source=SOURCE, mode=mode)
    return (await wire.call(wire.session.OpenSession, request)).session


async def test_g16_a_session_of_calls(books):
    opened = await open_session(books, 3)
    assert opened.HasField("expire_time")
    write = session.WriteSessionRequest(
        source=SOURCE, session_id=opened.session_id, action=upsert(BOOK), sequence=1
    )
    staged = await books.call(books.session.WriteSession, write)
    assert [record_pb2.RecordStatus.Name(s) for s in staged.statuses] == ["RECORD_STATUS_STAGED"]
    assert (await books.call(books.session.WriteSession, write)).calls == 1, "the same sequence again"
    got = await books.call(
        books.session.GetSession, session.GetSessionRequest(source=SOURCE, session_id=opened.session_id)
    )
    assert (got.session.calls, got.session.records) == (1, 1)
    close = session.CloseSessionRequest(source=SOURCE, session_id=opened.session_id, commit=True, calls=2)
    assert (await books.refused(books.session.CloseSession, close)).reason == "SESSION_INCOMPLETE"
    close.calls = 1
    closed = await books.call(books.session.CloseSession, close)
    assert (closed.revision, closed.created) == (1, 1)
    refused = await books.refused(books.session.WriteSession, write)
    assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "SESSION_INVALID")


async def test_a_session_streamed_in(books):
    opened = await open_session(books, 2)

    async def messages():
        for sequence in range(1, 6):
            yield session.StreamSessionRequest(
                source=SOURCE if sequence == 1 else "",
                session_id=opened.session_id if sequence == 1 else "",
                action=upsert(*(b'{"isbn":"%d-%d"}' % (sequence, i) for i in range(10))),
                sequence=sequence,
            )

    answer = await books.session.StreamSession(messages(), metadata=books.metadata)
    assert (answer.calls, answer.records) == (5, 50)
    close = session.CloseSessionRequest(source=SOURCE, session_id=opened.session_id, commit=True, calls=5)
    assert (await books.call(books.session.CloseSession, close)).created == 50


async def test_a_stream_must_say_where_it_goes_and_number_its_calls(books):
    async def messages():
        yield session.StreamSessionRequest(action=upsert(BOOK))

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await books.session.StreamSession(messages(), metadata=books.metadata)
    assert set(Refused(raised.value).fields) == {"source", "session_id", "sequence"}


async def streamed(wire, opened, *messages):
    """Answer to messages given by their fields; the first one is told where it goes."""

    async def on_the_wire():
        for place, fields in enumerate(messages):
            where = {"source": SOURCE, "session_id": opened.session_id} if place == 0 else {}
            yield session.StreamSessionRequest(**where, **fields)

    return await wire.session.StreamSession(on_the_wire(), metadata=wire.metadata)


async def test_messages_of_a_stream_can_be_checked_only(books):
    """Issue 2, `validate_only` on StreamSession: as WriteSession, and the stream goes on past invalid records."""
    opened = await open_session(books, 2)
    good, bad = upsert(BOOK), upsert(BOOK, b"{}", b"[")
    answer = await streamed(
        books,
        opened,
        {"action": good, "sequence": 1, "validate_only": True},
        {"action": bad, "sequence": 1, "validate_only": True},
        {"action": good, "sequence": 1},
        {"action": bad, "sequence": 2, "validate_only": True},
    )
    assert (answer.calls, answer.records, answer.violations_complete) == (1, 1, True)
    assert [(invalid.index, invalid.sequence) for invalid in answer.invalid_messages] == [(1, 1), (3, 2)]
    request = session.WriteSessionRequest(
        source=SOURCE, session_id=opened.session_id, action=bad, validate_only=True
    )
    written = await books.call(books.session.WriteSession, request)
    for invalid in answer.invalid_messages:
        assert list(invalid.violations) == list(written.violations)
        assert {violation.index for violation in invalid.violations} == {1, 2}
    close = session.CloseSessionRequest(source=SOURCE, session_id=opened.session_id, commit=True, calls=1)
    assert (await books.call(books.session.CloseSession, close)).created == 1


async def test_g16_a_stream_that_only_checks_leaves_nothing(books):
    opened = await open_session(books, 1)
    answer = await streamed(books, opened, {"action": upsert(BOOK), "sequence": 1, "validate_only": True})
    assert (answer.calls, answer.records, answer.revision) == (0, 0, 0)
    got = await books.call(books.catalog.GetDataset, catalog.GetDatasetRequest(name=DATASET))
    assert got.dataset.revision == 0


async def test_violations_of_a_stream_are_bounded(books):
    opened = await open_session(books, 2)
    checked = {"action": upsert(*[b"{}"] * 6_000), "sequence": 1, "validate_only": True}
    answer = await streamed(books, opened, checked, checked, checked)
    assert [len(invalid.violations) for invalid in answer.invalid_messages] == [6_000, 4_000]
    assert not answer.violations_complete


async def test_g05_a_streamed_message_with_a_request_id_is_applied_once(books):
    """On a second stream, as its first message this time, and by WriteSession: one effect, the first answer."""
    opened = await open_session(books, 1)
    request_ids = [str(new_request_id()) for _ in range(2)]
    actions = [upsert(b'{"isbn":"%d"}' % number) for number in range(2)]
    first, second = (
        {"action": action, "sequence": place, "request_id": request_id}
        for place, (action, request_id) in enumerate(zip(actions, request_ids, strict=True), 1)
    )
    answer = await streamed(books, opened, first, second)
    assert (answer.calls, answer.revision) == (2, 2)
    again = await streamed(books, opened, second)
    assert (again.calls, again.revision) == (2, 2)
    write = session.WriteSessionRequest(source=SOURCE, session_id=opened.session_id, **second)
    assert (await books.call(books.session.WriteSession, write)).revision == 2
    other = second | {"action": actions[0]}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await streamed(books, opened, other)
    assert Refused(raised.value).reason == "REQUEST_ID_REUSED"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await streamed(books, opened, first | {"request_id": "x"})
    assert set(Refused(raised.value).fields) == {"request_id"}


# -- the server --------------------------------------------------------------------------------------------


async def test_server_info(books):
    info = await books.call(books.server.GetServerInfo, server.GetServerInfoRequest())
    assert (info.store, info.role, info.writable) == ("sqlite", "admin", True)
    assert info.limits.bytes_per_record == 1 << 20
    assert abs(info.server_time.seconds - time.time()) < 60
    reader = await books.make_key("READ", datasets=["*"])
    assert (await reader.call(reader.server.GetServerInfo, server.GetServerInfoRequest())).role == "read"


async def test_t100_an_expired_and_a_deleted_key_are_refused(books):
    soon = Timestamp(seconds=int(time.time()) + 2)
    expiring = await books.make_key("READ", datasets=["*"], expire_time=soon)
    deleted = await books.make_key("READ", datasets=["*"])
    request = sync.SyncRequest(dataset=DATASET)
    for wire in (expiring, deleted):
        await wire.call(wire.sync.Sync, request)
    await books.call(books.catalog.DeleteKey, catalog.DeleteKeyRequest(name=deleted.key_name))
    refused = await deleted.refused(deleted.sync.Sync, request)
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "KEY_INVALID")
    async with asyncio.timeout(10):
        while time.time() < soon.seconds:
            await asyncio.sleep(soon.seconds - time.time())
    assert (await expiring.refused(expiring.sync.Sync, request)).reason == "KEY_INVALID"
