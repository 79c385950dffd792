"""Streams of subscriptions without the wire: what they hold, what they cost, and the fences between them."""

import asyncio
import gc
import tracemalloc
from contextlib import asynccontextmanager

import pytest

from support.feed_client import take_events
from support.feed_encoder import Copy
from support.feed_house import House, rows
from support.feed_store import MemoryStore, new_dataset
from syncline.v1 import sync_service_pb2 as pb
from syncline_server.clock import SystemClock
from syncline_server.errors import NotFound
from syncline_server.feed.delivery import DeliveryMode, Wanted
from syncline_server.feed.feed import Feed
from syncline_server.feed.outbox import READ_AHEAD_BYTES
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.streams import FeedStream
from syncline_server.feed.subscription import Subscription
from syncline_server.model import Principal, Role
from syncline_server.rpc.frames import ProtobufEncoder
from syncline_server.rpc.parts import ProtobufPartEncoder, varint

BYTES_PER_SUBSCRIPTION = 1_024
"""Measured: 850 to 990."""

ADMIN = Principal(key_id="k", role=Role.ADMIN)


class Datasets:
    """What a stream needs of the catalog."""

    def __init__(self):
        self.datasets = {}

    async def use(self, dataset_id, work, *, incarnation):
        if dataset_id not in self.datasets:
            raise NotFound("DATASET_NOT_FOUND", dataset_id)
        return await work(self.datasets[dataset_id])


class Uptake:
    """Hears what a real one would."""

    def __init__(self):
        self.heard = []

    def connected(self, number, replica_id, key_id, revision):
        self.heard.append(("connected", replica_id, revision))

    def applied(self, number, replica_id, key_id, revision):
        self.heard.append(("applied", replica_id, revision))

    def disconnected(self, number, replica_id):
        self.heard.append(("disconnected", replica_id))


class Home(House):
    def __init__(self, **settings):
        super().__init__(MemoryStore())
        self.feed = Feed(
            self.store, self.notifier, SystemClock(), ProtobufEncoder(), FeedSettings(**settings)
        )
        self.datasets = Datasets()
        self.uptake = Uptake()

    async def make(self, dataset_id):
        self.dataset = self.datasets.datasets[dataset_id] = await self.store.create_dataset(
            new_dataset(dataset_id)
        )

    @asynccontextmanager
    async def stream(self):
        stream = FeedStream(
            self.feed,
            self.datasets,
            ProtobufPartEncoder(retry_seconds=0.5),
            SystemClock(),
            ADMIN,
            uptake=self.uptake,
        )
        messages = stream.messages()
        try:
            yield stream, Reader(messages)
        finally:
            await messages.aclose()
            await stream.aclose()


class Reader:
    """Takes messages into copies by subscription id."""

    def __init__(self, messages):
        self.messages = messages
        self.copies = {}
        self.errors = {}
        self.largest = 0

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                self.take(await anext(self.messages))

    def take(self, data):
        self.largest = max(self.largest, len(data))
        for part in pb.UpdateFeedResponse.FromString(data).parts:
            take_events(self.copies.setdefault(part.subscription_id, Copy()), part.events)
            if part.HasField("error"):
                self.errors[part.subscription_id] = part.error

    def exact(self, *ids, revision=0):
        copies = [self.copies.get(i) for i in ids]
        return all(copy and copy.exact and copy.revision >= revision for copy in copies)


@pytest.fixture
async def home():
    house = Home()
    await house.make("books")
    async with house.feed.run():
        yield house


