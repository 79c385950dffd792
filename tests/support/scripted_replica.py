"""The subscriptions of a replica as a test tells them to be, on the UpdateFeed stream of its client."""

import asyncio
from typing import Any

from support.scripted_feed import FeedStream, ScriptedFeed
from support.scripted_server import Refuse, ScriptedServer
from syncline.v1.update_feed_pb2 import AddSubscription


class Subscribed:
    """Serves every subscription by ``messages``, and then by what ``send`` says."""

    def __init__(self, scripted: ScriptedServer) -> None:
        self.adds: list[AddSubscription] = []
        """All requests, in the order in which they came."""
        self.feed = ScriptedFeed(scripted, self._answer)
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._scripts: list[list[Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tokens(self) -> list[bytes]:
        """Where the subscriptions began."""
        return [add.token for add in self.adds]

    def script(self, *scripts: list[Any]) -> None:
        """Serve the next subscriptions by these, the last one for ever.

        A script is a list of messages, each a list of events; after them the subscription stays open. An exception
        among them ends it.
        """
        self._scripts = list(scripts)

    def send(self, *events: Any) -> None:
        """Send these in one message, to the subscription that is open, or the next one."""
        self._queue.put_nowait(events)

    def end(self, error: Refuse) -> None:
        """End the subscription."""
        self._queue.put_nowait(error)

    async def _answer(self, stream: FeedStream, add: AddSubscription) -> None:
        self.adds.append(add)
        await stream.accept(add)
        messages = []
        if self._scripts:
            messages = self._scripts[0]
            del self._scripts[: len(self._scripts) > 1]
        for task in self._tasks:
            task.cancel()
        task = asyncio.create_task(self._serve(stream, add, messages), name="script of a subscription")
        self._tasks = {task}

    async def _serve(self, stream: FeedStream, add: AddSubscription, messages: list[Any]) -> None:
        for message in messages:
            if not await self._say(stream, add, message):
                return
        while await self._say(stream, add, await self._queue.get()):
            pass

    async def _say(self, stream: FeedStream, add: AddSubscription, message: Any) -> bool:
        if isinstance(message, Refuse):
            await stream.refuse(add, message)
            return False
        await stream.events(add, *message)
        return True
