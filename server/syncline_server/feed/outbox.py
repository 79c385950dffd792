"""What a stream of subscriptions sends next, and what it reads for that.

Everything waits in the subscriptions themselves until the stream can be written to: then those that were woken are
polled, round and round, until a message is full. While a write is blocked nothing is polled and nothing is encoded,
so what the stream holds is the message on its way, and pages up to ``READ_AHEAD_BYTES`` that were read for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from syncline_server.clock import Clock
from syncline_server.feed.abc import PartEncoder
from syncline_server.feed.delivery import Wanted
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.subscription import Host, Subscription

READ_AHEAD_BYTES: Final = 512 << 10
"""Pages that are read, or wait to be sent, for all subscriptions of a stream together; one in any case."""

_POLLS_AT_ONCE: Final = 1_000
"""Subscriptions looked at without a break."""


class Leg(Host):
    """A subscription's part in one dataset, or the news that there is none."""

    __slots__ = (
        "accepted",
        "address",
        "dataset_id",
        "delivery",
        "error",
        "number",
        "outbox",
        "queued",
        "subscription",
    )

    def __init__(self, outbox: "Outbox", delivery: "Delivery", dataset_id: str, address: bytes) -> None:
        self.outbox = outbox
        self.delivery = delivery
        self.dataset_id = dataset_id
        self.address = address
        self.number = 0
        self.subscription: Subscription | None = None
        self.error: Exception | None = None
        self.accepted = False
        """The client was told that it has begun."""
        self.queued = False

    def wake(self) -> None:
        """See Host."""
        if not self.queued:
            self.queued = True
            self.outbox.enqueue(self)

    def ask_read(self, subscription: Subscription) -> None:
        """See Host."""
        del subscription
        self.outbox.ask_read(self)

    def end_read(self, subscription: Subscription) -> None:
        """See Host."""
        del subscription
        self.outbox.end_read(self)


class Delivery:
    """One AddSubscription that is in force."""

    __slots__ = ("credit_bytes", "ended", "leg", "legs", "tokens", "wanted")

    def __init__(self, wanted: Wanted, *, credit_bytes: int) -> None:
        # It lives long, so without what is used only in the beginning.
        self.wanted = replace(wanted, token=b"", tokens=None) if wanted.token or wanted.tokens else wanted
        self.credit_bytes = credit_bytes
        """What may still be sent; below 0 after the last part went beyond it."""
        self.leg: Leg | None = None
        """Of one dataset. There are many of these, and a dictionary is as large as all the rest."""
        self.legs: dict[str, Leg] | None = None if wanted.dataset_id else {}
        """With a prefix, by dataset id."""
        self.ended: set[int] | None = None
        """With a prefix: datasets that ended with an error, and are not to begin again by themselves."""
        self.tokens = dict(wanted.tokens) if wanted.tokens else None
        """Those that were not used yet."""

    def __iter__(self) -> Iterator[Leg]:
        if self.legs is not None:
            return iter(tuple(self.legs.values()))
        return iter(() if self.leg is None else (self.leg,))

    def get(self, dataset_id: str) -> Leg | None:
        """Its part in a dataset; empty: in the one that it is of."""
        if self.legs is not None:
            return self.legs.get(dataset_id)
        return self.leg if dataset_id in {"", self.wanted.dataset_id} else None

    def put(self, leg: Leg) -> None:
        """Take a part in."""
        if self.legs is None:
            self.leg = leg
        else:
            self.legs[leg.dataset_id] = leg

    def drop(self, leg: Leg) -> None:
        """Let go of a part, unless another one has its place."""
        if self.leg is leg:
            self.leg = None
        elif self.legs is not None and self.legs.get(leg.dataset_id) is leg:
            del self.legs[leg.dataset_id]


