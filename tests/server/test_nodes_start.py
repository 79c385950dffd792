"""Nodes that start: the first admin key, the address that nobody is to see, and clocks that are wrong."""

import asyncio
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from support.feed_client import delete, push
from support.hosted import hosted
from support.node_pair import nodes_of
from support.postgres_cluster import store_address
from support.push_wire import make_log
from support.server_process import ServerProcess
from support.waiting import until
from support.wire import Wire, house
from syncline.names import new_request_id
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import dataset_pb2, push_service_pb2, server_service_pb2, session_pb2, session_service_pb2
from syncline_server import upkeep
from syncline_server.app import running
from syncline_server.clock import SystemClock
from syncline_server.settings import SettingsError, load_settings
from syncline_server.store.abc import StoreRefused
from syncline_server.store.opening import open_store, shown
from syncline_server.store.postgres.clock import DatabaseClock

pytestmark = pytest.mark.usefixtures("postgres_cluster")

DAY_US = 86_400_000_000
PASSWORD = "geheim"


@pytest.fixture
def address():
    with store_address("postgres") as made:
        yield made


# -- the first admin key ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["directories of their own", "one directory"])
async def test_nodes_that_start_at_once_make_one_admin_key(address, tmp_path, shared):
    """Whichever is first; the others have no file, or the same one, and every file that there is opens every node."""
    directories = [tmp_path / ("x" if shared else name) for name in "abc"]
    async with AsyncExitStack() as stack:
        started = asyncio.Event()

        async def start(directory):
            await started.wait()
            return await stack.enter_async_context(hosted(node_in(directory, address)))

        starting = [asyncio.ensure_future(start(directory)) for directory in directories]
        started.set()
        servers = await asyncio.gather(*starting)
        files = {path for path in (d / "data" / "admin.key" for d in directories) if path.exists()}
        assert len(files) == 1
        assert sum(server.admin_key_is_new for server in servers) == 1
        secret = files.pop().read_text().strip()
        for server in servers:
            async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
                wire = Wire(channel, secret)
                listed = await wire.call(wire.catalog.ListKeys, catalog.ListKeysRequest())
                assert len(listed.keys) == 1


@asynccontextmanager
async def node_in(directory, address):
    """A server whose key another one may have made."""
    settings = load_settings(data=directory / "data", listen="127.0.0.1:0", http="", store=address)
    async with running(settings, SystemClock(), asyncio.Event()) as (server, _):
        yield server


