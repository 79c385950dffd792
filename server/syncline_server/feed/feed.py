"""The feed: pages, subscriptions, and waiting for revisions."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from typing import Final, Protocol

from syncline_server.clock import Clock
from syncline_server.errors import NotFound, SynclineError, Unavailable
from syncline_server.feed import tokens
from syncline_server.feed.abc import EventEncoder
from syncline_server.feed.channel import Channel
from syncline_server.feed.channels import Channels
from syncline_server.feed.progress import Progress
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.subscription import Host, Pace, Subscription
from syncline_server.feed.tailer import Tailer
from syncline_server.feed.tokens import Origin, Position
from syncline_server.feed.wheel import BookmarkWheel
from syncline_server.filters.selection import Selection
from syncline_server.metrics import Metrics
from syncline_server.model import Appended, Dataset, Head, ResetReason
from syncline_server.notify.abc import Hint, Notifier
from syncline_server.store.abc import Store

_JITTER: Final = 0.1
"""Checkpoints of many subscribers that came together spread out over ± 10 %."""

_STEPS: Final = 100
"""How finely."""

_TICKS: Final = 40
"""Looks for due checkpoints per interval; each delays one by at most a fortieth."""


class Drainable(Protocol):
    """Whoever serves subscriptions of a feed."""

    def drain(self) -> None:
        """End in an orderly way, soon."""


class Feed:
    """Serves copies of the datasets of one store. Works inside ``run``."""

    def __init__(
        self,
        store: Store,
        notifier: Notifier,
        clock: Clock,
        encoder: EventEncoder,
        settings: FeedSettings | None = None,
        metrics: Metrics | None = None,
        *,
        alone: bool = True,
    ) -> None:
        """``alone``: nobody else commits to the store. Else somebody has to call ``notice`` now and then."""
        self._store = store
        self._notifier = notifier
        self._clock = clock
        self._encoder = encoder
        self.settings = settings or FeedSettings()
        self._metrics = metrics or Metrics()
        self._channels = Channels(store, clock, encoder, self.settings, self._metrics)
        self._tailer: Tailer | None = None
        if not alone:
            self._tailer = Tailer(
                store,
                self._channels,
                self.settings,
                self._metrics,
                take=self._take,
                gone=self.dropped,
            )
        self._wheel = BookmarkWheel(self.settings.checkpoint_seconds, ticks=_TICKS)
        # Less a tick, so that also the latest comes within the interval and its tenth. Numbers that many share.
        self._intervals = tuple(
            self.settings.checkpoint_seconds * (1 + _JITTER * (2 * step / _STEPS - 1) - 1 / _TICKS)
            for step in range(_STEPS + 1)
        )
        self._hosts: set[Drainable] = set()
        self._revision_waiters: dict[int, set[asyncio.Future[None]]] = {}
        self._draining = False

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator["Feed"]:
        """Listen for commits and keep time until the block is left."""
        stop_listening = self._notifier.listen(self._on_appended)
        stop_hearing = self._notifier.hear(self._on_hint)
        timers = [asyncio.create_task(self._keep_time()), asyncio.create_task(self._keep_looking())]
        try:
            yield self
        finally:
            stop_hearing()
            stop_listening()
            for timer in timers:
                timer.cancel()
            if self._tailer is not None:
                await self._tailer.aclose()
            await self._channels.aclose()
            for outcome in await asyncio.gather(*timers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    # -- for callers --------------------------------------------------------------------------------------

    async def sync(
        self,
        dataset: Dataset,
        token: bytes,
        *,
        selection: Selection | None = None,
        min_revision: int = 0,
        page_size: int = 0,
        timeout_seconds: float | None = None,
    ) -> tuple[bytes, bytes]:
        """One page after a token: its events, and the token to go on with.

        A token that cannot be continued gives a reset and the first page of a new copy. ``page_size`` 0 or
        above the setting: the setting. Raises InvalidArgument(TOKEN_INVALID), NotFound(DATASET_NOT_FOUND),
        Unavailable(REVISION_NOT_REACHED).
        """
        start = self.decode(token)
        if min_revision > dataset.head.revision:
            await self.wait_revision(dataset.number, min_revision, timeout_seconds=timeout_seconds)
        limit = min(page_size or self.settings.page_changes, self.settings.page_changes)
        frames = []
        with self._using(self._channels.reader(dataset, selection)) as channel:
            maker = channel.maker
            channel.hear(max(min_revision, dataset.head.revision))
            if start is not None and (reason := self._judge_origin(start, maker.origin)) is not None:
                frames.append(maker.reset(start, reason, dataset.head))
                start = None
            elif start is not None:
                start = tokens.rebase(start, maker.origin)  # one position, whichever process the token is of
            while not frames or frames[-1].end is None:
                frame = await channel.read_on(start, max_changes=limit, max_bytes=self.settings.page_bytes)
                frames.append(frame)
                start = frame.end
                self._channels.hear(dataset.number, frame.head.revision)
        assert start is not None
        for frame in frames:
            self._count_reset(frame.reset)
        return b"".join(frame.body for frame in frames), maker.token(start)

    async def subscribe(
        self,
        dataset: Dataset,
        *,
        selection: Selection | None = None,
        token: bytes = b"",
        from_now: bool = False,
        min_revision: int = 0,
    ) -> AsyncGenerator[bytes]:
        """Messages that bring a copy from the token (empty: from nothing) to the head and keep it there.

        With ``from_now`` the first event is a checkpoint at the head. Ends after a last checkpoint when the
        feed is drained. Close the iterator (``contextlib.aclosing``) when it is not read to its end.
        Raises InvalidArgument(TOKEN_INVALID), NotFound(DATASET_NOT_FOUND), Unavailable(SHUTTING_DOWN).
        """
        start = self.decode(token)
        if min_revision > dataset.head.revision:
            await self._reach(dataset.number, min_revision)
            self._channels.open(dataset, selection).hear(min_revision)
        self._refuse_when_draining()
        head = await self.learn_head(dataset, selection) if from_now else None
        host = _Alone()
        with self.hosting(host):
            subscription = self.open(
                dataset, host, start=start, head=head, min_revision=min_revision, selection=selection
            )
            try:
                while True:
                    draining = host.draining
                    bodies = subscription.poll(self._clock.monotonic())
                    if bodies:
                        yield bodies[0] if len(bodies) == 1 else b"".join(bodies)
                    if draining:
                        break
                    if not bodies:
                        await host.wait()
                if last := subscription.going_away:
                    yield last
            finally:
                self.close(subscription)

    def open(
        self,
        dataset: Dataset,
        host: Host,
        *,
        start: Position | None = None,
        head: Head | None = None,
        min_revision: int = 0,
        selection: Selection | None = None,
        pace: Pace | None = None,
        first_at_head: bool = False,
    ) -> Subscription:
        """Begin a subscription from a position, or from now on, at ``head`` which was just read; ``close`` it.

        Without either: from nothing. Nothing is sent before ``min_revision``. ``first_at_head``: the first checkpoint
        is at the newest revision known now, the progress's ``floor_revision``, or later.
        """
        channel = self._channels.open(dataset, selection)
        channel.hear(dataset.head.revision)
        reason = None if start is None else self._judge_origin(start, channel.maker.origin)
        seen_revision = 0
        if start is not None and reason in (None, ResetReason.FILTER_CHANGED):
            seen_revision = start.seen_revision  # perhaps on another node, which was ahead (guarantee G12)
        progress = Progress(
            start,
            settings=self.settings,
            floor_revision=max(min_revision, channel.newest_revision, seen_revision),
        )
        first = None
        if head is not None:
            progress.position = tokens.at_head(channel.maker.origin, head)
            progress.confirm(head)
        elif start is not None:
            if reason is not None:
                first = channel.maker.reset(start, reason, dataset.head)
            elif min_revision <= channel.newest_revision:
                if first_at_head:
                    channel.settle()
                _try_ring(channel, progress, start, first_at_head=first_at_head)
        subscription = Subscription(
            channel,
            progress,
            host,
            bookmark_seconds=random.choice(self._intervals),  # noqa: S311
            metrics=self._metrics,
            first=first,
            min_revision=min_revision,
            pace=pace,
        )
        channel.users += 1
        channel.followers[progress] = None
        self._wheel.add(subscription, self._clock.monotonic())
        self._metrics.subscribers.inc()
        return subscription

    def close(self, subscription: Subscription) -> None:
        """End a subscription."""
        subscription.close()
        channel = subscription.channel
        channel.followers.pop(subscription.progress, None)
        channel.users -= 1
        channel.left_at = self._clock.monotonic()
        self._metrics.subscribers.dec()

    @contextlib.contextmanager
    def hosting(self, host: Drainable) -> Iterator[None]:
        """Tell this host when to drain, while the block lasts."""
        self._hosts.add(host)
        if self._draining:
            host.drain()
        try:
            yield
        finally:
            self._hosts.discard(host)

    def decode(self, token: bytes) -> Position | None:
        """Position in a token; None when it is empty. Raises InvalidArgument(TOKEN_INVALID)."""
        if not token:
            return None
        info = self._store.info
        return tokens.decode(token, store_id=info.store_id, secret=info.token_secret)

    def incarnation(self, token: bytes) -> bytes:
        """What the holder of a token knows the dataset by; empty: nothing. Raises InvalidArgument(TOKEN_INVALID)."""
        position = self.decode(token)
        return b"" if position is None else position.origin.incarnation

    def follows(self, dataset_number: int) -> bool:
        """Whether every commit to the dataset is heard at once, so that its head is known."""
        return self._tailer is None and self._channels.follows(dataset_number)

    async def present(self, dataset: Dataset) -> Dataset:
        """The dataset with its head of now, if that is not known. Raises NotFound(DATASET_NOT_FOUND)."""
        if self._tailer is None:
            return dataset
        return replace(dataset, head=await self._store.read_head(dataset.number))

    async def learn_head(self, dataset: Dataset, selection: Selection | None = None) -> Head:
        """Read the head of a dataset, so that what waits for a revision knows. Raises NotFound(DATASET_NOT_FOUND)."""
        with self._using(self._channels.open(dataset, selection)) as channel:
            # It is there for commits that come meanwhile.
            head = await self._store.read_head(dataset.number)
        channel.hear(head.revision)
        return head

    async def wait_revision(
        self, dataset_number: int, revision: int, *, timeout_seconds: float | None = None
    ) -> None:
        """Return when the dataset has reached a revision.

        ``timeout_seconds`` None: the setting. Raises Unavailable(REVISION_NOT_REACHED or SHUTTING_DOWN),
        NotFound(DATASET_NOT_FOUND).
        """
        if timeout_seconds is None:
            timeout_seconds = self.settings.revision_wait_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._reach(dataset_number, revision)
        except TimeoutError:
            raise Unavailable(
                "REVISION_NOT_REACHED",
                f"the dataset did not reach revision {revision} within {timeout_seconds:g} s",
                min_revision=revision,
            ) from None

    @property
    def is_draining(self) -> bool:
        """Whether subscriptions are being ended, and no new one is taken."""
        return self._draining

    def drain(self) -> None:
        """End every subscription after a last checkpoint, and take no new one."""
        self._draining = True
        for host in tuple(self._hosts):
            host.drain()
        for dataset_number in self._revision_waiters:
            self._wake_revision_waiters(dataset_number)

    def notice(self, heads: Mapping[int, Head]) -> Mapping[int, int]:
        """Hear where all datasets stand, by number; answer how far those had been heard of that were behind.

        Only for one who is not alone.
        """
        assert self._tailer is not None
        behind: dict[int, int] = {}
        for number in {*self._channels.dataset_numbers, *self._revision_waiters}:
            known_revision = self._channels.newest_revision(number)
            head = heads.get(number)
            if head is None or head.revision > known_revision:
                self._tailer.look(number)
            if head is not None and known_revision < head.revision and self._channels.follows(number):
                behind[number] = known_revision
        return behind

    def dropped(self, dataset_number: int) -> None:
        """Hear that a dataset was deleted or its records re-keyed: forget what is kept of it."""
        self._channels.drop(dataset_number)
        self._wake_revision_waiters(dataset_number)

    # -- inside -------------------------------------------------------------------------------------------

    def _judge_origin(self, start: Position, origin: Origin) -> ResetReason | None:
        return tokens.judge_origin(start, origin=origin, histories=self._store.info.histories)

    def _count_reset(self, reason: ResetReason | None) -> None:
        if reason is not None:
            self._metrics.resets[reason].inc()

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Unavailable("SHUTTING_DOWN", "the server is shutting down: connect again")

    async def _reach(self, dataset_number: int, revision: int) -> None:
        while True:
            self._refuse_when_draining()
            # Registered before the look, so that a commit between the two is not missed.
            waiters = self._revision_waiters.setdefault(dataset_number, set())
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters.add(waiter)
            try:
                if (await self._store.read_head(dataset_number)).revision >= revision:
                    return
                await waiter
            finally:
                waiters.discard(waiter)
                if not waiters:
                    self._revision_waiters.pop(dataset_number, None)

    def _wake_revision_waiters(self, dataset_number: int) -> None:
        for waiter in self._revision_waiters.get(dataset_number, ()):
            if not waiter.done():
                waiter.set_result(None)

    @contextlib.contextmanager
    def _using(self, channel: Channel) -> Iterator[Channel]:
        channel.users += 1
        try:
            yield channel
        finally:
            channel.users -= 1
            channel.left_at = self._clock.monotonic()

    # -- what is heard, and the clock ---------------------------------------------------------------------

    def _on_appended(self, appended: Appended) -> None:
        if self._tailer is None:
            self._take(appended)
        else:
            self._tailer.hear(appended)

    def _on_hint(self, hint: Hint) -> None:
        """What is hinted at is never taken for a fact; but what is known already needs no look."""
        if self._tailer is None:
            return
        for number, revision in hint.items():
            wanted = self._channels.follows(number) or number in self._revision_waiters
            if wanted and revision > self._channels.newest_revision(number):
                self._tailer.look(number)

    def _take(self, appended: Appended) -> None:
        self._channels.take(appended)
        self._wake_revision_waiters(appended.dataset_number)

    async def _keep_time(self) -> None:
        """Wake idle subscribers for their checkpoint."""
        while True:
            await asyncio.sleep(self.settings.checkpoint_seconds / _TICKS)
            self._wheel.turn(self._clock.monotonic())

    async def _keep_looking(self) -> None:
        """Find what no wake-up told, and let go of datasets that nobody follows any more."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            if self._tailer is None:
                await self._look_at_all()
            self._metrics.lag_revisions.set(self._channels.lag_revisions)
            self._channels.let_go()

    async def _look_at_all(self) -> None:
        for dataset_number in {*self._channels.dataset_numbers, *self._revision_waiters}:
            try:
                await self._look(dataset_number)
            except SynclineError:
                self._metrics.background_failures.labels("feed").inc()

    async def _look(self, dataset_number: int) -> None:
        try:
            head = await self._store.read_head(dataset_number)
        except NotFound:
            self.dropped(dataset_number)
            return
        self._channels.hear(dataset_number, head.revision)
        self._wake_revision_waiters(dataset_number)


