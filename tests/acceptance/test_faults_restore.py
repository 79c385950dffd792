"""A backup taken under load and restored later: what was after it is lost, and everybody is told."""

import asyncio
import random

import syncline
from robustness.traffic import PLAIN, Traffic
from support.waiting import until
from syncline.names import new_request_id
from syncline.v1.push_service_pb2 import PushRequest


async def push_event(client, request_id, value):
    """A push whose id is known, into a dataset in which a second effect shows."""
    request = PushRequest(
        source="datasets/events/sources/default", records=[b'{"v":%d}' % value], request_id=request_id
    )
    connection = client.connection
    return await connection.push.Push(request, metadata=connection.caller.metadata)


async def test_t15_t57_g13_restore_of_a_backup_taken_under_load(server, client, backups):
    """T15, T57, G5, G7, G11, G13: tokens, copies and request ids from before the backup and from after it."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    await client.create_dataset("events", identity=syncline.append())
    before_id, after_id = new_request_id(), new_request_id()
    things = client.dataset("things")
    async with Traffic.on(server, seed=seed, crowd=PLAIN) as traffic:
        await traffic.acknowledged(50)
        first = await push_event(client, before_id, 1)
        old_copy = await copy_now(things)
        backup = await asyncio.to_thread(backups.take, server)
        await traffic.acknowledged(50)
        await push_event(client, after_id, 2)
        await traffic.finish()
    lost = await things.push([{"id": "lost", "op": 0}])
    new_copy = await copy_now(things)
    lost_token = new_copy.token
    half_read = await things.sync(page_size=3)
    assert new_copy.revision == lost.revision
    assert half_read.checkpoint is None

    async with things.changes(new_copy.token) as stream:
        live, resets = new_copy, []

        async def follow():
            async for event in stream:
                live.apply(event)
                if isinstance(event, syncline.Reset):
                    resets.append(event.reason.name)

        following = asyncio.create_task(follow())
        await server.stop()
        await asyncio.to_thread(backups.put_back, server, backup)
        await server.start()
        assert await asyncio.to_thread(server.fsck) == []

        # A live subscriber whose token is of the lost history: told, and it converges.
        info = await client.get_dataset("things")
        assert old_copy.revision <= info.revision < lost.revision
        await until(lambda: live.revision == info.revision and resets)
        assert resets == ["HISTORY_CHANGED"]
        assert live.digest == info.digest
        assert "lost" not in live

        # One that stopped inside a page of the lost history: told as well.
        page = await things.sync(half_read.token, all=True)
        assert page.reset is not None
        assert page.reset.reason.name == "HISTORY_CHANGED"
        assert whole(page).digest == info.digest

        # A token from before the backup is of the history that goes on.
        page = await things.sync(old_copy.token, all=True)
        assert page.reset is None
        old_copy.apply(page.changes)
        old_copy.apply(page.checkpoint)
        assert old_copy.digest == info.digest

        # Requests from before the backup are known, those from after it are done once.
        assert await push_event(client, before_id, 1) == first
        again = await push_event(client, after_id, 2)
        assert await push_event(client, after_id, 2) == again
        values = sorted([record.data["v"] async for record in client.dataset("events").records()])
        assert values == [1, 2]

        # And the new history goes on for all.
        head = (await things.push([{"id": "new", "op": 0}])).revision
        assert head == info.revision + 1
        await until(lambda: live.revision == head)
        assert "new" in live
        assert resets == ["HISTORY_CHANGED"]

        # A token of the lost history stays one when the new one has passed its revision.
        while head <= lost.revision:
            head = (await things.push([{"id": "new", "op": head}])).revision
        page = await things.sync(lost_token, all=True)
        assert page.reset is not None
        assert page.reset.reason.name == "HISTORY_CHANGED"
        assert whole(page).digest == (await client.get_dataset("things")).digest
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await server.stop()
    assert server.fsck() == []


async def copy_now(things):
    """A copy of the dataset, at a checkpoint."""
    return whole(await things.sync(all=True))


def whole(page):
    """The copy that a page from the beginning makes."""
    copy = syncline.Copy()
    copy.apply(page.changes)
    copy.apply(page.checkpoint)
    return copy
