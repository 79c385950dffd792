"""T122: a server that lies. Found out, met with bounded patience, and never shown to anybody (G7, G8).

Two subscriptions share a stream. Of one the server spoils the answers, each in a way that is drawn; the other is
served by the book. Whatever comes of the first, a state that its checkpoint proves is a state that there was, the
stream is not begun anew more often than the server lied, and the second one misses nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import syncline
from support.scripted_feed import FeedStream, ScriptedFeed, accepted, part
from support.scripted_server import Refuse, changes, checkpoint, reset, scripted_server
from support.waiting import until
from syncline import ChangeBatch, Checkpoint, FeedOptions, Reset
from syncline._call import RetryPolicy
from syncline._subscription import Subscription, Terms
from syncline._update_feed import UpdateFeed
from syncline.v1.feed_pb2 import FeedEvent
from syncline.v1.update_feed_pb2 import AddSubscription

QUICK = FeedOptions(
    checkpoint_seconds=0.05,
    reconnect=RetryPolicy(attempts=None, first_seconds=0.001, max_seconds=0.002),
    faults=1_000,
)
HEAD = 6
Row = tuple[str, bytes, int]
HISTORY: list[tuple[str, bytes | None]] = [
    ("a", b'{"v":1}'),
    ("b", b'{"v":2}'),
    ("a", b'{"v":3}'),
    ("c", b'{"v":4}'),
    ("b", None),
    ("d", b'{"v":6}'),
]
"""One change for each revision."""


def state(revision: int) -> list[Row]:
    """The records at a revision."""
    live: dict[str, Row] = {}
    for made, (key, data) in enumerate(HISTORY[:revision], 1):
        live.pop(key, None)
        if data is not None:
            live[key] = (key, data, made)
    return list(live.values())


STATES = {
    tuple(sorted((key, data) for key, data, _ in state(revision))): revision for revision in range(HEAD + 1)
}


def honest(token: bytes) -> list[FeedEvent]:
    """What follows a token: every change in a batch of its own, then a checkpoint."""
    start = int(token[1:] or 0)
    events = [
        changes(made - 1, made, [(*HISTORY[made - 1], made)], token=b"" if made == 1 else None)
        for made in range(start + 1, HEAD + 1)
    ]
    return [*events, checkpoint(HEAD, state(HEAD))]


Lie = Callable[[list[FeedEvent], int], list[FeedEvent | str]]


def _changed(events: list[FeedEvent], at: int, **fields: Any) -> list[FeedEvent | str]:
    """The event at a place, with other fields."""
    spoilt = FeedEvent()
    spoilt.CopyFrom(events[at])
    message = getattr(spoilt, spoilt.WhichOneof("event") or "changes")
    for name, value in fields.items():
        if hasattr(message, name):
            if isinstance(value, list):
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
    return [*events[:at], spoilt, *events[at + 1 :]]


LIES: dict[str, Lie] = {
    "from too high": lambda events, at: _changed(events, at, from_revision=HEAD + 3),
    "to below from": lambda events, at: _changed(events, at, to_revision=-1),
    "checkpoint elsewhere": lambda events, at: _changed(events, len(events) - 1, revision=HEAD + 1),
    "checkpoint without a token": lambda events, at: _changed(events, len(events) - 1, token=b""),
    "half a digest": lambda events, at: _changed(events, len(events) - 1, digest=b"x"),
    "unproven without a filter": lambda events, at: _changed(
        events, len(events) - 1, digest=b"", record_count=-1
    ),
    "another digest": lambda events, at: _changed(events, len(events) - 1, digest=bytes(16)),
    "a record too few": lambda events, at: _changed(events, len(events) - 1, record_count=1),
    "columns of different lengths": lambda events, at: _changed(events, at, record_ids=["x"], token=b""),
    "removes without a filter": lambda events, at: _changed(events, at, kinds=[3]),
    "a batch is missing": lambda events, at: [*events[:at], *events[at + 1 :]],
    "a batch twice": lambda events, at: [*events[: at + 1], *events[at:]],
    "two the other way round": lambda events, at: [
        *events[:at],
        *reversed(events[at : at + 2]),
        *events[at + 2 :],
    ],
    "reset in the middle": lambda events, at: [*events[:at], reset(), *events[at:]],
    "reset and never complete": lambda events, at: [*events[:at], reset(), *honest(b"")[:-1], "end"],
    "early end": lambda events, at: [*events[:at], "end"],
    "fault": lambda events, at: [*events[:at], "fault"],
    "away": lambda events, at: [*events[:at], "away"],
    "silence": lambda events, at: events[:at],
    "of nobody": lambda events, at: [*events[:at], "of nobody", *events[at:]],
    "of one that has a prefix": lambda events, at: [*events[:at], "of a prefix", *events[at:]],
    "accepted again": lambda events, at: [*events[:at], "accepted", *events[at:]],
    "a commit without an end": lambda events, at: [
        *(changes(0, 1, [("x", b"{}", 1)], partial=True, token=b"") for _ in range(1)),
        *(changes(1, 1, [(f"x{number}", b"{}", 1)], partial=True, token=b"") for number in range(50)),
        "end",
    ],
}


class Liar:
    """Tells one lie for each time that it is asked for ``books``, and then the truth."""

    def __init__(self, lies: list[tuple[str, int]]) -> None:
        self.lies = lies
        self.told = 0

    async def answer(self, stream: FeedStream, add: AddSubscription) -> None:
        if add.dataset != "datasets/books":
            await stream.accept(add, *honest(add.token))
            return
        said: list[FeedEvent | str] = list(honest(add.token))
        if self.told < len(self.lies):
            name, place = self.lies[self.told]
            events = honest(add.token)
            said = LIES[name](events, place % len(events))
            self.told += 1
        await stream.accept(add)
        for one in said:
            await self._say(stream, add, one)

    async def _say(self, stream: FeedStream, add: AddSubscription, said: FeedEvent | str) -> None:
        match said:
            case "end":
                stream.close()
            case "away":
                stream.close(Refuse("UNAVAILABLE"))
            case "fault":
                stream.close(Refuse("INTERNAL", "INTERNAL"))
            case "of nobody":
                await stream.send(part(4_711, checkpoint(1)))
            case "of a prefix":
                await stream.send(part(add.subscription_id, checkpoint(1), dataset="tea"))
            case "accepted":
                await stream.send(accepted(add.subscription_id))
            case FeedEvent():
                await stream.events(add, said)


async def copy_of(feed: UpdateFeed, dataset: str) -> tuple[dict[str, bytes], int]:
    """Follow until the head is reached, and how often the copy had to be thrown away.

    Every state that is proven on the way is one that there was.
    """
    diverged = 0
    while True:
        copy: syncline.Copy[bytes] = syncline.Copy()
        async with feed.subscribe(dataset, decode=bytes) as subscription:
            try:
                while copy.revision < HEAD:
                    copy.apply(await subscription.next_part())
                    if copy.is_complete:
                        content = {key: copy.event(key).json for key in copy}
                        assert tuple(sorted(content.items())) in STATES
            except syncline.CopyDiverged:
                diverged += 1  # it begins anew, as a replica does that cannot be mended
            else:
                return {key: copy.event(key).json for key in copy}, diverged


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(lies=[("a batch is missing", 2)])
@example(lies=[("two the other way round", 1), ("a batch twice", 3)])
@given(lies=st.lists(st.tuples(st.sampled_from(sorted(LIES)), st.integers(0, 6)), max_size=5))
def test_g07_t122_what_a_liar_says_is_never_shown(lies: list[tuple[str, int]]) -> None:
    """G7, G8, T122."""

    async def run() -> None:
        async with scripted_server() as scripted, scripted.client() as client:
            liar = Liar(lies)
            server = ScriptedFeed(scripted, liar.answer)
            connection = client.connection
            feed = UpdateFeed(connection.subscriptions, connection.caller, options=QUICK)
            try:
                async with asyncio.timeout(20):
                    books, tea = await asyncio.gather(copy_of(feed, "books"), copy_of(feed, "tea"))
            finally:
                await feed.aclose()
            truth = {key: data for key, data, _ in state(HEAD)}
            assert (books[0], tea) == (truth, (truth, 0))
            # Whatever is out of order is found at once; only what the numbers cannot tell is left to the digest.
            assert books[1] <= sum(name in ("another digest", "a record too few") for name, _ in lies)
            asked = sum(add.dataset == "datasets/books" for stream in server.streams for add in stream.adds)
            # Each lie costs one new beginning, or two where the copy has to begin anew as well.
            assert asked <= 2 * len(lies) + 1
            assert len(server.streams) <= len(lies) + 1

    asyncio.run(run())


@pytest.mark.parametrize("lie", ["from too high", "checkpoint elsewhere", "columns of different lengths"])
async def test_t122_one_that_only_lies_is_given_up(lie: str) -> None:
    """Bounded retries, with pauses drawn at random; the other subscription goes on, on the same stream."""
    async with scripted_server() as scripted, scripted.client() as client:
        liar = Liar([(lie, 0)] * 100)
        server = ScriptedFeed(scripted, liar.answer)
        connection = client.connection
        options = FeedOptions(reconnect=QUICK.reconnect, faults=4)
        feed = UpdateFeed(connection.subscriptions, connection.caller, options=options)
        books, tea = feed.subscribe("books", decode=bytes), feed.subscribe("tea", decode=bytes)
        async with asyncio.timeout(10):
            with pytest.raises(syncline.FeedBroken, match="contradicts") as caught:
                while True:
                    assert isinstance(await books.next_part(), ChangeBatch | Reset)
            while not isinstance(await tea.next_part(), Checkpoint):
                pass
        await feed.aclose()

    assert caught.value.__notes__ == ["gave up after 4 of these in a row; the token is good still"]
    assert liar.told == 4
    assert len(server.streams) == 1


async def test_t122_a_server_that_does_not_keep_to_the_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """M8: memory is bounded by the window also when the server takes no notice of it."""
    async with scripted_server() as scripted, scripted.client() as client:
        row = ("k", b'{"v":"%s"}' % (b"x" * 400), 1)

        async def flood(stream: FeedStream, add: AddSubscription) -> None:
            await stream.accept(add, changes(0, 1, [row]))
            for number in range(1, 50):
                await stream.events(add, changes(number, number + 1, [(*row[:2], number + 1)]))

        ScriptedFeed(scripted, flood)
        connection = client.connection
        options = FeedOptions(reconnect=QUICK.reconnect, faults=3)
        feed = UpdateFeed(connection.subscriptions, connection.caller, options=options)
        books = feed.subscribe("books", decode=bytes, terms=Terms(window_bytes=1_000))
        most = 0
        received = Subscription.receive

        def weigh(self: Subscription[Any], events: Any, size_bytes: int, now: float) -> bool:
            nonlocal most
            wanted = received(self, events, size_bytes, now)
            most = max(most, sum(item[0] for item in self._queue if not isinstance(item, Reset)))
            return wanted

        monkeypatch.setattr(Subscription, "receive", weigh)
        async with asyncio.timeout(10):
            await until(lambda: books.is_over)
            with pytest.raises(syncline.FeedBroken, match="no credit"):
                while True:
                    await books.next_part()
        await feed.aclose()

    assert most < 2_500


async def test_t69_an_unknown_kind_of_change_is_not_skipped() -> None:
    """T69: of a newer protocol: an error that says so, and the token stays before it."""
    async with scripted_server() as scripted, scripted.client() as client:

        async def newer(stream: FeedStream, add: AddSubscription) -> None:
            (spoilt,) = _changed([changes(1, 2, [("b", b"{}", 2)])], 0, kinds=[9])
            assert isinstance(spoilt, FeedEvent)
            await stream.accept(add, changes(0, 1, [("a", b"{}", 1)]), spoilt)

        ScriptedFeed(scripted, newer)
        books = client.connection.updates.subscribe("books", decode=bytes)
        async with asyncio.timeout(10):
            await books.next_part()
            with pytest.raises(syncline.UnknownEvent, match="update the package"):
                await books.next_part()
        assert books.token == b"t1"
