"""Filtered copies over the wire: Sync and Subscribe, and what a client can recompute of their checkpoints."""

from hashlib import blake2b

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from support.hosted import hosted
from support.wire import house
from syncline.v1 import feed_pb2
from syncline.v1 import push_service_pb2 as push
from syncline.v1 import sync_service_pb2 as sync

DATASET = "datasets/books"
SOURCE = "datasets/books/sources/default"
BY_ADAMS = 'author = "adams" AND pages >= 100'
MASK = FieldMask(paths=["title"])


@pytest.fixture
async def wire(tmp_path):
    async with hosted(house(tmp_path)) as running:
        await running.wire.make_dataset()
        yield running.wire


async def put(wire, *books):
    records = [
        b'{"isbn":"%d","author":"%s","pages":%d,"title":"t%d"}' % (isbn, author.encode(), pages, isbn)
        for isbn, author, pages in books
    ]
    return (await wire.call(wire.push.Push, push.PushRequest(source=SOURCE, records=records))).revision


class Held:
    """A copy, and whether the last thing in it was a checkpoint that it agrees with."""

    def __init__(self):
        self.records = {}
        self.kinds = []
        self.resets = []
        self.checkpoint = None

    def take(self, events):
        for event in events:
            getattr(self, "_" + event.WhichOneof("event"))(event)

    def _changes(self, event):
        batch = event.changes
        kinds = batch.kinds or [feed_pb2.CHANGE_KIND_PUT] * len(batch.record_ids)
        for record_id, data, revision, kind in zip(
            batch.record_ids, batch.data, batch.revisions, kinds, strict=True
        ):
            self.kinds.append(kind)
            self.records.pop(record_id, None)
            if kind == feed_pb2.CHANGE_KIND_PUT:
                self.records[record_id] = (revision, data)

    def _checkpoint(self, event):
        self.checkpoint = event.checkpoint
        assert event.checkpoint.record_count == len(self.records)
        total = 0
        for record_id, (revision, data) in self.records.items():
            value_hash = blake2b(data, digest_size=16).digest()
            entry = record_id.encode() + b"\0" + revision.to_bytes(8, "big") + value_hash
            total += int.from_bytes(blake2b(entry, digest_size=16).digest(), "big")
        assert event.checkpoint.digest == (total % (1 << 128)).to_bytes(16, "big"), "G7"

    def _reset(self, event):
        self.resets.append(event.reset.reason)
        self.records = {}


async def test_t52_g7_sync_with_filter_and_mask(wire):
    await put(wire, (1, "adams", 200), (2, "adams", 50), (3, "carey", 300))
    held = Held()
    request = sync.SyncRequest(dataset=DATASET, filter=BY_ADAMS, read_mask=MASK)
    answer = await wire.call(wire.sync.Sync, request)
    held.take(answer.events)
    assert held.records == {"1": (1, b'{"title":"t1"}')}
    await put(wire, (1, "adams", 10), (2, "adams", 500))
    request.token = answer.token
    held.take((await wire.call(wire.sync.Sync, request)).events)
    assert held.records == {"2": (2, b'{"title":"t2"}')}
    assert held.checkpoint.revision == 2
    assert feed_pb2.CHANGE_KIND_REMOVE in held.kinds


async def test_t53_sync_with_a_token_of_another_filter(wire):
    await put(wire, (1, "adams", 200), (2, "carey", 200))
    answer = await wire.call(wire.sync.Sync, sync.SyncRequest(dataset=DATASET, filter=BY_ADAMS))
    held = Held()
    other = sync.SyncRequest(dataset=DATASET, filter='author = "carey"', token=answer.token)
    held.take((await wire.call(wire.sync.Sync, other)).events)
    assert held.resets == [feed_pb2.Reset.REASON_FILTER_CHANGED]
    assert set(held.records) == {"2"}


async def test_t52_subscribe_with_a_filter(wire):
    await put(wire, (1, "adams", 200), (2, "adams", 50))
    held = Held()
    call = wire.subscribe(sync.SubscribeRequest(dataset=DATASET, filter=BY_ADAMS))
    for books, left in (((), {"1"}), (((2, "adams", 100),), {"1", "2"}), (((1, "adams", 1),), {"2"})):
        revision = await put(wire, *books) if books else 1
        while held.checkpoint is None or held.checkpoint.revision < revision:
            held.take((await call.read()).events)
        assert set(held.records) == left
    call.cancel()


@pytest.mark.parametrize("method", ["Sync", "Subscribe"])
async def test_filters_that_are_none(wire, method):
    make = {"Sync": sync.SyncRequest, "Subscribe": sync.SubscribeRequest}[method]

    async def call(request, **how):
        answer = getattr(wire.sync, method)(request, **how)
        return await (answer if method == "Sync" else answer.read())

    refused = await wire.refused(call, make(dataset=DATASET, filter="author ="))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "FILTER_INVALID")
    assert refused.metadata["position"] == "8"
    refused = await wire.refused(call, make(dataset=DATASET, read_mask=FieldMask(paths=["a..b"])))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_checkpoints_without_an_account(tmp_path):
    async with house(tmp_path, filter_members=1) as running:
        wire = running.wire
        await wire.make_dataset()
        await put(wire, (1, "adams", 200), (2, "adams", 200))
        answer = await wire.call(wire.sync.Sync, sync.SyncRequest(dataset=DATASET, filter=BY_ADAMS))
        changes, checkpoint = answer.events[0].changes, answer.events[1].checkpoint
        assert list(changes.record_ids) == ["1", "2"]
        assert (checkpoint.revision, checkpoint.record_count, checkpoint.digest) == (1, -1, b"")
