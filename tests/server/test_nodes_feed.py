"""Copies that follow a dataset on one node while others write on another."""

import asyncio
import random

import pytest

from support.feed_client import FeedClient, delete, push
from support.feed_encoder import Copy
from support.feed_house import House, follow, rows
from support.feed_store import MemoryStore
from support.node_pair import nodes_of
from support.postgres_cluster import store_address
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import dataset_pb2, record_service_pb2
from syncline.v1 import sync_service_pb2 as pb
from syncline_server.filters.selection import parse_selection
from syncline_server.notify.postgres import CHANNEL, PostgresNotifier

pytestmark = pytest.mark.usefixtures("postgres_cluster")

DATASET = "datasets/books"


@pytest.fixture
async def nodes(tmp_path, monkeypatch):
    with store_address("postgres") as address:
        async with nodes_of(tmp_path, address, monkeypatch) as made:
            yield made


def number_of(nodes):
    """The dataset's number, one row."""
    return nodes.sql("SELECT number FROM syncline.dataset WHERE dataset_id = 'books'")


async def read_everything(wire, revision):
    """By every call that takes ``min_revision``; each must know of the record ``k1``."""
    record = await wire.call(
        wire.record.GetRecord,
        record_service_pb2.GetRecordRequest(dataset=DATASET, record_id="k1", min_revision=revision),
    )
    assert record.record.revision == revision
    batch = await wire.call(
        wire.record.BatchGetRecords,
        record_service_pb2.BatchGetRecordsRequest(dataset=DATASET, record_ids=["k1"], min_revision=revision),
    )
    assert batch.revision >= revision
    listed = await wire.call(
        wire.record.ListRecords,
        record_service_pb2.ListRecordsRequest(dataset=DATASET, min_revision=revision),
    )
    assert listed.revision >= revision
    request = catalog.GetDatasetRequest(name=DATASET, min_revision=revision)
    assert (await wire.call(wire.catalog.GetDataset, request)).dataset.revision >= revision
    request = pb.DigestRangesRequest(dataset=DATASET, min_revision=revision)
    assert (await wire.call(wire.sync.DigestRanges, request)).revision >= revision
    request = pb.SyncRequest(dataset=DATASET, min_revision=revision)
    page = await wire.call(wire.sync.Sync, request)
    assert page.events[-1].checkpoint.revision >= revision


async def first_checkpoint(wire, **fields):
    """Revision of the first checkpoint of a subscription."""
    call = wire.subscribe(pb.SubscribeRequest(dataset=DATASET, **fields))
    try:
        async with asyncio.timeout(10):
            while True:
                for event in (await call.read()).events:
                    if event.HasField("checkpoint"):
                        return event.checkpoint.revision
    finally:
        call.cancel()


async def test_t71_g14_what_was_pushed_on_one_node_is_read_on_another_that_heard_nothing(nodes):
    """T71: the second node gets no wake-up at all, has followers and caches, and still never answers with less."""
    a, b = await nodes.start(), await nodes.start(deaf=True)
    await a.wire.make_dataset()
    await push(a.wire, "books", 1)
    async with FeedClient(b.wire) as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        for version in range(2, 6):
            revision = await push(a.wire, "books", 1, version=version)
            await read_everything(b.wire, revision)
            assert await first_checkpoint(b.wire, min_revision=revision) >= revision
            await feed.add(version, "books", min_revision=revision)
            await feed.until(lambda name=(version, ""): feed.copies[name].exact)
            assert feed.copies[version, ""].checkpoints[0] >= revision


@pytest.mark.slow
async def test_t72_g12_a_client_that_goes_from_node_to_node_never_goes_back(nodes):
    """T72: A → B → A with B deaf and its ring behind; also under another filter, when the copy begins anew (G12)."""
    a, b = await nodes.start(), await nodes.start(deaf=True)
    await a.wire.make_dataset()
    await push(a.wire, "books", *range(10))
    async with FeedClient(b.wire) as behind:  # keeps B's ring at what B has heard
        await behind.add(1, "books")
        await behind.add(2, "books", filter="v > 0")
        await behind.until(lambda: behind.copies[1, ""].exact and behind.copies[2, ""].exact)
        copies, seen = None, 0
        for turn in range(1, 7):
            revision = await push(a.wire, "books", turn, version=turn)
            async with FeedClient((a if turn % 2 else b).wire, copies) as feed:
                token = feed.copies[1, ""].token
                await feed.add(1, "books", token=token)
                await feed.until(lambda feed=feed, n=turn: len(feed.copies[1, ""].checkpoints) >= n)
                copies = feed.copies
            copy = copies[1, ""]
            assert copy.resets == []
            assert min(copy.checkpoints[turn - 1 :]) >= seen, "G12"
            seen = copy.checkpoints[-1]
        revision = await push(a.wire, "books", 9, version=9)
        async with FeedClient(a.wire, copies) as feed:
            await feed.add(1, "books", token=copies[1, ""].token)
            await feed.until_exact(revision, (1, ""))
        async with FeedClient(b.wire, copies) as feed:
            await feed.add(1, "books", token=copies[1, ""].token, filter="v > 0")
            await feed.until(lambda: feed.copies[1, ""].checkpoints and feed.copies[1, ""].resets)
        assert copies[1, ""].resets == ["FILTER_CHANGED"]
        assert copies[1, ""].checkpoints[0] >= revision, "G12: also the copy that begins anew"


