"""Subscribers that note every frame: Subscribe, Sync and UpdateFeed by hand, resuming from any token."""

import asyncio
import contextlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import ErrorInfo

from robustness.clients import CALL_SECONDS, SILENCE_SECONDS, Run, code_of, now
from robustness.history import Batch, Checkpoint, Ended, Opened, Reset, View
from robustness.model import SELECTIONS
from support.wire import Refused, Wire
from syncline.v1 import feed_pb2, sync_service_pb2, update_feed_pb2

KINDS = {0: "put", 1: "put", 2: "delete", 3: "remove"}
CREDIT_BYTES = 4_000
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
INTERVAL_SECONDS = 0.05


def noted(event: feed_pb2.FeedEvent) -> Batch | Checkpoint | Reset:
    """An event of the wire as a frame."""
    kind = event.WhichOneof("event")
    if kind == "changes":
        changes = event.changes
        kinds = changes.kinds or [1] * len(changes.record_ids)
        return Batch(
            at=now(),
            from_revision=changes.from_revision,
            to_revision=changes.to_revision,
            partial=changes.partial,
            changes=tuple(
                (KINDS[kind], record_id, revision, data)
                for kind, record_id, revision, data in zip(
                    kinds, changes.record_ids, changes.revisions, changes.data, strict=True
                )
            ),
            token=changes.token,
            folded=changes.folded,
        )
    if kind == "checkpoint":
        mark = event.checkpoint
        return Checkpoint(
            at=now(),
            revision=mark.revision,
            count=mark.record_count,
            digest=mark.digest,
            token=mark.token,
            going_away=mark.going_away,
        )
    return Reset(at=now(), reason=feed_pb2.Reset.Reason.Name(event.reset.reason).removeprefix("REASON_"))


def ended(error: BaseException) -> Ended:
    """How a stream ended."""
    if isinstance(error, grpc.aio.AioRpcError):
        refused = Refused(error)
        return Ended(at=now(), code=code_of(refused), reason=refused.reason)
    return Ended(at=now(), code="LEFT")


class Subscriber:
    """One view through one door, again and again from a token that it was given."""

    def __init__(self, run: Run, wire: Wire, view: View) -> None:
        self.run = run
        self.wire = wire
        self.view = view
        self.rng = run.chooser(view.name)
        self.selected = SELECTIONS[view.selection]

    @property
    def selection(self) -> dict[str, Any]:
        """The fields of a request that say which records."""
        fields = self.selected.fields
        return {
            "filter": self.selected.filter,
            "read_mask": FieldMask(paths=fields) if fields else None,
        }

    @property
    def path(self) -> str:
        """Resource name of the dataset."""
        return f"datasets/{self.view.dataset}"

    def choose_token(self) -> bytes:
        """Where to go on: mostly where it stands, sometimes at any token of its life, or from nothing."""
        return choose_token(self.run, self.rng, self.view)

    def stays(self) -> int:
        """How many messages to take before leaving."""
        return 1 << 30 if self.run.is_calm else self.rng.choice([1, 3, 10, 40, 1 << 30])

    async def follow(self) -> None:
        """Follow until the run ends."""
        while not self.run.leaving.is_set():
            token = self.choose_token()
            self.view.note(Opened(at=now(), token=token))
            try:
                await self.take(token)
                last = Ended(at=now(), code="LEFT")
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError) as error:
                last = ended(error)
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
            self.view.note(last)
            await self.run.pause(self.rng, 0.1)

    async def take(self, token: bytes) -> None:
        """Note what comes after the token."""
        request = sync_service_pb2.SubscribeRequest(dataset=self.path, token=token or None, **self.selection)
        call = self.wire.subscribe(request)
        try:
            for _ in range(self.stays()):
                message = await _message(call)
                self.view.note(*map(noted, message.events))
                await self.dawdle()
        finally:
            call.cancel()

    async def dawdle(self) -> None:
        """Be slow now and then, so that what follows is conflated.

        Not with a key that was deleted: what is read late may have been sent in time.
        """
        if not self.run.is_calm and self.view.revoked is None and self.rng.random() < 0.05:
            await asyncio.sleep(self.rng.uniform(0, 0.3))


class Pager(Subscriber):
    """The same by unary pages."""

    async def take(self, token: bytes) -> None:
        """Note pages one after another."""
        for _ in range(self.stays()):
            if self.run.leaving.is_set():
                return
            request = sync_service_pb2.SyncRequest(
                dataset=self.path, token=token, page_size=self.rng.choice([0, 1, 2, 7]), **self.selection
            )
            page = await self.wire.call(self.wire.sync.Sync, request, CALL_SECONDS)
            self.view.note(*map(noted, page.events))
            token = page.token
            if page.events and page.events[-1].WhichOneof("event") == "checkpoint":
                await asyncio.sleep(self.rng.uniform(0, 0.1))
            elif not self.run.is_calm and self.rng.random() < 0.1:
                await asyncio.sleep(0.8)  # inside a scan, long enough for a purge


