"""UpdateFeed as a test tells it to be: each stream is an object that the test speaks through."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from support.scripted_server import Refuse, ScriptedServer
from syncline.names import dataset_name
from syncline.v1.feed_pb2 import FeedEvent
from syncline.v1.sync_service_pb2 import UpdateFeedRequest, UpdateFeedResponse
from syncline.v1.update_feed_pb2 import Accepted, AddSubscription, FeedPart, GoingAway

Answer = Callable[["FeedStream", AddSubscription], Awaitable[None]]


class FeedStream:
    """One stream, from the server's side."""

    def __init__(self, number: int, send: Callable[[Any], Awaitable[None]]) -> None:
        self.number = number
        """From 1, in the order in which they were opened."""
        self.adds: list[AddSubscription] = []
        self.removed: list[int] = []
        self.acks: list[tuple[int, str, int]] = []
        self.credit: dict[int, int] = {}
        """Bytes that may still be sent, by subscription id."""
        self.messages = 0
        """Messages that the client sent."""
        self.answered = 0
        """How many of the subscriptions that were added have got their answer."""
        self._send = send
        self._turn = asyncio.Lock()  # one write at a time, or gRPC breaks the stream
        self.end: asyncio.Future[Refuse | None] = asyncio.get_running_loop().create_future()

    @property
    def added(self) -> dict[str, AddSubscription]:
        """The newest request for each dataset or pattern."""
        return {add.dataset.removeprefix("datasets/"): add for add in self.adds}

    def id_of(self, dataset: str) -> int:
        return self.added[dataset].subscription_id

    async def send(self, *parts: FeedPart, going_away: float | None = None) -> None:
        for part in parts:
            if part.subscription_id in self.credit:
                self.credit[part.subscription_id] -= part.ByteSize()
        message = UpdateFeedResponse(parts=parts)
        if going_away is not None:
            nanos = int(going_away * 1e9)
            message.going_away.CopyFrom(
                GoingAway(retry_delay=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9))
            )
        async with self._turn:
            await self._send(message)

    async def accept(
        self, add: AddSubscription, *events: FeedEvent, dataset: str = "", head: int = 0
    ) -> None:
        await self.send(accepted(add.subscription_id, *events, dataset=dataset, head=head))

    async def events(self, of: AddSubscription | int, *events: FeedEvent, dataset: str = "") -> None:
        number = of if isinstance(of, int) else of.subscription_id
        await self.send(part(number, *events, dataset=dataset))

    async def refuse(self, of: AddSubscription | int, refusal: Refuse, *, dataset: str = "") -> None:
        number = of if isinstance(of, int) else of.subscription_id
        name = dataset_name(dataset) if dataset else ""
        await self.send(FeedPart(subscription_id=number, dataset=name, error=refusal.status))

    def close(self, refusal: Refuse | None = None) -> None:
        """End the stream, with OK or with an error."""
        if not self.end.done():
            self.end.set_result(refusal)


class ScriptedFeed:
    """Serves UpdateFeed; ``answer`` is called for each subscription that is added."""

    def __init__(self, scripted: ScriptedServer, answer: Answer) -> None:
        self.streams: list[FeedStream] = []
        self.answer = answer
        self._scripted = scripted
        scripted.on["UpdateFeed"] = self._serve

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what clients sent makes this true."""
        await self._scripted.until(lambda _: bool(condition()))

    async def stream(self, number: int, *, adds: int = 0) -> FeedStream:
        """The stream with this number, when it is there and that many subscriptions of it were answered."""
        await self.until(lambda: len(self.streams) >= number and self.streams[number - 1].answered >= adds)
        return self.streams[number - 1]

    @property
    def last(self) -> FeedStream:
        return self.streams[-1]

    async def _serve(
        self, requests: AsyncIterator[UpdateFeedRequest], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        stream = FeedStream(len(self.streams) + 1, send)
        self.streams.append(stream)
        reader = asyncio.create_task(self._read(stream, requests), name="scripted feed")
        try:
            await asyncio.wait([reader, stream.end], return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            refusal = stream.end.result() if stream.end.done() else None
            if refusal is not None:
                raise refusal
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, stream: FeedStream, requests: AsyncIterator[UpdateFeedRequest]) -> None:
        async for request in requests:
            stream.messages += 1
            fresh = [self._note(stream, action) for action in request.actions]
            await self._scripted.note(lambda: None)
            for add in fresh:
                if add is not None:
                    await self.answer(stream, add)
                    stream.answered += 1
            await self._scripted.note(lambda: None)

    def _note(self, stream: FeedStream, action: Any) -> AddSubscription | None:
        match action.WhichOneof("action"):
            case "add":
                stream.adds.append(action.add)
                stream.credit[action.add.subscription_id] = action.add.credit_bytes or 1 << 20
                return action.add  # type: ignore[no-any-return]
            case "remove":
                stream.removed.append(action.remove.subscription_id)
            case "ack":
                stream.acks.append((action.ack.subscription_id, action.ack.dataset, action.ack.revision))
            case "credit":
                number = action.credit.subscription_id
                stream.credit[number] = stream.credit.get(number, 0) + action.credit.bytes
            case other:
                raise AssertionError(f"an action without content: {other}")
        return None


def part(number: int, *events: FeedEvent, dataset: str = "") -> FeedPart:
    """Events of a subscription."""
    return FeedPart(subscription_id=number, events=events, dataset=dataset_name(dataset) if dataset else "")


def accepted(number: int, *events: FeedEvent, dataset: str = "", head: int = 0) -> FeedPart:
    """The first part of a subscription."""
    answer = part(number, *events, dataset=dataset)
    answer.accepted.CopyFrom(Accepted(head_revision=head))
    return answer
