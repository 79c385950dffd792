"""Replicas against a real server: crashes, cuts, damage, filters (G7, G8, G11; T51, T52, T66-T68)."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
from contextlib import asynccontextmanager, closing

import pytest

import syncline
from support.proxy import Proxy
from support.waiting import until
from syncline._reconnect import FeedOptions
from syncline._update_feed import UpdateFeed

QUICK = FeedOptions(
    reconnect=syncline.RetryPolicy(attempts=None, first_seconds=0.01, max_seconds=0.05),
    checkpoint_seconds=0.5,
)

KEEPER = """
import asyncio, sys
import syncline

async def main():
    async with syncline.connect(sys.argv[1], key=sys.argv[2]) as client:
        async with client.dataset("things").replica(sys.argv[3]) as replica:
            replica.on_change(lambda change: None)
            await replica.ready()
            while True:
                print(replica.revision, flush=True)
                await replica.wait_for(replica.revision + 1)

asyncio.run(main())
"""


@pytest.fixture
async def things(client):
    await client.create_dataset("things", identity=syncline.by_key("id"))
    return client.dataset("things")


@asynccontextmanager
async def quick_client(address, key):
    """A client that comes back at once."""
    async with syncline.connect(address, key=key) as client:
        connection = client.connection
        updates = UpdateFeed(connection.subscriptions, connection.caller, options=QUICK)
        object.__setattr__(connection, "updates", updates)
        yield client


async def content(dataset, **selection):
    return {record.record_id: (record.json, record.revision) async for record in dataset.records(**selection)}


def held(replica):
    return {put.record_id: (put.json, put.revision) for put in replica.records()}


def on_disk(path):
    """What the file holds, and what it says that it equals."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT record_id, CAST(json AS BLOB), revision FROM record").fetchall()
        state = connection.execute("SELECT revision, record_count, digest, token FROM state").fetchone()
    digest = syncline.Digest()
    for record_id, json, revision in rows:
        digest.put(record_id, revision, json)
    return digest, state


async def change_some(dataset, chance, *, ids=300):
    rows = [{"id": f"t{chance.randrange(ids):04}", "v": chance.randrange(10)} for _ in range(20)]
    await dataset.push(rows)
    return await dataset.delete([{"id": f"t{chance.randrange(ids):04}"} for _ in range(3)])


async def test_t51_g11_first_copy_over_a_link_that_breaks_again_and_again(
    shared_server, client, things, tmp_path
):
    """T51: it goes on where it was, row by row, while the dataset changes."""
    chance = random.Random(51)
    await things.load({"id": f"t{i:05}", "v": 0, "text": "x" * 60} for i in range(20_000))

    async with Proxy.to(shared_server.address) as proxy:
        proxy.cut_after_answers(24)  # a message of 256 KiB, the largest of the ring, is 16 or 17 of these
        async with quick_client(proxy.address, shared_server.key) as far:
            async with far.dataset("things").replica(tmp_path / "things.db") as replica:
                while not replica.is_complete:
                    await change_some(things, chance)
                result = await change_some(things, chance)
                await replica.wait_for(result.revision, timeout_seconds=30)
                assert held(replica) == await content(things)
                assert replica.is_verified
        assert proxy.cuts > 3


async def test_t52_g7_filtered_copy_over_a_link_that_breaks(make_server, tmp_path):
    """T52: in, out, deleted and made again; in memory and in a file; always what the filter selects."""
    chance = random.Random(52)
    select = {"filter": "v >= 7", "fields": ["v"]}

    async with make_server(SYNCLINE_CHECKPOINT_SECONDS="0.2") as server, server.client() as client:
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things = client.dataset("things")
        await change_some(things, chance)
        async with Proxy.to(server.address) as proxy, quick_client(proxy.address, server.key) as far:
            dataset = far.dataset("things")
            async with dataset.replica(**select) as one, dataset.replica(tmp_path / "t.db", **select) as two:
                for _ in range(12):
                    for _ in range(chance.randrange(4)):
                        await change_some(things, chance)
                    if chance.random() < 0.3:
                        await proxy.cut()
                    result = await change_some(things, chance)
                    await one.wait_for(result.revision, timeout_seconds=20)
                    await two.wait_for(result.revision, timeout_seconds=20)
                    expected = await content(things, **select)
                    assert held(one) == held(two) == expected
                    assert one.is_verified
                    assert two.is_verified
                    assert not one.repairs
                    assert not two.repairs
                assert expected