class Credit:
    """What a subscription may be sent, if each part is granted again as soon as it came.

    It has been granted what all parts took, so the server can lack only what is granted and has not arrived.
    """

    def __init__(self) -> None:
        self._granted: deque[tuple[float, int]] = deque()
        """The newest grants, just enough for the whole credit, with their times."""
        self._size = 0

    def grant(self, at: float, size: int) -> None:
        """Note that a part of this size came, and as much is granted."""
        self._granted.append((at, size))
        self._size += size
        while self._size - self._granted[0][1] >= CREDIT_BYTES:
            self._size -= self._granted.popleft()[1]

    @property
    def since(self) -> float | None:
        """The time since when all of it was granted anew; None: some of it was never used.

        A server that had that when it was told to stop had credit.
        """
        return self._granted[0][0] if self._size >= CREDIT_BYTES else None


class FeedStream:
    """Several views on one UpdateFeed stream, with small credits and acknowledgements."""

    def __init__(self, run: Run, wire: Wire, name: str, views: Sequence[View]) -> None:
        self.run = run
        self.wire = wire
        self.name = name
        self.views = dict(enumerate(views, 1))
        self.rng = run.chooser(name)
        self._open: set[int] = set()
        self._awaited: Counter[int] = Counter()
        """How often each was begun anew and not accepted yet: until then what comes is of the one before."""
        self._over: set[int] = set()
        """Those that ended by themselves on the present stream."""
        self._credits: defaultdict[int, Credit] = defaultdict(Credit)

    async def follow(self) -> None:
        """Follow until the run ends."""
        while not self.run.leaving.is_set():
            call = self.wire.sync.UpdateFeed(metadata=self.wire.metadata)
            last = Ended(at=now(), code="LEFT")
            try:
                await self._take(call)
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError, _OneEnded) as error:
                last = ended(error)
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
            finally:
                call.cancel()
            for number in self._open:
                self.views[number].note(replace(last, credit_since=self._credits[number].since))
            self._open.clear()
            self._credits.clear()
            self._awaited.clear()
            self._over.clear()
            await self.run.pause(self.rng, 0.1)

    async def _take(self, call: Any) -> None:
        await _send(call, map(self._add, self.views))
        for _ in range(1 << 30 if self.run.is_calm else self.rng.choice([5, 40, 1 << 30])):
            message = await _message(call)
            actions: list[update_feed_pb2.FeedAction] = []
            for part in message.parts:
                actions += self._note(part)
            if self._over:
                await self.run.pause(self.rng, 0.1)
                actions += map(self._add, sorted(self._over))
                self._over.clear()
            if not self.run.is_calm and self.rng.random() < 0.05:
                actions.append(self._replace(self.rng.choice(list(self.views))))
            if actions:
                await _send(call, actions)
            if not self.run.is_calm and self.rng.random() < 0.05:
                await asyncio.sleep(self.rng.uniform(0, 0.3))

    def _add(self, number: int) -> update_feed_pb2.FeedAction:
        view = self.views[number]
        token = choose_token(self.run, self.rng, view)
        view.note(Opened(at=now(), token=token))
        self._open.add(number)
        self._awaited[number] += 1
        return _addition(number, view, f"datasets/{view.dataset}", token=token)

    def _replace(self, number: int) -> update_feed_pb2.FeedAction:
        """The same subscription anew: what still comes of the old one is not of this view."""
        if number in self._open:
            self.views[number].note(Ended(at=now(), code="LEFT"))
        return self._add(number)

    def _note(self, part: update_feed_pb2.FeedPart) -> Iterable[update_feed_pb2.FeedAction]:
        number = part.subscription_id
        view = self.views[number]
        if part.HasField("accepted"):
            self._awaited[number] -= 1
            self._credits.pop(number, None)
        if part.HasField("error"):
            view.note(_ended_by(part))
            self._open.discard(number)
            if self._awaited[number]:
                raise _OneEnded  # the one that was not accepted, or the one that it was to replace
            self._over.add(number)
            return
        if self._awaited[number]:
            return
        frames = list(map(noted, part.events))
        view.note(*frames)
        size = part.ByteSize()
        if size:
            self._credits[number].grant(now(), size)
            grant = update_feed_pb2.GrantCredit(subscription_id=number, bytes=size)
            yield update_feed_pb2.FeedAction(credit=grant)
        marks = [frame.revision for frame in frames if isinstance(frame, Checkpoint)]
        if marks and view.mode == "on_checkpoint":
            ack = update_feed_pb2.AckCheckpoint(
                subscription_id=number, dataset=f"datasets/{view.dataset}", revision=marks[-1]
            )
            yield update_feed_pb2.FeedAction(ack=ack)


