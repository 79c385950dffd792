"""UpdateFeed over the wire, against a server in this process."""

import asyncio
from pathlib import Path

import pytest

from support.feed_client import FeedClient, delete, push
from support.feed_encoder import Copy
from support.waiting import until
from support.wire import house
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import key_pb2
from syncline.v1 import sync_service_pb2 as pb
from syncline.v1.update_feed_pb2 import (
    Accepted,
    AddSubscription,
    DeliveryMode,
    FeedAction,
    RemoveSubscription,
)

MAX_RATE, ON_CHECKPOINT = DeliveryMode.DELIVERY_MODE_MAX_RATE, DeliveryMode.DELIVERY_MODE_ON_CHECKPOINT


# -- many on one stream ------------------------------------------------------------------------------------


async def test_g07_g08_many_datasets_on_one_stream(wire, feeds):
    """Each subscription is contiguous and exact by itself; the first part of each is its Accepted."""
    await push(wire, "books", *range(1_500))
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.add(2, "birds")
        await feed.until_exact(1, (1, ""))
        await feed.until(lambda: feed.copies[2, ""].exact)
        assert feed.accepted[1, ""].head_revision == 1
        await push(wire, "birds", 1, 2)
        last = await push(wire, "books", 7, version=1)
        last = await delete(wire, "books", 8)
        await feed.until_exact(last, (1, ""))
        await feed.until_exact(1, (2, ""))
        assert len(feed.copies[1, ""].records) == 1_499
        assert len(feed.copies[2, ""].records) == 2
        assert not feed.errors


async def test_a_stream_without_subscriptions_stays_open(wire, feeds):
    async with feeds() as feed:
        await feed.remove(7)
        await feed.ack(7, 5)
        await feed.grant(7, 100)
        assert await feed.quiet(0.3)
        await feed.add(1, "books")
        await feed.until(lambda: feed.copies[1, ""].exact)


async def test_g11_a_token_goes_on_where_it_was(wire, feeds):
    await push(wire, "books", *range(10))
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
    await delete(wire, "books", 3)
    async with feeds(feed.copies) as again:
        await again.add(1, "books", token=feed.copies[1, ""].token)
        await again.until_exact(2, (1, ""))
        assert again.copies[1, ""].batches == 2
        assert not again.copies[1, ""].resets


async def test_the_first_checkpoint_is_not_before_the_head_that_was_told(wire, feeds):
    """Also of a copy that goes on within what the server has at hand, commit by commit."""
    await push(wire, "books", 1)
    async with feeds() as feed, feeds() as stays:
        await feed.add(1, "books")
        await stays.add(1, "books")
        await feed.until_exact(1, (1, ""))
        await stays.until_exact(1, (1, ""))
        for version in range(1, 5):
            await push(wire, "books", 1, version=version)
        await stays.until_exact(5, (1, ""))
        token = feed.copies[1, ""].token
        for _ in range(2):  # several commits behind, then at the head
            await feed.remove(1)
            feed.accepted.clear()
            copy = feed.copies[2, ""] = Copy(revision=1 if not feed.copies[2, ""].revision else 5)
            copy.records.update(feed.copies[1, ""].records)
            await feed.add(2, "books", token=token)
            await feed.until(lambda copy=copy: (2, "") in feed.accepted and copy.checkpoints)
            assert feed.accepted[2, ""].head_revision == 5
            assert copy.checkpoints[0] == 5
            feed.copies[1, ""].records = copy.records
            token = copy.token


async def test_from_now_begins_with_a_checkpoint(wire, feeds):
    await push(wire, "books", *range(10))
    async with feeds() as feed:
        copy = feed.copies[1, ""]
        copy.whole, copy.revision = False, 1
        await feed.add(1, "books", from_now=True)
        await feed.until(lambda: copy.exact)
        assert (copy.batches, copy.checkpoints) == (0, [1])
        await push(wire, "books", 11)
        await feed.until_exact(2, (1, ""))
        assert list(copy.records) == ["k11"]


async def test_g14_nothing_comes_before_min_revision(wire, feeds):
    await push(wire, "books", 1)
    async with feeds() as feed:
        await feed.add(1, "books", min_revision=2)
        await feed.until(lambda: (1, "") in feed.accepted)
        assert await feed.quiet(0.6), "not even a bookmark"
        await push(wire, "books", 2)
        await feed.until(lambda: feed.copies[1, ""].exact)
        assert feed.copies[1, ""].checkpoints[0] == 2