async def test_t66_killed_again_and_again_data_and_token_agree(shared_server, client, things, tmp_path):
    """T66: SIGKILL at any moment; the file holds what it says, and the next process goes on from there."""
    path = tmp_path / "things.db"
    chance = random.Random(66)
    await things.load([{"id": f"t{i:04}", "v": 0} for i in range(300)])
    last = 0
    for _ in range(5):
        keeper = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", KEEPER, shared_server.address, shared_server.key, str(path)),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ,
        )
        try:
            await keeper.stdout.readline()
            for _ in range(chance.randrange(1, 12)):
                await change_some(things, chance)
        finally:
            keeper.send_signal(signal.SIGKILL)
            await keeper.communicate()
        digest, (revision, count, total, token) = on_disk(path)
        assert (len(digest), digest.value) == (count, total)
        assert revision >= last
        last = revision
        page = await things.sync(token, all=True)
        assert page.reset is None
        assert page.changes.from_revision == revision or not page.changes

    async with things.replica(path) as replica:
        await replica.ready(timeout_seconds=20)
        assert held(replica) == await content(things)
        assert replica.is_verified
        assert not replica.repairs


async def test_t68_damage_is_mended_by_what_differs(client, things, tmp_path):
    """T68: of 5,000 records five differ; not much more than these travels."""
    path = tmp_path / "things.db"
    await things.load([{"id": f"t{i:04}", "v": i, "text": "x" * 200} for i in range(5_000)])
    async with things.replica(path) as replica:
        await replica.ready(timeout_seconds=20)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("""UPDATE record SET json = '{}' WHERE record_id IN ('t0007', 't4999')""")
        connection.execute("DELETE FROM record WHERE record_id IN ('t0000', 't2500')")
        connection.execute("INSERT INTO record VALUES ('t0007a', 1, 1, '{}', zeroblob(16))")

    async with things.replica(path) as replica:
        await until(lambda: replica.is_verified)
        assert held(replica) == await content(things)
        (repair,) = replica.repairs
        assert (repair.records, repair.removed) == (4, 1)
        assert repair.bytes < 40_000


async def test_t67_two_processes_one_file(shared_server, client, things, tmp_path):
    """T67: the other process writes, this one reads along, and takes over when that one is killed."""
    path = tmp_path / "things.db"
    await things.push([{"id": "a", "v": 1}])
    keeper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KEEPER, shared_server.address, shared_server.key, str(path)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    try:
        await keeper.stdout.readline()
        async with things.replica(path) as replica:
            assert replica.is_read_only
            result = await things.push([{"id": "b", "v": 2}])
            await replica.wait_for(result.revision, timeout_seconds=20)
            assert replica["b"] == {"id": "b", "v": 2}
            keeper.send_signal(signal.SIGKILL)
            await keeper.communicate()
            result = await things.push([{"id": "c", "v": 3}])
            await replica.wait_for(result.revision, timeout_seconds=20)
            assert (replica["c"]["v"], replica.is_read_only) == (3, False)
    finally:
        if keeper.returncode is None:
            keeper.kill()
            await keeper.communicate()


async def test_filtered_copy_reads_its_writes_before_the_next_checkpoint(client, things, tmp_path):
    """Also those that its filter does not concern, of which it would hear within 10 s."""
    await things.push([{"id": "a", "v": 1}])
    async with things.replica(tmp_path / "t.db", filter="v > 5") as replica:
        await replica.ready(timeout_seconds=20)
        result = await things.push([{"id": "b", "v": 2}])
        await replica.wait_for(result.revision, timeout_seconds=4)
        result = await things.push([{"id": "c", "v": 7}])
        await replica.wait_for(result.revision, timeout_seconds=4)
        assert list(replica) == ["c"]


async def test_of_a_dataset_that_is_deleted_it_stops(client, things):
    async with things.replica() as replica:
        await replica.ready(timeout_seconds=20)
        await client.delete_dataset("things")
        with pytest.raises(syncline.ReplicaStopped) as raised:
            await replica.wait_for(1, timeout_seconds=20)
    assert isinstance(raised.value.__cause__, syncline.NotFound)


async def test_server_restart_and_restored_history(server, client, tmp_path):
    """A restart is nothing; the copy is live again by itself."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = client.dataset("things")
    await things.push([{"id": "a", "v": 1}])
    async with quick_client(server.address, server.key) as near:
        async with near.dataset("things").replica(tmp_path / "things.db") as replica:
            await replica.ready(timeout_seconds=20)
            await server.restart()
            result = await things.push([{"id": "b", "v": 2}])
            await replica.wait_for(result.revision, timeout_seconds=20)
            assert sorted(replica) == ["a", "b"]
