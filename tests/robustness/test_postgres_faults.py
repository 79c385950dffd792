"""Faults of PostgreSQL under one node, and of the way to it, as clients see them (T74, T75, T82, T83)."""

import asyncio
import os
import pwd
import subprocess
from contextlib import asynccontextmanager

import grpc
import pytest

import syncline
from support.frail_postgres import connection_to
from support.postgres_proxy import WRITER, PostgresProxy
from support.server_process import server_process
from support.waiting import until
from syncline.names import new_request_id
from syncline.v1.push_service_pb2 import PushRequest

pytestmark = pytest.mark.only_store("postgres", reason="its own faults")

HOLD = "SELECT 1 FROM syncline.head h JOIN syncline.dataset d ON d.number = h.dataset_number WHERE d.dataset_id = $1 FOR UPDATE OF h"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Node:
    """A server over a database of its own, and a stranger's connection to that database."""

    def __init__(self, postgres, database, server, client, stranger):
        self.postgres = postgres
        self.database = database
        self.server = server
        self.client = client
        self.stranger = stranger

    async def make(self, *names):
        """Datasets in which a second effect of anything shows."""
        for name in names:
            await self.client.create_dataset(name, identity=syncline.append())
        return [self.client.dataset(name) for name in names]

    @asynccontextmanager
    async def holding(self, dataset_id):
        """The stranger has the dataset's row locked."""
        async with self.stranger.transaction():
            assert await self.stranger.fetchval(HOLD, dataset_id) == 1
            yield

    async def waiting(self, number=1):
        """So many backends wait for a lock."""
        async with connection_to(self.postgres.dsn(self.database)) as watcher:
            await until(lambda: waits(watcher, number))


async def waits(connection, number):
    return await connection.fetchval(WAITING) >= number


@asynccontextmanager
async def node_on(postgres, directory, *, at="", database="", **env):
    """``at``: the address by which the node reaches PostgreSQL, if not its own."""
    database = database or postgres.new_database()
    store = postgres.dsn_at(at or postgres.address, database)
    settings = {"SYNCLINE_PROBE_SECONDS": "0.1"} | env
    async with (
        server_process(directory, store=store, env=settings) as server,
        server.client() as client,
        connection_to(postgres.dsn(database)) as stranger,
    ):
        yield Node(postgres, database, server, client, stranger)


async def push_once(client, dataset_id, request_id, value):
    """A push that nobody repeats."""
    request = PushRequest(
        source=f"datasets/{dataset_id}/sources/default", records=[b'{"v":%d}' % value], request_id=request_id
    )
    return await client.connection.push.Push(request, metadata=client.connection.caller.metadata, timeout=20)


async def values_of(dataset):
    return sorted([record.data["v"] async for record in dataset.records()])


async def tells(client, *, writable):
    return (await client.server_info()).writable is writable


# -- T74, T75: what became of a commit ------------------------------------------------------------------------


@pytest.mark.slow
async def test_t74_g04_g05_backends_that_are_ended_while_they_commit(postgres, tmp_path):
    """T74: whatever a backend was doing, the retry looks under the lock and finds what became of it."""
    async with node_on(postgres, tmp_path) as node:
        (events,) = await node.make("events")
        replaced = await node.client.create_dataset("replaced", identity=syncline.by_key("v"))
        replaced = node.client.dataset("replaced")
        for turn in range(3):
            async with node.holding("events"):
                push = asyncio.create_task(events.push([{"v": turn}], timeout_seconds=30))
                for _ in range(3):
                    await node.waiting()
                    await node.stranger.execute(END + " AND wait_event_type = 'Lock'")
                await node.waiting()
            assert (await push).revision == turn + 1

            async def load(turn=turn):
                async with replaced.session("replace", allow_mass_delete=True) as session:
                    await session.upsert([{"v": n} for n in range(turn, turn + 50)])

            async with node.holding("replaced"):
                loading = asyncio.create_task(load())
                await node.waiting()
                await node.stranger.execute(END + " AND wait_event_type = 'Lock'")
                await node.waiting()
            await loading
            assert await values_of(replaced) == list(range(turn, turn + 50))
        assert await values_of(events) == [0, 1, 2]
        await node.server.stop()
        assert node.server.fsck() == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "place", ["commit.before", "commit.rows", "commit.after", "session.applied", "stage.after"]
)
async def test_t74_g05_backends_that_are_ended_at_every_named_place(postgres, tmp_path, place):
    """T74: the node lingers at the place, so that most of what is ended is ended there."""
    async with node_on(postgres, tmp_path, SYNCLINE_FAILPOINTS=f"{place}=sleep:60") as node:
        (events,) = await node.make("events")
        await node.client.create_dataset("loaded", identity=syncline.append())
        loaded = node.client.dataset("loaded")
        ends = asyncio.create_task(ending(node))
        for turn in range(5):
            assert (await events.push([{"v": turn}], timeout_seconds=30)).revision == turn + 1
            async with loaded.session("accrue") as session:
                await session.upsert([{"v": 2 * turn}])
                await session.upsert([{"v": 2 * turn + 1}])
        ends.cancel()
        assert await values_of(events) == list(range(5))
        assert await values_of(loaded) == list(range(10))
        assert (await node.client.get_dataset("loaded")).revision == 5
        await node.server.stop()
        assert node.server.fsck() == []


