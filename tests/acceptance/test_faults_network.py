"""Faults between client and server: answers that are lost, late or repeated. All through a proxy."""

import asyncio
import signal

import pytest

import syncline
from support.proxy import Proxy
from support.waiting import until

OPTIONS = syncline.FeedOptions(
    reconnect=syncline.RetryPolicy(attempts=None, first_seconds=0.02, max_seconds=0.1)
)


@pytest.fixture
async def proxy(server):
    async with Proxy.to(server.address) as proxy:
        yield proxy


@pytest.fixture
async def far(server, proxy):
    """A client that reaches the server through the proxy."""
    async with syncline.connect(proxy.address, key=server.key) as client:
        yield client


async def revision_of(client, dataset="things"):
    return (await client.get_dataset(dataset)).revision


async def values(dataset):
    return {record.record_id: record.data["v"] async for record in dataset.records()}


async def test_t20_g05_a_lost_answer_is_asked_for_again(server, client, far, proxy):
    """T20, G5: each kind of write, its answer lost: one effect, and the revision that it had."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    await client.create_dataset("events", identity=syncline.append())
    things, events = far.dataset("things"), far.dataset("events")
    writes = [
        (lambda: things.push([{"id": "a", "v": 1}, {"id": "b", "v": 1}]), ["CREATED", "CREATED"]),
        (lambda: things.push([syncline.IfRevision({"id": "a", "v": 2}, 1)]), ["UPDATED"]),
        (lambda: things.push([syncline.IfAbsent({"id": "c", "v": 1})]), ["CREATED"]),
        (lambda: things.delete([{"id": "a"}]), ["DELETED"]),
        (lambda: things.delete_ids(["b"]), ["DELETED"]),
    ]
    for revision, (write, statuses) in enumerate(writes, start=1):
        proxy.cut_before_answer(1)
        result = await write()
        assert (result.revision, [one.status.name for one in result.results]) == (revision, statuses)
    for revision in range(1, 4):
        proxy.cut_before_answer(1)
        assert (await events.push([{"n": 1}, {"n": 2}])).revision == revision
    proxy.cut_before_answer(1)
    await far.create_source("things", "feed")
    proxy.cut_before_answer(1)
    await far.delete_dataset("events")

    assert proxy.cuts == 10
    assert await revision_of(client) == len(writes)
    assert await values(client.dataset("things")) == {"c": 1}
    with pytest.raises(syncline.NotFound):
        await client.get_dataset("events")


async def test_t24_g05_a_late_retry_does_not_undo_a_newer_write(server, client, far, proxy):
    """T24: v1 is done and its answer held, another client writes v2, v1 is retried: it stays v2."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = client.dataset("things")
    await far.server_info()
    proxy.hold("answers")
    first = asyncio.create_task(far.dataset("things").push([{"id": "a", "v": 1}]))
    await until(lambda: revision_of(client))
    second = await things.push([{"id": "a", "v": 2}])
    await proxy.cut()
    await proxy.release()

    assert (await first).revision == 1
    assert second.revision == 2
    assert (await things.get("a")).data == {"id": "a", "v": 2}
    assert await revision_of(client) == 2


async def test_g04_a_refused_retry_does_not_deny_the_first_attempt(server, client, proxy):
    """G4: done, its answer lost, and the retry refused at the door: the outcome is unknown, not "rejected"."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    key = await client.create_key("push", dataset="things", source="default")
    async with syncline.connect(proxy.address, key=key.secret) as far:
        await far.server_info()
        proxy.hold("answers")
        pushing = asyncio.create_task(far.dataset("things").push([{"id": "a", "v": 1}]))
        await until(lambda: revision_of(client))
        await client.delete_key(key.key_id)
        await proxy.cut()
        await proxy.release()
        with pytest.raises(syncline.OutcomeUnknown) as unknown:
            await pushing
        assert isinstance(unknown.value.__cause__, syncline.NotAuthenticated)
        with pytest.raises(syncline.NotAuthenticated):
            await far.dataset("things").push([{"id": "b", "v": 1}])
    assert await values(client.dataset("things")) == {"a": 1}


async def test_g05_a_retry_is_answered_also_by_a_source_that_was_switched_off(server, client, far, proxy):
    """G5: what it did stays done, so the first answer is the true one."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    await far.server_info()
    proxy.hold("answers")
    pushing = asyncio.create_task(far.dataset("things").push([{"id": "a", "v": 1}]))
    await until(lambda: revision_of(client))
    await client.update_source("things", "default", disabled=True)
    await proxy.cut()
    await proxy.release()
    assert (await pushing).revision == 1


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("mode", ["accrue", "replace"])
async def test_t38_g05_the_lost_answer_of_a_commit(server, client, far, proxy, mode, restart):
    """T38, G5: closing a session is asked again, also of a server that was killed: the same revision and counts."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    await client.dataset("things").push([{"id": "0", "v": 0}, {"id": "old", "v": 0}])
    session = await far.dataset("things").open_session(mode)
    await session.upsert([{"id": f"{n}", "v": n} for n in range(5)])
    proxy.hold("answers")
    closing = asyncio.create_task(session.close())
    await until(lambda: is_at(client, 2))
    if restart:
        await server.restart(signal.SIGKILL)
    await proxy.cut()
    await proxy.release()
    result = await closing

    assert (result.revision, result.created, result.unchanged) == (2, 4, 1)
    assert result.deleted == (mode == "replace")
    assert await revision_of(client) == 2
    with pytest.raises(syncline.SessionInvalid):
        await session.upsert([{"id": "9", "v": 9}])


async def is_at(client, revision):
    return await revision_of(client) == revision


async def test_t39_g16_a_late_commit_of_an_earlier_attempt(server, client, far, proxy):
    """T39: the commit of attempt 1 arrives after attempt 2 was opened: refused, and attempt 2 is unharmed."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = client.dataset("things")
    first = await far.dataset("things").open_session("replace")
    await first.upsert([{"id": "first", "v": 1}])
    proxy.hold("requests")
    closing = asyncio.create_task(first.close())
    second = await things.open_session("replace")
    await second.upsert([{"id": "second", "v": 2}])
    await proxy.release()
    with pytest.raises(syncline.SessionInvalid):
        await closing
    assert await values(things) == {}
    await second.upsert([{"id": "third", "v": 3}])
    await second.close()

    assert await values(things) == {"second": 2, "third": 3}
    assert await revision_of(client) == 1