async def test_the_same_id_replaces_what_it_named(wire, feeds):
    await push(wire, "books", 1, 2)
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        old = feed.copies.pop((1, ""))
        feed.accepted.clear()
        await feed.add(1, "birds")
        await feed.until(lambda: (1, "") in feed.accepted)
        await push(wire, "books", 3)
        await push(wire, "birds", 4)
        await feed.until_exact(1, (1, ""))
        assert list(feed.copies[1, ""].records) == ["k4"]
        assert len(old.records) == 2


async def test_nothing_comes_after_a_remove_was_done(wire, feeds):
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.add(2, "birds")
        await feed.until(lambda: feed.copies[1, ""].exact and feed.copies[2, ""].exact)
        await feed.act(
            FeedAction(remove=RemoveSubscription(subscription_id=1)),
            FeedAction(add=AddSubscription(subscription_id=3, dataset="datasets/birds")),
        )
        await feed.until(lambda: (3, "") in feed.accepted)
        feed.parts.clear()
        await push(wire, "books", 1)
        await push(wire, "birds", 1)
        await feed.until_exact(1, (2, ""), (3, ""))
        assert (1, "") not in feed.parts


@pytest.mark.parametrize(("text", "cost"), [("v = 1", "INDEXED"), ("v > 0 AND v < 2", "SCANNED")])
async def test_g07_filtered_copies_share_a_stream(wire, feeds, text, cost):
    """Each of them exact under its own filter; what stops matching leaves."""
    await push(wire, "books", *range(20))
    await push(wire, "books", *range(5), version=1)
    async with feeds() as feed:
        await feed.add(1, "books", filter=text)
        await feed.add(2, "books")
        await feed.add(3, "b*", filter=text, read_mask={"paths": ["v"]})
        await feed.until_exact(2, (1, ""), (2, ""), (3, "datasets/books"))
        await push(wire, "books", 7, version=1)
        last = await push(wire, "books", 2, version=2)
        await feed.until_exact(last, (1, ""), (2, ""), (3, "datasets/books"))
        assert set(feed.copies[1, ""].records) == {"k0", "k1", "k3", "k4", "k7"}
        assert set(feed.copies[3, "datasets/books"].records) == set(feed.copies[1, ""].records)
        assert {data for _, data in feed.copies[3, "datasets/books"].records.values()} == {b'{"v":1}'}
        assert len(feed.copies[2, ""].records) == 20
        assert Accepted.CostClass.Name(feed.accepted[1, ""].cost_class) == f"COST_CLASS_{cost}"
        assert not feed.accepted[2, ""].cost_class


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dataset": "nowhere"}, "DATASET_NOT_FOUND"),
        ({"dataset": "Books"}, "INVALID_REQUEST"),
        ({"dataset": "Bo*"}, "INVALID_REQUEST"),
        ({"dataset": "b*", "token": b"x"}, "INVALID_REQUEST"),
        ({"dataset": "b*", "min_revision": 3}, "INVALID_REQUEST"),
        ({"dataset": "b*", "tokens": {"datasets/other": b"x"}}, "INVALID_REQUEST"),
        ({"dataset": "books", "tokens": {"datasets/books": b"x"}}, "INVALID_REQUEST"),
        ({"dataset": "books", "token": b"garbage"}, "TOKEN_INVALID"),
        ({"dataset": "books", "token": b"x", "from_now": True}, "INVALID_REQUEST"),
        ({"dataset": "books", "filter": "a ="}, "FILTER_INVALID"),
        ({"dataset": "books", "delivery_mode": MAX_RATE}, "INVALID_REQUEST"),
        ({"dataset": "books", "delivery_mode": 17}, "INVALID_REQUEST"),
        ({"dataset": "books", "min_interval": {"seconds": 1}}, "INVALID_REQUEST"),
        ({"dataset": "books", "replica_id": "a b"}, "INVALID_REQUEST"),
        ({"dataset": "books", "credit_bytes": -1}, "INVALID_REQUEST"),
        ({"dataset": "books", "min_revision": -1}, "INVALID_REQUEST"),
    ],
    ids=str,
)
async def test_an_error_of_one_subscription_leaves_the_others_alone(wire, feeds, fields, reason):
    async with feeds() as feed:
        await feed.add(1, "birds")
        await feed.add(2, **fields)
        await feed.until(lambda: (2, "") in feed.errors and feed.copies[1, ""].exact)
        assert feed.errors == {(2, ""): reason}
        await push(wire, "birds", 1)
        await feed.until_exact(1, (1, ""))
        await feed.add(2, "books")
        await feed.until(lambda: (2, "") in feed.accepted)


