"""T70: bytes as version 0.1 put them on the wire, both ways. A later version reads and writes the same.

Never edit the hex: what these tests say is that a client and a server of different versions understand each
other. A new field gets a new entry.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

import syncline
from syncline import Checkpoint, Delete, Put, Reset
from syncline._subscription import Terms

SUBSCRIBE_RESPONSE = bytes.fromhex(
    "0a0e1a0c08021208726573746f7265640a410a3f10031801220445474c4c22044b4c41582a077b2276223a317d2a00320202033a10"
    "8080f9c0c1c482038180f9c0c1c48203420201024a0202035204746f6b310a1a0a18080310032201782a027b7d3201033a088180f9"
    "c0c1c482030a2b1229080310021a10000102030405060708090a0b0c0d0e0f22090880e2cfaa0610e8072a04746f6b323001"
)
PUSH_RESPONSE = bytes.fromhex(
    "080912016112001a0201082210080112022f781a047479706522026e6f2801",
)
GET_RECORD_RESPONSE = bytes.fromhex(
    "0a2a0a016112027b7d1803221464617461736574732f642f736f75726365732f732a02080132050802108827"
)
STATUS_DETAILS = bytes.fromhex(
    "0803121631206f662031207265636f72647320726566757365641a5d0a28747970652e676f6f676c65617069732e636f6d2f676f6f"
    "676c652e7270632e4572726f72496e666f12310a0e5245434f52445f494e56414c4944120873796e636c696e651a150a10746f7461"
    "6c5f76696f6c6174696f6e731201311a360a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e526574"
    "7279496e666f120a0a0808011080cab5ee011a470a29747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e"
    "42616452657175657374121a0a180a0c7265636f7264735b305d2f7812026e6f1a0474797065"
)
PUSH_REQUEST = bytes.fromhex("0a1464617461736574732f642f736f75726365732f7312027b7d1a02100720012a24")
SUBSCRIBE_REQUEST = bytes.fromhex("0a0a64617461736574732f641203746f6b2004")

# The live part.
UPDATE_FEED_RESPONSE = bytes.fromhex(
    "0a660a3d0a3b1003220445474c4c22044b4c41582a077b2276223a317d2a00320202033a108080f9c0c1c482038180f9c0c1"
    "c48203420201035204746f6b3158040a1d121b080310ffffffffffffffffff0122060880e2cfaa062a04746f6b3210012204"
    "080310010a6210022a5e0805120f6e6f207375636820646174617365741a490a28747970652e676f6f676c65617069732e63"
    "6f6d2f676f6f676c652e7270632e4572726f72496e666f121d0a11444154415345545f4e4f545f464f554e44120873796e63"
    "6c696e65"
)
GOING_AWAY = bytes.fromhex("12060a0408011005")
DATASET_SEEN = bytes.fromhex("0a1310031a0b64617461736574732f643122021801")
UPDATE_FEED_REQUEST = bytes.fromhex(
    "0a340a320801120a64617461736574732f641a03746f6b320576203e20313a030a017640024a02080250045a066465736b2d"
    "31608020"
)
OPENED = bytes.fromhex("0a0908071029182820e807")
READINGS_ACK = bytes.fromhex("121c082b1009182a220201082a10080112022f781a047479706522026e6f")
OPEN_PRODUCER = bytes.fromhex(
    "0a400a1464617461736574732f642f736f75726365732f73120270313224"
)  # and a request id
READINGS = bytes.fromhex("1215082a12077b2278223a317d12087b2278223a22227d")


class RawServer:
    """Answers with bytes and keeps the bytes that it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | None] = {}
        self.received: dict[str, bytes] = {}
        self.dialogues: dict[str, list[list[bytes]]] = {}
        """What is answered to the n-th message of a stream of both directions."""
        self.heard: dict[str, list[bytes]] = {}
        self.address = ""

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]

        async def unary(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            self.received[method] = request
            answer = self.answers[method]
            if answer is None:
                trailers = (("grpc-status-details-bin", STATUS_DETAILS),)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "1 of 1 records refused", trailers)
            return answer

        async def stream(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            self.received[method] = request
            await context.write(self.answers[method])
            await asyncio.Event().wait()

        async def talk(requests: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            answers = iter(self.dialogues[method])
            async for request in requests:
                self.heard.setdefault(method, []).append(request)
                for answer in next(answers, ()):
                    await context.write(answer)

        if method in self.dialogues:
            return grpc.stream_stream_rpc_method_handler(talk)
        if method == "Subscribe":
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


@pytest.fixture
async def raw() -> AsyncIterator[RawServer]:
    raw = RawServer()
    handler = type("Handler", (grpc.GenericRpcHandler,), {"service": staticmethod(raw.service)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(),))
    raw.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield raw
    await server.stop(None)


async def test_t70_feed(raw: RawServer) -> None:
    raw.answers["Subscribe"] = SUBSCRIBE_RESPONSE
    events: list[Any] = []
    async with syncline.connect(raw.address, key="k") as client:
        async with client.dataset("d").changes(b"tok", min_revision=4) as feed:
            while len(events) < 5:
                events.append(await anext(feed))

    again, put, delete, last, exact = events
    assert raw.received["Subscribe"] == SUBSCRIBE_REQUEST
    assert again == Reset(reason=syncline.ResetReason.HISTORY_CHANGED, message="restored", token=b"")
    assert isinstance(put, Put)
    assert (put.record_id, put.json, put.revision, put.reason.name) == ("EGLL", b'{"v":1}', 2, "SESSION")
    assert isinstance(delete, Delete)
    assert delete == Delete(
        record_id="KLAX",
        revision=3,
        commit_time_us=1_700_000_000_000_001,
        reason=syncline.ChangeReason.REPLACE,
        token=b"tok1",
    )
    assert (last.record_id, last.reason.name, last.token) == ("x", "API", b"tok1")
    assert exact == Checkpoint(
        revision=3,
        record_count=2,
        digest=bytes(range(16)),
        commit_time=datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC),
        token=b"tok2",
        going_away=True,
    )


async def test_t70_push(raw: RawServer) -> None:
    raw.answers["Push"] = PUSH_RESPONSE
    async with syncline.connect(raw.address, key="k") as client:
        result = await client.dataset("d").push([syncline.IfRevision({}, 7)], source="s", partial=True)

    assert raw.received["Push"][: len(PUSH_REQUEST)] == PUSH_REQUEST
    assert len(raw.received["Push"]) == len(PUSH_REQUEST) + 36  # the request id
    assert result.revision == 9
    assert [(r.record_id, r.status.name) for r in result.results] == [("a", "CREATED"), ("", "INVALID")]
    assert result.violations == (syncline.Violation(index=1, pointer="/x", keyword="type", message="no"),)


async def test_t70_record(raw: RawServer) -> None:
    raw.answers["GetRecord"] = GET_RECORD_RESPONSE
    async with syncline.connect(raw.address, key="k") as client:
        record = await client.dataset("d").get("a")

    assert (record.record_id, record.json, record.revision, record.source) == ("a", b"{}", 3, "s")
    assert record.update_time == datetime(1970, 1, 1, 0, 0, 2, 5, tzinfo=UTC)


async def test_t70_error(raw: RawServer) -> None:
    raw.answers["Push"] = None
    async with syncline.connect(raw.address, key="k") as client:
        with pytest.raises(syncline.InvalidRecords) as caught:
            await client.dataset("d").push([{}])

    assert caught.value.reason == "RECORD_INVALID"
    assert caught.value.retry_after_seconds == 1.5
    assert caught.value.violations == (
        syncline.Violation(index=0, pointer="/x", keyword="type", message="no"),
    )


async def test_t70_update_feed(raw: RawServer) -> None:
    raw.dialogues["UpdateFeed"] = [[UPDATE_FEED_RESPONSE, DATASET_SEEN, GOING_AWAY]]
    terms = Terms(
        filter="v > 1",
        fields=["v"],
        mode="max_rate",
        min_interval=timedelta(seconds=2),
        min_revision=4,
        replica_id="desk-1",
        window_bytes=4_096,
    )
    async with syncline.connect(raw.address, key="k") as client:
        updates = client.connection.updates
        subscription = updates.subscribe("d", decode=bytes, token=b"tok", terms=terms)
        other = updates.subscribe("e", decode=bytes)
        datasets = updates.datasets("d")
        async with asyncio.timeout(10):
            batch, exact = await subscription.next_part(), await subscription.next_part()
            with pytest.raises(syncline.NotFound, match="no such dataset") as caught:
                await other.next_part()
            seen = await anext(datasets)
            while updates._going_away_seconds is None:
                await asyncio.sleep(0)
        assert updates._going_away_seconds == pytest.approx(1.000000005)

    assert raw.heard["UpdateFeed"][0].startswith(UPDATE_FEED_REQUEST)
    assert isinstance(batch, syncline.ChangeBatch)
    put, remove = batch
    assert isinstance(put, Put)
    assert remove == syncline.Remove(
        record_id="KLAX",
        revision=3,
        commit_time_us=1_700_000_000_000_001,
        reason=syncline.ChangeReason.API,
        token=b"tok1",
    )
    assert (put.json, batch.folded, subscription.head_revision) == (b'{"v":1}', 4, 3)
    assert isinstance(exact, Checkpoint)
    assert (exact.record_count, exact.digest, exact.token) == (-1, b"", b"tok2")
    assert caught.value.reason == "DATASET_NOT_FOUND"
    assert (seen.dataset, seen.is_there) == ("d1", True)


async def test_t70_push_stream(raw: RawServer) -> None:
    raw.dialogues["PushStream"] = [[OPENED], [READINGS_ACK]]
    async with syncline.connect(raw.address, key="k") as client:
        async with client.dataset("d").producer("p1", source="s") as sensor:
            await sensor.ready()
            sensor.send({"x": 1})
            sensor.send({"x": ""})
            with pytest.raises(syncline.RefusedReadings) as caught:
                await sensor.flush()
            stats = sensor.stats

    opening, sent = raw.heard["PushStream"]
    assert opening.startswith(OPEN_PRODUCER)
    assert sent == READINGS
    assert (stats.epoch, stats.last_sequence, stats.revision, stats.durable) == (7, 43, 9, 1)
    (refused,) = caught.value.refused
    assert (refused.sequence, refused.json) == (43, b'{"x":""}')
    assert refused.violations == (syncline.Violation(index=0, pointer="/x", keyword="type", message="no"),)
