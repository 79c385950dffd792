"""Many subscriptions on one stream, against a server that is told what to say (T122; G7, G8, G11, G17)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import syncline
from support.scripted_feed import FeedStream, ScriptedFeed, accepted, part
from support.scripted_server import Refuse, ScriptedServer, changes, checkpoint, reset
from support.waiting import until
from syncline import Checkpoint, FeedOptions, Reset
from syncline._call import RetryPolicy
from syncline._subscription import Subscription, Terms
from syncline._update_feed import UpdateFeed
from syncline.v1.update_feed_pb2 import AddSubscription

QUICK = FeedOptions(reconnect=RetryPolicy(attempts=None, first_seconds=0.001, max_seconds=0.005))
OFFLINE = Refuse("UNAVAILABLE")
A = ("a", b'{"v":1}', 1)
B = ("b", b'{"v":2}', 2)


@pytest.fixture
async def feed(client: syncline.Client) -> AsyncIterator[UpdateFeed]:
    async with feed_of(client) as feed:
        yield feed


class feed_of:  # noqa: N801 - used like a function
    """An UpdateFeed of the client with quick options."""

    def __init__(self, client: syncline.Client, options: FeedOptions = QUICK) -> None:
        connection = client.connection
        self._feed = UpdateFeed(connection.subscriptions, connection.caller, options=options)

    async def __aenter__(self) -> UpdateFeed:
        return self._feed

    async def __aexit__(self, *exc_info: object) -> None:
        await self._feed.aclose()


def follow(feed: UpdateFeed, dataset: str = "books", token: bytes = b"", **terms: Any) -> Subscription[Any]:
    return feed.subscribe(dataset, decode=lambda data: data, token=token, terms=Terms(**terms))


async def take(subscription: Subscription[Any], number: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await subscription.next_part() for _ in range(number)]


async def accept_all(stream: FeedStream, add: AddSubscription) -> None:
    """Accept at revision 1, from nothing or from where the token says."""
    await stream.accept(add)
    if not add.token:
        await stream.events(add, changes(0, 1, [A]), checkpoint(1, [A]))
    else:
        await stream.events(add, checkpoint(int(add.token[1:]), [A]))


async def test_many_subscriptions_go_out_in_few_messages(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    server = ScriptedFeed(scripted, accept_all)

    subscriptions = [follow(feed, f"d{number}") for number in range(1_000)]
    async with asyncio.timeout(20):
        parts = [await take(subscription, 2) for subscription in subscriptions]

    assert [len(batch) for batch, _ in parts] == [1] * 1_000
    assert len(server.streams) == 1
    assert len({add.subscription_id for add in server.last.adds}) == 1_000
    assert server.last.messages <= 3


async def test_a_subscription_asks_for_what_it_was_told(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    server = ScriptedFeed(scripted, accept_all)

    subscription = follow(
        feed,
        token=b"t5",
        filter="v > 1",
        fields=["v", "w.x"],
        mode="on_checkpoint",
        replica_id="desk-1",
        window_bytes=4_096,
    )
    assert isinstance((await take(subscription, 1))[0], Checkpoint)

    (add,) = server.last.adds
    assert (add.dataset, add.token, add.filter, add.replica_id) == (
        "datasets/books",
        b"t5",
        "v > 1",
        "desk-1",
    )
    assert (list(add.read_mask.paths), add.delivery_mode, add.credit_bytes) == (["v", "w.x"], 3, 4_096)
    assert subscription.token == b"c5"
    assert subscription.is_connected


async def test_g11_after_a_broken_stream_each_goes_on_from_what_it_handed_out(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    server = ScriptedFeed(scripted, accept_all)
    books, tea, fresh = follow(feed, "books"), follow(feed, "tea", b"t7"), follow(feed, "fresh")
    await take(books, 1)  # its checkpoint was not handed out
    await take(tea, 1)

    server.last.close(Refuse("UNAVAILABLE"))
    await server.stream(2, adds=3)

    assert {name: add.token for name, add in server.last.added.items()} == {
        "books": b"t1",
        "tea": b"c7",
        "fresh": b"",
    }
    assert isinstance((await take(books, 1))[0], Checkpoint)
    assert [
        len(one) if isinstance(one, syncline.ChangeBatch) else "exact" for one in await take(fresh, 2)
    ] == [
        1,
        "exact",
    ]
    assert feed.reconnects == 1


async def test_a_copy_without_a_token_begins_anew_with_a_reset(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    async def without_token(stream: FeedStream, add: AddSubscription) -> None:
        await stream.accept(add, changes(0, 1, [A], token=b""))
        if stream.number == 2:
            await stream.events(add, checkpoint(1, [A]))

    server = ScriptedFeed(scripted, without_token)
    subscription = follow(feed)
    await take(subscription, 1)
    server.last.close()

    again, batch, exact = await take(subscription, 3)

    assert isinstance(again, Reset)
    assert (len(batch), exact.revision) == (1, 1)


async def test_an_error_of_one_leaves_the_others_alone(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    async def answer(stream: FeedStream, add: AddSubscription) -> None:
        if add.dataset == "datasets/gone":
            await stream.refuse(add, Refuse("NOT_FOUND", "DATASET_NOT_FOUND", "no such dataset"))
        else:
            await accept_all(stream, add)

    server = ScriptedFeed(scripted, answer)
    gone, books = follow(feed, "gone"), follow(feed)

    with pytest.raises(syncline.NotFound, match="no such dataset"):
        await take(gone, 1)
    with pytest.raises(syncline.NotFound):  # and says so again
        await take(gone, 1)
    await take(books, 2)
    await server.last.events(server.last.id_of("books"), changes(1, 2, [B]), checkpoint(2, [A, B]))
    assert [type(one).__name__ for one in await take(books, 2)] == ["ChangeBatch", "Checkpoint"]
    assert len(server.streams) == 1


async def test_an_error_that_may_pass_is_tried_again_on_the_same_stream(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    async def answer(stream: FeedStream, add: AddSubscription) -> None:
        if len(stream.adds) < 4:
            await stream.refuse(add, Refuse("UNAVAILABLE", "OVERLOADED", retry_seconds=0.001))
        else:
            await accept_all(stream, add)

    server = ScriptedFeed(scripted, answer)

    await take(subscription := follow(feed), 2)

    assert (len(server.streams), len(server.last.adds), subscription.reconnects) == (1, 4, 3)


async def test_g17_credit_bounds_what_waits_unread(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    """F33, M8: who does not read is sent no more than its window, and the others go on."""
    server = ScriptedFeed(scripted, lambda stream, add: stream.accept(add))
    slow, quick = follow(feed, "slow", window_bytes=2_000), follow(feed, "quick", window_bytes=2_000)
    stream = await server.stream(1, adds=2)
    ids = {name: stream.id_of(name) for name in ("slow", "quick")}
    sent = dict.fromkeys(ids, 0)

    async def send_while_credit(name: str) -> None:
        while stream.credit[ids[name]] > 0:
            number = sent[name] = sent[name] + 1
            await stream.events(ids[name], changes(number - 1, number, [("k", b"x" * 300, number)]))

    reading = asyncio.create_task(take(quick, 50))
    await send_while_credit("slow")
    while sent["quick"] < 50:
        await server.until(lambda: stream.credit[ids["quick"]] > 0)
        await send_while_credit("quick")
    await reading

    held = sent["slow"]
    assert 2_000 / 300 - 1 < held < 2_000 / 300 + 1
    await take(slow, held)
    reading_on = asyncio.create_task(slow.next_part())
    await server.until(lambda: stream.credit[ids["slow"]] > 0)
    await send_while_credit("slow")
    assert (await reading_on).from_revision == held
    assert len(server.streams) == 1


async def test_acks_are_gathered_and_only_of_what_this_stream_sent(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    server = ScriptedFeed(scripted, accept_all)
    subscription = follow(feed)
    await take(subscription, 2)
    number = server.last.id_of("books")
    for revision in range(2, 12):
        await server.last.events(number, changes(revision - 1, revision), checkpoint(revision, [A]))
        await take(subscription, 2)
        subscription.ack(revision)
    await server.until(lambda: server.last.acks)
    assert server.last.acks[-1] == (number, "", 11)
    assert len(server.last.acks) < 10

    server.last.close(Refuse("UNAVAILABLE"))
    await server.until(lambda: len(server.streams) == 2)
    subscription.ack(11)  # the new stream has not sent it yet
    assert server.last.acks == []
    await take(subscription, 1)
    await server.until(lambda: server.last.acks == [(number, "", 11)])


async def test_leaving_sends_the_last_acks_and_ends_the_stream(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    server = ScriptedFeed(scripted, accept_all)
    subscription = follow(feed)
    await take(subscription, 2)
    subscription.ack(1)
    await subscription.aclose()

    with pytest.raises(StopAsyncIteration):
        await subscription.next_part()
    await scripted.until(lambda scripted: scripted.open_streams == 0)
    assert (server.last.acks, server.last.removed) == ([(1, "", 1)], [1])

    await take(follow(feed), 2)  # somebody new: a stream again
    assert len(server.streams) == 2


async def test_closing_wakes_who_waits(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    ScriptedFeed(scripted, accept_all)
    subscription = follow(feed)
    await take(subscription, 2)
    waiting = asyncio.create_task(subscription.next_part())
    await until(lambda: subscription._waiter is not None)

    await feed.aclose()

    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_going_away_is_followed_without_a_storm(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """The server's own delay counts, also when it says so again and again."""
    server = ScriptedFeed(scripted, accept_all)
    async with feed_of(client, FeedOptions(healthy_seconds=0.0)) as feed:
        subscription = follow(feed)
        await take(subscription, 2)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(2, 5):
            await server.last.send(going_away=0.05)
            server.last.close(Refuse("UNAVAILABLE", "SHUTTING_DOWN"))
            await server.until(lambda number=number: len(server.streams) == number)
            await take(subscription, 1)

    assert 0.15 <= loop.time() - began < 2
    assert [stream.adds[0].token for stream in server.streams] == [b"", b"c1", b"c1", b"c1"]