async def test_a_commit_on_one_node_wakes_those_who_follow_on_another(nodes):
    """One read for all of them: whole copies, filtered ones, and calls that wait for a revision."""
    a, b = await nodes.start(), await nodes.start()
    await a.wire.make_dataset()
    await push(a.wire, "books", *range(5))
    async with FeedClient(b.wire) as feed:
        names = [(n, "") for n in range(1, 5)]
        for n, selection in zip(range(1, 5), ("", "", "v > 0", "v > 0"), strict=True):
            await feed.add(n, "books", filter=selection)
        await feed.until_exact(1, *names)
        waits = asyncio.ensure_future(read_everything(b.wire, 3))
        await push(a.wire, "books", 2, version=1)
        last = await push(a.wire, "books", 1, version=2)
        await waits
        last = await delete(a.wire, "books", 2)
        async with asyncio.timeout(3):  # less than a look of its own would take
            await feed.until_exact(last, *names)
        assert [len(feed.copies[name].records) for name in names] == [4, 4, 1, 1]
        # Both write: what lies between one's own commits is read before they are sent.
        for version in range(3, 12):
            await push((a if version % 2 else b).wire, "books", 3, 4, version=version)
        await feed.until_exact(last + 9, *names)


async def test_t79_what_no_wake_up_told_is_found_by_looking(nodes, monkeypatch):
    """T79: wake-ups do not come through at all; everybody hears within the time between two looks."""
    monkeypatch.setattr("syncline_server.catalog.lookout.LEAST_SECONDS", 0.05)
    monkeypatch.setattr("syncline_server.catalog.lookout.LOOK_SECONDS", 0.3)
    monkeypatch.setattr(PostgresNotifier, "_on_payload", lambda *_: None)
    monkeypatch.setattr(PostgresNotifier, "_echo", lambda *_: asyncio.sleep(0))
    a, b = await nodes.start(), await nodes.start()
    await a.wire.make_dataset()
    await push(a.wire, "books", 1)
    async with FeedClient(b.wire) as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        waits = asyncio.ensure_future(first_checkpoint(b.wire, min_revision=2))
        last = await push(a.wire, "books", 2)
        await feed.until_exact(last, (1, ""))
        assert await waits == 2


async def test_t81_wake_ups_that_somebody_made_up_change_nothing(nodes):
    """T81: doubled, stale, absurd ones, and of datasets that are not there, from a stranger, with the real NOTIFY."""
    a, b = await nodes.start(), await nodes.start()
    await a.wire.make_dataset()
    await push(a.wire, "books", 1)
    [[number]] = await number_of(nodes)
    forged = [
        f"{number}:1",
        f"{number}:2",
        f"{number}:9223372036854775807",
        f"{number}:9999999999999999999",
        f"{number + 1}:5 {number + 2}:1",
        " ".join(f"{n}:7" for n in range(1, 1_200)),
    ]
    async with FeedClient(b.wire) as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        await feed.add(2, "books", min_revision=2)
        waits = asyncio.ensure_future(first_checkpoint(b.wire, min_revision=2))
        for payload in forged * 3:
            await nodes.sql("SELECT pg_notify($1, $2)", CHANNEL, f"1 stranger {payload}")
        while await feed.quiet(0.5) is False:
            await feed.next()
            assert not feed.copies[2, ""].checkpoints, "G14: revision 2 is not there, whoever says so"
            if len(feed.copies[1, ""].checkpoints) > 3:
                break
        assert set(feed.copies[1, ""].checkpoints) == {1}
        assert not waits.done()
        assert await push(a.wire, "books", 2) == 2
        await feed.until_exact(2, (1, ""), (2, ""))
        assert await waits == 2


@pytest.mark.slow
async def test_t81_a_flood_of_them_costs_few_reads(nodes):
    """T81: each names a revision that is not there, so that what is known does not help."""
    b = await nodes.start(http="127.0.0.1:0")
    await b.wire.make_dataset()
    await push(b.wire, "books", 1)
    [[number]] = await number_of(nodes)
    async with FeedClient(b.wire) as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        flood = "SELECT count(pg_notify($1, '1 stranger ' || $2::bigint || ':' || n)) FROM generate_series(2, 20001) n"
        await nodes.sql(flood, CHANNEL, number)
        last = await push(b.wire, "books", 2)
        await feed.until_exact(last, (1, ""))
        reads = await counted(b, "syncline_tail_reads_total")
        assert await counted(b, "syncline_wakeups_total") >= 20_000
        assert reads < 2_000


