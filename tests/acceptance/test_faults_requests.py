"""Request ids end to end: too old, used for something else, used fifty times at once, cancelled anywhere."""

import asyncio
import random
import time

import grpc.aio
import pytest

import syncline
from support.waiting import until
from syncline.names import new_request_id
from syncline.v1.push_service_pb2 import DeleteByIdsRequest, PushRequest

SOURCE = "datasets/events/sources/default"
CANCELS = 1_000
AT_ONCE = 40


@pytest.fixture
async def events(client):
    """Under APPEND a second effect shows."""
    await client.create_dataset("events", identity=syncline.append())
    return client.dataset("events")


@pytest.fixture
def push(client):
    """A bare push, without the SDK's retries."""
    connection = client.connection

    def call(request_id, *records, method=connection.push.Push):
        request = PushRequest(source=SOURCE, records=records or (b'{"v":1}',), request_id=request_id)
        return method(request, metadata=connection.caller.metadata, timeout=20.0)

    return call


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code().name, refused.value.details()


async def stored(dataset):
    return sorted([record.data["v"] async for record in dataset.records()])


async def test_t21_g05_a_retry_later_than_the_memory_is_refused(client, events, push):
    """T21: an id of longer ago than a day cannot be told from a new one, so it is not taken."""
    day_ms = 24 * 3_600 * 1_000
    now_ms = time.time_ns() // 1_000_000
    code, text = await refusal(push(new_request_id(now_ms - day_ms - 60_000)))
    assert code == "FAILED_PRECONDITION"
    assert "request" in text
    younger = new_request_id(now_ms - day_ms + 60_000)
    assert (await push(younger)).revision == 1
    assert (await push(younger)).revision == 1
    assert await stored(events) == [1]


async def test_t21_g05_a_request_id_dies_and_is_never_applied_again(make_server):
    """T21, G5: retried from before to after the end of the memory: the first answer, then a refusal, nothing else."""
    async with make_server(SYNCLINE_REQUEST_RETENTION_SECONDS="60") as server, server.client() as client:
        await client.create_dataset("events", identity=syncline.append())
        request = PushRequest(
            source=SOURCE,
            records=[b'{"v":1}'],
            request_id=new_request_id(time.time_ns() // 1_000_000 - 58_000),
        )
        answers = []

        async def refused():
            try:
                response = await client.connection.push.Push(
                    request, metadata=client.connection.caller.metadata
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
                return True
            answers.append((response.revision, tuple(response.record_ids)))
            return False

        await until(refused)
        assert len(answers) > 1
        assert len(set(answers)) == 1
        assert await stored(client.dataset("events")) == [1]


async def test_t22_g05_a_request_id_is_good_for_one_request(client, events, push):
    """T22: other records, another method: INVALID_ARGUMENT, no effect; then the first answer is still there."""
    request_id = new_request_id()
    first = await push(request_id, b'{"v":1}')
    assert (await refusal(push(request_id, b'{"v":2}')))[0] == "INVALID_ARGUMENT"
    assert (await refusal(push(request_id, b'{"v":1}', b'{"v":1}')))[0] == "INVALID_ARGUMENT"
    connection = client.connection
    delete = DeleteByIdsRequest(source=SOURCE, record_ids=first.record_ids, request_id=request_id)
    assert (await refusal(connection.push.DeleteByIds(delete, metadata=connection.caller.metadata)))[
        0
    ] == "INVALID_ARGUMENT"
    assert await push(request_id, b'{"v":1}') == first
    assert await stored(events) == [1]


async def test_t23_g05_fifty_at_once_with_one_request_id(events, push):
    """T23: one effect, one answer."""
    for turn in range(1, 6):
        request_id = new_request_id()
        answers = await asyncio.gather(*(push(request_id, b'{"v":%d}' % turn) for _ in range(50)))
        assert {answer.revision for answer in answers} == {turn}
        assert all(answer == answers[0] for answer in answers)
    assert await stored(events) == [1, 2, 3, 4, 5]


async def test_t27_g01_g05_a_thousand_cancels(server, client, events, push):
    """T27: calls cancelled or timed out at random moments take effect whole or not at all; a retry makes it one."""
    rng = random.Random(27)
    requests = {n: new_request_id() for n in range(CANCELS)}
    answered = {}

    def records(n):
        return [b'{"v":%d}' % n] * 3

    async def cancelled(n):
        if rng.random() < 0.5:
            call = push(requests[n], *records(n))
            asyncio.get_running_loop().call_later(rng.uniform(0, 0.03), call.cancel)
        else:
            call = client.connection.push.Push(
                PushRequest(source=SOURCE, records=records(n), request_id=requests[n]),
                metadata=client.connection.caller.metadata,
                timeout=rng.uniform(0.001, 0.03),
            )
        try:
            answered[n] = (await call).revision
        except asyncio.CancelledError:
            pass
        except grpc.aio.AioRpcError as error:
            assert error.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}

    for start in range(0, CANCELS, AT_ONCE):
        await asyncio.gather(*(cancelled(n) for n in range(start, min(start + AT_ONCE, CANCELS))))

    head = (await push(new_request_id(), b'{"v":-1}')).revision
    found = await stored(events)
    assert found.count(-1) == 1
    effects = {n: found.count(n) for n in range(CANCELS)}
    assert set(effects.values()) == {0, 3}, "both must have happened for this to say anything"
    assert all(effects[n] == 3 for n in answered)
    assert head == 1 + sum(count == 3 for count in effects.values())
    for start in range(0, CANCELS, 100):
        retried = await asyncio.gather(*(push(requests[n], *records(n)) for n in range(start, start + 100)))
        for n, answer in enumerate(retried, start):
            assert answer.revision == answered.get(n, answer.revision)
    assert await stored(events) == sorted([-1, *(n for n in range(CANCELS) for _ in range(3))])
    assert (await client.get_dataset("events")).revision == CANCELS + 1
    assert (await client.server_info()).writable
    await server.stop()
    assert server.fsck() == []