async def ending(node):
    """End whatever is connected, again and again."""
    async with connection_to(node.postgres.dsn(node.database)) as connection:
        while True:
            await asyncio.sleep(0.6)
            await connection.execute(END + " AND application_name = 'syncline-server'")


async def test_t75_g04_g05_the_link_breaks_between_a_commit_and_its_answer(postgres, tmp_path):
    """T75: no second effect, and nobody is told that nothing was done."""
    async with PostgresProxy.to(postgres.address) as proxy:
        async with node_on(postgres, tmp_path, at=proxy.address, SYNCLINE_PROBE_SECONDS="60") as node:
            (events,) = await node.make("events")
            for value in range(4):
                proxy.cut_before_commit_answer(1)
                assert (await events.push([{"v": value}], timeout_seconds=30)).revision == value + 1
            for value in range(4, 8):  # the node looks for itself what became of it, when nobody asks again
                proxy.cut_before_commit_answer(1)
                request_id = new_request_id()
                try:
                    first = await push_once(node.client, "events", request_id, value)
                except grpc.aio.AioRpcError as error:
                    assert error.code().name == "UNAVAILABLE", "it was done, and rejected would be a lie"
                    first = await push_once(node.client, "events", request_id, value)
                assert first.revision == value + 1
                assert await push_once(node.client, "events", request_id, value) == first
            assert proxy.cuts >= 6, "at times the cut meets what the node writes for itself"
            value = 8
            async with events.session("accrue") as session:
                await session.upsert([{"v": value}, {"v": value + 1}])
                proxy.cut_before_commit_answer(1)
            assert await values_of(events) == list(range(value + 2))
            assert (await node.client.get_dataset("events")).revision == value + 1


@pytest.mark.parametrize("seconds", [0.5, pytest.param(4.0, marks=pytest.mark.slow)])
async def test_t75_g05_an_old_backend_commits_when_its_node_has_long_asked_again(postgres, tmp_path, seconds):
    """T75: the backend does not notice that nobody listens any more, and the retry waits behind it."""
    async with PostgresProxy.to(postgres.address) as proxy:
        async with node_on(postgres, tmp_path, at=proxy.address) as node:
            (events,) = await node.make("events")
            async with node.holding("events"):
                push = asyncio.create_task(events.push([{"v": 0}], timeout_seconds=30))
                await node.waiting()
                for link in proxy.of_kind(WRITER):
                    link.cut()
                await node.waiting(2)
                await asyncio.sleep(seconds)
                assert not push.done()
            assert (await push).revision == 1
            assert (await events.push([{"v": 1}])).revision == 2
            assert await values_of(events) == [0, 1]


# -- T82: a database that takes no writes ---------------------------------------------------------------------


async def refused(node, things):
    """Writes are refused and say why; reads and feeds live on; health tells."""
    await until(lambda: tells(node.client, writable=False))
    with pytest.raises((syncline.Unavailable, syncline.DeadlineExceeded)):
        await things.push([{"v": -1}], timeout_seconds=0.5)
    assert node.server.is_running


async def follow(dataset, copy):
    async with dataset.changes() as stream:
        async for event in stream:
            copy.apply(event)


async def test_t82_g18_a_database_that_is_read_only_for_a_while(postgres, tmp_path):
    """T82: as providers set it when the disk is nearly full. It heals by itself."""
    async with node_on(postgres, tmp_path) as node:
        (things,) = await node.make("things")
        copy = syncline.Copy()
        following = asyncio.create_task(follow(things, copy))
        await things.push([{"v": 0}])
        await node.stranger.execute(f"ALTER DATABASE {node.database} SET default_transaction_read_only = on")
        await node.stranger.execute(END)
        await refused(node, things)
        await until(lambda: copy.revision == 1)
        assert await values_of(things) == [0]
        await node.stranger.execute(f"ALTER DATABASE {node.database} RESET default_transaction_read_only")
        await until(lambda: tells(node.client, writable=True))
        assert (await things.push([{"v": 1}])).revision == 2
        await until(lambda: copy.revision == 2)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert await values_of(things) == [0, 1]


