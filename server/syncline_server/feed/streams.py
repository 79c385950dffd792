"""One stream with many subscriptions: what its client asks, and what becomes of it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from syncline_server.catalog.catalog import Catalog
from syncline_server.clock import Clock
from syncline_server.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from syncline_server.feed.abc import PartEncoder
from syncline_server.feed.delivery import OnCheckpoint, Wanted, pace_of
from syncline_server.feed.feed import Feed
from syncline_server.feed.outbox import Delivery, Leg, Outbox
from syncline_server.feed.tokens import Position
from syncline_server.feed.uptake import Uptake
from syncline_server.model import Dataset, Head, Principal, Role

_LIST_DATASETS: Final = 1_000


class FeedStream:
    """Serves the subscriptions of one stream. One task reads ``messages``; another one may call the rest."""

    def __init__(
        self,
        feed: Feed,
        catalog: Catalog,
        encoder: PartEncoder,
        clock: Clock,
        principal: Principal,
        *,
        uptake: Uptake | None = None,
    ) -> None:
        self._feed = feed
        self._catalog = catalog
        self._encoder = encoder
        self._settings = feed.settings
        self._principal = principal
        self._uptake = uptake
        self._outbox = Outbox(encoder, clock, feed.settings, self._end)
        self._deliveries: dict[int, Delivery] = {}
        self._count = 0
        self._failure: Exception | None = None
        self._draining = False
        self._asks_no_more = False
        self._stop_listening: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self._count

    # -- what the client asks -----------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait while what the client was not told yet grows beyond what it may ask for. Before each action."""
        await self._outbox.room()

    async def add(self, wanted: Wanted) -> None:
        """Begin a subscription, in place of the one with the same id. What is wrong with it ends only this one.

        Raises ResourceExhausted(TOO_MANY_SUBSCRIPTIONS).
        """
        self.remove(wanted.subscription_id)
        delivery = Delivery(wanted, credit_bytes=wanted.credit_bytes or self._settings.credit_bytes)
        self._deliveries[wanted.subscription_id] = delivery
        await self._begin(delivery, wanted.token)

    def refuse(self, subscription_id: int, error: Exception) -> None:
        """End a subscription, or one that cannot begin, with an error."""
        delivery = self._deliveries.get(subscription_id)
        if delivery is None:
            delivery = Delivery(Wanted(subscription_id=subscription_id), credit_bytes=0)
        self.remove(subscription_id)
        self._tell(delivery, "", error)

    def remove(self, subscription_id: int) -> None:
        """End a subscription; one that is not there is passed over."""
        delivery = self._deliveries.pop(subscription_id, None)
        if delivery is not None:
            for leg in delivery:
                self._close(leg)
                delivery.drop(leg)

    def acknowledge(self, subscription_id: int, dataset_id: str, revision: int) -> None:
        """Hear how far a copy has come; of one that is not there, nothing."""
        delivery = self._deliveries.get(subscription_id)
        if delivery is None:
            return
        wanted = delivery.wanted
        if not wanted.dataset_id and not dataset_id:
            self.refuse(subscription_id, _invalid("dataset", "is required with a prefix"))
            return
        leg = delivery.get(dataset_id)
        if leg is None or leg.subscription is None:
            return
        subscription = leg.subscription
        if not 0 <= revision <= subscription.reached_revision:
            self._end(
                leg,
                _invalid("revision", f"is above {subscription.reached_revision}, the newest that was sent"),
            )
            return
        if isinstance(subscription.pace, OnCheckpoint):
            subscription.pace.acknowledge(subscription, revision)
        if self._uptake is not None and wanted.replica_id:
            self._uptake.applied(leg.number, wanted.replica_id, self._principal.key_id, revision)

    def grant(self, subscription_id: int, credit_bytes: int) -> None:
        """Let more bytes come; of one that is not there, nothing."""
        delivery = self._deliveries.get(subscription_id)
        if delivery is None:
            return
        stood = delivery.credit_bytes <= 0
        delivery.credit_bytes += credit_bytes
        if stood and delivery.credit_bytes > 0:
            self._outbox.resume(delivery)

    def ask_no_more(self) -> None:
        """The client asks nothing more: what it has goes on, and where it has nothing the stream ends."""
        self._asks_no_more = True
        self._outbox.wake()

    @property
    def is_over(self) -> bool:
        """Whether nothing can come of it any more."""
        return self._asks_no_more and not self._deliveries and self._outbox.is_empty

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        if self._failure is None:
            self._failure = error
            self._outbox.wake()

    def still_allowed(self, principal: Principal) -> bool:
        """Hear what the key may do now; whether the stream may go on at all."""
        changed, self._principal = principal != self._principal, principal
        for delivery in tuple(self._deliveries.values()):
            for leg in delivery:
                if leg.error is None and not principal.may_read(leg.dataset_id):
                    self._end(leg, _forbidden(leg.dataset_id))
            if changed and not delivery.wanted.dataset_id:
                self._begin_later(delivery)
        return principal.role is not Role.PUSH

    # -- what it gets -------------------------------------------------------------------------------------

    async def messages(self) -> AsyncGenerator[bytes]:
        """Messages, until the feed is drained, of which the last one tells, or nothing can come any more.

        Raises what ``fail`` was told.
        """
        with self._feed.hosting(self):
            while True:
                draining = self._draining
                if self._failure is not None:
                    raise self._failure
                message = self._outbox.collect()
                if message:
                    yield message
                if draining:
                    break
                if self.is_over:
                    return
                if not message:
                    await self._outbox.wait()
        for message in self._outbox.last_messages(self._deliveries.values()):
            yield message
        yield self._encoder.going_away()

    def drain(self) -> None:
        """See Drainable."""
        self._draining = True
        self._outbox.wake()

    async def aclose(self) -> None:
        """End all subscriptions."""
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for subscription_id in tuple(self._deliveries):
            self.remove(subscription_id)

    # -- beginning and ending -----------------------------------------------------------------------------

    async def _begin(self, delivery: Delivery, token: bytes = b"") -> None:
        wanted = delivery.wanted
        try:
            if wanted.dataset_id:
                await self._add_one(delivery, token)
            else:
                await self._add_all(delivery)
        except ResourceExhausted as error:
            if error.reason == "TOO_MANY_SUBSCRIPTIONS":
                raise
            self.refuse(wanted.subscription_id, error)
        except Exception as error:  # noqa: BLE001 - the fence between subscriptions
            self.refuse(wanted.subscription_id, error)

    def _begin_later(self, delivery: Delivery) -> None:
        async def begin() -> None:
            try:
                await self._begin(delivery)
            except ResourceExhausted as error:
                self.fail(error)

        task = asyncio.create_task(begin())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _add_one(self, delivery: Delivery, token: bytes) -> None:
        wanted = delivery.wanted
        if not self._principal.may_read(wanted.dataset_id):
            raise _forbidden(wanted.dataset_id)
        start = self._feed.decode(token)

        async def learn(dataset: Dataset) -> tuple[Dataset, Head | None]:
            if wanted.from_now or wanted.min_revision or not self._feed.follows(dataset.number):
                return dataset, await self._feed.learn_head(dataset, wanted.selection)
            return dataset, None

        dataset, head = await self._catalog.use(
            wanted.dataset_id, learn, incarnation=self._feed.incarnation(token)
        )
        leg = Leg(
            self._outbox, delivery, wanted.dataset_id, self._encoder.address(wanted.subscription_id, "")
        )
        self._open(leg, dataset, start, from_now=head if wanted.from_now else None)

    async def _add_all(self, delivery: Delivery) -> None:
        """Follow every dataset with the prefix that the key may read, and those that are created later."""
        if self._principal.role is Role.PUSH:
            raise _forbidden(delivery.wanted.prefix + "*")
        if self._stop_listening is None:
            self._stop_listening = self._catalog.listen(self._created)
        prefix = delivery.wanted.prefix
        after = before_prefix(prefix)
        while True:
            datasets = await self._catalog.list_datasets(after=after, limit=_LIST_DATASETS)
            if self._deliveries.get(delivery.wanted.subscription_id) is not delivery:
                return
            found = [dataset for dataset in datasets if dataset.dataset_id.startswith(prefix)]
            for dataset in found:
                self._follow(delivery, dataset)
            if len(found) < _LIST_DATASETS:
                break
            after = found[-1].dataset_id
        tokens, delivery.tokens = delivery.tokens, None
        for dataset_id in tokens or ():
            # Its copy would wait for ever.
            may_read = self._principal.may_read(dataset_id)
            self._tell(delivery, dataset_id, (_not_found if may_read else _forbidden)(dataset_id))

    def _created(self, dataset: Dataset) -> None:
        for delivery in tuple(self._deliveries.values()):
            if not delivery.wanted.dataset_id and dataset.dataset_id.startswith(delivery.wanted.prefix):
                try:
                    self._follow(delivery, dataset)
                except ResourceExhausted as error:
                    self.fail(error)

    def _follow(self, delivery: Delivery, dataset: Dataset) -> None:
        """Follow a dataset with the prefix, unless that is done or it is not for this key."""
        dataset_id, wanted = dataset.dataset_id, delivery.wanted
        if not self._principal.may_read(dataset_id) or dataset.number in (delivery.ended or ()):
            return
        known = delivery.get(dataset_id)
        if known is not None:
            if known.number == dataset.number:
                return
            self._end(known, _not_found(dataset_id))
        leg = Leg(
            self._outbox, delivery, dataset_id, self._encoder.address(wanted.subscription_id, dataset_id)
        )
        token = delivery.tokens.pop(dataset_id, b"") if delivery.tokens else b""
        try:
            start = self._feed.decode(token)
            self._open(leg, dataset, start, from_now=dataset.head if wanted.from_now else None)
        except ResourceExhausted:
            raise
        except Exception as error:  # noqa: BLE001 - the fence between datasets
            leg.number = dataset.number
            self._end(leg, error)

    def _open(self, leg: Leg, dataset: Dataset, start: Position | None, *, from_now: Head | None) -> None:
        wanted = leg.delivery.wanted
        if self._count >= self._settings.subscriptions_per_stream:
            raise ResourceExhausted(
                "TOO_MANY_SUBSCRIPTIONS",
                f"this stream has {self._count} subscriptions, which is the most that one may have",
                maximum=self._settings.subscriptions_per_stream,
            )
        leg.number = dataset.number
        held = _held_revision(start)
        leg.subscription = self._feed.open(
            dataset,
            leg,
            start=start,
            head=from_now,
            min_revision=wanted.min_revision,
            selection=wanted.selection,
            pace=pace_of(wanted),
            first_at_head=True,
        )
        self._count += 1
        leg.delivery.put(leg)
        if self._uptake is not None and wanted.replica_id:
            self._uptake.connected(dataset.number, wanted.replica_id, self._principal.key_id, held)
        leg.wake()

    def _tell(self, delivery: Delivery, dataset_id: str, error: Exception) -> None:
        """Send an error of a subscription, or of a dataset of it, that is not there any more."""
        leg = Leg(
            self._outbox,
            delivery,
            dataset_id,
            self._encoder.address(delivery.wanted.subscription_id, dataset_id),
        )
        leg.error = error
        leg.wake()

    def _end(self, leg: Leg, error: Exception) -> None:
        """End a leg with an error, which is sent when there is room."""
        self._close(leg)
        delivery = leg.delivery
        delivery.drop(leg)
        if delivery.wanted.dataset_id:
            self._deliveries.pop(delivery.wanted.subscription_id, None)
        elif not isinstance(error, PermissionDenied):
            delivery.ended = (delivery.ended or set()) | {leg.number}
        leg.error = error
        leg.wake()

    def _close(self, leg: Leg) -> None:
        if leg.subscription is None:
            return
        self._feed.close(leg.subscription)
        leg.subscription = None
        self._count -= 1
        self._outbox.forget(leg)
        replica_id = leg.delivery.wanted.replica_id
        if self._uptake is not None and replica_id:
            self._uptake.disconnected(leg.number, replica_id)


def before_prefix(prefix: str) -> str:
    """An id, or what sorts like one, that follows every id before the prefix and precedes every id with it."""
    return prefix[:-1] + chr(ord(prefix[-1]) - 1) + "\x7f" if prefix else ""


def _held_revision(position: Position | None) -> int:
    """Revision that a copy at this position surely holds; 0: it is not complete yet for the first time."""
    if position is None:
        return 0
    if position.complete:
        return position.revision
    return position.base_revision if position.base_revision <= position.revision else 0


def _forbidden(dataset_id: str) -> PermissionDenied:
    return PermissionDenied(
        "PERMISSION_DENIED", f"this key may not read dataset {dataset_id!r}, or there is no such dataset"
    )


def _not_found(dataset_id: str) -> NotFound:
    return NotFound("DATASET_NOT_FOUND", f"there is no dataset {dataset_id!r}")


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", f"{field} {problem}", fields=[(field, problem)])
