"""Syncline without its SDK: the generated stubs on a channel of its own, as etcd is used here.

For figures in which the SDK would be measured more than the server: many subscriptions in one process, a message
for each reading.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio

from bench.records import Item, encode_item
from bench.systems.base import Client
from bench.systems.syncline import Syncline, SynclineClient
from syncline.names import new_request_id
from syncline.v1 import push_service_pb2 as push
from syncline.v1 import sync_service_pb2 as sync
from syncline.v1 import update_feed_pb2 as feed
from syncline.v1.push_service_pb2_grpc import PushServiceStub
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub

_CREDIT_BYTES: Final = 4 << 20
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel, as separate clients have
]


class _Account:
    """Which subscriptions of a stream have begun, and what they may still be sent."""

    def __init__(self, subscriptions: int) -> None:
        self.grants: list[feed.FeedAction] = []
        """To be sent."""
        self._beginning = set(range(1, subscriptions + 1))
        self._taken: dict[int, int] = {}

    def take(self, part: feed.FeedPart) -> bool:
        """Count a part; whether it was the one with which all have begun. Raises RuntimeError for an error."""
        if part.HasField("error"):
            raise RuntimeError(part.error.message)
        subscription_id = part.subscription_id
        taken = self._taken.get(subscription_id, 0) + part.ByteSize()
        if taken > _CREDIT_BYTES // 2:
            grant = feed.GrantCredit(subscription_id=subscription_id, bytes=taken)
            self.grants.append(feed.FeedAction(credit=grant))
            taken = 0
        self._taken[subscription_id] = taken
        if not self._beginning or not any(event.HasField("checkpoint") for event in part.events):
            return False
        self._beginning.discard(subscription_id)
        return not self._beginning

    def take_grants(self) -> list[feed.FeedAction]:
        """Those to be sent."""
        grants, self.grants = self.grants, []
        return grants


class StubChannel:
    """A connection with its key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.metadata = (("authorization", f"Bearer {key}"),)
        self.sync = SyncServiceStub(channel)
        self.push = PushServiceStub(channel)

    async def follow(self, collection: str, filters: Sequence[str]) -> AsyncIterator[list[bytes]]:
        """One UpdateFeed stream with a subscription for each filter; "" is none.

        Yields the JSON texts of each message, of all subscriptions together; first an empty list, when all of them
        have reached their first checkpoint.
        """
        call: Any = self.sync.UpdateFeed(metadata=self.metadata)
        adds = (
            feed.AddSubscription(
                subscription_id=number,
                dataset=f"datasets/{collection}",
                filter=text,
                credit_bytes=_CREDIT_BYTES,
            )
            for number, text in enumerate(filters, 1)
        )
        await call.write(sync.UpdateFeedRequest(actions=[feed.FeedAction(add=add) for add in adds]))
        account = _Account(len(filters))
        try:
            async for response in call:
                items: list[bytes] = []
                for part in response.parts:
                    for event in part.events:
                        items += event.changes.data
                    if account.take(part):
                        yield []
                if items:
                    yield items
                if account.grants:
                    await call.write(sync.UpdateFeedRequest(actions=account.take_grants()))
        finally:
            call.cancel()

    async def copy(self, collection: str) -> int:
        """Subscribe from nothing up to the first checkpoint; the number of changes. Nothing is done with them."""
        call: Any = self.sync.Subscribe(
            sync.SubscribeRequest(dataset=f"datasets/{collection}"), metadata=self.metadata
        )
        changes = 0
        try:
            async for response in call:
                for event in response.events:
                    changes += len(event.changes.record_ids)
                    if event.HasField("checkpoint"):
                        return changes
        finally:
            call.cancel()
        raise RuntimeError("the feed ended before the copy was complete")

    async def push_one(self, collection: str, item: Item) -> None:
        """A push of one record that may be repeated, as the SDK sends it."""
        request = push.PushRequest(
            source=f"datasets/{collection}/sources/default",
            records=[encode_item(item)],
            request_id=new_request_id(),
        )
        await self.push.Push(request, metadata=self.metadata)

    async def open_producer(self, collection: str, producer_id: str) -> "ProducerCall":
        """Open a producer of the default source."""
        call: Any = self.push.PushStream(metadata=self.metadata)
        source = f"datasets/{collection}/sources/default"
        opening = push.OpenProducer(source=source, producer_id=producer_id)
        await call.write(push.PushStreamRequest(open=opening))
        response = await call.read()
        return ProducerCall(call, response.opened.last_sequence)


class ProducerCall:
    """One PushStream stream."""

    def __init__(self, call: Any, last_sequence: int) -> None:
        self._call = call
        self._next = last_sequence + 1

    async def send(self, items: Sequence[Item]) -> None:
        """One message of readings."""
        records = [encode_item(item) for item in items]
        readings = push.Readings(first_sequence=self._next, records=records)
        self._next += len(records)
        await self._call.write(push.PushStreamRequest(readings=readings))

    @property
    def last_sent(self) -> int:
        """Number of the last reading that was sent."""
        return self._next - 1

    async def acknowledged(self) -> int:
        """Wait for the next acknowledgement: the number up to which all readings are durable."""
        while True:
            response = await self._call.read()
            if response is grpc.aio.EOF:
                raise RuntimeError(f"PushStream ended: {await self._call.details()}")
            if response.HasField("ack"):
                return int(response.ack.last_sequence)

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()


class FeedClient(Client):
    """Single pushes and UpdateFeed with the stubs; everything else through the SDK."""

    def __init__(self, stubs: StubChannel, sdk: SynclineClient) -> None:
        self.stubs = stubs
        self._sdk = sdk

    async def create(self, collection: str) -> None:
        """A dataset with a key and a schema."""
        await self._sdk.create(collection)

    async def push_bulk(self, collection: str, items: list[Item]) -> None:
        """1,000 records a call."""
        await self._sdk.push_bulk(collection, items)

    async def push_one(self, collection: str, item: Item) -> None:
        """A push of one record, with the stub as well."""
        await self.stubs.push_one(collection, item)

    async def copy(self, collection: str) -> dict[str, bytes]:
        """The feed from nothing to its first checkpoint."""
        return await self._sdk.copy(collection)

    def watch(self, collection: str, subscriptions: int = 1) -> AsyncIterator[list[bytes]]:
        """Subscriptions without a filter on a stream of their own."""
        return self.stubs.follow(collection, [""] * subscriptions)


class SynclineFeed(Syncline):
    """The same server, followed through UpdateFeed with the generated stubs."""

    name = "syncline_feed"

    @contextlib.asynccontextmanager
    async def connect_stubs(self, address: str) -> AsyncIterator[StubChannel]:
        """A channel. The address holds the path of the admin key after the port."""
        endpoint, _, key_file = address.partition("/")
        async with grpc.aio.insecure_channel(endpoint, options=_OPTIONS) as channel:
            yield StubChannel(channel, Path(f"/{key_file}").read_text().strip())

    @contextlib.asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[Client]:
        """A connection of its own; the SDK's is opened when it is used."""
        async with self.connect_stubs(address) as stubs, self.connect_sdk(address) as sdk:
            yield FeedClient(stubs, sdk)