async def test_a_silent_stream_is_given_up(scripted: ScriptedServer, client: syncline.Client) -> None:
    server = ScriptedFeed(scripted, accept_all)
    options = FeedOptions(checkpoint_seconds=0.05, reconnect=QUICK.reconnect)
    async with feed_of(client, options) as feed:
        subscription = follow(feed)
        await take(subscription, 2)

        await server.until(lambda: len(server.streams) >= 2)

        assert isinstance((await take(subscription, 1))[0], Checkpoint)


async def test_one_that_was_forgotten_is_added_again(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """T122: the server speaks of one subscription and forgets the other."""
    server = ScriptedFeed(scripted, accept_all)
    options = FeedOptions(checkpoint_seconds=0.05, reconnect=QUICK.reconnect)
    async with feed_of(client, options) as feed:
        books, tea = follow(feed), follow(feed, "tea")
        await take(books, 2)
        await take(tea, 2)
        stream = server.last

        async def speak() -> None:
            while True:
                await stream.events(stream.id_of("tea"), checkpoint(1, [A]))
                await asyncio.sleep(0.01)

        speaking = asyncio.create_task(speak())
        reading = asyncio.create_task(take(tea, 1_000_000))
        await server.until(lambda: [add.dataset for add in stream.adds].count("datasets/books") > 1)
        reading.cancel()
        speaking.cancel()

        assert len(server.streams) == 1
        assert isinstance((await take(books, 1))[0], Checkpoint)


async def test_errors_that_a_new_stream_cannot_mend_end_all(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    server = ScriptedFeed(scripted, accept_all)
    subscriptions = [follow(feed), follow(feed, "tea")]
    for subscription in subscriptions:
        await take(subscription, 2)
    server.last.close(Refuse("UNAUTHENTICATED", "KEY_INVALID", "the key was revoked"))

    for subscription in subscriptions:
        with pytest.raises(syncline.NotAuthenticated, match="revoked"):
            await take(subscription, 1)


async def test_t69_unknown_event_ends_one_subscription(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    """T69: an event of a newer protocol: an explicit error, and the token stays before it."""
    server = ScriptedFeed(scripted, accept_all)
    books, tea = follow(feed), follow(feed, "tea")
    await take(books, 2)
    await take(tea, 2)
    await server.last.events(server.last.id_of("books"), syncline.v1.feed_pb2.FeedEvent())

    with pytest.raises(syncline.UnknownEvent):
        await take(books, 1)

    assert books.token == b"c1"
    await server.last.events(server.last.id_of("tea"), changes(1, 2, [B]))
    await take(tea, 1)


# -- which datasets there are -----------------------------------------------------------------------------------


async def test_datasets_are_seen_as_they_come_and_go(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    async def answer(stream: FeedStream, add: AddSubscription) -> None:
        for dataset in ("sensor-a", "sensor-b"):
            await stream.accept(add, checkpoint(1, [A]), dataset=dataset)

    server = ScriptedFeed(scripted, answer)
    datasets = feed.datasets("sensor-")

    async def see(number: int) -> list[tuple[str, bool]]:
        async with asyncio.timeout(10):
            seen = [await anext(datasets) for _ in range(number)]
        return [(one.dataset, one.is_there) for one in seen]

    assert await see(2) == [("sensor-a", True), ("sensor-b", True)]
    (add,) = server.last.adds
    assert (add.dataset, add.from_now, add.delivery_mode) == ("datasets/sensor-*", True, 3)
    gone = Refuse("NOT_FOUND", "DATASET_NOT_FOUND")
    await server.last.refuse(add, gone, dataset="sensor-b")
    await server.last.accept(add, dataset="sensor-b")
    assert await see(2) == [("sensor-b", False), ("sensor-b", True)]

    server.last.close(OFFLINE)
    assert await see(2) == [("sensor-a", True), ("sensor-b", True)]
    await server.last.accept(server.last.adds[0], dataset="tea")  # none of ours
    assert await see(2) == [("sensor-a", True), ("sensor-b", True)]
    assert len(server.streams) == 2
    assert server.last.acks == []
    await datasets.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(datasets)


async def test_a_dataset_whose_server_is_in_trouble_is_not_gone(
    scripted: ScriptedServer, feed: UpdateFeed
) -> None:
    async def answer(stream: FeedStream, add: AddSubscription) -> None:
        await stream.accept(add, checkpoint(1, [A]), dataset="sensor-a")

    server = ScriptedFeed(scripted, answer)
    datasets = feed.datasets("sensor-")
    trouble = Refuse("UNAVAILABLE", "STORE_UNAVAILABLE")
    seen = [await anext(datasets)]
    await server.last.refuse(server.last.adds[0], trouble, dataset="sensor-a")
    async with asyncio.timeout(10):
        seen.append(await anext(datasets))

    assert [one.is_there for one in seen] == [True, True]
    assert len(server.last.adds) == 2


async def test_datasets_that_may_not_be_seen(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    async def refuse(stream: FeedStream, add: AddSubscription) -> None:
        await stream.refuse(add, Refuse("PERMISSION_DENIED", "PERMISSION_DENIED", "not yours"))

    ScriptedFeed(scripted, refuse)
    datasets = feed.datasets("x")

    for _ in range(2):
        with pytest.raises(syncline.PermissionDenied, match="not yours"):
            await anext(datasets)


async def test_a_reset_goes_back_to_the_beginning(scripted: ScriptedServer, feed: UpdateFeed) -> None:
    async def answer(stream: FeedStream, add: AddSubscription) -> None:
        if add.token:
            await stream.send(accepted(add.subscription_id), part(add.subscription_id, reset(2, "restored")))
        await stream.events(add, changes(0, 1, [A]))

    server = ScriptedFeed(scripted, answer)
    subscription = follow(feed, token=b"old")
    again, batch = await take(subscription, 2)

    assert (again.reason.name, batch.record_ids, subscription.token) == ("HISTORY_CHANGED", ["a"], b"t1")
    assert len(server.streams) == 1
