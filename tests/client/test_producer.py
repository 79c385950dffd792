"""Producers against a server that is told what to say (T25, T122; G5, G6)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import syncline
from support.scripted_producers import ScriptedProducers
from support.scripted_server import Refuse, ScriptedServer
from support.waiting import until
from syncline import FeedOptions, RefusedReading
from syncline._call import RetryPolicy
from syncline.producer import _link
from syncline.v1.push_service_pb2 import Opened, OpenProducer, PushStreamResponse, ReadingsAck

QUICK = FeedOptions(reconnect=RetryPolicy(attempts=None, first_seconds=0.001, max_seconds=0.005))
OFFLINE = Refuse("UNAVAILABLE")


def producer_of(client: syncline.Client, **given: Any) -> syncline.Producer[Any]:
    given = {"options": QUICK, "source": "roof", "linger_seconds": 5.0} | given
    return client.dataset("books").producer("p1", **given)


def readings(*numbers: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in numbers]


@pytest.fixture
def server(scripted: ScriptedServer) -> ScriptedProducers:
    return ScriptedProducers(scripted)


async def test_readings_arrive_in_order_and_numbered(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    async with producer_of(client) as sensor:
        for number in range(5):
            sensor.send({"n": number})
        await sensor.flush()
        stats = sensor.stats

    assert server.book.readings == readings(*range(5))
    opening = server.last.open
    assert opening is not None
    assert (opening.source, opening.producer_id) == ("datasets/books/sources/roof", "p1")
    assert (opening.epoch, opening.previous_epoch) == (0, 0)
    assert (stats.sent, stats.durable, stats.waiting, stats.last_sequence) == (5, 5, 0, 5)
    assert (stats.connected, stats.epoch, stats.revision) == (True, 1, 5)


async def test_what_is_sent_together_travels_together(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    async with producer_of(client) as sensor:
        await sensor.ready()
        for number in range(2_500):
            sensor.send({"n": number})
        await sensor.flush()

    assert [len(records) for _, records in server.last.messages] == [1_000, 1_000, 500]


async def test_g05_cuts_lose_nothing_and_repeat_nothing(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    """G5: cut before a message has its effect, and after, in turns."""
    cuts = iter(range(40))

    def cut(first: int, records: list[bytes]) -> None:
        if next(cuts, None) is not None:
            raise OFFLINE

    server.before_apply = lambda first, records: cut(first, records) if first % 2 else None
    server.before_ack = cut
    async with producer_of(client) as sensor:
        for number in range(200):
            sensor.send({"n": number})
            await asyncio.sleep(0)
        await sensor.flush()

        assert sensor.stats.reconnects >= 20
    assert server.book.readings == readings(*range(200))
    assert {stream.open.epoch for stream in server.streams[1:] if stream.open} == {1}


async def test_g06_fenced_is_loud(server: ScriptedProducers, client: syncline.Client) -> None:
    """T26: another start of the same producer ends this one."""
    with pytest.raises(syncline.ProducerFenced, match="epoch 2"):
        async with producer_of(client) as sensor:
            await sensor.ready()
            server.book.epoch += 1
            server.last.close(OFFLINE)
            await until(lambda: sensor._error is not None)
            with pytest.raises(syncline.ProducerFenced):
                sensor.send({"n": 1})
            await sensor.flush()


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refuse("NOT_FOUND", "SOURCE_NOT_FOUND"), syncline.NotFound),
        (Refuse("UNAUTHENTICATED", "KEY_INVALID"), syncline.NotAuthenticated),
        (Refuse("INVALID_ARGUMENT", "INVALID_REQUEST"), syncline.InvalidArgument),
    ],
)
async def test_what_cannot_be_mended_ends_it(
    server: ScriptedProducers, client: syncline.Client, refusal: Refuse, kind: type[Exception]
) -> None:
    def refuse(opening: object) -> None:
        raise refusal

    server.before_open = refuse
    with pytest.raises(kind):
        async with producer_of(client) as sensor:
            sensor.send({"n": 1})
            await sensor.flush()


async def test_g05_attempts_at_one_epoch_are_known_as_one(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    """One whose answer was lost may arrive after the next one, at another node; it must not fence that."""
    asked: list[tuple[int, str]] = []

    def lose(opening: OpenProducer) -> None:
        asked.append((opening.epoch, opening.request_id))
        if len(asked) < 3:
            raise Refuse("UNAVAILABLE", "STORE_UNAVAILABLE")

    server.before_open = lose
    async with producer_of(client) as sensor:
        await sensor.ready()
        server.last.close(Refuse("UNAVAILABLE", ""))
        await server.until(lambda: len(server.streams) == 2)

    assert len(asked[0][1]) == 36
    assert asked == [(0, asked[0][1])] * 3 + [(1, "")]


async def test_a_server_with_another_time_opens_without_request_ids(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    def refuse(opening: OpenProducer) -> None:
        if opening.request_id:
            raise Refuse("FAILED_PRECONDITION", "REQUEST_ID_EXPIRED")

    server.before_open = refuse
    async with producer_of(client) as sensor:
        sensor.send({"n": 1})
        await sensor.flush()

    assert server.book.readings == readings(1)


async def test_refused_readings_are_told_once_and_the_others_go_on(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    async with producer_of(client) as sensor:
        sensor.send({"n": 1})
        sensor.send({"bad": 2})
        sensor.send({"n": 3})
        with pytest.raises(syncline.RefusedReadings) as caught:
            await sensor.flush()
        await sensor.flush()

        assert (sensor.stats.durable, sensor.stats.refused) == (2, 1)
    (refused,) = caught.value.refused
    assert (refused.json, refused.sequence, refused.violations[0].pointer) == (b'{"bad":2}', 2, "/bad")
    assert caught.value.total == 1
    assert server.book.readings == readings(1, 3)


async def test_a_callback_takes_the_refused(server: ScriptedProducers, client: syncline.Client) -> None:
    refused: list[RefusedReading] = []
    async with producer_of(client, on_refused=refused.append) as sensor:
        sensor.send({"bad": 1})
        await sensor.flush()

    assert [reading.json for reading in refused] == [b'{"bad":1}']


async def test_f62_a_callback_that_raises_ends_it(server: ScriptedProducers, client: syncline.Client) -> None:
    def raise_it(reading: RefusedReading) -> None:
        raise KeyError(reading.sequence)

    with pytest.raises(KeyError):
        async with producer_of(client, on_refused=raise_it) as sensor:
            sensor.send({"bad": 1})
            await sensor.flush()


# -- no room --------------------------------------------------------------------------------------------------


async def test_wait_lasts_until_there_is_room(server: ScriptedProducers, client: syncline.Client) -> None:
    server.is_silent = True
    async with producer_of(client, max_records=3) as sensor:
        for number in range(3):
            await sensor.send({"n": number})
        blocked = asyncio.ensure_future(_wait(sensor.send({"n": 3})))
        await server.until(lambda: server.streams and server.last.messages)
        await asyncio.sleep(0)
        assert not blocked.done()

        server.is_silent = False
        server.last.close(OFFLINE)
        await blocked
        await sensor.flush()

    assert server.book.readings == readings(0, 1, 2, 3)


async def _wait(room: Any) -> None:
    await room


async def test_wait_that_nobody_awaits_is_bounded_too(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    server.is_silent = True
    with pytest.raises(syncline.ReadingsLeft, match="110 readings"):
        async with producer_of(client, max_records=10, linger_seconds=0.01) as sensor:
            with pytest.raises(syncline.OutboxFull, match="await what send"):
                for number in range(1_000):
                    sensor.send({"n": number})
            assert sensor.stats.sent == 110


async def test_raise_takes_nothing_beyond_the_limits(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    server.is_silent = True
    async with producer_of(client, on_full="raise", max_bytes=20) as sensor:
        sensor.send({"n": 1})
        sensor.send({"n": 2})
        with pytest.raises(syncline.OutboxFull):
            sensor.send({"n": 3})
        await server.until(lambda: server.streams and server.last.messages)
        server.is_silent = False
        server.last.close(OFFLINE)
        await sensor.flush()
        sensor.send({"n": 4})

    assert server.book.readings == readings(1, 2, 4)


async def test_drop_oldest_keeps_what_was_sent_and_the_newest(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    """What may have arrived is never dropped: its number would be given to another reading, which were lost."""
    server.is_silent = True
    async with producer_of(client, on_full="drop_oldest", max_records=4) as sensor:
        await sensor.ready()
        sensor.send({"n": 0})
        sensor.send({"n": 1})
        await server.until(lambda: server.last.messages)
        server.credit_bytes = 1  # of the next stream
        server.last.close(OFFLINE)
        await server.until(lambda: len(server.streams) == 2 and server.last.messages)
        for number in range(2, 100):
            sensor.send({"n": number})
        assert (sensor.stats.dropped, sensor.stats.waiting) == (96, 4)

        server.is_silent = False
        server.last.close(OFFLINE)
        await sensor.flush()

    assert server.book.readings == readings(0, 1, 98, 99)


async def test_the_window_bounds_what_is_not_acknowledged(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    server.is_silent, server.credit_bytes = True, 100
    async with producer_of(client) as sensor:
        await sensor.ready()
        for number in range(100):
            sensor.send({"n": number})
        await server.until(lambda: server.last.messages)
        await asyncio.sleep(0.02)
        (first, under_way) = server.last.messages[0]
        assert (first, len(server.last.messages), len(under_way)) == (1, 1, 6)

        server.is_silent = False
        await server.last.send(PushStreamResponse(ack=server._apply(server.last, first, under_way)))
        await sensor.flush()

    assert server.book.readings == readings(*range(100))


# -- what the server asks for ---------------------------------------------------------------------------------


async def test_a_disabled_source_keeps_readings_until_it_is_enabled(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    server.is_silent = True
    async with producer_of(client) as sensor:
        await sensor.ready()
        sensor.send({"n": 1})
        await server.until(lambda: server.last.messages)
        disabled = Refuse("FAILED_PRECONDITION", "SOURCE_DISABLED")
        await server.last.control(refused=disabled, expected_sequence=1)
        await until(lambda: sensor.stats.held_by == "SOURCE_DISABLED")
        sensor.send({"n": 2})
        await asyncio.sleep(0.02)
        assert len(server.last.messages) == 1

        server.is_silent = False
        await server.last.control(expected_sequence=1)
        await sensor.flush()

        assert sensor.stats.held_by == ""
    assert server.book.readings == readings(1, 2)
    assert len(server.streams) == 1


async def test_a_source_that_is_disabled_from_the_beginning(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    attempts = iter(range(3))

    def refuse(opening: object) -> None:
        if next(attempts, None) is not None:
            raise Refuse("FAILED_PRECONDITION", "SOURCE_DISABLED")

    server.before_open = refuse
    async with producer_of(client) as sensor:
        sensor.send({"n": 1})
        await until(lambda: sensor.stats.held_by)
        await sensor.flush()

    assert server.book.readings == readings(1)


async def test_a_pause_is_kept(server: ScriptedProducers, client: syncline.Client) -> None:
    loop = asyncio.get_running_loop()
    async with producer_of(client) as sensor:
        await sensor.ready()
        await server.last.control(pause=0.1)
        link = sensor._link
        assert link is not None
        await until(lambda: link._paused_until)
        began = loop.time()
        sensor.send({"n": 1})
        await sensor.flush()

        assert loop.time() - began >= 0.08


async def test_going_away_is_followed_with_the_same_epoch(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    async with producer_of(client) as sensor:
        sensor.send({"n": 1})
        await sensor.flush()
        await server.last.control(going_away=True)
        link = sensor._link
        assert link is not None
        await until(lambda: link._going_away)
        sensor.send({"n": 2})  # not on this stream any more
        server.last.close(Refuse("UNAVAILABLE", "SHUTTING_DOWN", retry_seconds=0.01))
        await sensor.flush()

    assert [len(stream.messages) for stream in server.streams] == [1, 1]
    assert server.streams[1].open.epoch == 1  # type: ignore[union-attr]


async def test_a_silent_server_is_given_up_only_while_an_answer_is_due(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    options = FeedOptions(checkpoint_seconds=0.05, reconnect=QUICK.reconnect)
    async with producer_of(client, options=options) as sensor:
        await sensor.ready()
        await asyncio.sleep(0.3)
        assert len(server.streams) == 1

        server.is_silent = True
        sensor.send({"n": 1})
        await server.until(lambda: len(server.streams) == 2)
        server.is_silent = False
        await server.until(lambda: server.book.readings)

    assert server.book.readings == readings(1)


async def test_a_message_that_is_too_large_is_split_and_the_culprit_given_up(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    """F27: a poison reading does not hold up the others for ever."""

    def limit(first: int, records: list[bytes]) -> None:
        if sum(map(len, records)) > 1_000:
            raise Refuse("INVALID_ARGUMENT", "LIMIT_EXCEEDED", "too large")

    server.before_apply = limit
    refused: list[RefusedReading] = []
    async with producer_of(client, on_refused=refused.append) as sensor:
        for number in range(3):
            sensor.send({"n": number})
        sensor.send({"poison": "x" * 2_000})
        for number in range(3, 6):
            sensor.send({"n": number})
        await sensor.flush()

    assert server.book.readings == readings(*range(6))
    assert [(reading.sequence, reading.violations[0].keyword) for reading in refused] == [(4, "size")]


# -- what no good server says (T122) ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        PushStreamResponse(ack=ReadingsAck(last_sequence=99, first_sequence=100)),
        PushStreamResponse(ack=ReadingsAck(last_sequence=1, first_sequence=1, statuses=[1, 1])),
        PushStreamResponse(opened=Opened(epoch=1)),
    ],
    ids=["ack of what was not sent", "too many verdicts", "opened twice"],
)
async def test_t122_a_lie_breaks_the_stream_and_loses_nothing(
    server: ScriptedProducers, client: syncline.Client, lie: PushStreamResponse
) -> None:
    server.is_silent = True
    async with producer_of(client) as sensor:
        await sensor.ready()
        sensor.send({"n": 1})
        await server.until(lambda: server.last.messages)
        await server.last.send(lie)
        server.is_silent = False
        await sensor.flush()

    assert server.book.readings == readings(1)
    assert len(server.streams) == 2


async def test_t122_a_server_that_only_lies_is_given_up(
    server: ScriptedProducers, client: syncline.Client, scripted: ScriptedServer
) -> None:
    async def lie(requests: Any, send: Any) -> None:
        async for _ in requests:
            await send(PushStreamResponse(ack=ReadingsAck(last_sequence=7)))

    scripted.on["PushStream"] = lie
    with pytest.raises(syncline.ServerError, match="first"):
        async with producer_of(client) as sensor:
            await sensor.flush()
            await sensor.ready()


async def test_a_store_that_was_restored_gets_what_it_lacks(
    server: ScriptedProducers, client: syncline.Client
) -> None:
    """G13: numbers go on from what the server has; what was acknowledged before the restore is gone with it."""
    async with producer_of(client) as sensor:
        for number in range(5):
            sensor.send({"n": number})
        await sensor.flush()
        server.book.last_sequence = 2
        server.book.readings = readings(0, 1)
        server.last.close(OFFLINE)
        sensor.send({"n": 5})
        await sensor.flush()

    assert server.book.readings == readings(0, 1, 5)


@pytest.mark.parametrize("with_spool", [False, True])
async def test_a_store_that_was_restored_to_an_older_epoch(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path, with_spool: bool
) -> None:
    """G13: only a newer epoch fences; one that the server has lost is opened anew, and goes on from what it has."""
    spool = tmp_path / "p1.db" if with_spool else None
    server.book.epoch = 3
    async with producer_of(client, spool=spool) as sensor:
        for number in range(5):
            sensor.send({"n": number})
        await sensor.flush()
        assert sensor.stats.epoch == 4
        server.is_silent = True
        sensor.send({"n": 5})
        await server.until(lambda: len(server.last.messages) == 2)
        server.is_silent = False
        server.book.epoch, server.book.last_sequence = 2, 2
        server.book.readings, server.book.ends = readings(0, 1), {0: 0}
        server.last.close(OFFLINE)
        sensor.send({"n": 6})
        await sensor.flush()

        assert (sensor.stats.epoch, sensor.stats.last_sequence, sensor.stats.waiting) == (3, 4, 0)
        assert sensor.stats.waiting_bytes == 0
    assert server.book.readings == readings(0, 1, 5, 6)
    opening = server.last.open
    assert opening is not None
    assert (opening.epoch, opening.previous_epoch) == (0, 4)


async def test_send_needs_an_open_producer(server: ScriptedProducers, client: syncline.Client) -> None:
    sensor = producer_of(client)
    with pytest.raises(RuntimeError, match="async with"):
        sensor.send({"n": 1})
    async with sensor:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        sensor.send({"n": 1})
    with pytest.raises(RuntimeError, match="once"):
        async with sensor:
            pass
    with pytest.raises(ValueError, match="on_full"):
        producer_of(client, on_full="block")
    with pytest.raises(ValueError, match="room"):
        producer_of(client, max_records=0)


async def test_pace_gathers_only_while_something_is_under_way(
    server: ScriptedProducers, client: syncline.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone reading waits for nothing: the pause between messages ends with the acknowledgement."""
    monkeypatch.setattr(_link, "PACE_SECONDS", 5.0)
    async with producer_of(client, spool=None) as sensor:
        async with asyncio.timeout(2):
            for number in range(5):
                sensor.send({"n": number})
                await sensor.flush()

    assert len(server.last.messages) == 5