async def test_an_idle_subscription_costs_less_than_1_kib(home):
    """Beside its stream: 1,000 on one, each exact, each with an id and a credit of its own."""
    await home.write(rows(*range(10)))
    async with home.stream() as (stream, reader):
        for number in range(1, 101):
            await stream.add(Wanted(subscription_id=number, dataset_id="books", credit_bytes=1 << 30))
        await reader.until(lambda: reader.exact(*range(1, 101)))
        reader.copies.clear()
        gc.collect()
        tracemalloc.start()
        try:
            begun, _ = tracemalloc.get_traced_memory()
            for number in range(1_001, 2_001):
                await stream.add(Wanted(subscription_id=number, dataset_id="books", credit_bytes=1 << 30))
            while not stream._outbox.is_empty or stream._outbox.reading:
                await anext(reader.messages)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - begun
        finally:
            tracemalloc.stop()
        assert len(stream) == 1_100
        assert grown / 1_000 <= BYTES_PER_SUBSCRIPTION


async def test_g17_a_stream_that_is_not_read_holds_little(home):
    """While nothing takes its messages, nothing is polled: 200 cold copies of 4 MB keep two pages at most."""
    for number in range(8):
        await home.write(rows(*range(number * 250, number * 250 + 250), size=2_000))
    async with home.stream() as (stream, reader):
        for number in range(1, 201):
            await stream.add(Wanted(subscription_id=number, dataset_id="books", credit_bytes=1 << 30))
        for _ in range(50):
            reader.take(await anext(reader.messages))
            await asyncio.sleep(0)
            # Nobody asks for the next message for a while.
            for _ in range(20):
                await asyncio.sleep(0)
            assert sum(stream._outbox.reading.values()) <= READ_AHEAD_BYTES
            finished = [
                leg.subscription._read for leg in stream._outbox.reading if leg.subscription._read.done()
            ]
            assert sum(len(read.result().body) for read in finished) <= READ_AHEAD_BYTES + (64 << 10)
        assert reader.largest <= 2 * home.feed.settings.message_bytes + (64 << 10)


async def test_a_fault_inside_ends_one_subscription_with_an_incident_id(home, monkeypatch):
    """One whose evaluation breaks takes nobody with it, and its text stays inside."""
    await home.write(rows(1))
    async with home.stream() as (stream, reader):
        for number in (1, 2, 3):
            await stream.add(Wanted(subscription_id=number, dataset_id="books"))
        await reader.until(lambda: reader.exact(1, 2, 3))
        victim, poll = stream._deliveries[2].leg.subscription, Subscription.poll

        def poll_or_break(self, now):
            if self is victim:
                raise ZeroDivisionError("secret text")
            return poll(self, now)

        monkeypatch.setattr(Subscription, "poll", poll_or_break)
        await home.write(rows(2))
        await reader.until(lambda: 2 in reader.errors and reader.exact(1, 3, revision=2))
    error = reader.errors[2]
    assert error.code == 13
    assert "incident" in error.message
    assert "secret" not in str(error)


async def test_store_trouble_of_one_dataset_is_told_to_its_subscription(home):
    await home.make("birds")
    await home.write(rows(1))
    async with home.stream() as (stream, reader):

        async def fail(after):
            raise OSError("the disk is away")

        await stream.add(Wanted(subscription_id=1, dataset_id="birds"))
        await reader.until(lambda: reader.exact(1))
        home.store.before_read = fail
        await stream.add(Wanted(subscription_id=2, dataset_id="books"))
        await reader.until(lambda: 2 in reader.errors)
        home.store.before_read = None
        await home.write(rows(2))
        await reader.until(lambda: reader.exact(1, revision=2))
        await stream.add(Wanted(subscription_id=2, dataset_id="books"))
        await reader.until(lambda: reader.exact(2))


async def test_credit_that_runs_out_gives_up_the_page_that_was_read_ahead(home):
    """A subscription without credit does not keep the others from reading."""
    await home.write(rows(*range(3_000), size=500))
    async with home.stream() as (stream, reader):
        for number in range(1, 6):
            await stream.add(Wanted(subscription_id=number, dataset_id="books", credit_bytes=1))
        await stream.add(Wanted(subscription_id=9, dataset_id="books", credit_bytes=1 << 30))
        await reader.until(lambda: reader.exact(9))
        assert not stream._outbox.reading
        for number in range(1, 6):
            stream.grant(number, 1 << 30)
        await reader.until(lambda: reader.exact(*range(1, 6)))


