"""The UpdateFeed stream of a client: any number of subscriptions on one connection.

Two tasks as long as there are subscriptions. One reads, and never waits for anybody: what it may bring is bounded
by credit. The other writes what is asked for, each kind of it gathered while the last message was on its way, so
that a thousand subscriptions are added, acknowledged and granted in a few messages.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Self, TypeVar

import grpc.aio
from google.rpc.status_pb2 import Status

from syncline import errors
from syncline._call import LOG, Caller
from syncline._entry import DirectoryEntry, Entry, Sighting, SingleEntry
from syncline._events import FeedViolation
from syncline._reconnect import DEFAULT_OPTIONS, FeedOptions, Reconnects, is_fault, may_pass
from syncline._status import silent, to_error, to_part_error
from syncline._subscription import Subscription, Terms
from syncline.errors import FeedBroken, SynclineError
from syncline.v1 import update_feed_pb2
from syncline.v1.sync_service_pb2 import UpdateFeedRequest, UpdateFeedResponse
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub

T = TypeVar("T")

ACTIONS: Final = 1_000
"""Most actions in a message, which so stays far below any limit."""
ACK_SECONDS: Final = 0.05
"""Acks wait so long for others, unless something waits for them."""
FAREWELL_SECONDS: Final = 0.25
"""How long the last stream is left open for the server to take the last acks and end it."""

_DEFAULT_TERMS: Final = Terms()


class UpdateFeed:
    """One stream for all subscriptions; it is open while there are some. Not for several event loops."""

    def __init__(
        self, stub: SyncServiceStub, caller: Caller, *, options: FeedOptions = DEFAULT_OPTIONS
    ) -> None:
        self._stub = stub
        self._caller = caller
        self._options = options
        self._reconnects = Reconnects(options)
        self._entries: dict[int, Entry] = {}
        self._last_id = 0
        self._task: asyncio.Task[None] | None = None
        self._call: grpc.aio.StreamStreamCall[Any, Any] | None = None
        self._requests = _Requests()
        self._drop_reason: SynclineError | None = None
        self._going_away_seconds: float | None = None
        self._heard_at = 0.0
        self._changed = asyncio.Event()  # something is to be written, or to be tried at once
        self._is_leaving = False  # the present stream ends because nobody was left
        self._closing = False

    @property
    def is_connected(self) -> bool:
        """Whether something came on the present stream."""
        return self._call is not None and self._reconnects.progress

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again."""
        return self._reconnects.total

    def subscribe(
        self,
        dataset: str,
        *,
        decode: Callable[[bytes], T],
        token: bytes = b"",
        terms: Terms = _DEFAULT_TERMS,
    ) -> Subscription[T]:
        """Follow a dataset from ``token`` on (empty: from nothing). Returns at once; leave it by ``aclose()``."""
        entry = SingleEntry(
            self, self._next_id(), terms, self._options, dataset=dataset, token=token, decode=decode
        )
        self._add(entry)
        return entry.subscription

    def datasets(self, prefix: str) -> "Datasets":
        """Hear which datasets there are whose ids begin with ``prefix``, now and later."""
        entry = DirectoryEntry(self, self._next_id(), self._options, prefix=prefix)
        self._add(entry)
        return Datasets(entry)

    async def aclose(self) -> None:
        """End all subscriptions, and the stream when the server has taken the last acks."""
        self._closing = True
        for entry in list(self._entries.values()):
            entry.close()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    # -- for the entries ------------------------------------------------------------------------------------

    def grant(self, entry: Entry, size_bytes: int) -> None:
        """Let more come."""
        if self._entries.get(entry.entry_id) is entry:
            self._requests.grant(entry.entry_id, size_bytes)
            self._changed.set()

    def ack(self, entry: Entry, revision: int, *, urgent: bool) -> None:
        """A copy has come so far."""
        if self._entries.get(entry.entry_id) is not entry:
            return
        first = self._requests.ack(entry.entry_id, revision)
        if urgent:
            self._changed.set()
        elif first:
            asyncio.get_running_loop().call_later(ACK_SECONDS, self._changed.set)

    def remove(self, entry: Entry) -> None:
        """It has ended."""
        if self._entries.get(entry.entry_id) is entry:
            del self._entries[entry.entry_id]
            self._requests.remove(entry.entry_id)
            self._changed.set()

    def renew(self, entry: Entry, pause_seconds: float, error: SynclineError) -> None:
        """Begin it again on this stream, after a pause."""
        LOG.info("subscription %d: again in %.2f s: %s", entry.entry_id, pause_seconds, error.message)
        self._requests.forget(entry.entry_id)
        if not entry.is_paused:
            entry.is_paused = True
            asyncio.get_running_loop().call_later(pause_seconds, self._resume, entry)

    def settle(self) -> None:
        """Something good came."""
        self._reconnects.settle()

    def to_error(self, status: Status) -> SynclineError:
        """An error in a part."""
        return to_part_error(status, self._caller.endpoint)

    def _resume(self, entry: Entry) -> None:
        entry.is_paused = False
        if self._entries.get(entry.entry_id) is entry:
            self._requests.add(entry.entry_id)
            self._changed.set()

    # -- its tasks ------------------------------------------------------------------------------------------

    def _next_id(self) -> int:
        if self._closing:
            raise RuntimeError("the client is closed")
        self._last_id += 1
        return self._last_id

    def _add(self, entry: Entry) -> None:
        entry.restart(asyncio.get_running_loop().time())
        self._entries[entry.entry_id] = entry
        self._requests.add(entry.entry_id)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="update feed")

    async def _run(self) -> None:
        """Streams, one after another, until nobody is subscribed."""
        try:
            while self._entries:
                error = await self._stream()
                if self._entries and not self._is_leaving and (pause := self._pause_seconds(error)) > 0:
                    LOG.info("update feed: connecting again in %.2f s: %s", pause, error.message)
                    await self._sleep(pause)
        except SynclineError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(errors.ServerError(f"the feed ended by a fault of its own: {error!r}"))
            raise

    def _pause_seconds(self, error: SynclineError) -> float:
        """How long to wait before the next stream. Raises what a new one cannot mend."""
        now = asyncio.get_running_loop().time()
        if self._going_away_seconds is not None:
            return self._reconnects.orderly_pause_seconds(self._going_away_seconds, now)
        fault = is_fault(error) or isinstance(error, FeedBroken)
        if not (fault or may_pass(error)):
            raise error
        return self._reconnects.pause_seconds(error, now, counts=fault)

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless everybody leaves meanwhile."""
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._entries:
                    self._changed.clear()
                    await self._changed.wait()

    def _fail(self, error: SynclineError) -> None:
        for entry in list(self._entries.values()):
            entry.fail(error)
        self._entries.clear()

    async def _stream(self) -> SynclineError:
        """One stream from beginning to end; why it ended."""
        now = asyncio.get_running_loop().time()
        self._reconnects.connected(now)
        self._heard_at = now
        self._drop_reason = self._going_away_seconds = None
        self._is_leaving = False
        self._requests = _Requests()
        for entry in self._entries.values():
            entry.restart(now)
            if not entry.is_paused:
                self._requests.add(entry.entry_id)
        self._changed.set()
        call = self._call = self._stub.UpdateFeed(metadata=self._caller.metadata)
        others = [
            asyncio.create_task(self._write(call), name="update feed writer"),
            asyncio.create_task(self._watch(), name="update feed watch"),
        ]
        try:
            return await self._read(call)
        finally:
            self._call = None
            call.cancel()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _read(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> SynclineError:
        loop = asyncio.get_running_loop()
        try:
            while True:
                message: Any = await call.read()
                if message is grpc.aio.EOF:
                    return self._drop_reason or errors.Unavailable("the stream ended")
                self._heard_at = loop.time()
                self._receive(message, self._heard_at)
        except FeedViolation as violation:
            return FeedBroken(f"the feed contradicts itself: {violation}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Dropped by one of ours, who left the reason; or everybody has left.
            return self._drop_reason or errors.Unavailable("the stream was cancelled")
        except grpc.aio.AioRpcError as error:
            return self._drop_reason or to_error(error, self._caller.endpoint)

    def _receive(self, message: UpdateFeedResponse, now: float) -> None:
        for part in message.parts:
            entry = self._entries.get(part.subscription_id)
            if entry is None:
                if not 0 < part.subscription_id <= self._last_id:
                    raise FeedViolation(f"a part of subscription {part.subscription_id}, which never was")
                continue  # of one that has ended here, and was on its way
            self._reconnects.progress = True
            try:
                entry.receive(part, now)
            except FeedViolation as violation:
                entry.violated(FeedBroken(f"the feed contradicts itself: {violation}"))
        if message.HasField("going_away"):
            delay = message.going_away.retry_delay
            self._going_away_seconds = max(delay.seconds + delay.nanos / 1e9, 0.0)

    async def _write(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        """Write what was asked for since the last message; the last of it, and the stream may end."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while actions := self._requests.take(self._entries, ACTIONS):
                    await call.write(UpdateFeedRequest(actions=actions))
                if not self._entries:
                    await self._bid_farewell(call)
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader is told why

    async def _bid_farewell(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        """Nobody is left: let the server end the stream, unless somebody comes meanwhile."""
        self._is_leaving = True
        await call.done_writing()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._changed.wait()
        call.cancel()

    async def _watch(self) -> None:
        """Find out what does not come: of one subscription, it is added again; of all, the stream is dead."""
        silence = self._options.silence_seconds
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(silence / 3)
            now = loop.time()
            for entry in list(self._entries.values()):
                late = entry.check_silence(now)
                if late is None:
                    continue
                if late.is_connected and now - self._heard_at <= silence:
                    error = errors.Unavailable(f"nothing was heard of it for {silence:g} s")
                    late.renew(error, counts=False)
                elif self._call is not None:
                    self._drop_reason = silent(silence, self._caller.endpoint)
                    self._call.cancel()
                    return


class Datasets:
    """Sightings of datasets, for ``async for``. After a broken stream those that are there are seen again.

    Raises what ends it: PermissionDenied, InvalidArgument.
    """

    __slots__ = ("_entry",)

    def __init__(self, entry: DirectoryEntry) -> None:
        self._entry = entry

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sighting:
        found = await self._entry.sightings.get()
        if isinstance(found, Sighting):
            return found
        self._entry.sightings.put_nowait(found)  # for whoever asks again
        if found is None:
            raise StopAsyncIteration
        raise found

    async def aclose(self) -> None:
        """End it."""
        self._entry.close()


class _Requests:
    """What is to be asked for, each kind of it in few actions."""

    __slots__ = ("_acks", "_adds", "_grants", "_removes")

    def __init__(self) -> None:
        self._adds: dict[int, None] = {}
        self._removes: dict[int, None] = {}
        self._acks: dict[int, int] = {}
        self._grants: dict[int, int] = {}

    def add(self, entry_id: int) -> None:
        """Begin it where it stands when this is written."""
        self.forget(entry_id)
        self._adds[entry_id] = None

    def remove(self, entry_id: int) -> None:
        """End it, after its last acks."""
        if entry_id in self._adds:  # the server has not heard of it, or of its beginning again
            del self._adds[entry_id]
        self._grants.pop(entry_id, None)
        self._removes[entry_id] = None

    def forget(self, entry_id: int) -> None:
        """Nothing holds any more that was asked for it."""
        self._adds.pop(entry_id, None)
        self._grants.pop(entry_id, None)
        self._acks.pop(entry_id, None)

    def ack(self, entry_id: int, revision: int) -> bool:
        """The newest counts. Returns whether it is the only ack that waits."""
        self._acks[entry_id] = max(revision, self._acks.get(entry_id, 0))
        return len(self._acks) == 1

    def grant(self, entry_id: int, size_bytes: int) -> None:
        """They add up."""
        self._grants[entry_id] = self._grants.get(entry_id, 0) + size_bytes

    def take(self, entries: Mapping[int, Entry], limit: int) -> list[update_feed_pb2.FeedAction]:
        """The next actions to write."""
        actions: list[update_feed_pb2.FeedAction] = []
        action = update_feed_pb2.FeedAction
        while self._acks and len(actions) < limit:
            entry_id, revision = self._acks.popitem()
            ack = update_feed_pb2.AckCheckpoint(subscription_id=entry_id, revision=revision)
            actions.append(action(ack=ack))
        while self._removes and len(actions) < limit:
            entry_id, _ = self._removes.popitem()
            actions.append(action(remove=update_feed_pb2.RemoveSubscription(subscription_id=entry_id)))
        while self._adds and len(actions) < limit:
            entry_id = next(iter(self._adds))
            del self._adds[entry_id]
            if entry_id in entries:
                actions.append(action(add=entries[entry_id].to_wire()))
        while self._grants and len(actions) < limit:
            entry_id, size = self._grants.popitem()
            grant = update_feed_pb2.GrantCredit(subscription_id=entry_id, bytes=min(size, 1 << 30))
            actions.append(action(credit=grant))
        return actions