# -- what nobody is to see --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ("postgresql://u:geheim@h:5432/d", "postgresql://u@h:5432/d"),
        (
            "postgresql://h/d?user=u&password=geheim&sslmode=require",
            "postgresql://h/d?user=u&sslmode=require",
        ),
        ("postgresql://u:ge@heim:geheim@h1,h2:7/d", "postgresql://u@h1,h2:7/d"),
        ("postgresql://u:geheim@[::1", "postgresql://…"),
        ("postgresql://u:ge/heim@h/d", "postgresql://…"),
        ("postgresql://u@/d?host=/tmp", "postgresql://u@/d?host=/tmp"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_password(told, seen):
    assert shown(told) == seen


def test_settings_show_no_password():
    settings = load_settings(store=f"postgresql://u:{PASSWORD}@h/d")
    assert settings.store_address == f"postgresql://u:{PASSWORD}@h/d"
    assert (
        PASSWORD
        not in repr(settings) + str(settings) + repr(settings.model_dump()) + settings.model_dump_json()
    )
    with pytest.raises(SettingsError) as raised:
        load_settings(store=f"mysql://u:{PASSWORD}@h/d")
    assert PASSWORD not in str(raised.value)
    assert "SYNCLINE_STORE" in str(raised.value)


BROKEN = (
    "postgresql://u:geheim@127.0.0.1:1/d",
    "postgresql://u:geheim@[::1/d",
    "postgresql://u:geheim@h:geheim/d",
    "postgresql://u:geheim@127.0.0.1:1/d?sslmode=geheim",
)


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_store_that_cannot_be_opened_is_refused_without_the_password(broken, tmp_path):
    with pytest.raises(StoreRefused) as raised:
        async with open_store(broken, tmp_path / "x", clock=SystemClock()):
            pass
    assert PASSWORD not in str(raised.value)


@pytest.mark.slow
def test_the_command_says_why_it_cannot_start_without_the_password(tmp_path):
    """By the environment and by the option; no traceback either, which would show what was called with what."""
    command = [sys.executable, "-m", "syncline_server", "serve", "--data", str(tmp_path), "--http", ""]
    done = subprocess.run(
        [*command, "--store", BROKEN[0]], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr
    assert "check the address, and that PostgreSQL runs there" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
async def test_a_node_that_runs_shows_no_password(address, tmp_path):
    """Log, panel, metrics. The cluster of the tests trusts everybody, so that any password will do."""
    node = ServerProcess(
        tmp_path,
        store=address.replace("postgres@", f"postgres:{PASSWORD}@"),
        env={"SYNCLINE_HTTP": "127.0.0.1:0", "SYNCLINE_LOG_LEVEL": "debug"},
    )
    try:
        await node.start()
        async with node.client() as client:
            await client.create_dataset("books")
        assert await node.terminate() == 0
    finally:
        await asyncio.to_thread(node.end)
    assert "server.started" in node.log
    assert "postgresql://postgres@/" in node.log
    assert PASSWORD not in node.log + "".join(node.output)


# -- clocks -----------------------------------------------------------------------------------------------


class WrongClock:
    """A node's wall clock, off by so much. Its monotonic clock is right, as monotonic clocks are."""

    def __init__(self, off_us):
        self._off_us = off_us

    def now_us(self):
        return time.time_ns() // 1_000 + self._off_us

    def monotonic(self):
        return time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("off_us", [3 * DAY_US, -3 * DAY_US], ids=["ahead", "behind"])
async def test_f56_the_clock_of_a_node_decides_nothing(address, tmp_path, monkeypatch, off_us):
    """F56: a node three days off purges and expires nothing early, stamps no time of its own, refuses no request id."""
    runs = Counter()
    monkeypatch.setattr("syncline_server.app._EXPIRE_SECONDS", 0.05)
    for work in (upkeep.Purge, upkeep.Expiry, upkeep.Forgetting):
        monkeypatch.setattr(work, "run", counting(work.run, runs))
    async with nodes_of(tmp_path, address, monkeypatch) as nodes:
        home = await nodes.start(
            clock=WrongClock(off_us),
            purge_seconds=0.05,
            retention_seconds=86_400.0,
            retention_revisions=0,
        )
        wire = home.wire
        await wire.make_dataset()
        log = await make_log(wire)
        await push(wire, "books", 1, 2)
        last = await delete(wire, "books", 1)
        expiring = await wire.make_key("READ", datasets=["*"], expire_time=in_seconds(3_600))
        request = session_service_pb2.OpenSessionRequest(
            source="datasets/books/sources/default", mode=session_pb2.SESSION_MODE_ACCRUE
        )
        opened = (await wire.call(wire.session.OpenSession, request)).session
        pushed = await wire.call(
            wire.push.Push,
            push_service_pb2.PushRequest(source=log, records=[b"{}"], request_id=new_request_id()),
        )
        runs.clear()
        await until(lambda: runs["Purge.run"] >= 3 and runs["Expiry.run"] >= 3)

        [[purged]] = await nodes.sql("SELECT max(purge_revision) FROM syncline.head")
        assert purged == 0
        get = session_service_pb2.GetSessionRequest(source=opened.source, session_id=opened.session_id)
        await wire.call(wire.session.GetSession, get)
        await expiring.call(expiring.catalog.GetDataset, catalog.GetDatasetRequest(name="datasets/books"))
        made = uuid.UUID(pushed.record_ids[0])
        dataset: dataset_pb2.Dataset = (
            await wire.call(
                wire.catalog.GetDataset,
                catalog.GetDatasetRequest(name="datasets/books", min_revision=last),
            )
        ).dataset
        stamps = [
            made.int >> 80,
            dataset.create_time.ToMilliseconds(),
            dataset.commit_time.ToMilliseconds(),
            opened.create_time.ToMilliseconds(),
        ]
        now_ms = time.time() * 1_000
        assert all(abs(now_ms - stamp) < 60_000 for stamp in stamps)


def counting(run, runs):
    async def counted(self, lease):
        await run(self, lease)
        runs[run.__qualname__] += 1

    return counted


def in_seconds(seconds):
    stamp = Timestamp()
    stamp.FromSeconds(int(time.time()) + seconds)
    return stamp


async def test_f56_the_time_of_the_database_runs_evenly():
    """F56: between two measurements it runs by the monotonic clock; one that tells nothing new moves nothing."""

    class Told:
        """A database that tells a time, after a while."""

        def __init__(self):
            self.local = 1_000.0
            self.told_us = 0
            self.takes = 0.0

        def monotonic(self):
            return self.local

        async def fetchval(self, _):
            self.local += self.takes
            return self.told_us

    database = Told()
    clock = DatabaseClock(database.monotonic)
    database.told_us, database.takes = 5_000_000_000_000, 0.2
    await clock.measure(database)
    assert clock.now_us() == 5_000_000_000_000 + 100_000, "half of the way there and back"
    database.local += 10
    database.told_us += 10_200_000 - 90_000
    await clock.measure(database)
    assert clock.now_us() == 5_000_000_000_000 + 10_300_000, "no contradiction"
    database.told_us += 3_600_000_000
    await clock.measure(database)
    assert abs(clock.now_us() - database.told_us) <= 200_000, "somebody set its clock"


async def test_a_node_without_a_name_goes_by_its_machine_and_port(address, tmp_path):
    async with hosted(house(tmp_path, store=address)) as home:
        port = home.server.addresses[0].rpartition(":")[2]

        async def names():
            listed = await home.wire.call(home.wire.server.ListNodes, server_service_pb2.ListNodesRequest())
            return [node.name.rpartition(":")[2] for node in listed.nodes]

        await until(names)
        assert await names() == [port]
