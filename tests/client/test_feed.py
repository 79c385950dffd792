"""Following a dataset against a server that does not behave (T69, T122; G7, G8, G11)."""

import asyncio
import contextlib
import gc
import itertools
import random
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import syncline
from support.scripted_server import (
    Refuse,
    ScriptedServer,
    changes,
    checkpoint,
    reset,
    scripted_server,
)
from syncline import Checkpoint, Delete, FeedOptions, Put, Reset
from syncline._call import RetryPolicy
from syncline.v1 import feed_pb2

QUICK = FeedOptions(reconnect=RetryPolicy(attempts=None, first_seconds=0.001, max_seconds=0.005))

A = ("a", b'{"v":1}', 1)
B = ("b", b'{"v":2}', 2)
C = ("c", b'{"v":3}', 3)


def follow(client: syncline.Client, token: bytes | None = None, **given: Any) -> syncline.ChangeFeed[Any]:
    given.setdefault("options", QUICK)
    return client.dataset("books").changes(token, **given)


async def take(feed: Any, number: int) -> list[Any]:
    events = []
    async with asyncio.timeout(10):
        while len(events) < number:
            events.append(await anext(feed))
    return events


def tokens(scripted: ScriptedServer) -> list[bytes]:
    return [request.token for request in scripted.requests["Subscribe"]]


