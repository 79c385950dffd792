"""T86 at the edge: two whole servers, one on each store, are asked the same, and answer the same but for times and random ids.

What is asked holds whatever text a caller can send: NUL, line ends, half of a surrogate pair, patterns, normal forms,
ids that sort otherwise under a locale (hazard F54).
"""

import asyncio
import json
from contextlib import AsyncExitStack

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.hosted import hosted
from support.postgres_cluster import store_address
from support.wire import TIMEOUT, Refused, house
from syncline.names import dataset_name, new_request_id, source_name
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import dataset_pb2, source_pb2
from syncline.v1 import producer_service_pb2 as producer
from syncline.v1 import push_service_pb2 as push
from syncline.v1 import record_service_pb2 as record
from syncline.v1 import session_service_pb2 as session
from syncline.v1 import sync_service_pb2 as sync
from syncline.v1.producer_service_pb2_grpc import ProducerServiceStub
from syncline.v1.session_pb2 import SessionMode

ODD = (
    "a",
    "B",
    "b",
    "_",
    "%",
    "a_",
    "\\",
    "é",
    "e\u0301",
    "ﬀ",
    "\uff5e",
    "\U0001f600",
    "ä",
    "z",
    "~",
    ",",
    "/",
    "'",
    "",
)
CONTROLS = ("\0", "a\0", "\n", "a\nb", "\r", "\t", "\x7f", "\x85", "\u2028")
TEXT = st.sampled_from(ODD * 3 + CONTROLS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
RECORD = st.builds(
    lambda key, value, is_ascii: json.dumps({"k": key, "v": value}, ensure_ascii=is_ascii).encode(),
    TEXT,
    st.integers(1, 2) | TEXT,
    st.booleans(),
) | st.sampled_from(
    [
        b"",
        b"[]",
        b'{"v":1}',
        b'{"k":1}',
        b'{"k":true}',
        b'{"k":"a","k":"b"}',
        b'{"k":"\xff"}',
        b'{"k":"\\ud800"}',
        b'{"k":"a","v":"\\udfff"}',
        b'{"k":"a","v":1e999}',
        b'{"k":"a","\\u0000":1}',
        b'{"k":"a","v":1.0}',
    ]
)
RECORDS = st.lists(RECORD, max_size=4)
TEXTS = st.lists(TEXT, max_size=4)
SIZE = st.integers(0, 3)
CONDITIONS = ('record_id = "{}"', 'record_id = "{}*"', 'record_id = "{}\\*"', 'v = "{}"')
MODES = st.sampled_from(
    [SessionMode.SESSION_MODE_STREAM, SessionMode.SESSION_MODE_ACCRUE, SessionMode.SESSION_MODE_REPLACE]
)
STEP = st.one_of(
    st.tuples(st.just("push"), RECORDS, st.booleans(), st.booleans(), st.none() | st.integers(0, 1)),
    st.tuples(st.just("push"), RECORDS, st.just(True), st.just(False), st.none()),
    st.tuples(st.just("delete_ids"), TEXTS),
    st.tuples(st.just("delete_values"), RECORDS),
    st.tuples(st.just("get"), TEXT),
    st.tuples(st.just("batch_get"), TEXTS),
    st.tuples(st.just("list_records"), SIZE),
    st.tuples(st.just("list_filtered"), st.sampled_from(CONDITIONS), TEXT),
    st.tuples(st.just("strange_session"), TEXT),
    st.tuples(st.just("sync"), SIZE),
    st.tuples(st.just("digests"), TEXT, TEXT),
    st.tuples(st.just("open_session"), MODES),
    st.tuples(st.just("write_session"), RECORDS, st.booleans()),
    st.tuples(st.just("write_session_ids"), TEXTS),
    st.tuples(st.just("close_session"), st.booleans()),
    st.tuples(st.just("describe"), TEXT, TEXT, TEXT),
    st.tuples(st.just("create_source"), TEXT, TEXT),
    st.tuples(st.just("delete_producer"), TEXT),
    st.tuples(st.just("delete_replica"), TEXT),
    st.tuples(st.just("get_dataset"), TEXT),
)

RANDOM = {"token", "next_page_token", "uid", "etag", "session_id", "commit_times_us"}
"""Fields that are made of times, random ids or secrets."""


def told(message: Message) -> Message:
    """The message without what differs between any two servers."""
    for field, value in message.ListFields():
        if field.name in RANDOM or (field.message_type and field.message_type.name == "Timestamp"):
            message.ClearField(field.name)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            for one in value if field.is_repeated else [value]:
                told(one)
    return message


class Side:
    """One of the two servers, and what it gave out."""

    def __init__(self, wire) -> None:
        self.wire = wire
        self.producers = ProducerServiceStub(wire.channel)
        self.dataset_id = ""
        self.session_id = "none"
        self.token = b""
        self.page_token = ""
        self.request_ids: list[str] = []

    @property
    def dataset(self):
        return dataset_name(self.dataset_id)

    @property
    def source(self):
        return source_name(self.dataset_id, "default")

    async def begin(self, dataset_id, scope, request_ids):
        """Go on with a dataset of its own."""
        self.dataset_id, self.request_ids = dataset_id, request_ids
        self.session_id, self.token, self.page_token = "none", b"", ""
        await self.wire.make_dataset(dataset_id, key_fields=("k",), record_scope=scope)

    async def end(self):
        request = catalog.DeleteDatasetRequest(name=self.dataset)
        await self.wire.call(self.wire.catalog.DeleteDataset, request)

    async def answer(self, name, *args):
        """What a step comes to, as everybody sees it."""
        try:
            return told(await getattr(self, name)(*args))
        except grpc.aio.AioRpcError as error:
            refused = Refused(error)
            return refused.code, refused.reason, refused.message, refused.metadata, refused.fields

    def call(self, method, request):
        return method(request, metadata=self.wire.metadata, timeout=TIMEOUT)

    async def push(self, records, partial, validate_only, known):
        request_id = "" if known is None else self.request_ids[known]
        how = {"partial": partial, "validate_only": validate_only, "request_id": request_id}
        return await self.call(
            self.wire.push.Push, push.PushRequest(source=self.source, records=records, **how)
        )

    async def delete_ids(self, ids):
        return await self.call(
            self.wire.push.DeleteByIds, push.DeleteByIdsRequest(source=self.source, record_ids=ids)
        )

    async def delete_values(self, records):
        request = push.DeleteByValuesRequest(source=self.source, records=records)
        return await self.call(self.wire.push.DeleteByValues, request)

    async def get(self, record_id):
        request = record.GetRecordRequest(dataset=self.dataset, record_id=record_id)
        return await self.call(self.wire.record.GetRecord, request)

    async def batch_get(self, ids):
        request = record.BatchGetRecordsRequest(dataset=self.dataset, record_ids=ids)
        return await self.call(self.wire.record.BatchGetRecords, request)

    async def list_records(self, size):
        request = record.ListRecordsRequest(dataset=self.dataset, page_size=size, page_token=self.page_token)
        page = await self.call(self.wire.record.ListRecords, request)
        self.page_token = page.next_page_token
        return page

    async def list_filtered(self, condition, text):
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        request = record.ListRecordsRequest(dataset=self.dataset, filter=condition.format(written))
        return await self.call(self.wire.record.ListRecords, request)

    async def sync(self, size):
        request = sync.SyncRequest(dataset=self.dataset, token=self.token, page_size=size)
        page = await self.call(self.wire.sync.Sync, request)
        self.token = page.token
        return page

    async def digests(self, after, through):
        request = sync.DigestRangesRequest(dataset=self.dataset, parts=2)
        request.ranges.add(after=after, through=through)
        return await self.call(self.wire.sync.DigestRanges, request)

    async def open_session(self, mode):
        request = session.OpenSessionRequest(source=self.source, mode=mode, allow_mass_delete=True)
        opened = await self.call(self.wire.session.OpenSession, request)
        self.session_id = opened.session.session_id
        return opened

    async def write_session(self, records, is_delete):
        action = session.SessionAction()
        (action.delete if is_delete else action.upsert).records.extend(records)
        return await self._write(action)

    async def write_session_ids(self, ids):
        return await self._write(session.SessionAction(delete_ids=session.DeleteIdsAction(record_ids=ids)))

    async def _write(self, action):
        request = session.WriteSessionRequest(source=self.source, session_id=self.session_id, action=action)
        return await self.call(self.wire.session.WriteSession, request)

    async def strange_session(self, session_id):
        request = session.GetSessionRequest(source=self.source, session_id=session_id)
        return await self.call(self.wire.session.GetSession, request)

    async def close_session(self, commit):
        request = session.CloseSessionRequest(source=self.source, session_id=self.session_id, commit=commit)
        return await self.call(self.wire.session.CloseSession, request)

    async def describe(self, display_name, description, annotation):
        dataset = dataset_pb2.Dataset(name=self.dataset, display_name=display_name, description=description)
        dataset.annotations[annotation] = annotation
        mask = FieldMask(paths=["display_name", "description", "annotations"])
        request = catalog.UpdateDatasetRequest(dataset=dataset, update_mask=mask)
        return await self.call(self.wire.catalog.UpdateDataset, request)

    async def create_source(self, source_id, display_name):
        made = source_pb2.Source(display_name=display_name)
        request = catalog.CreateSourceRequest(parent=self.dataset, source_id=source_id, source=made)
        return await self.call(self.wire.catalog.CreateSource, request)

    async def delete_producer(self, producer_id):
        request = producer.DeleteProducerRequest(name=f"{self.source}/producers/{producer_id}")
        return await self.call(self.producers.DeleteProducer, request)

    async def delete_replica(self, replica_id):
        request = sync.DeleteReplicaRequest(dataset=self.dataset, replica_id=replica_id)
        return await self.call(self.wire.sync.DeleteReplica, request)

    async def get_dataset(self, dataset_id):
        name = f"datasets/{dataset_id}" if dataset_id in CONTROLS else self.dataset
        return await self.call(self.wire.catalog.GetDataset, catalog.GetDatasetRequest(name=name))


EVERY_TEXT = (*ODD, *CONTROLS, "x" * 600)


def _every_text():
    """Steps with each text in each place that takes one."""
    yield "push", [json.dumps({"k": text, "v": text}).encode() for text in EVERY_TEXT], True, False, None
    for text in EVERY_TEXT:
        for name in ("get", "strange_session", "delete_producer", "delete_replica", "get_dataset"):
            yield name, text
        yield "batch_get", ["a", text]
        yield "digests", text, ""
        yield "digests", "", text
        yield "describe", text, text, text
        yield "create_source", text, text
        for condition in CONDITIONS:
            yield "list_filtered", condition, text
    for mode in (SessionMode.SESSION_MODE_ACCRUE, SessionMode.SESSION_MODE_STREAM):
        yield "open_session", mode
        for text in EVERY_TEXT:
            yield "write_session_ids", [text]
        yield "close_session", True
    for text in EVERY_TEXT:
        yield "delete_ids", [text, "none"]
    yield "list_records", 0


@pytest.fixture(scope="module")
def both(postgres_cluster, tmp_path_factory):
    """A server on SQLite and one on PostgreSQL, in a loop that runs while they are asked."""
    directory = tmp_path_factory.mktemp("both")
    with asyncio.Runner() as runner, store_address("postgres") as address:
        stack = AsyncExitStack()

        async def enter():
            given = ((directory / "sqlite", ""), (directory / "postgres", address))
            houses = [
                await stack.enter_async_context(hosted(house(where, store=store, shutdown_seconds=0.2)))
                for where, store in given
            ]
            return [Side(one.wire) for one in houses]

        try:
            yield Both(runner, runner.run(enter()))
        finally:
            runner.run(stack.aclose())


class Both:
    """Asks both."""

    def __init__(self, runner, sides):
        self._runner = runner
        self._sides = sides
        self._number = 0

    def agree(self, steps, scope=dataset_pb2.RecordScope.RECORD_SCOPE_SHARED):
        """They answer each step alike, on a dataset of its own."""
        self._number += 1
        request_ids = [new_request_id(), new_request_id()]
        for side in self._sides:
            self._runner.run(side.begin(f"d{self._number}", scope, request_ids))
        try:
            for step in steps:
                on_sqlite, on_postgres = (self._runner.run(side.answer(*step)) for side in self._sides)
                assert on_sqlite == on_postgres, step
        finally:
            for side in self._sides:
                self._runner.run(side.end())


def test_t86_two_servers_take_every_text_alike(both):
    """T86, F54: in ids, names, titles, filters and bounds."""
    both.agree(_every_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=5, max_size=25), scope=st.sampled_from([1, 2]))
def test_t86_two_servers_answer_the_same(both, steps, scope):
    """T86: whatever they are asked."""
    both.agree([*steps, ("sync", 0), ("list_records", 0)], scope)
