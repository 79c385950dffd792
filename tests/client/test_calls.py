"""Retries, deadlines and identities of calls (G4, G5; F24, F25)."""

import asyncio
import logging
import time

import pytest

import syncline
from support.scripted_server import Refuse, ScriptedServer, created, server_info
from syncline import names
from syncline._call import RetryPolicy
from syncline.v1.push_service_pb2 import PushResponse

ROW = {"isbn": "1"}


async def test_every_write_carries_an_identity_and_the_key(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.script("Push", created)

    await client.dataset("books").push([ROW])
    await client.dataset("books").push([ROW])

    first, second = (request.request_id for request in scripted.requests["Push"])
    assert first != second
    assert abs(names.request_id_time_ms(first) - time.time() * 1000) < 60_000
    assert {metadata["authorization"] for metadata in scripted.metadata} == {"Bearer sl_test"}


async def test_g5_t20_retry_repeats_the_same_request(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """T20: an answer is lost; the retry is byte for byte the same call, so the server can know it."""
    scripted.script("Push", Refuse("UNAVAILABLE"), Refuse("UNAVAILABLE", "SHUTTING_DOWN"), created)

    result = await client.dataset("books").push([ROW])

    sent = [request.SerializeToString(deterministic=True) for request in scripted.requests["Push"]]
    assert result.created == 1
    assert len(sent) == 3
    assert len(set(sent)) == 1


async def test_t20_lost_answer_is_asked_for_again_within_the_deadline(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """T20: nothing comes back at all; half of the time is kept for asking again."""

    async def hang(request: object) -> None:
        await asyncio.Event().wait()

    scripted.script("Push", hang, created)

    started = time.monotonic()
    await client.dataset("books").push([ROW], timeout_seconds=2.5)

    assert 1.0 < time.monotonic() - started < 2.5
    assert len({request.request_id for request in scripted.requests["Push"]}) == 1


async def test_t24_a_retry_that_the_server_refuses_is_not_disguised_as_a_new_write(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """T24: after a lost first try, REQUEST_ID_EXPIRED must reach the caller: a fresh id could overwrite a newer v2."""
    scripted.script("Push", Refuse("UNAVAILABLE"), Refuse("FAILED_PRECONDITION", "REQUEST_ID_EXPIRED"))

    with pytest.raises(syncline.FailedPrecondition) as caught:
        await client.dataset("books").push([ROW])

    assert caught.value.reason == "REQUEST_ID_EXPIRED"
    assert len({request.request_id for request in scripted.requests["Push"]}) == 1


@pytest.mark.parametrize("ahead", [False, True])
async def test_wrong_clock_of_this_machine_is_corrected(
    scripted: ScriptedServer, client: syncline.Client, ahead: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A first attempt that is told to be a day old means that our clock is wrong: the server's is taken over."""
    server_ms = 1_900_000_000_000
    refusal = (
        Refuse("INVALID_ARGUMENT", "INVALID_REQUEST", fields=[("request_id", "is in the future", "INVALID")])
        if ahead
        else Refuse("FAILED_PRECONDITION", "REQUEST_ID_EXPIRED", server_time_ms=server_ms)
    )
    scripted.script("Push", refusal, created)
    scripted.script("GetServerInfo", server_info(server_ms // 1000))

    with caplog.at_level(logging.WARNING, logger="syncline"):
        await client.dataset("books").push([ROW])
        await client.dataset("books").push([ROW])

    ids = [request.request_id for request in scripted.requests["Push"]]
    assert len(ids) == 3
    assert len(set(ids)) == 3
    for corrected in ids[1:]:
        assert abs(names.request_id_time_ms(corrected) - server_ms) < 60_000
    assert "clock" in caplog.text


async def test_attempts_are_bounded_and_the_error_says_how_many(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """T122: a storm of UNAVAILABLE."""
    scripted.script("Push", Refuse("UNAVAILABLE"))

    with pytest.raises(syncline.Unavailable) as caught:
        await client.dataset("books").push([ROW])

    assert len(scripted.requests["Push"]) == 4
    assert caught.value.__notes__ == ["gave up after 4 attempts"]


async def test_server_that_was_there_is_waited_for(scripted: ScriptedServer, client: syncline.Client) -> None:
    """A restart takes longer than four attempts; a server that has answered once is worth the whole deadline."""
    scripted.script("Push", created, *[Refuse("UNAVAILABLE")] * 5, created)

    await client.dataset("books").push([ROW])
    await client.dataset("books").push([ROW])

    assert len(scripted.requests["Push"]) == 7


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refuse("INVALID_ARGUMENT", "RECORD_INVALID"), syncline.InvalidRecords),
        (Refuse("ABORTED", "CONDITION_FAILED"), syncline.ConditionFailed),
        (Refuse("ABORTED", "DATASET_CHANGED", revision=7), syncline.Aborted),
        (Refuse("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS"), syncline.Overloaded),
        (Refuse("INTERNAL", "INTERNAL", incident_id="x"), syncline.ServerError),
        (Refuse("PERMISSION_DENIED", "PERMISSION_DENIED"), syncline.PermissionDenied),
    ],
)
async def test_g4_refusals_are_not_repeated(
    scripted: ScriptedServer,
    client: syncline.Client,
    refusal: Refuse,
    error: type[syncline.SynclineError],
) -> None:
    scripted.script("Push", refusal)

    with pytest.raises(error):
        await client.dataset("books").push([ROW])

    assert len(scripted.requests["Push"]) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        Refuse("RESOURCE_EXHAUSTED", "OVERLOADED", retry_seconds=0.01),
        Refuse("ABORTED", "DATASET_CHANGED"),
        Refuse("CANCELLED"),
        Refuse("UNKNOWN", message="Stream removed"),
    ],
)
async def test_refusals_that_pass_are_repeated(
    scripted: ScriptedServer, client: syncline.Client, refusal: Refuse
) -> None:
    scripted.script("Push", refusal, created)

    await client.dataset("books").push([ROW])

    assert len(scripted.requests["Push"]) == 2


async def test_retry_waits_as_long_as_the_server_asks(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.script("Push", Refuse("RESOURCE_EXHAUSTED", "OVERLOADED", retry_seconds=0.4), created)

    started = time.monotonic()
    await client.dataset("books").push([ROW])

    assert time.monotonic() - started >= 0.4


async def test_no_retry_is_begun_that_the_deadline_leaves_no_time_for(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.script("Push", Refuse("RESOURCE_EXHAUSTED", "OVERLOADED", retry_seconds=60), created)

    started = time.monotonic()
    with pytest.raises(syncline.Overloaded) as caught:
        await client.dataset("books").push([ROW], timeout_seconds=1)

    assert time.monotonic() - started < 1
    assert caught.value.retry_after_seconds == 60


async def test_reads_have_a_deadline_and_are_not_repeated_after_it(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    async def hang(request: object) -> None:
        await asyncio.Event().wait()

    scripted.script("GetRecord", hang)

    with pytest.raises(TimeoutError) as caught:
        await client.dataset("books").get("1", timeout_seconds=0.2)

    assert isinstance(caught.value, syncline.DeadlineExceeded)
    assert len(scripted.requests["GetRecord"]) == 1


async def test_revision_not_reached_is_an_answer(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script("GetRecord", Refuse("UNAVAILABLE", "REVISION_NOT_REACHED", retry_seconds=0.1))

    with pytest.raises(syncline.Unavailable) as caught:
        await client.dataset("books").get("1", min_revision=9)

    assert caught.value.reason == "REVISION_NOT_REACHED"
    assert len(scripted.requests["GetRecord"]) == 1


async def test_cancelling_the_caller_cancels_the_call(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    ended = asyncio.Event()

    async def hang(request: object) -> PushResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    scripted.script("Push", hang)
    task = asyncio.create_task(client.dataset("books").push([ROW]))
    await scripted.until(lambda s: "Push" in s.requests)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), 5)


def test_pauses_are_full_jitter_up_to_a_doubling_bound() -> None:
    """T122: many clients that fail together must not come back together."""
    policy = RetryPolicy(first_seconds=0.1, max_seconds=2.0)
    for failures, bound in [(1, 0.1), (2, 0.2), (3, 0.4), (10, 2.0), (10_000, 2.0)]:
        pauses = [policy.pause_seconds(failures) for _ in range(500)]

        assert 0 <= min(pauses) < bound * 0.1
        assert bound * 0.9 < max(pauses) <= bound


async def test_calls_need_an_open_client() -> None:
    client = syncline.connect("127.0.0.1:1")
    books = client.dataset("books")  # no I/O, so it needs none

    with pytest.raises(RuntimeError, match="async with"):
        await books.push([ROW])