class Outbox:
    """Polls the legs of one stream that were woken."""

    def __init__(
        self,
        encoder: PartEncoder,
        clock: Clock,
        settings: FeedSettings,
        end: Callable[[Leg, Exception], None],
    ) -> None:
        """``end`` is called with a leg that has failed."""
        self._encoder = encoder
        self._clock = clock
        self._settings = settings
        self._end = end
        self._ready: deque[Leg] = deque()
        self._to_read: dict[Leg, None] = {}
        self.reading: dict[Leg, int] = {}
        """Legs whose page is read, or was read and not sent, with its size."""
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Nothing is to be sent."""
        return not self._ready

    def resume(self, legs: Iterable[Leg]) -> None:
        """Hear that these may send again."""
        for leg in legs:
            if leg.subscription is not None and leg.subscription.wants_read:
                self._to_read[leg] = None
            leg.wake()

    def forget(self, leg: Leg) -> None:
        """Read nothing for a leg that has ended."""
        self._to_read.pop(leg, None)

    # -- sending ------------------------------------------------------------------------------------------

    def enqueue(self, leg: Leg) -> None:
        """Poll a leg when there is room."""
        self._ready.append(leg)
        self.wake()

    def collect(self) -> bytes:
        """One message of whatever is ready; empty: there is nothing."""
        now = self._clock.monotonic()
        chunks: list[bytes] = []
        size = polls = 0
        ready = self._ready
        while ready and size < self._settings.message_bytes and polls < _POLLS_AT_ONCE:
            leg = ready.popleft()
            leg.queued = False
            polls += 1
            bodies = self._bodies(leg, now)
            if bodies:
                size += self._add_part(chunks, bodies, leg)
        self._begin_reads()
        self._room.set()
        return b"".join(chunks)

    def _bodies(self, leg: Leg, now: float) -> Sequence[bytes]:
        if leg.error is not None:
            error, leg.error = leg.error, None
            return (self._encoder.error(error),)
        subscription = leg.subscription
        if subscription is None:
            return ()
        bodies: Sequence[bytes] = ()
        try:
            if not leg.accepted:
                leg.accepted = True
                bodies = (self._accepted(leg, subscription),)
            if leg.delivery.credit_bytes <= 0:
                subscription.give_up_read()
                return bodies
            sent = subscription.poll(now)
        except Exception as error:  # noqa: BLE001 - the fence between subscriptions
            self._end(leg, error)
            return bodies
        if sent:
            if not subscription.waits:
                leg.wake()  # there may be more
            return (*bodies, *sent)
        return bodies

    def _accepted(self, leg: Leg, subscription: Subscription) -> bytes:
        selection = leg.delivery.wanted.selection
        return self._encoder.accepted(
            subscription.progress.floor_revision,
            cost_class=0 if selection is None else selection.cost_class,
            unverified=subscription.channel.unverified,
        )

    def _add_part(self, chunks: list[bytes], bodies: Sequence[bytes], leg: Leg) -> int:
        size = sum(map(len, bodies)) + len(leg.address)
        chunks.append(self._encoder.begin(size))
        chunks.extend(bodies)
        chunks.append(leg.address)
        leg.delivery.credit_bytes -= size
        return size

    def last_messages(self, deliveries: Iterable[Delivery]) -> Iterator[bytes]:
        """Last checkpoints of all copies that are exact."""
        chunks: list[bytes] = []
        size = 0
        for delivery in deliveries:
            for leg in delivery:
                last = leg.subscription.going_away if leg.subscription and delivery.credit_bytes > 0 else None
                if last is not None and leg.accepted:
                    size += self._add_part(chunks, (last,), leg)
                if size >= self._settings.message_bytes:
                    yield b"".join(chunks)
                    chunks, size = [], 0
        if chunks:
            yield b"".join(chunks)

    # -- reading ------------------------------------------------------------------------------------------

    def ask_read(self, leg: Leg) -> None:
        """Read for this leg when its turn comes; polling it asked for that."""
        self._to_read[leg] = None

    def end_read(self, leg: Leg) -> None:
        """Hear that a page has been taken or given up."""
        self.reading.pop(leg, None)

    def _begin_reads(self) -> None:
        while self._to_read:
            leg = next(iter(self._to_read))
            subscription = leg.subscription
            if subscription is not None and leg.delivery.credit_bytes > 0:
                page_bytes = subscription.progress.page_bytes
                if self.reading and sum(self.reading.values()) + page_bytes > READ_AHEAD_BYTES:
                    return
                self.reading[leg] = page_bytes
                subscription.begin_read()
            del self._to_read[leg]

    # -- waiting ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let ``wait`` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Return when there may be something to send, or ``wake`` was called."""
        if self._ready:
            await asyncio.sleep(0)  # there were too many to look at without a break
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def room(self) -> None:
        """Wait while what the client was not told yet grows beyond what it may ask for."""
        while len(self._ready) > 2 * self._settings.subscriptions_per_stream:
            self._room.clear()
            await self._room.wait()
