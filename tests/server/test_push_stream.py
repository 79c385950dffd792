"""PushStream on the wire: acknowledgements, repeats, gaps, fencing, refusal, drain."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from support.push_wire import SOURCE, lodging, make_log, push_call
from support.waiting import until
from support.wire import Refused, Wire, house
from syncline.v1 import catalog_service_pb2, record_pb2, source_pb2
from syncline.v1 import dataset_pb2 as dataset
from syncline.v1 import push_service_pb2 as pb
from syncline.v1 import record_service_pb2 as record

CREATED, UPDATED, UNCHANGED, SUPERSEDED, INVALID = (
    record_pb2.RecordStatus.Value(f"RECORD_STATUS_{name}")
    for name in ("CREATED", "UPDATED", "UNCHANGED", "SUPERSEDED", "INVALID")
)


def reading(key, value=1):
    return b'{"isbn":"%s","v":%d}' % (str(key).encode(), value)


@pytest.fixture
async def home(shared_server):
    async with lodging(shared_server) as wire:
        yield SimpleNamespace(wire=wire)


async def count(wire, dataset_id="books"):
    return (
        await wire.call(
            wire.catalog.GetDataset,
            catalog_service_pb2.GetDatasetRequest(name=f"datasets/{dataset_id}"),
        )
    ).dataset.record_count


async def set_disabled(wire, disabled):
    await wire.call(
        wire.catalog.UpdateSource,
        catalog_service_pb2.UpdateSourceRequest(
            source=source_pb2.Source(name=SOURCE, disabled=disabled), update_mask={"paths": ["disabled"]}
        ),
    )


async def test_readings_are_acknowledged_in_columns(home):
    async with push_call(home.wire) as push:
        await push.open("p")
        assert push.opened.epoch > 1_700_000_000_000
        assert (push.opened.last_sequence, push.opened.previous_last_sequence) == (0, 0)
        assert push.opened.credit_bytes == 1 << 20
        await push.send(1, [reading("a"), b'{"isbn":1', reading("a", 2), b"{}"])
        ack = await push.ack()
        assert (ack.first_sequence, ack.last_sequence, ack.revision) == (1, 4, 1)
        assert list(ack.statuses) == [SUPERSEDED, INVALID, CREATED, INVALID]
        assert [v.index for v in ack.violations] == [1, 3]
        await push.send(5, [reading("a", 2), reading("b")])
        ack = await push.ack()
        assert (ack.first_sequence, list(ack.statuses), ack.revision) == (5, [UNCHANGED, CREATED], 2)
        assert await push.end() == "OK"
    assert await count(home.wire) == 2


async def test_t30_bad_readings_are_refused_by_themselves(home):
    """T30: a message of nothing good moves the numbers and is reported."""
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send(1, [b"no", b"[]"])
        ack = await push.ack()
        assert (ack.last_sequence, ack.revision, list(ack.statuses)) == (2, 0, [INVALID] * 2)
    async with push_call(home.wire) as again:
        await again.open("p", epoch=push.opened.epoch)
        assert again.opened.last_sequence == 2


async def test_g5_repeats_are_acknowledged_and_not_applied(home):
    """T25: whole and partial repeats, on the same stream and on the next."""
    log = await make_log(home.wire)
    async with push_call(home.wire) as push:
        await push.open("p", source=log)
        await push.send(1, [reading("a"), reading("b")])
        assert (await push.ack()).last_sequence == 2
        await push.send(1, [reading("x"), reading("y")])
        repeat = await push.ack()
        assert (repeat.last_sequence, repeat.first_sequence, repeat.revision) == (2, 3, 0)
        assert not repeat.statuses
        await push.send(2, [reading("x"), reading("c")])
        ack = await push.ack()
        assert (ack.first_sequence, ack.last_sequence, list(ack.statuses)) == (3, 3, [CREATED])
    async with push_call(home.wire) as again:
        await again.open("p", source=log, epoch=push.opened.epoch)
        assert again.opened.last_sequence == 3
        await again.send(1, [reading("x"), reading("y"), reading("z")])
        assert (await again.ack()).last_sequence == 3
    assert await count(home.wire, "log") == 3


async def test_g5_a_gap_ends_the_stream_and_tells_what_is_expected(home):
    """T25: what came before the gap is durable."""
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send(1, [reading("a")])
        await push.send(3, [reading("c")])
        assert (await push.ack()).last_sequence == 1
        refused = await push.refused()
        assert (refused.code, refused.reason) == ("OUT_OF_RANGE", "SEQUENCE_GAP")
        assert refused.metadata["expected"] == "2"


async def test_g6_a_new_epoch_ends_the_stream_of_the_old(home):
    async with push_call(home.wire) as old, push_call(home.wire) as new:
        await old.open("p")
        await old.send(1, [reading("a")])
        await old.ack()
        await new.open("p", previous_epoch=old.opened.epoch)
        assert new.opened.epoch > old.opened.epoch
        assert (new.opened.last_sequence, new.opened.previous_last_sequence) == (1, 1)
        refused = await old.refused()
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PRODUCER_FENCED")
        assert refused.metadata["epoch"] == str(new.opened.epoch)
        await new.send(2, [reading("b")])
        assert (await new.ack()).revision == 2
        async with push_call(home.wire) as late:
            with pytest.raises(grpc.aio.AioRpcError) as fenced:
                await late.open("p", epoch=old.opened.epoch)
            assert Refused(fenced.value).reason == "PRODUCER_FENCED"


async def test_an_epoch_of_a_lost_history_is_refused_with_the_one_that_is_known(home):
    """After a restore: a producer sees from the lower epoch that it was not fenced by a newer start."""
    async with push_call(home.wire) as push, push_call(home.wire) as lost:
        await push.open("p")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await lost.open("p", epoch=push.opened.epoch + 5)
        refused = Refused(error.value)
        assert (refused.reason, refused.metadata["epoch"]) == ("PRODUCER_FENCED", str(push.opened.epoch))


async def test_two_streams_of_one_epoch_apply_each_number_once(home):
    """T25: a half-open link is still being written from when the producer is back."""
    log = await make_log(home.wire)
    async with push_call(home.wire) as old, push_call(home.wire) as new:
        await old.open("p", source=log)
        await new.open("p", source=log, epoch=old.opened.epoch)
        for first in range(1, 198, 3):
            await old.send(first, [reading(n) for n in range(first, first + 3)])
        for first in range(1, 200, 5):
            await new.send(first, [reading(n) for n in range(first, first + 5)])
        await asyncio.gather(old.acked(198), new.acked(200))
    assert await count(home.wire, "log") == 200


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"producer_id": "no/slash"}, "open.producer_id"),
        ({"producer_id": ""}, "open.producer_id"),
        ({"source": "books"}, "open.source"),
        ({"epoch": -1}, "open.epoch"),
        ({"request_id": "x"}, "request_id"),
    ],
)
async def test_what_is_wrong_with_the_first_message_is_named(home, asked, field):
    async with push_call(home.wire) as push:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await push.open(**({"producer_id": "p"} | asked))
        assert list(Refused(error.value).fields) == [field]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.PushStreamRequest(), "readings"),
        (pb.PushStreamRequest(open={"source": SOURCE, "producer_id": "p"}), "readings"),
        (pb.PushStreamRequest(readings={"first_sequence": 1}), "readings.records"),
        (pb.PushStreamRequest(readings={"records": [b"{}"]}), "readings.first_sequence"),
    ],
    ids=["nothing", "open again", "no records", "no number"],
)
async def test_later_messages_bring_readings(home, message, field):
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send_message(message)
        refused = await push.refused()
        assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", [field])


async def test_a_stream_begins_with_open(home):
    async with push_call(home.wire) as push:
        await push.send(1, [reading("a")])
        assert (await push.refused()).reason == "INVALID_REQUEST"
    async with push_call(home.wire) as push:
        assert await push.end() == "INVALID_ARGUMENT"


async def test_a_message_has_the_limits_of_a_push(home):
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send(1, [b"{}"] * 10_001)
        refused = await push.refused()
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")
    assert await count(home.wire) == 0


async def test_validate_only_opens_nothing(home):
    async with push_call(home.wire) as push:
        await push.open("p", validate_only=True)
        assert push.opened.epoch > 0
        assert await push.end() == "OK"
    async with push_call(home.wire) as again:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await again.open("p", epoch=push.opened.epoch, validate_only=True)
        assert Refused(error.value).reason == "PRODUCER_FENCED"


async def test_a_disabled_source_refuses_and_the_stream_stays(home):
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send(1, [reading("a")])
        await push.ack()
        await set_disabled(home.wire, True)
        for sequence in (2, 3, 4):
            await push.send(sequence, [reading(sequence)])
        control = await push.control()
        assert control.expected_sequence == 2
        info = ErrorInfo()
        assert control.refused.details[0].Unpack(info)
        assert info.reason == "SOURCE_DISABLED"
        await push.send(5, [reading("under way")])
        await set_disabled(home.wire, False)
        control = await push.control()
        assert not control.HasField("refused")
        assert control.expected_sequence == 2
        await push.send(6, [reading("sent before the producer knew")])
        await push.send(2, [reading("b"), reading("c")])
        assert (await push.ack()).last_sequence == 3
        assert await push.end() == "OK"
    assert await count(home.wire) == 3


async def test_settings_that_change_under_a_stream(home):
    """The readings are checked again against the new settings; none is lost."""
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send(1, [reading("a")])
        await push.ack()
        schema = '{"properties":{"v":{"maximum":5}}}'
        await home.wire.call(
            home.wire.catalog.UpdateDataset,
            catalog_service_pb2.UpdateDatasetRequest(
                dataset=dataset.Dataset(name="datasets/books", schema=schema),
                update_mask={"paths": ["schema"]},
            ),
        )
        await push.send(2, [reading("b", 9), reading("c")])
        assert list((await push.ack()).statuses) == [INVALID, CREATED]


async def test_a_deleted_source_ends_the_stream(home):
    async with push_call(home.wire) as push:
        await home.wire.call(
            home.wire.catalog.CreateSource,
            catalog_service_pb2.CreateSourceRequest(parent="datasets/books", source_id="s"),
        )
        source = "datasets/books/sources/s"
        await push.open("p", source=source)
        await home.wire.call(
            home.wire.catalog.DeleteSource, catalog_service_pb2.DeleteSourceRequest(name=source)
        )
        await push.send(1, [reading("a")])
        refused = await push.refused()
        assert (refused.code, refused.reason) == ("NOT_FOUND", "SOURCE_NOT_FOUND")


async def test_what_is_sent_beyond_the_credit_is_held_back_and_kept(tmp_path):
    """More than the credit and than all may hold: pauses are asked for, nothing is lost."""
    async with house(tmp_path, producer_credit_bytes=4096, producer_backlog_bytes=3000) as home:
        await home.wire.make_dataset("books")
        async with push_call(home.wire) as push:
            await push.open("p")
            assert push.opened.credit_bytes == 4096
            for first in range(1, 3_000, 20):
                await push.send(first, [reading(n) for n in range(first, first + 20)])
            last, pauses = 0, 0
            while last < 3_000:
                answer = await push.read()
                if answer.HasField("ack"):
                    assert answer.ack.first_sequence == last + 1
                    last = answer.ack.last_sequence
                else:
                    assert answer.control.pause.nanos > 0
                    pauses += 1
            assert pauses
        assert await count(home.wire) == 3_000


async def test_a_full_queue_pauses_the_producer_and_keeps_its_readings(tmp_path):
    async with house(tmp_path, queue_bytes=1) as home:
        await home.wire.make_dataset("books")
        paused = set()

        async def run(name):
            async with push_call(home.wire) as push:
                await push.open(name)
                for sequence in range(1, 101):
                    await push.send(sequence, [reading(f"{name}{sequence}")])
                last = 0
                while last < 100:
                    answer = await push.read()
                    if answer.HasField("control"):
                        assert answer.control.HasField("pause")
                        paused.add(name)
                    else:
                        last = answer.ack.last_sequence

        await asyncio.gather(*(run(f"p{number}") for number in range(8)))
        assert paused
        assert await count(home.wire) == 800


async def test_g20_what_was_received_is_acknowledged_before_the_server_goes(tmp_path):
    heard = []

    async def run(home, channel):
        async with push_call(Wire(channel, home.wire.secret)) as push:
            await push.open("p")
            for sequence in range(1, 201):
                await push.send(sequence, [reading(sequence)])
            try:
                while True:
                    heard.append(await push.read())
            except grpc.aio.AioRpcError as error:
                return Refused(error)

    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(house(tmp_path))
        await home.wire.make_dataset("books")
        channel = grpc.aio.insecure_channel(home.server.addresses[0])
        producer = asyncio.create_task(run(home, channel))
        await until(lambda: heard)
        await stack.aclose()  # drains, with the producer on a channel of its own
        refused = await producer
        await channel.close()
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert heard[-1].control.going_away
    acked = max(answer.ack.last_sequence for answer in heard)
    async with house(tmp_path) as home:
        assert await count(home.wire) == acked


async def test_a_cancelled_stream_leaves_nothing_in_the_backlog(home):
    async with push_call(home.wire) as push:
        await push.open("p")
        for sequence in range(1, 500):
            await push.send(sequence, [reading(sequence)])
        push.cancel()
    async with push_call(home.wire) as again:
        await again.open("p", epoch=push.opened.epoch)
        last = again.opened.last_sequence
        await again.send(last + 1, [reading(n) for n in range(last + 1, 501)])
        await again.acked(500)
    assert await count(home.wire) == 500


async def test_what_a_producer_wrote_reads_like_any_other_record(home):
    async with push_call(home.wire) as push:
        await push.open("p")
        await push.send(1, [reading("a")])
        await push.ack()
    found = await home.wire.call(
        home.wire.record.GetRecord, record.GetRecordRequest(dataset="datasets/books", record_id="a")
    )
    assert (found.record.source, found.record.data) == (SOURCE, reading("a"))