async def test_uptake_hears_of_replicas(home):
    await home.write(rows(1))
    async with home.stream() as (stream, reader):
        await stream.add(Wanted(subscription_id=1, dataset_id="books", replica_id="a"))
        await stream.add(Wanted(subscription_id=2, dataset_id="books"))
        await reader.until(lambda: reader.exact(1, 2))
        stream.acknowledge(1, "", 1)
        stream.acknowledge(2, "", 1)
        token = reader.copies[1].token
        await stream.add(Wanted(subscription_id=1, dataset_id="books", replica_id="a", token=token))
    assert home.uptake.heard == [
        ("connected", "a", 0),
        ("applied", "a", 1),
        ("disconnected", "a"),
        ("connected", "a", 1),
        ("disconnected", "a"),
    ]


@pytest.mark.parametrize("mode", DeliveryMode)
async def test_t54_checkpoints_never_run_ahead_of_data(home, mode):
    """The sender is slow and the writer is not; each copy checks count and digest at every checkpoint."""
    async with home.stream() as (stream, reader):
        wanted = {"mode": mode, "min_interval_seconds": 0.01 if mode is DeliveryMode.MAX_RATE else 0.0}
        for number in range(1, 4):
            await stream.add(Wanted(subscription_id=number, dataset_id="books", **wanted))
        for version in range(60):
            await home.write([*rows(version % 7, version=version), (f"k{(version + 3) % 7}", None)])
            reader.take(await anext(reader.messages))
            for number, copy in reader.copies.items():
                if copy.exact:
                    stream.acknowledge(number, "", copy.revision)
        head = await home.revision()

        def there():
            for number, copy in reader.copies.items():
                if copy.exact:
                    stream.acknowledge(number, "", copy.revision)
            return reader.exact(1, 2, 3, revision=head)

        await reader.until(there)
        for number in (1, 2, 3):
            await home.assert_equal(reader.copies[number])


async def test_a_removed_subscription_leaves_nothing_behind(home):
    """T62: no wake-ups, no users, no counts."""
    await home.write(rows(1))
    async with home.stream() as (stream, reader):
        for number in range(1, 51):
            await stream.add(
                Wanted(
                    subscription_id=number,
                    dataset_id="books",
                    mode=DeliveryMode(number % 3 + 1),
                    min_interval_seconds=1.0,
                )
            )
            if number % 2:
                stream.remove(number)
        await reader.until(lambda: reader.exact(*range(2, 51, 2)))
        for number in range(2, 51, 2):
            stream.remove(number)
        channel = home.feed._channels.open(home.dataset, None)
        assert (len(stream), channel.users, len(channel.followers), len(channel._waiters)) == (0, 0, 0, 0)
        assert not stream._outbox.reading


async def test_g17_what_is_refused_while_nothing_is_read_is_bounded():
    """Whoever asks for what there is not, and does not read the answers, is not listened to any more."""
    home = Home(subscriptions_per_stream=10)
    await home.make("books")
    async with home.feed.run(), home.stream() as (stream, reader):

        async def ask():
            for number in range(1, 1_001):
                await stream.room()
                await stream.add(Wanted(subscription_id=number, dataset_id="nowhere"))

        asking = asyncio.create_task(ask())
        for _ in range(2_000):
            await asyncio.sleep(0)
        assert not asking.done()
        assert len(stream._outbox._ready) <= 21
        await reader.until(lambda: len(reader.errors) == 1_000)
        await asking


@pytest.mark.parametrize(
    ("number", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1 << 21, "80808001")]
)
def test_lengths_are_written_as_protobuf_writes_them(number, encoded):
    assert varint(number).hex() == encoded
