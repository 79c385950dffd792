"""ProducerService on the wire."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from support.push_wire import SOURCE, lodging, push_call
from support.wire import TIMEOUT, Refused, house
from syncline.names import new_request_id
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import producer_pb2, source_pb2
from syncline.v1 import producer_service_pb2 as pb
from syncline.v1.producer_service_pb2_grpc import ProducerServiceStub

State = producer_pb2.Producer.State
NAME = f"{SOURCE}/producers/p"


@pytest.fixture
async def home(shared_server):
    async with lodging(shared_server) as wire:
        yield SimpleNamespace(wire=wire)


@pytest.fixture
def producers(home):
    return ProducerServiceStub(home.wire.channel)


async def expect_every(wire, seconds):
    source = source_pb2.Source(name=SOURCE)
    if seconds:
        source.expect_every.CopyFrom(Duration(seconds=seconds))
    request = catalog.UpdateSourceRequest(source=source, update_mask={"paths": ["expect_every"]})
    return (await wire.call(wire.catalog.UpdateSource, request)).source


async def send_one(wire, producer_id="p"):
    async with push_call(wire) as push:
        await push.open(producer_id)
        await push.send(push.opened.last_sequence + 1, [b'{"isbn":"%s"}' % producer_id.encode()])
        await push.ack()
        return push.opened


class Watch:
    """A watcher's view: states by id."""

    def __init__(self, wire, stub):
        self._call = stub.WatchProducers(
            pb.WatchProducersRequest(dataset="datasets/books"), metadata=wire.metadata
        )
        self.states = {}
        self.messages = 0
        self.complete = False

    async def until(self, wanted):
        async with asyncio.timeout(TIMEOUT):
            while not wanted():
                message = await self._call.read()
                if message is grpc.aio.EOF:
                    await self._call
                self.messages += 1
                self.complete = self.complete or message.complete
                for name in message.deleted_names:
                    del self.states[name.rpartition("/")[2]]
                for producer in message.producers:
                    self.states[producer.name.rpartition("/")[2]] = State.Name(producer.state)[6:]

    def cancel(self):
        self._call.cancel()


async def test_a_producer_is_read_and_listed(home, producers):
    wire = home.wire
    opened = await send_one(wire)
    for producer_id in ("a", "b", "q"):
        await send_one(wire, producer_id)
    found = (await wire.call(producers.GetProducer, pb.GetProducerRequest(name=NAME))).producer
    assert (found.name, found.epoch, found.last_sequence) == (NAME, opened.epoch, 1)
    assert State.Name(found.state) == "STATE_UNKNOWN"
    assert found.create_time.seconds <= found.last_received_time.seconds
    assert found.state_time == found.last_received_time
    first = await wire.call(producers.ListProducers, pb.ListProducersRequest(parent=SOURCE, page_size=3))
    rest = await wire.call(
        producers.ListProducers, pb.ListProducersRequest(parent=SOURCE, page_token=first.next_page_token)
    )
    names = [p.name.rpartition("/")[2] for p in (*first.producers, *rest.producers)]
    assert (names, rest.next_page_token) == (["a", "b", "p", "q"], "")


async def test_what_is_not_there_is_named(home, producers):
    wire = home.wire
    for name, reason in (
        (NAME, "PRODUCER_NOT_FOUND"),
        ("datasets/books/sources/x/producers/p", "SOURCE_NOT_FOUND"),
        ("datasets/x/sources/x/producers/p", "DATASET_NOT_FOUND"),
        (SOURCE, "INVALID_REQUEST"),
    ):
        for method, request in (
            (producers.GetProducer, pb.GetProducerRequest(name=name)),
            (producers.DeleteProducer, pb.DeleteProducerRequest(name=name)),
        ):
            assert (await wire.refused(method, request)).reason == reason
    for request, reason in (
        (pb.ListProducersRequest(parent=SOURCE, page_size=-1), "INVALID_REQUEST"),
        (pb.ListProducersRequest(parent=SOURCE, page_token="x"), "PAGE_TOKEN_INVALID"),
    ):
        assert (await wire.refused(producers.ListProducers, request)).reason == reason