async def test_a_dataset_that_is_deleted_ends_its_subscription_alone(wire, feeds):
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.add(2, "birds")
        await feed.until(lambda: feed.copies[1, ""].exact and feed.copies[2, ""].exact)
        await wire.call(wire.catalog.DeleteDataset, catalog.DeleteDatasetRequest(name="datasets/books"))
        await feed.until(lambda: (1, "") in feed.errors)
        assert feed.errors[1, ""] == "DATASET_NOT_FOUND"
        await push(wire, "birds", 1)
        await feed.until_exact(1, (2, ""))


async def test_an_ack_of_what_was_not_sent_ends_the_subscription(wire, feeds):
    await push(wire, "books", 1)
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        await feed.ack(1, 1)
        await push(wire, "books", 2)
        await feed.until_exact(2, (1, ""))
        await feed.ack(1, 3)
        await feed.until(lambda: (1, "") in feed.errors)
        assert feed.errors[1, ""] == "INVALID_REQUEST"


async def test_credit_must_be_above_zero(wire, feeds):
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.grant(1, 0)
        await feed.until(lambda: (1, "") in feed.errors)
        assert feed.errors[1, ""] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    "action", [FeedAction(), FeedAction(add=AddSubscription(dataset="datasets/books"))], ids=["none", "id 0"]
)
async def test_actions_that_name_no_subscription_end_the_stream(wire, feeds, action):
    async with feeds() as feed:
        await feed.act(action)
        refused = await feed.ended()
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_a_message_of_too_many_actions_ends_the_stream(wire, feeds):
    async with feeds() as feed:
        await feed.act(*[FeedAction(remove=RemoveSubscription(subscription_id=1))] * 10_001)
        assert (await feed.ended()).reason == "INVALID_REQUEST"


async def test_too_many_subscriptions_end_the_stream(tmp_path):
    async with house(tmp_path, subscriptions_per_stream=2) as home:
        await home.wire.make_dataset("books")
        async with FeedClient(home.wire) as feed:
            for number in (1, 2, 2, 1):
                await feed.add(number, "books")
            await feed.until(lambda: feed.copies[1, ""].exact and feed.copies[2, ""].exact)
            await feed.add(3, "books")
            refused = await feed.ended()
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SUBSCRIPTIONS")


# -- rights ----------------------------------------------------------------------------------------------


async def test_g21_a_subscription_that_the_key_may_no_longer_read_ends_alone(wire):
    reader = await wire.make_key("READ", datasets=["books", "birds"])
    async with FeedClient(reader) as feed:
        await feed.add(1, "books")
        await feed.add(2, "birds")
        await feed.add(3, "b*")
        await feed.until(lambda: feed.copies[1, ""].exact and feed.copies[2, ""].exact)
        await feed.until(lambda: (3, "datasets/books") in feed.accepted)
        update = catalog.UpdateKeyRequest(key=key_pb2.Key(name=reader.key_name, datasets=["birds"]))
        update.update_mask.paths.append("datasets")
        await wire.call(wire.catalog.UpdateKey, update)
        await feed.until(lambda: (1, "") in feed.errors and (3, "datasets/books") in feed.errors)
        assert set(feed.errors.values()) == {"PERMISSION_DENIED"}
        await push(wire, "birds", 1)
        await feed.until_exact(1, (2, ""), (3, "datasets/birds"))
        await wire.call(wire.catalog.DeleteKey, catalog.DeleteKeyRequest(name=reader.key_name))
        assert (await feed.ended()).code == "UNAUTHENTICATED"


# -- prefixes ----------------------------------------------------------------------------------------------


async def test_a_prefix_follows_what_is_created_and_deleted(wire, feeds):
    await push(wire, "books", 1)
    async with feeds() as feed:
        await feed.add(1, "b*")
        await feed.until(lambda: len(feed.accepted) == 2)
        await wire.make_dataset("boats")
        await wire.make_dataset("cars")
        await push(wire, "boats", 1)
        await feed.until_exact(1, (1, "datasets/boats"), (1, "datasets/books"))
        await wire.call(wire.catalog.DeleteDataset, catalog.DeleteDatasetRequest(name="datasets/boats"))
        await feed.until(lambda: (1, "datasets/boats") in feed.errors)
        assert feed.errors == {(1, "datasets/boats"): "DATASET_NOT_FOUND"}
        del feed.copies[1, "datasets/boats"]
        await wire.make_dataset("boats")
        await push(wire, "boats", 2)
        await feed.until_exact(1, (1, "datasets/boats"))
        assert not feed.errors
        assert set(feed.copies) == {(1, f"datasets/{name}") for name in ("books", "birds", "boats")}


