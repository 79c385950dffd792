"""Replicas against a server that says what the test tells it to (G7, G11; F61, F62; T65, T69)."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import syncline
from support.scripted_replica import Subscribed
from support.scripted_server import Refuse, ScriptedServer, changes, checkpoint, reset
from support.waiting import until
from syncline import Delete, Put, ReplicaState

A = ("a", b'{"v":1}', 1)
B = ("b", b'{"v":2}', 2)
C = ("c", b'{"v":3}', 3)


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "books.db"


def replica_of(client: syncline.Client, path: Path | None, **given: Any) -> syncline.Replica[Any]:
    return client.dataset("books").replica(path, **given)


async def test_reads_like_a_dict(client: syncline.Client, stream: Subscribed, path: Path | None) -> None:
    stream.send(changes(0, 3, [A, B, C]), checkpoint(3, [A, B, C]))

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)

        assert (replica["a"], replica.get("b"), replica.get("x"), replica.get("x", 7)) == (
            {"v": 1},
            {"v": 2},
            None,
            7,
        )
        assert ("a" in replica, "x" in replica, 1 in replica) == (True, False, False)
        assert (len(replica), sorted(replica), sorted(replica.keys())) == (
            3,
            ["a", "b", "c"],
            ["a", "b", "c"],
        )
        assert dict(replica.items()) == {"a": {"v": 1}, "b": {"v": 2}, "c": {"v": 3}}
        assert [value["v"] for value in sorted(replica.values(), key=str)] == [1, 2, 3]
        assert replica.where(lambda record: record["v"] > 2) == [{"v": 3}]
        assert (replica.record("a").json, replica.record("a").revision) == (b'{"v":1}', 1)
        assert replica.record("a").commit_time.timestamp() == 1
        assert (replica.revision, replica.token, replica.is_verified) == (3, b"c3", True)
        assert replica.state is ReplicaState.LIVE
        assert replica.staleness is not None
        assert replica.staleness < timedelta(seconds=10)
        with pytest.raises(KeyError):
            replica["x"]
    assert replica.state is ReplicaState.CLOSED


async def test_g1_changes_show_at_checkpoints_only(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))

    async with replica_of(client, path) as replica:
        await replica.wait_for(1, timeout_seconds=10)
        stream.send(changes(1, 3, [B, C, ("a", None, 3)]))
        with pytest.raises(syncline.StaleData, match="has not reached revision 3"):
            await replica.wait_for(3, timeout_seconds=0.05)
        assert list(replica) == ["a"]
        stream.send(checkpoint(3, [B, C]))
        await replica.wait_for(3, timeout_seconds=10)
        assert sorted(replica) == ["b", "c"]


async def test_t65_reset_serves_the_old_copy_until_the_new_one_is_complete(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    """F61: never empty, never partial; callbacks fire for what vanished."""
    stream.send(changes(0, 2, [A, B]), checkpoint(2, [A, B]))
    seen: list[Any] = []

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        forget = replica.on_change(seen.append)
        stream.send(reset(), changes(0, 5, [("b", b'{"v":9}', 5)], partial=True))
        stream.send(changes(5, 5, [("d", b"{}", 5)]))
        await until(lambda: replica.state is ReplicaState.COPYING)
        assert dict(replica.items()) == {"a": {"v": 1}, "b": {"v": 2}}
        assert replica.revision == 2
        stream.send(checkpoint(5, [("b", b'{"v":9}', 5), ("d", b"{}", 5)]))
        await replica.wait_for(5, timeout_seconds=10)

        assert dict(replica.items()) == {"b": {"v": 9}, "d": {}}
        await until(lambda: len(seen) == 3)
        assert {(type(change), change.record_id) for change in seen} == {
            (Delete, "a"),
            (Put, "b"),
            (Put, "d"),
        }
        forget()
        stream.send(changes(5, 6, [("b", None, 6)]), checkpoint(6, [("d", b"{}", 5)]))
        await replica.wait_for(6, timeout_seconds=10)
        assert len(seen) == 3


async def test_reset_that_brings_the_same_tells_nothing(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    stream.send(changes(0, 2, [A, B]), checkpoint(2, [A, B]))
    seen: list[Any] = []

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        replica.on_change(seen.append)
        stream.send(reset(), changes(0, 3, [A, B, C]), checkpoint(3, [A, B, C]))
        await replica.wait_for(3, timeout_seconds=10)
        await until(lambda: len(seen) == 1)

    assert [change.record_id for change in seen] == ["c"]


async def test_callbacks_and_iterators_hear_in_order(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    heard: list[Any] = []

    async def slowly(change: Any) -> None:
        await asyncio.sleep(0)
        heard.append((type(change).__name__, change.record_id, replica.revision))

    async with replica_of(client, path) as replica, replica.changes() as news:
        replica.on_change(slowly)
        stream.send(changes(0, 1, [A]), checkpoint(1, [A]))
        first = await anext(news)
        stream.send(changes(1, 3, [B, ("a", None, 3), ("x", None, 3)]), checkpoint(3, [B]))
        await until(lambda: len(heard) == 3)
        rest = [await anext(news), await anext(news)]

    assert first.data == {"v": 1}
    assert [change.record_id for change in rest] == ["b", "a"]
    assert heard == [("Put", "a", 1), ("Put", "b", 3), ("Delete", "a", 3)]  # nobody had x


async def test_slow_iterator_gets_the_newest(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    async with replica_of(client, path) as replica:
        async with replica.changes() as news:
            for revision in range(1, 6):
                row = ("a", b'{"v":%d}' % revision, revision)
                stream.send(changes(revision - 1, revision, [row]), checkpoint(revision, [row]))
            await replica.wait_for(5, timeout_seconds=10)
            await until(lambda: [change.revision for change in news._waiting.values()] == [5])
            assert (await anext(news)).data == {"v": 5}
        with pytest.raises(StopAsyncIteration):
            await anext(news)


async def test_callback_that_raises_stops_the_replica(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    """F62: loudly, everywhere; what is there can still be read."""

    def fail(change: Any) -> None:
        raise LookupError(change.record_id)

    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))
    with pytest.raises(syncline.ReplicaStopped) as raised:
        async with replica_of(client, path) as replica:
            replica.on_change(fail)
            await until(lambda: replica.state is ReplicaState.STOPPED)
            assert replica["a"] == {"v": 1}
            with pytest.raises(LookupError):
                raise replica._stopped  # type: ignore[misc]

    assert isinstance(raised.value.__cause__, LookupError)


async def test_stopped_replica_raises_from_everything(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    stream.end(Refuse("PERMISSION_DENIED", "PERMISSION_DENIED"))

    async with replica_of(client, path) as replica:
        news = replica.changes()
        for wait in (
            replica.ready(),
            replica.wait_for(1),
            replica.fresh(timedelta(0)),
            anext(news),
        ):
            with pytest.raises(syncline.ReplicaStopped) as raised:
                await asyncio.wait_for(wait, 10)
            assert isinstance(raised.value.__cause__, syncline.PermissionDenied)


async def test_dead_letters(client: syncline.Client, stream: Subscribed, path: Path | None) -> None:
    """F62: with a handler the replica goes on."""
    letters: list[Any] = []
    heard: list[str] = []

    def picky(change: Any) -> None:
        if change.record_id == "b":
            raise ValueError("not this one")
        heard.append(change.record_id)

    async def on_error(error: Exception, change: Any) -> None:
        letters.append((str(error), change.record_id))

    async with replica_of(client, path, on_error=on_error) as replica:
        replica.on_change(picky)
        stream.send(changes(0, 3, [A, B, C]), checkpoint(3, [A, B, C]))
        await until(lambda: heard == ["a", "c"])
        assert letters == [("not this one", "b")]
        assert replica.state is ReplicaState.LIVE


async def test_t69_unknown_kind_of_event_stops_it_before_the_token(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    """T69: an explicit error, and the token is not advanced."""
    unknown = syncline.v1.feed_pb2.FeedEvent()
    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        stream.send(changes(1, 2, [B]), unknown, checkpoint(2, [A, B]))
        with pytest.raises(syncline.ReplicaStopped) as raised:
            await replica.wait_for(2, timeout_seconds=10)
        assert (replica.token, list(replica)) == (b"c1", ["a"])

    assert isinstance(raised.value.__cause__, syncline.UnknownEvent)


async def test_unproven_checkpoints_are_taken_as_such(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    stream.send(changes(0, 1, [A]), checkpoint(1, record_count=-1, digest=b""))

    async with replica_of(client, path, filter="v = 1") as replica:
        await replica.ready(timeout_seconds=10)
        assert (dict(replica.items()), replica.is_verified) == ({"a": {"v": 1}}, False)
        stream.send(checkpoint(1, [A], token=b"later"))
        await until(lambda: replica.is_verified)


async def test_filter_and_fields_are_asked_for_and_removes_taken_in(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    batch = changes(1, 2, [("a", None, 2), ("x", None, 2)])
    batch.changes.kinds[:] = [3, 3]
    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))

    async with replica_of(client, path, filter="v = 1", fields=["v"]) as replica:
        seen: list[Any] = []
        await replica.ready(timeout_seconds=10)
        replica.on_change(seen.append)
        stream.send(batch, checkpoint(2, []))
        await replica.wait_for(2, timeout_seconds=10)
        await until(lambda: seen)
        assert len(replica) == 0

    (request,) = stream.adds
    assert (request.filter, list(request.read_mask.paths)) == ("v = 1", ["v"])
    assert [type(change) for change in seen] == [syncline.Remove]


async def test_says_how_far_it_has_come(
    client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    """An ack says that a checkpoint was brought to where it stays, not that it was received."""
    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))

    async with replica_of(client, path, replica_id="kiosk-7") as replica:
        await replica.ready(timeout_seconds=10)
        await stream.feed.until(lambda: [ack[2] for ack in stream.feed.last.acks] == [1])
        stream.send(changes(1, 2, [B]))
        stream.send(checkpoint(2, [A, B]))
        await stream.feed.until(lambda: [ack[2] for ack in stream.feed.last.acks] == [1, 2])

    assert [add.replica_id for add in stream.adds] == ["kiosk-7"]


async def test_fresh_asks_for_the_head_and_waits(
    scripted: ScriptedServer, client: syncline.Client, stream: Subscribed, path: Path | None
) -> None:
    from support.scripted_server import a_dataset, catalog_service_pb2

    answer = catalog_service_pb2.GetDatasetResponse(dataset=a_dataset(revision=2))
    scripted.script("GetDataset", answer)
    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        await replica.fresh(timedelta(minutes=1))
        assert "GetDataset" not in scripted.requests
        with pytest.raises(syncline.StaleData, match="last known to be up to date"):
            await replica.fresh(timedelta(0), timeout_seconds=0.1)
        stream.send(changes(1, 2, [B]), checkpoint(2, [A, B]))
        await replica.fresh(timedelta(0), timeout_seconds=10)
        assert replica.revision == 2


async def test_closing_the_client_stops_it(
    scripted: ScriptedServer, stream: Subscribed, path: Path | None
) -> None:
    stream.send(changes(0, 1, [A]), checkpoint(1, [A]))
    async with scripted.client() as client:
        replica = await replica_of(client, path).__aenter__()
        await replica.ready(timeout_seconds=10)

    with pytest.raises(syncline.ReplicaStopped, match="the client was closed"):
        await replica.wait_for(2, timeout_seconds=10)
    await replica.__aexit__(None)


async def test_is_opened_once(client: syncline.Client, stream: Subscribed) -> None:
    replica = replica_of(client, None)
    with pytest.raises(RuntimeError, match="not open"):
        replica["a"]
    with pytest.raises(RuntimeError, match="not open"):
        await replica.ready()
    async with replica:
        with pytest.raises(RuntimeError, match="opened once"):
            await replica.__aenter__()
