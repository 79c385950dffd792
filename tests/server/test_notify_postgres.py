"""Wake-ups between nodes over PostgreSQL: what comes through, what is believed, and connections that die."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import pytest

from support.postgres_cluster import store_address
from support.waiting import until
from syncline_server.metrics import Metrics
from syncline_server.model import Appended, Head
from syncline_server.notify import postgres as notify
from syncline_server.notify.abc import EVERYWHERE
from syncline_server.notify.postgres import CHANNEL, PAYLOAD_BYTES, PostgresNotifier, payloads, read_hint

pytestmark = pytest.mark.usefixtures("postgres_cluster")


def appended(number, revision):
    return Appended(
        dataset_number=number, from_revision=revision - 1, head=Head(revision=revision), changes=None
    )


class Node:
    """A notifier, and all that it heard."""

    def __init__(self, address, node_id):
        self.metrics = Metrics()
        self.notifier = PostgresNotifier(address, node_id, self.metrics)
        self.hints = []
        self.notifier.hear(self.hints.append)

    @property
    def told(self):
        """Newest revisions hinted at."""
        newest = {}
        for hint in self.hints:
            for number, revision in hint.items():
                newest[number] = max(revision, newest.get(number, 0))
        return newest

    def forget(self):
        self.hints.clear()


@asynccontextmanager
async def nodes(*addresses):
    async with AsyncExitStack() as stack:
        made = [Node(address, f"node{place}") for place, address in enumerate(addresses)]
        for node in made:
            await stack.enter_async_context(node.notifier.running())
        for node in made:
            await until(lambda node=node: node.notifier.hears)
            node.forget()
        yield made


@pytest.fixture
def address(postgres_cluster):
    with store_address("postgres") as made:
        yield made


@asynccontextmanager
async def stranger(address):
    """A connection of somebody who may use the database."""
    connection = await asyncpg.connect(address)
    try:
        yield connection
    finally:
        await connection.close()


async def test_nodes_tell_each_other_and_not_themselves(address):
    async with nodes(address, address) as (a, b):
        heard = []
        a.notifier.listen(heard.append)
        a.notifier.announce(appended(3, 7))
        assert heard == [appended(3, 7)], "its own process hears at once, with all that there is to tell"
        b.notifier.announce(appended(4, 1))
        await until(lambda: b.told == {3: 7} and a.told == {4: 1})
        assert heard == [appended(3, 7)], "a hint is no announcement"


async def test_f52_what_gathers_is_sent_together(address):
    """F52: NOTIFY takes a lock of the whole database, so a busy node sends few."""
    async with nodes(address, address) as (a, b):
        for revision in range(1, 1_001):
            a.notifier.announce(appended(1 + revision % 5, revision))
        await until(lambda: len(b.told) == 5)
        await until(lambda: b.told[1] == 1_000)
        assert b.metrics.wakeups._value.get() == 1


@pytest.mark.parametrize("count", [1, 1_000, 3_000])
def test_payloads_fit_and_are_read_again(count):
    """PostgreSQL takes less than 8000 bytes."""
    revisions = {10**15 + place: 10**18 + place for place in range(count)}
    sent = list(payloads("0123456789abcdef", revisions))
    assert all(len(payload) <= PAYLOAD_BYTES for payload in sent)
    read = {}
    for payload in sent:
        version, node, told = payload.split(" ", 2)
        assert (version, node) == ("1", "0123456789abcdef")
        read |= read_hint(told)
    assert read == revisions


GARBAGE = (
    "",
    "1",
    "1 x",
    "1 x ",
    "2 x 3:4",
    "1 x 3:-4",
    "1 x 3:4 ",
    "1 x 3:4 5",
    "1 x 0:4",
    "1 x 3:04",
    "1 x ٣:٤",
    "1 x 3:4\n",
    "1 x 3:12345678901234567890",
    "1 node0 3:4",
    "1 node0 ?1",
    "1 x ?1",
    "\x7f" * 7_000,
)


async def test_t81_only_what_has_the_form_is_a_hint(address):
    """T81: garbage and other nodes' echoes in a row; a node goes on hearing, and what has the form comes through."""
    async with nodes(address) as (a,), stranger(address) as somebody:
        for payload in GARBAGE:
            await somebody.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        await somebody.execute("SELECT pg_notify($1, $2)", CHANNEL, "1 x 3:4 3:2 9999999999999999999:1")
        await until(lambda: a.hints)
        assert a.hints == [{3: 4, 9999999999999999999: 1}]
        assert a.notifier.hears