async def test_events_are_typed_and_lazy(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.streams([[changes(0, 2, [A, ("b", None, 2)]), checkpoint(2, [A])]])

    async with follow(client) as feed:
        put, delete, exact = await take(feed, 3)

    assert isinstance(put, Put)
    assert (put.record_id, put.key, put.data, put.json, put.revision) == ("a", "a", {"v": 1}, b'{"v":1}', 1)
    assert put.data is put.data
    assert put.commit_time.timestamp() == 1
    assert put.reason is syncline.ChangeReason.API
    assert isinstance(delete, Delete)
    assert (delete.record_id, delete.revision) == ("b", 2)
    assert isinstance(exact, Checkpoint)
    assert (exact.revision, exact.record_count, exact.going_away) == (2, 1, False)


async def test_token_of_an_event_inside_a_batch_is_the_one_before_it(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """Whoever stores ``event.token`` after each event and crashes, skips nothing."""
    scripted.streams(
        [[changes(0, 2, [A, B]), changes(2, 3, [C, ("d", b"{}", 3)], token=b"")], [checkpoint(3)]]
    )

    async with follow(client) as feed:
        events = []
        for expected in (b"", b"t2", b"t2", b"t2", b"c3"):
            events += await take(feed, 1)
            assert feed.token == expected

    assert [event.token for event in events] == [b"", b"t2", b"t2", b"t2", b"c3"]


async def test_g11_resumes_from_the_newest_token_for_ever(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """T122: a storm of UNAVAILABLE, early ends, and lost answers does not end a feed."""
    storm: list[Any] = [[Refuse("UNAVAILABLE")]] * 12
    scripted.streams(
        [[changes(0, 1, [A]), checkpoint(1, [A])], Refuse("UNAVAILABLE", "SHUTTING_DOWN")],
        *storm,
        [None],
        [Refuse("UNKNOWN", message="Stream removed")],
        [Refuse("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", retry_seconds=0.001)],
        [[changes(1, 2, [B])], None],
        [[checkpoint(2, [A, B])]],
    )

    async with follow(client) as feed:
        events = await take(feed, 4)

    assert [type(event) for event in events] == [Put, Checkpoint, Put, Checkpoint]
    assert tokens(scripted)[1:] == [b"c1"] * 16 + [b"t2"]
    assert feed.reconnects == 17


async def test_every_stream_is_cancelled(scripted: ScriptedServer, client: syncline.Client) -> None:
    """F33, grpc#43462: left by break, by an error, by cancellation, or by nobody reading it any more."""
    scripted.streams([[changes(0, 1, [A])]])

    async with follow(client) as feed:
        async for _ in feed:
            break
    await scripted.until(lambda s: s.open_streams == 0)

    with contextlib.suppress(KeyError):
        async with follow(client) as feed:
            async for event in feed:
                raise KeyError(event.record_id)
    await scripted.until(lambda s: s.open_streams == 0)

    async def read() -> None:
        async for _ in follow(client):
            pass

    task = asyncio.create_task(read())
    await scripted.until(lambda s: s.open_streams == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await scripted.until(lambda s: s.open_streams == 0)


async def test_dropped_feed_ends_and_warns(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.streams([[changes(0, 1, [A])]])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async for _ in follow(client):
            break
        gc.collect()

    assert [str(w.message)[:13] for w in caught if w.category is ResourceWarning] == ["a change feed"]
    await scripted.until(lambda s: s.open_streams == 0)


async def test_closing_the_client_ends_a_feed_that_another_task_reads(scripted: ScriptedServer) -> None:
    scripted.streams([[changes(0, 1, [A])]])
    seen = []

    async def read(client: syncline.Client) -> None:
        async for event in follow(client):
            seen.append(event)

    async with scripted.client() as client:
        task = asyncio.create_task(read(client))
        await scripted.until(lambda s: s.open_streams == 1)
    await asyncio.wait_for(task, 5)

    await scripted.until(lambda s: s.open_streams == 0)


async def test_closing_ends_a_feed_that_pauses(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.streams([Refuse("UNAVAILABLE", "SHUTTING_DOWN", retry_seconds=60)])
    feed = follow(client)
    task = asyncio.create_task(anext(feed))
    await scripted.until(lambda s: bool(s.requests))
    await asyncio.sleep(0.05)  # into the pause; before it the close is as good

    await feed.aclose()

    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(task, 5)


async def test_giving_up_a_wait_loses_nothing(scripted: ScriptedServer, client: syncline.Client) -> None:
    """``wait_for(anext(feed), …)`` cancels the stream; the next step resumes it."""
    scripted.streams([[changes(0, 1, [A]), checkpoint(1, [A])]], [[changes(1, 2, [B])]])

    async with follow(client) as feed:
        await take(feed, 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(feed), 0.1)
        (event,) = await take(feed, 1)

    assert event.record_id == "b"
    assert tokens(scripted) == [b"", b"c1"]


async def test_silent_stream_is_left(scripted: ScriptedServer, client: syncline.Client) -> None:
    """T99: liveness is told by checkpoints: after three that are missing the connection is dead."""
    scripted.streams([[checkpoint(0)]], [[changes(0, 1, [A])]])
    options = FeedOptions(checkpoint_seconds=0.05, reconnect=QUICK.reconnect)

    async with follow(client, options=options) as feed:
        events = await take(feed, 2)

    assert [type(event) for event in events] == [Checkpoint, Put]
    assert feed.reconnects >= 1


async def test_going_away_is_followed_to_the_next_server(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """G20: the last token before a clean stop is where the next connection goes on."""
    scripted.streams(
        [[changes(0, 1, [A]), checkpoint(1, [A], going_away=True)], Refuse("UNAVAILABLE", "MOVED")],
        [[changes(1, 2, [B])]],
    )

    async with follow(client) as feed:
        events = await take(feed, 3)

    assert events[1].going_away
    assert tokens(scripted) == [b"", b"c1"]


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refuse("PERMISSION_DENIED", "PERMISSION_DENIED"), syncline.PermissionDenied),
        (Refuse("UNAUTHENTICATED", "KEY_INVALID"), syncline.NotAuthenticated),
        (Refuse("NOT_FOUND", "DATASET_NOT_FOUND"), syncline.NotFound),
        (Refuse("INVALID_ARGUMENT", "TOKEN_INVALID"), syncline.TokenInvalid),
        (Refuse("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS"), syncline.Overloaded),
    ],
)
async def test_what_no_connection_can_mend_is_raised(
    scripted: ScriptedServer,
    client: syncline.Client,
    refusal: Refuse,
    error: type[syncline.SynclineError],
) -> None:
    scripted.streams([[changes(0, 1, [A])], refusal])

    async with follow(client) as feed:
        await take(feed, 1)
        with pytest.raises(error):
            await take(feed, 1)

    assert len(scripted.requests["Subscribe"]) == 1
    assert feed.token == b"t1"


@pytest.mark.parametrize(
    "strange",
    [
        feed_pb2.FeedEvent(),
        feed_pb2.FeedEvent.FromString(bytes([0x7A, 0x02, 0x08, 0x01])),  # field 15, of a newer protocol
        feed_pb2.FeedEvent(
            changes=feed_pb2.Changes(
                from_revision=1,
                to_revision=2,
                record_ids=["b"],
                data=[b""],
                revisions=[2],
                commit_times_us=[0],
                kinds=[7],
                token=b"t2",
            )
        ),
    ],
    ids=["nothing", "newer field", "newer kind"],
)
async def test_t69_unknown_event_is_an_error_and_moves_no_token(
    scripted: ScriptedServer, client: syncline.Client, strange: feed_pb2.FeedEvent
) -> None:
    """T69, F61: an event of a newer protocol is neither skipped nor passed over by the token."""
    scripted.streams([[changes(0, 1, [A]), strange, changes(1, 2, [B])]])

    async with follow(client) as feed:
        await take(feed, 1)
        with pytest.raises(syncline.UnknownEvent, match="update the package"):
            await take(feed, 1)

        assert feed.token == b"t1"
    await scripted.until(lambda s: s.open_streams == 0)


BROKEN = {
    "gap": [changes(1, 2, [B]), changes(3, 4, [("x", b"{}", 4)])],
    "again": [changes(1, 2, [B]), changes(1, 2, [B])],
    "backwards": [changes(1, 0, [])],
    "revision outside": [changes(1, 2, [("x", b"{}", 9)])],
    "nothing": [changes(1, 1, [], partial=True)],
    "checkpoint back": [checkpoint(0)],
    "checkpoint ahead": [checkpoint(9)],
    "no token": [checkpoint(1, token=b"")],
    "half a digest": [checkpoint(1, digest=b"12")],
    "ragged columns": [
        feed_pb2.FeedEvent(changes=feed_pb2.Changes(from_revision=1, to_revision=2, record_ids=["x"]))
    ],
}


@pytest.mark.parametrize("name", BROKEN)
async def test_g8_t122_contradictions_are_found_retried_and_then_raised(
    scripted: ScriptedServer, client: syncline.Client, name: str
) -> None:
    """G8, T122: a batch that does not continue the last one ends the stream; again and again ends the feed."""
    scripted.streams(
        [[changes(0, 1, [A]), *BROKEN[name]]],
        lambda request: [[*BROKEN[name]]],
    )

    async with follow(client) as feed:
        with pytest.raises(syncline.FeedBroken) as caught:
            await take(feed, 99)

    assert len(scripted.requests["Subscribe"]) == QUICK.faults
    assert "gave up after 5" in caught.value.__notes__[0]
    assert set(tokens(scripted)[1:]) <= {b"t1", b"t2"}


async def test_t122_contradiction_that_passes_is_survived(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.streams(
        [[changes(0, 1, [A])], [changes(2, 3, [C])]],
        [[changes(1, 3, [B, C]), checkpoint(3, [A, B, C])]],
    )

    async with follow(client) as feed:
        events = await take(feed, 4)

    assert [event.record_id for event in events[:3]] == ["a", "b", "c"]
    assert tokens(scripted) == [b"", b"t1"]


async def test_server_that_keeps_failing_by_itself_is_told_to_the_caller(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.streams([Refuse("INTERNAL", "INTERNAL", "internal error, incident 4711")])

    async with follow(client) as feed:
        with pytest.raises(syncline.ServerError, match="4711"):
            await take(feed, 1)

    assert len(scripted.requests["Subscribe"]) == QUICK.faults


async def test_reset_in_the_middle_of_a_commit(scripted: ScriptedServer, client: syncline.Client) -> None:
    """T122: RESET mid-batch: what follows begins at 0, and until there is a new token there is none.

    The one that was refused may be good at another node; a copy that was emptied must not go on with it there.
    """
    scripted.streams(
        [
            [changes(0, 2, [A], partial=True, token=b"mid"), reset(2, "restored")],
            [changes(0, 1, [("z", b"{}", 1)], token=b"new"), checkpoint(1)],
        ]
    )

    async with follow(client, b"") as feed:
        events = await take(feed, 4)

    assert [type(event) for event in events] == [Put, Reset, Put, Checkpoint]
    assert events[1] == Reset(reason=syncline.ResetReason.HISTORY_CHANGED, message="restored", token=b"")
    assert events[2].token == b"new"


async def test_connection_lost_before_the_first_token_begins_the_copy_anew(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """What was handed out may be gone in the next attempt, which has no tombstones: a reset takes it back."""
    broken = changes(5, 6, [("x", b"{}", 6)])
    scripted.streams(
        [[changes(0, 1, [A], token=b""), broken]],
        [[reset(), changes(0, 1, [A], token=b""), broken]],
        [[changes(0, 2, [B], token=b""), checkpoint(2, [B])]],
    )
    copy: syncline.Copy[Any] = syncline.Copy()

    async with follow(client) as feed:
        events = await take(feed, 7)
    for event in events:
        copy.apply(event)

    assert [type(event) for event in events] == [Put, Reset, Reset, Put, Reset, Put, Checkpoint]
    assert tokens(scripted) == [b"", b"", b""]
    assert list(copy) == ["b"]


async def test_empty_batches_move_the_revision(scripted: ScriptedServer, client: syncline.Client) -> None:
    """A page may have nothing but a newer revision: `from` must still meet the `to` before it."""
    scripted.streams([[changes(0, 3, []), changes(3, 4, [("d", b"{}", 4)]), checkpoint(4)]])

    async with follow(client) as feed:
        events = await take(feed, 2)

    assert [type(event) for event in events] == [Put, Checkpoint]


async def test_from_now_asks_for_now_until_it_has_a_token(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    scripted.streams(
        [Refuse("UNAVAILABLE")],
        [[checkpoint(7)], Refuse("UNAVAILABLE")],
        [[changes(7, 8, [("x", b"{}", 8)])]],
    )

    async with follow(client, from_now=True) as feed:
        events = await take(feed, 2)

    starts = [request.WhichOneof("start") for request in scripted.requests["Subscribe"]]
    assert [type(event) for event in events] == [Checkpoint, Put]
    assert starts == ["from_now", "from_now", "token"]


async def test_token_and_from_now_exclude_each_other(client: syncline.Client) -> None:
    with pytest.raises(ValueError, match="not both"):
        follow(client, b"t", from_now=True)


async def test_batches_are_columns(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.streams([[changes(0, 3, [A, ("b", None, 2), C]), checkpoint(3, [A, C])]])

    async with follow(client) as feed:
        batch, exact = await take(feed.batches(), 2)

    assert isinstance(batch, syncline.ChangeBatch)
    assert batch.record_ids == ["a", "b", "c"]
    assert batch.json == [b'{"v":1}', b"", b'{"v":3}']
    assert not batch.all_puts
    assert [type(event) for event in batch] == [Put, Delete, Put]
    assert batch[-1].token == batch.token == b"t3"
    assert [event.record_id for event in batch[1:]] == ["b", "c"]
    assert isinstance(exact, Checkpoint)


async def test_a_record_that_does_not_fit_the_model_stops_nobody(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """A2: a poison record raises where it is looked at, and the feed can go on past it."""
    from dataclasses import dataclass

    @dataclass
    class Row:
        v: int

    scripted.streams([[changes(0, 2, [("a", b'{"v":"one"}', 1), B])]])

    async with client.dataset("books", Row).changes(options=QUICK) as feed:
        bad, good = await take(feed, 2)

    with pytest.raises(syncline.DecodeError, match="not a Row"):
        _ = bad.data
    assert good.data == Row(2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), commits=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_g7_t122_copy_is_exact_whatever_the_server_breaks(seed: int, commits: list[int]) -> None:
    """G7, G8, T122: lost, repeated and cut messages, wrong numbers, resets: what a checkpoint proves is exact."""

    async def run() -> None:
        chance = random.Random(seed)
        history = _history(chance, commits)
        async with scripted_server() as scripted, scripted.client() as client:
            scripted.streams(lambda request: _serve(history, request.token, chance))
            copy: syncline.Copy[Any] = syncline.Copy()
            options = FeedOptions(checkpoint_seconds=0.1, reconnect=QUICK.reconnect, faults=1_000)
            async with asyncio.timeout(20), follow(client, options=options) as feed:
                async for event in feed:
                    copy.apply(event)
                    if copy.revision == len(history):
                        break
            assert {key: copy.event(key).json for key in copy} == {
                key: data for key, data, _ in _state(history, len(history))
            }

    asyncio.run(run())


def _history(chance: random.Random, commits: list[int]) -> list[dict[str, bytes | None]]:
    return [
        {
            f"k{chance.randrange(6)}": None if chance.random() < 0.3 else b'{"n":%d}' % chance.randrange(100)
            for _ in range(size)
        }
        for size in commits
    ]


def _state(history: list[dict[str, bytes | None]], revision: int) -> list[tuple[str, bytes, int]]:
    live: dict[str, tuple[bytes, int]] = {}
    for made, commit in enumerate(history[:revision], 1):
        for key, data in commit.items():
            live.pop(key, None)
            if data is not None:
                live[key] = (data, made)
    return [(key, data, made) for key, (data, made) in live.items()]


def _serve(history: list[dict[str, bytes | None]], token: bytes, chance: random.Random) -> Any:
    """Go on from a token (``c`` or ``t`` and a revision), and spoil about half of the messages."""
    start = int(token[1:] or 0)
    if token and chance.random() < 0.1:
        yield [reset()]
        start = 0
    for revision, commit in itertools.islice(enumerate(history, 1), start, None):
        rows = [(key, data, revision) for key, data in commit.items()]
        message = [
            changes(revision - 1, revision, rows, token=b"" if chance.random() < 0.5 else None),
            checkpoint(revision, _state(history, revision)),
        ]
        spoil = chance.randrange(12)
        if spoil == 0:
            yield Refuse("UNAVAILABLE")
        elif spoil == 1:
            yield None
        elif spoil == 2:
            continue  # a message is lost
        elif spoil == 3:
            yield message  # and again below
        elif spoil == 4:
            message = message[1:]
        elif spoil == 5:
            message.reverse()
        yield message