async def counted(home, name):
    """A counter of a server."""
    reader, writer = await asyncio.open_connection(*home.server.http.split(":"))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])


@pytest.mark.slow
async def test_t78_g08_many_writers_on_two_nodes_and_late_wake_ups(nodes, monkeypatch):
    """T78: 50 writers; commits are announced late and out of order. Copies on both nodes are contiguous and exact."""
    seeds = random.Random(78)
    announce = PostgresNotifier.announce

    def late(self, appended):
        asyncio.get_running_loop().call_later(seeds.choice((0, 0, 0.02, 0.1)), announce, self, appended)

    monkeypatch.setattr(PostgresNotifier, "announce", late)
    both = [await nodes.start(), await nodes.start()]
    await both[0].wire.make_dataset()

    async def write(place):
        wire = both[place % 2].wire
        for version in range(6):
            await push(wire, "books", place, 100 + version, version=version)
            if version % 3 == 2:
                await delete(wire, "books", place)

    async with FeedClient(both[0].wire) as one, FeedClient(both[1].wire) as other:
        for feed in (one, other):
            await feed.add(1, "books")
            await feed.add(2, "books", filter="v >= 3")
        writes = asyncio.gather(*(write(place) for place in range(50)))
        follows = [asyncio.ensure_future(take_during(feed, writes)) for feed in (one, other)]
        await writes
        request = catalog.GetDatasetRequest(name=DATASET)
        head = (await both[0].wire.call(both[0].wire.catalog.GetDataset, request)).dataset.revision
        assert head >= 50 * 6, "G3: no number without a commit"
        for feed, following in zip((one, other), follows, strict=True):
            await following
            await feed.until_exact(head, (1, ""), (2, ""))
        for name in ((1, ""), (2, "")):
            assert one.copies[name].records == other.copies[name].records
        assert not one.errors
        assert not other.errors


async def take_during(feed, writes):
    """Take messages while there are writes."""
    while not writes.done():
        if not await feed.quiet(0.05):
            await feed.next()


async def test_g12_a_copy_that_begins_anew_is_not_older_than_what_its_token_has_seen():
    """G12: the other node is reading a page for somebody else since before the commit that the token has seen."""
    here = House(MemoryStore())
    dataset = await here.create()
    there = House(here.store)
    there.dataset = dataset
    read, go_on = asyncio.Event(), asyncio.Event()

    async def hold(page):
        if page.head.revision == 1:
            read.set()
            await go_on.wait()

    async with here.feed.run(), there.feed.run():
        await here.write(rows(1))
        there.store.after_read = hold
        async with there.subscribe() as messages:
            behind = asyncio.ensure_future(anext(messages))
            await read.wait()
            await here.write(rows(2))  # not heard there
            filtered = await here.sync(Copy(), selection=parse_selection("v >= 0", []))
            assert filtered.checkpoints[-1] == 2
            copy = Copy(token=filtered.token)
            async with there.subscribe(token=filtered.token) as again:
                copy.take(await anext(again))
                assert copy.resets == ["FILTER_CHANGED"]
                following = asyncio.ensure_future(follow(copy, again))
                await asyncio.sleep(0)
                go_on.set()
                await following
            assert copy.checkpoints[0] >= 2
            await behind


@pytest.mark.slow
async def test_new_ids_given_on_one_node_are_followed_on_another(nodes):
    """A change of identity is one commit in which every record goes and comes; whole and filtered copies take it."""
    a, b = await nodes.start(), await nodes.start()
    await a.wire.make_dataset()
    await push(a.wire, "books", *range(1_500))
    async with FeedClient(b.wire) as feed:
        await feed.add(1, "books")
        await feed.add(2, "books", filter="v = 0")
        await feed.until_exact(1, (1, ""), (2, ""))
        identity = dataset_pb2.Identity(kind=dataset_pb2.Identity.KIND_KEY, key_fields=["isbn", "v"])
        request = catalog.UpdateDatasetRequest(
            dataset=dataset_pb2.Dataset(name=DATASET, identity=identity),
            update_mask={"paths": ["identity"]},
            rekey=True,
        )
        await a.wire.call(a.wire.catalog.UpdateDataset, request)
        await feed.until_exact(2, (1, ""), (2, ""))
        for name in ((1, ""), (2, "")):
            assert len(feed.copies[name].records) == 1_500
            assert "k7" not in feed.copies[name].records
        assert await push(b.wire, "books", 7, version=1) == 3, (
            "by the new identity, also where the old was cached"
        )
        await feed.until_exact(3, (1, ""))
        assert len(feed.copies[1, ""].records) == 1_501