class Line:
    """A TCP port that leads to the cluster's socket, until it is cut or falls silent."""

    def __init__(self, cluster):
        self._socket = str(cluster.directory / f".s.PGSQL.{cluster.port}")
        self._server = None
        self._tasks = set()
        self._writers = []
        self.silent = False
        self.port = 0
        self.links = 0

    @asynccontextmanager
    async def running(self):
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def address(self, database):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def cut(self):
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _link(self, reader, writer):
        self.links += 1
        there_reader, there_writer = await asyncio.open_unix_connection(self._socket)
        self._writers += [writer, there_writer]
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pass(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader, writer):
        with suppress(OSError):
            while chunk := await reader.read(65536):
                if not self.silent:
                    writer.write(chunk)
        writer.transport.abort()


@pytest.fixture
async def line(postgres_cluster):
    async with Line(postgres_cluster).running() as running:
        yield running


@pytest.fixture
def quick(monkeypatch):
    """Seconds become tenths, so that what is due comes within the test."""
    monkeypatch.setattr(notify, "ECHO_SECONDS", 0.3)
    monkeypatch.setattr(notify, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(notify, "RETRY_MOST_SECONDS", 0.2)


@pytest.mark.usefixtures("quick")
async def test_t79_a_listener_that_hears_nothing_any_more_notices(address, line):
    """T79: the connection is there and nothing comes through. It is noticed, said so, and mended when it can be."""
    async with nodes(line.address(address.split("/")[3].split("?")[0]), address) as (a, b):
        assert a.metrics.listening._value.get() == 1
        line.silent = True
        b.notifier.announce(appended(1, 5))
        await until(lambda: not a.notifier.hears)
        assert a.metrics.listening._value.get() == 0
        await until(lambda: EVERYWHERE in a.hints)
        assert a.told == {}, "what was said meanwhile is lost"
        line.silent = False
        line.cut()
        await until(lambda: a.notifier.hears)
        b.notifier.announce(appended(1, 6))
        await until(lambda: a.told == {1: 6})


@pytest.mark.usefixtures("quick")
async def test_t79_whoever_listens_again_looks_everywhere_after_that(address, line, monkeypatch):
    """T79, F52: first LISTEN, then look. What is committed before the listener is back is not heard by anybody."""
    async with nodes(line.address(address.split("/")[3].split("?")[0]), address) as (a, b):
        looked = asyncio.Event()
        original = PostgresNotifier._echo

        async def echo(self, connection):
            await original(self, connection)
            if self is a.notifier and not self.hears:
                a.forget()
                b.notifier.announce(appended(1, 9))  # after LISTEN, before the look
                looked.set()

        monkeypatch.setattr(PostgresNotifier, "_echo", echo)
        line.cut()
        await until(looked.is_set)
        await until(lambda: a.told == {1: 9})
        assert a.hints[0] == EVERYWHERE


@pytest.mark.usefixtures("quick")
async def test_what_could_not_be_told_is_told_later(address, line):
    """The connection that tells dies, silently or not: what was announced meanwhile is sent on the next one."""
    async with nodes(line.address(address.split("/")[3].split("?")[0]), address) as (a, b):
        line.silent = True
        a.notifier.announce(appended(1, 5))
        a.notifier.announce(appended(2, 1))
        await asyncio.sleep(0)
        links = line.links
        await until(lambda: line.links > links)
        line.silent = False
        line.cut()
        await until(lambda: b.told == {1: 5, 2: 1})


async def test_a_node_that_stops_says_what_is_left(address):
    async with nodes(address) as (b,):
        async with nodes(address) as (a,):
            a.notifier._node_id = "other"
            a.notifier.announce(appended(1, 5))
        await until(lambda: b.told == {1: 5})


async def test_nothing_is_logged_of_the_address(caplog, capsys):
    """A node whose database cannot be reached says so again and again, without the password."""
    node = Node("postgresql://somebody:geheim@127.0.0.1:1/none", "a")
    async with node.notifier.running():
        await until(lambda: node.metrics.background_failures.labels("notify")._value.get() >= 2)
    said = caplog.text + "".join(capsys.readouterr())
    assert "notify.broken" in said
    assert "geheim" not in said