@pytest.mark.parametrize("mode", ["stream", "accrue"])
@pytest.mark.parametrize("cut_after", [1, 2])
async def test_t41_g05_calls_repeated_on_reconnect_are_applied_once(
    server, client, far, proxy, mode, cut_after
):
    """T41: under APPEND a call that is applied twice shows. Every connection carries only so many answers."""
    await client.create_dataset("events", identity=syncline.append())
    session = await far.dataset("events").open_session(mode)
    proxy.cut_after_answers(cut_after)
    rows = [{"n": n} for n in range(6_000)]
    report = await session.upsert(rows)
    result = await session.close()

    assert proxy.cuts >= 3
    assert session.calls == 6
    assert len(report.results) == 6_000
    found = [record.data["n"] async for record in client.dataset("events").records(page_size=1_000)]
    assert sorted(found) == list(range(6_000))
    assert result.revision == await revision_of(client, "events") == (6 if mode == "stream" else 1)


async def test_t49_g07_g08_a_feed_that_is_cut_after_every_kth_message(make_server):
    """T49, G7, G8: whatever k, the copy ends the same, nothing is skipped and nothing comes twice."""
    async with make_server(SYNCLINE_PAGE_CHANGES="10") as server, server.client() as client:
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things = client.dataset("things")
        for n in range(12):
            await things.push([{"id": f"{n}-{i}", "v": n} for i in range(10)])
        async with Proxy.to(server.address) as proxy:
            async with syncline.connect(proxy.address, key=server.key) as far:
                whole, seen = await copy_until_checkpoint(far.dataset("things"))
                messages = proxy.answers
                assert messages >= 3
                assert seen == sorted(seen)
                for k in range(1, messages + 1):
                    proxy.cut_after_answers(k)
                    copy, events = await copy_until_checkpoint(far.dataset("things"))
                    assert copy.digest == whole.digest
                    assert len(copy) == 120
                    assert events == seen, f"cut after every {k}"
        assert proxy.cuts >= messages


async def copy_until_checkpoint(things):
    """A fresh copy and the events that made it."""
    copy, seen = syncline.Copy(), []
    async with things.changes(options=OPTIONS) as stream:
        async for event in stream:
            copy.apply(event)
            if isinstance(event, syncline.Put):
                seen.append((event.revision, event.record_id))
            elif isinstance(event, syncline.Reset):
                seen.clear()
            elif isinstance(event, syncline.Checkpoint) and copy.revision == 12:
                return copy, sorted(seen)
    raise AssertionError("the feed ended")


async def test_t49_g11_g12_a_live_feed_that_is_cut_all_the_time(server, client, far, proxy):
    """T49: writes go on while every connection carries two messages."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = client.dataset("things")
    proxy.cut_after_answers(2)
    copy, revisions = syncline.Copy(), {}

    async def write():
        for n in range(100):
            await things.push([{"id": f"{n % 7}", "v": n}, {"id": f"{n}", "v": n}])

    async with far.dataset("things").changes(options=OPTIONS) as stream, asyncio.TaskGroup() as group:
        group.create_task(write())
        async for event in stream:
            before = copy.revision
            copy.apply(event)
            assert copy.revision >= before
            if isinstance(event, syncline.Put):
                assert event.revision > revisions.get(event.record_id, 0)
                revisions[event.record_id] = event.revision
            if copy.revision == 100:
                break
    info = await client.get_dataset("things")
    assert copy.digest == info.digest
    assert proxy.cuts >= 2


async def test_t60_a_server_that_stands_still_for_a_while(server, client):
    """T60: stopped and continued, it goes on where it was: the stream is the same, and so is a call under way."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things, copy = client.dataset("things"), syncline.Copy()

    async def follow(stream, revision):
        while copy.revision < revision:
            copy.apply(await anext(stream))

    async with things.changes() as stream:
        await things.push([{"id": "a", "v": 1}])
        await follow(stream, 1)
        server.send(signal.SIGSTOP)
        pushing = asyncio.create_task(things.push([{"id": "b", "v": 2}]))
        await asyncio.sleep(2.0)  # the fault itself
        assert not pushing.done()
        server.send(signal.SIGCONT)
        assert (await pushing).revision == 2
        await follow(stream, 2)
        assert set(copy) == {"a", "b"}
        assert stream.reconnects == 0


async def test_a_connection_that_only_swallows_is_left(server, client, far, proxy):
    """Held in both directions, a call ends by its deadline, says so, and later ones go through."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = far.dataset("things")
    await things.push([{"id": "a", "v": 1}])
    proxy.hold("requests", "answers")
    with pytest.raises(syncline.DeadlineExceeded):
        await things.push([{"id": "b", "v": 1}], timeout_seconds=0.5)
    await proxy.cut()
    await proxy.release()

    assert (await things.push([{"id": "c", "v": 1}])).revision in {2, 3}