@pytest.mark.slow
async def test_t82_g18_no_connection_is_to_be_had(postgres, tmp_path):
    """T82: those that break are not replaced until there is room again; then all goes on."""
    role = "crowded"
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    database = postgres.new_database()
    store = postgres.dsn_at(postgres.address, database).replace("//postgres@", f"//{role}@")
    settings = {"SYNCLINE_PROBE_SECONDS": "0.1"}
    async with (
        server_process(tmp_path, store=store, env=settings) as server,
        server.client() as client,
        connection_to(postgres.dsn(database)) as stranger,
    ):
        node = Node(postgres, database, server, client, stranger)
        (things,) = await node.make("things")
        await things.push([{"v": 0}])
        await stranger.execute(f"ALTER ROLE {role} NOSUPERUSER CONNECTION LIMIT 0")
        await stranger.execute(END)
        await refused(node, things)
        await stranger.execute(f"ALTER ROLE {role} SUPERUSER CONNECTION LIMIT -1")
        await until(lambda: tells(client, writable=True))
        assert (await things.push([{"v": 1}])).revision == 2
        assert await values_of(things) == [0, 1]


def run(*command):
    subprocess.run(command, check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 48 MB that PostgreSQL may use."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    nobody = pwd.getpwnam("nobody")
    options = f"size=48m,uid={nobody.pw_uid},gid={nobody.pw_gid},mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    for parent in place.parents:
        if parent.is_relative_to(tmp_path.parents[2]):
            parent.chmod(0o755)
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


@pytest.mark.root
@pytest.mark.slow
async def test_t82_g18_the_disk_of_the_tables_is_full(small_disk, postgres, tmp_path):
    """T82, G18: refused with STORE_FULL, reads go on, nothing acknowledged is lost, and it heals by itself."""
    postgres.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    database = postgres.new_database()
    postgres.execute(f"ALTER DATABASE {database} SET TABLESPACE small")
    async with node_on(postgres, tmp_path / "node", database=database) as node:
        await node.client.create_dataset("things", identity=syncline.by_key("id"))
        things = node.client.dataset("things")
        acknowledged, refusals = 0, []
        for turn in range(60):
            rows = [{"id": f"{turn}-{n}", "pad": os.urandom(2_000).hex()} for n in range(400)]
            try:
                await things.push(rows, timeout_seconds=1.0)
                acknowledged += 1
            except syncline.Overloaded as error:
                refusals.append(error)
                if len(refusals) == 3:
                    break
        assert {error.reason for error in refusals} == {"STORE_FULL"}
        assert all(error.retry_after_seconds for error in refusals)
        await until(lambda: tells(node.client, writable=False))
        head = await node.client.get_dataset("things")
        assert (head.revision, head.record_count) == (acknowledged, 400 * acknowledged)
        assert (await things.get("0-0")).record_id == "0-0"
        assert node.server.is_running
        await asyncio.to_thread(run, "mount", "-o", "remount,size=200m", str(small_disk))
        await until(lambda: tells(node.client, writable=True))
        assert (await things.push([{"id": "after"}])).revision == acknowledged + 1
        await node.server.stop()
        assert node.server.fsck() == []
    postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")
    postgres.execute("DROP TABLESPACE small")


# -- T83: a stranger with a lock ------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("seconds", "within"), [(1.5, 1.0), pytest.param(30.0, 3.0, marks=pytest.mark.slow)])
async def test_t83_g18_a_stranger_holds_a_dataset(postgres, tmp_path, seconds, within):
    """T83: who writes it waits, and is told when it takes too long; other datasets do not notice."""
    async with node_on(postgres, tmp_path) as node:
        held, other, third = await node.make("held", "other", "third")
        await held.push([{"v": 0}])
        loop = asyncio.get_running_loop()
        async with node.holding("held"):
            ends = loop.time() + seconds
            patient = [
                asyncio.create_task(held.push([{"v": turn}], timeout_seconds=100)) for turn in range(1, 6)
            ]
            longest, turn = 0.0, 0
            while loop.time() < ends:
                began = loop.time()
                await asyncio.gather(other.push([{"v": turn}]), third.push([{"v": turn}]))
                longest = max(longest, loop.time() - began)
                turn += 1
                await asyncio.sleep(0.02)
            assert not any(task.done() for task in patient)
            assert await tells(node.client, writable=True)
            assert await values_of(held) == [0]
            with pytest.raises((syncline.Unavailable, syncline.DeadlineExceeded)):
                await held.push([{"v": -1}], timeout_seconds=0.3)
        await asyncio.gather(*patient)
        assert longest < within
        assert turn > 10
        assert [v for v in await values_of(held) if v >= 0] == [0, 1, 2, 3, 4, 5]
        assert await values_of(other) == await values_of(third) == list(range(turn))
        await node.server.stop()
        assert node.server.fsck() == []
