"""A client of UpdateFeed on bare stubs, which trusts nothing: every copy checks every batch and every checkpoint."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo

from support.feed_encoder import Copy
from support.wire import Refused
from syncline.v1 import feed_pb2, push_service_pb2, update_feed_pb2
from syncline.v1 import sync_service_pb2 as pb
from syncline.v1.update_feed_pb2 import AckCheckpoint, AddSubscription, FeedAction, GrantCredit

PATIENCE_SECONDS = 20

Name = tuple[int, str]
"""Id of a subscription, and with a prefix the dataset, as ``datasets/{dataset}``."""


def take_events(copy: Copy, events: Any) -> None:
    """Apply events to a copy, which checks them."""
    for event in events:
        kind = event.WhichOneof("event")
        body = getattr(event, kind)
        if kind == "changes":
            copy._changes(
                {
                    "from_revision": body.from_revision,
                    "to_revision": body.to_revision,
                    "partial": body.partial,
                    "record_ids": list(body.record_ids),
                    "data": [data.decode() for data in body.data],
                    "revisions": list(body.revisions),
                    "kinds": list(body.kinds),
                    "folded": body.folded,
                }
            )
        elif kind == "checkpoint":
            copy._checkpoint(
                {
                    "revision": body.revision,
                    "record_count": body.record_count,
                    "digest": int.from_bytes(body.digest, "big"),
                    "going_away": body.going_away,
                }
            )
        else:
            copy._reset({"reason": feed_pb2.Reset.Reason.Name(body.reason).removeprefix("REASON_")})
        if kind != "reset" and body.token:
            copy.token = body.token


class FeedClient:
    """One stream. ``copies`` may be given, to go on with those of an earlier stream."""

    def __init__(self, wire: Any, copies: dict[Name, Copy] | None = None) -> None:
        self._call = wire.sync.UpdateFeed(metadata=wire.metadata)
        self.copies: dict[Name, Copy] = defaultdict(Copy) if copies is None else copies
        self.accepted: dict[Name, Any] = {}
        self.errors: dict[Name, str] = {}
        self.parts: list[Name] = []
        self.bytes: dict[int, int] = defaultdict(int)
        self.messages = 0
        self.going_away: Any = None
        self._resumed: set[int] = set()
        self._reading: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> "FeedClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        self._call.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def act(self, *actions: FeedAction) -> None:
        await self._call.write(pb.UpdateFeedRequest(actions=actions))

    async def add(self, subscription_id: int, dataset: str, **fields: Any) -> None:
        """Add a subscription of ``datasets/{dataset}``."""
        (self._resumed.add if fields.get("token") else self._resumed.discard)(subscription_id)
        add = AddSubscription(subscription_id=subscription_id, dataset=f"datasets/{dataset}", **fields)
        await self.act(FeedAction(add=add))

    async def remove(self, subscription_id: int) -> None:
        await self.act(FeedAction(remove=update_feed_pb2.RemoveSubscription(subscription_id=subscription_id)))

    async def ack(self, subscription_id: int, revision: int, dataset: str = "") -> None:
        ack = AckCheckpoint(subscription_id=subscription_id, revision=revision, dataset=dataset)
        await self.act(FeedAction(ack=ack))

    async def grant(self, subscription_id: int, count: int) -> None:
        await self.act(FeedAction(credit=GrantCredit(subscription_id=subscription_id, bytes=count)))

    async def next(self) -> Any:
        """Take one message. Raises what ends the stream; EOFError when nothing does."""
        reading, self._reading = self._reading or asyncio.ensure_future(self._call.read()), None
        message = await reading
        if message is grpc.aio.EOF:
            raise EOFError
        self.messages += 1
        if message.HasField("going_away"):
            self.going_away = message.going_away
        for part in message.parts:
            self._take(part)
        return message

    def _take(self, part: Any) -> None:
        name = (part.subscription_id, part.dataset)
        self.parts.append(name)
        self.bytes[part.subscription_id] += part.ByteSize()
        if part.HasField("accepted"):
            # A subscription in place of another begins with it.
            if name in self.accepted and part.subscription_id not in self._resumed:
                self.copies[name] = Copy()
            self.accepted[name] = part.accepted
            self.errors.pop(name, None)
        take_events(self.copies[name], part.events)
        if part.HasField("error"):
            info = ErrorInfo()
            assert part.error.details[0].Unpack(info)
            self.errors[name] = info.reason

    async def ended(self) -> Refused:
        """Read to the end, which must be a refusal: this one."""
        try:
            await self.until(lambda: False)
        except grpc.aio.AioRpcError as error:
            return Refused(error)
        raise AssertionError("the stream did not end")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Take messages until something is so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await self.next()

    async def until_exact(self, revision: int, *names: Name) -> None:
        """Take messages until these copies are exact at this revision or a later one."""

        def there() -> bool:
            copies = [self.copies[name] for name in names]
            return all(copy.exact and copy.revision >= revision for copy in copies)

        await self.until(there)

    async def quiet(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        self._reading = self._reading or asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        return not done


async def push(wire: Any, dataset: str, *numbers: int, version: int = 0, size: int = 0) -> int:
    """Put records ``k<number>``; the new revision."""
    padding = "x" * size
    records = [b'{"isbn":"k%d","p":"%s","v":%d}' % (n, padding.encode(), version) for n in numbers]
    request = push_service_pb2.PushRequest(source=f"datasets/{dataset}/sources/default", records=records)
    return (await wire.call(wire.push.Push, request)).revision


async def delete(wire: Any, dataset: str, *numbers: int) -> int:
    """Delete records ``k<number>``; the new revision."""
    ids = [f"k{number}" for number in numbers]
    request = push_service_pb2.DeleteByIdsRequest(
        source=f"datasets/{dataset}/sources/default", record_ids=ids
    )
    return (await wire.call(wire.push.DeleteByIds, request)).revision