class PrefixStream:
    """One subscription to all datasets, each of which is followed by itself with a token of its own."""

    def __init__(self, run: Run, wire: Wire, name: str, views: Sequence[View]) -> None:
        self.run = run
        self.wire = wire
        self.views = {f"datasets/{view.dataset}": view for view in views}
        self.rng = run.chooser(name)
        self._credit = Credit()
        """Of all datasets together."""

    async def follow(self) -> None:
        """Follow until the run ends."""
        while not self.run.leaving.is_set():
            call = self.wire.sync.UpdateFeed(metadata=self.wire.metadata)
            last = Ended(at=now(), code="LEFT")
            self._credit = Credit()
            tokens = {name: choose_token(self.run, self.rng, view) for name, view in self.views.items()}
            for name, view in self.views.items():
                view.note(Opened(at=now(), token=tokens[name]))
            try:
                await self._take(call, {name: token for name, token in tokens.items() if token})
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError, _OneEnded) as error:
                last = ended(error)
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
            finally:
                call.cancel()
            last = replace(last, credit_since=self._credit.since)
            for view in self.views.values():
                view.note(last)
            await self.run.pause(self.rng, 0.1)

    async def _take(self, call: Any, tokens: dict[str, bytes]) -> None:
        first = next(iter(self.views.values()))
        await _send(call, [_addition(1, first, "datasets/*", tokens=tokens)])
        for _ in range(1 << 30 if self.run.is_calm else self.rng.choice([5, 40, 1 << 30])):
            actions = [action for part in (await _message(call)).parts for action in self._note(part)]
            if actions:
                await _send(call, actions)

    def _note(self, part: update_feed_pb2.FeedPart) -> Iterable[update_feed_pb2.FeedAction]:
        if part.HasField("error"):
            for view in [self.views[part.dataset]] if part.dataset else self.views.values():
                view.note(_ended_by(part))
            raise _OneEnded
        self.views[part.dataset].note(*map(noted, part.events))
        if size := part.ByteSize():
            self._credit.grant(now(), size)
            grant = update_feed_pb2.GrantCredit(subscription_id=1, bytes=size)
            yield update_feed_pb2.FeedAction(credit=grant)


class _OneEnded(Exception):
    """One subscription of several, which begin anew together."""


def _ended_by(part: update_feed_pb2.FeedPart) -> Ended:
    """How one subscription of a stream ended."""
    details = [
        ErrorInfo.FromString(any_.value) for any_ in part.error.details if any_.Is(ErrorInfo.DESCRIPTOR)
    ]
    reason = details[0].reason if details else part.error.message
    return Ended(at=now(), code=_CODES[part.error.code], reason=reason)


def _addition(number: int, view: View, dataset: str, **what: Any) -> update_feed_pb2.FeedAction:
    """The request for a subscription with the selection and the mode of a view."""
    fields = SELECTIONS[view.selection].fields
    add = update_feed_pb2.AddSubscription(
        subscription_id=number,
        dataset=dataset,
        filter=SELECTIONS[view.selection].filter,
        read_mask=FieldMask(paths=fields) if fields else None,
        delivery_mode=update_feed_pb2.DeliveryMode.Value(f"DELIVERY_MODE_{view.mode.upper()}"),
        credit_bytes=CREDIT_BYTES,
        **what,
    )
    if view.mode == "max_rate":
        add.min_interval.CopyFrom(Duration(nanos=round(INTERVAL_SECONDS * 1e9)))
    return update_feed_pb2.FeedAction(add=add)


async def _send(call: Any, actions: Iterable[update_feed_pb2.FeedAction]) -> None:
    request = sync_service_pb2.UpdateFeedRequest(actions=list(actions))
    with contextlib.suppress(
        asyncio.InvalidStateError, grpc.aio.AioRpcError
    ):  # it has ended, and the next read tells why
        async with asyncio.timeout(SILENCE_SECONDS):
            await call.write(request)


def choose_token(run: Run, rng: Any, view: View) -> bytes:
    """Where to go on."""
    if not view.tokens or (not run.is_calm and rng.random() < 0.05):
        return b""
    if not run.is_calm and rng.random() < 0.2:
        return rng.choice(view.tokens)
    return view.resume


async def _message(call: Any) -> Any:
    """The next message. Raises what ended the stream, TimeoutError when nothing comes."""
    async with asyncio.timeout(SILENCE_SECONDS):  # wait_for can swallow a cancellation before Python 3.12
        message = await call.read()
    if message is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )
    return message


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