class _Alone(Host):
    """Hosts one subscription, for a stream that has only this."""

    __slots__ = ("_waiter", "_woken", "draining")

    def __init__(self) -> None:
        self.draining = False
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False

    def wake(self) -> None:
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def ask_read(self, subscription: Subscription) -> None:
        subscription.begin_read()

    def end_read(self, subscription: Subscription) -> None:
        pass

    def drain(self) -> None:
        self.draining = True
        self.wake()

    async def wait(self) -> None:
        """Return when there was a wake-up since the last return."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._woken = False


def _try_ring(channel: Channel, progress: Progress, start: Position, *, first_at_head: bool) -> None:
    """Spare the store a read when the ring can vouch for a token: it was made at a checkpoint that is in it.

    (The ring knows the commit id, and what follows in it is complete, so no purge can concern this copy.)
    """
    ring = channel.ring
    position = tokens.rebase(start, channel.maker.origin)
    if not ring.holds(position):
        return
    if first_at_head:
        # Each frame in between would bring its own checkpoint; the store folds them into one.
        follows = ring.follow(position, max_bytes=1)
        first = follows[0].end if follows else position
        if first != ring.tail or first is None or first.revision < progress.floor_revision:
            return
    progress.position = position
    progress.confirm(ring.head if position == ring.tail else None)