async def test_expect_every_is_a_setting_of_the_source(home):
    wire = home.wire
    assert (await expect_every(wire, 60)).expect_every.seconds == 60
    read = await wire.call(wire.catalog.GetSource, catalog.GetSourceRequest(name=SOURCE))
    assert read.source.expect_every.seconds == 60
    assert not (await expect_every(wire, None)).HasField("expect_every")
    made = await wire.call(
        wire.catalog.CreateSource,
        catalog.CreateSourceRequest(
            parent="datasets/books", source_id="s", source={"expect_every": Duration(seconds=1)}
        ),
    )
    assert made.source.expect_every.seconds == 1
    for wrong in (Duration(nanos=999_999_999), Duration(seconds=367 * 86_400), Duration(seconds=-5)):
        refused = await wire.refused(
            wire.catalog.UpdateSource,
            catalog.UpdateSourceRequest(source=source_pb2.Source(name=SOURCE, expect_every=wrong)),
        )
        assert list(refused.fields) == ["source.expect_every"]


async def test_watching_tells_all_then_what_changes(tmp_path):
    """A producer is alive, then late, then lost; back with the next reading; and gone."""
    async with house(tmp_path, checkpoint_seconds=0.5) as home:
        await home.wire.make_dataset("books")
        await follow(home.wire, ProducerServiceStub(home.wire.channel))


async def follow(wire, producers):
    await expect_every(wire, 1)
    await send_one(wire)
    watch = Watch(wire, producers)
    await watch.until(lambda: watch.complete)
    assert watch.states == {"p": "ALIVE"}
    await send_one(wire, "q")
    await watch.until(lambda: watch.states == {"p": "LATE", "q": "ALIVE"})
    await watch.until(lambda: watch.states["p"] == "LOST")
    await send_one(wire)
    await watch.until(lambda: watch.states["p"] == "ALIVE")
    await expect_every(wire, None)
    await watch.until(lambda: watch.states == {"p": "UNKNOWN", "q": "UNKNOWN"})
    await wire.call(producers.DeleteProducer, pb.DeleteProducerRequest(name=NAME))
    await watch.until(lambda: watch.states == {"q": "UNKNOWN"})
    await wire.call(wire.catalog.DeleteSource, catalog.DeleteSourceRequest(name=SOURCE))
    await watch.until(lambda: watch.states == {})
    quiet = watch.messages
    await watch.until(lambda: watch.messages == quiet + 2)
    await wire.call(wire.catalog.DeleteDataset, catalog.DeleteDatasetRequest(name="datasets/books"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await watch.until(lambda: False)
    assert Refused(error.value).reason == "DATASET_NOT_FOUND"


async def test_watchers_share_what_is_known(home, producers):
    wire = home.wire
    one, two = Watch(wire, producers), Watch(wire, producers)
    await one.until(lambda: one.complete)
    await two.until(lambda: two.complete)
    one.cancel()
    await send_one(wire)
    await two.until(lambda: two.states == {"p": "UNKNOWN"})
    late = Watch(wire, producers)
    await late.until(lambda: late.complete)
    assert late.states == {"p": "UNKNOWN"}
    for watch in (two, late):
        watch.cancel()


async def test_g6_a_deleted_producer_is_fenced(home, producers):
    wire = home.wire
    async with push_call(wire) as push:
        await push.open("p")
        await push.send(1, [b'{"isbn":"1"}'])
        await push.ack()
        request = pb.DeleteProducerRequest(name=NAME, request_id=new_request_id())
        check = pb.DeleteProducerRequest(name=NAME, validate_only=True)
        await wire.call(producers.DeleteProducer, check)
        await wire.call(producers.DeleteProducer, request)
        assert (await push.refused()).reason == "PRODUCER_FENCED"
        assert (await wire.refused(producers.DeleteProducer, check)).reason == "PRODUCER_NOT_FOUND"
    anew = await send_one(wire)
    assert (anew.last_sequence, anew.epoch > push.opened.epoch) == (0, True)
    await wire.call(producers.DeleteProducer, request)
    found = (await wire.call(producers.GetProducer, pb.GetProducerRequest(name=NAME))).producer
    assert found.last_sequence == 1, "a retry of the delete deletes nothing else"


async def test_a_push_key_looks_at_its_own_source_only(home, producers):
    wire = home.wire
    await send_one(wire)
    pusher = await wire.make_key("PUSH", source=SOURCE)
    await wire.call(
        wire.catalog.CreateSource, catalog.CreateSourceRequest(parent="datasets/books", source_id="s")
    )
    assert (await pusher.call(producers.GetProducer, pb.GetProducerRequest(name=NAME))).producer.epoch
    other = pb.ListProducersRequest(parent="datasets/books/sources/s")
    assert (await pusher.refused(producers.ListProducers, other)).reason == "PERMISSION_DENIED"