async def test_a_prefix_goes_on_from_tokens(wire, feeds):
    await push(wire, "books", *range(5))
    async with feeds() as feed:
        await feed.add(1, "b*")
        await feed.until_exact(1, (1, "datasets/books"))
        await feed.until(lambda: feed.copies[1, "datasets/birds"].exact)
    tokens = {name: copy.token for (_, name), copy in feed.copies.items()}
    await push(wire, "books", 9)
    async with feeds(feed.copies) as again:
        await again.add(1, "b*", tokens=tokens | {"datasets/bats": tokens["datasets/birds"]})
        await again.until_exact(2, (1, "datasets/books"))
        await again.until(lambda: (1, "datasets/bats") in again.errors)
        assert again.errors == {(1, "datasets/bats"): "DATASET_NOT_FOUND"}
        assert again.copies[1, "datasets/books"].batches == 2
        assert not again.copies[1, "datasets/books"].resets


async def test_a_token_of_another_dataset_begins_anew(wire, feeds):
    await push(wire, "books", 1)
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        token = feed.copies[1, ""].token
        await feed.add(2, "birds", token=token)
        await feed.until(lambda: feed.copies[2, ""].exact)
        assert feed.copies[2, ""].resets == ["DATASET_REPLACED"]


# -- heads -------------------------------------------------------------------------------------------------


async def test_list_heads(wire, feeds):
    await push(wire, "books", 1, 2)
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
    listed = await wire.call(wire.sync.ListHeads, pb.ListHeadsRequest())
    birds, books = listed.heads
    assert (birds.dataset, birds.revision, birds.record_count) == ("datasets/birds", 0, 0)
    assert not birds.HasField("commit_time")
    assert (books.revision, books.record_count, len(books.digest)) == (1, 2, 16)
    assert (
        books.uid
        == (
            await wire.call(wire.catalog.GetDataset, catalog.GetDatasetRequest(name="datasets/books"))
        ).dataset.uid
    )


async def test_list_heads_pages_by_prefix_and_right(wire):
    for number in range(7):
        await wire.make_dataset(f"boat{number}")
    found, token = [], ""
    while True:
        page = await wire.call(
            wire.sync.ListHeads, pb.ListHeadsRequest(prefix="bo", page_size=3, page_token=token)
        )
        found += [head.dataset for head in page.heads]
        assert len(page.heads) <= 3
        token = page.next_page_token
        if not token:
            break
    assert found == [*(f"datasets/boat{number}" for number in range(7)), "datasets/books"]
    reader = await wire.make_key("READ", datasets=["boat3"])
    page = await reader.call(reader.sync.ListHeads, pb.ListHeadsRequest(prefix="bo"))
    assert [head.dataset for head in page.heads] == ["datasets/boat3"]
    refused = await wire.refused(
        wire.sync.ListHeads, pb.ListHeadsRequest(prefix="b", page_token=token or "x")
    )
    assert refused.reason == "PAGE_TOKEN_INVALID"


# -- what is left ----------------------------------------------------------------------------------------


async def test_t62_streams_and_subscriptions_that_come_and_go_leave_nothing(home, wire, feeds):
    """1,000 cycles: tasks and descriptors are back where they were."""
    await push(wire, "books", 1)
    async with feeds() as feed:
        await feed.add(1, "books")
        await feed.until_exact(1, (1, ""))
        tasks = len(asyncio.all_tasks())
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(2, 602):
            await feed.add(number % 5 + 2, "books" if number % 2 else "b*")
            if number % 3 == 0:
                await feed.remove(number % 5 + 2)

        async def come_and_go(look):
            async with feeds() as other:
                await other.add(1, "birds")
                if look:
                    await other.until(lambda: other.copies[1, ""].exact)

        for number in range(0, 400, 20):
            await asyncio.gather(*(come_and_go((number + n) % 2) for n in range(20)))
        for number in range(2, 7):
            await feed.remove(number)
        revision = await push(wire, "books", 2)
        await feed.until_exact(revision, (1, ""))
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= descriptors)
