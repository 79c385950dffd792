"""Keeps the ledger of the filtered copies of one dataset at the dataset's head."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from syncline_server.errors import SynclineError, Unavailable
from syncline_server.feed import tokens
from syncline_server.feed.channel import judge_page, read_page
from syncline_server.feed.filtered_ledger import Ledger, Stretch
from syncline_server.feed.filtered_members import MemberRoom, Members, State
from syncline_server.feed.frames import FrameMaker
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Position
from syncline_server.metrics import Metrics
from syncline_server.model import Appended, Changes, Head, Page
from syncline_server.store.abc import Store

_AT_ONCE: Final = 100
"""Changes that are looked at in one turn of the event loop, and copies that are told."""

_SWEEP: Final = 2_000
_UNVERIFIED_SECONDS: Final = 0.05
"""Copies without an account are told of commits at most this often, because each looks into the store then."""


class Hub:
    """Hears of the commits of one dataset, once for all filtered copies of it.

    A group of commits that follows and carries its few changes is looked at when it is heard of. For all else a
    task reads the store: to count the members of copies that are new, in one scan for all that wait for one, and
    to catch up after a gap.
    """

    def __init__(
        self,
        store: Store,
        dataset_number: int,
        maker: FrameMaker,
        room: MemberRoom,
        settings: FeedSettings,
        metrics: Metrics,
    ) -> None:
        self.ledger = Ledger(room, max_bytes=settings.ring_bytes, max_copy_bytes=settings.frame_bytes)
        self.heard_revision = 0
        """Newest revision heard of."""
        self._store = store
        self._dataset_number = dataset_number
        self._maker = maker
        self._settings = settings
        self._metrics = metrics
        self._moving = False
        """The ledger is between two heads."""
        self._task: asyncio.Task[None] | None = None
        self._tell_later: asyncio.TimerHandle | None = None
        self._calls: list[tuple[int, Callable[[], None]]] = []
        self._counted: set[asyncio.Future[None]] = set()
        """Who waits for a count to end."""
        self._moved: set[asyncio.Future[None]] = set()
        """Who waits for the ledger to move, which is few and not for long."""

    # -- what is heard ------------------------------------------------------------------------------------

    def take(self, appended: Appended) -> None:
        """Hear of a group of commits."""
        ledger = self.ledger
        head, changes = ledger.head, appended.changes
        self._heard(appended.head.revision)
        if self._moving or head is None or appended.head.revision <= head.revision:
            return  # whatever the task reads now, it looks again afterwards
        if changes is None or len(changes) > _AT_ONCE or appended.from_revision != head.revision:
            self._start()
            return
        stretch = Stretch()
        ledger.look(changes, stretch)
        self._metrics.filter_changes.inc(len(changes))
        folded = ledger.folded + appended.head.last_position - head.last_position - len(changes)
        for members, columns in stretch.by_copy.items():
            ledger.deliver(members, columns, appended.head, folded)
        ledger.move(appended.head, folded)
        self._arrive(self._moved)
        if ledger.retired:
            self._start()

    def hear(self, revision: int) -> None:
        """Hear that the dataset has reached a revision."""
        self._heard(revision)
        head = self.ledger.head
        if self.ledger.joining or (head is not None and head.revision < revision):
            self._start()

    def call_at(self, revision: int, call: Callable[[], None]) -> None:
        """Call once when the dataset has reached a revision."""
        self._calls.append((revision, call))

    def _heard(self, revision: int) -> None:
        if revision > self.heard_revision:
            self.heard_revision = revision
            if self.ledger.unverified:
                self._tell_unverified()
            if self._calls:
                due = [call for at, call in self._calls if at <= revision]
                self._calls = [(at, call) for at, call in self._calls if at > revision]
                for call in due:
                    call()

    def drop(self) -> None:
        """Forget everything; the accounts begin anew when somebody needs them."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._moving = False
        self.heard_revision = 0
        self.ledger.restart()
        self._stop_waiting(None)

    async def aclose(self) -> None:
        """Stop reading."""
        if self._tell_later is not None:
            self._tell_later.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._stop_waiting(Unavailable("SHUTTING_DOWN", "the server is shutting down: connect again"))

    # -- accounts -----------------------------------------------------------------------------------------

    def join(self, members: Members) -> None:
        """Begin an account. It is counted soon."""
        self.ledger.join(members)
        self._start()

    def leave(self, members: Members) -> None:
        """End an account."""
        self.ledger.leave(members)
        if self.ledger.retired:
            self._start()

    @property
    def tail(self) -> Position | None:
        """Where the ledger stands; None: nowhere, or between two heads."""
        head = self.ledger.head
        return None if head is None or self._moving else tokens.at_head(self._maker.origin, head)

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return self._task is None

    async def reach(self, members: Members, revision: int, *, seconds: float) -> bool:
        """Wait until the account is kept at this revision or a later one, or not kept at all; False: in vain.

        Raises NotFound(DATASET_NOT_FOUND), the store's troubles.
        """
        try:
            async with asyncio.timeout(seconds):
                while members.state is State.JOINING:
                    self.hear(revision)
                    await self._arrival(self._counted)
                while members.state is State.JOINED and not self._is_at(revision):
                    self.hear(revision)
                    await self._arrival(self._moved)
        except TimeoutError:
            return False
        return True

    def _is_at(self, revision: int) -> bool:
        head = self.ledger.head
        return head is not None and head.revision >= revision

    def _stop_waiting(self, error: Exception | None) -> None:
        self._arrive(self._counted, error)
        self._arrive(self._moved, error)

    async def _arrival(self, waiting: set[asyncio.Future[None]]) -> None:
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.add(arrival)
        try:
            await arrival
        finally:
            waiting.discard(arrival)

    def _arrive(self, waiting: set[asyncio.Future[None]], error: Exception | None = None) -> None:
        for arrival in waiting:
            if arrival.done():
                continue
            if error is None:
                arrival.set_result(None)
            else:
                arrival.set_exception(error)

    def _tell_unverified(self) -> None:
        if self._tell_later is None:
            loop = asyncio.get_running_loop()
            self._tell_later = loop.call_later(_UNVERIFIED_SECONDS, self._tell_unverified_now)

    def _tell_unverified_now(self) -> None:
        self._tell_later = None
        for members in self.ledger.unverified:
            members.follower.lost()

    # -- the task -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._has_work():
                if self.ledger.retired:
                    self.ledger.sweep(_SWEEP)
                    await asyncio.sleep(0)
                elif self.ledger.joining:
                    await self._count()
                else:
                    await self._catch_up((), None)
        except Exception as error:
            # In between two heads nothing is known. Who waits is told; the next who asks begins anew.
            self.ledger.restart()
            self._metrics.background_failures.labels("filters").inc()
            self._stop_waiting(error)
            if not isinstance(error, SynclineError):
                raise
        finally:
            if self._task is asyncio.current_task():
                self._task = None
                self._moving = False

    def _has_work(self) -> bool:
        head = self.ledger.head
        behind = head is not None and head.revision < self.heard_revision
        return bool(self.ledger.retired or self.ledger.joining) or behind

    async def _count(self) -> None:
        """Find the members of all that are waiting now, in one scan."""
        newcomers = self.ledger.begin_count()
        position: Position | None = None
        while True:
            page = await self._page(position)
            if judge_page(self._maker, position, page, self._store.info.histories) is not None:
                return  # purged meanwhile; the next look counts again
            for part in _parts(page.changes):
                self.ledger.count(part)
                await asyncio.sleep(0)
            position = tokens.advance(position, page, self._maker.origin)
            if page.complete:
                break
        await self._catch_up(newcomers, position)

    async def _catch_up(self, newcomers: Sequence[Members], counted: Position | None) -> None:
        """Read from where the ledger is to the head; from ``counted`` if newcomers are less far.

        Both look at the same pages at the end, so that they come to the same head however fast others write. What
        one of them has seen before changes nothing for it.
        """
        ledger = self.ledger
        before = ledger.head
        position = counted if before is None else tokens.at_head(self._maker.origin, before)
        if counted is not None and position is not None and counted.position < position.position:
            position = counted
        self._moving = True
        stretch, looked, complete = Stretch(), 0, False
        while not complete:
            heard_revision = self.heard_revision
            page = await self._page(position)
            if not self._can_take(page, position, before, counted):
                ledger.restart()
                break
            for part in _parts(page.changes):
                if before is not None:
                    looked += ledger.look(part, stretch)
                if newcomers:
                    ledger.count(part)
                await asyncio.sleep(0)
            position = tokens.advance(position, page, self._maker.origin)
            complete = page.complete
        else:
            if self.heard_revision == heard_revision:
                self.heard_revision = page.head.revision  # the page knows better, also when it knows of less
            await self._deliver(stretch, looked, before, page.head)
            ledger.admit(newcomers, page.head)
        self._moving = False
        self._arrive(self._moved)
        await self._tell_counted()

    async def _tell_counted(self) -> None:
        for number, arrival in enumerate(tuple(self._counted), 1):
            if not arrival.done():
                arrival.set_result(None)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _deliver(self, stretch: Stretch, looked: int, before: Head | None, head: Head) -> None:
        folded = self.ledger.folded
        if before is not None:
            folded += max(0, head.last_position - before.last_position - looked)
        for number, (members, columns) in enumerate(stretch.by_copy.items(), 1):
            self.ledger.deliver(members, columns, head, folded)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self.ledger.move(head, folded)

    def _can_take(
        self, page: Page, position: Position | None, before: Head | None, counted: Position | None
    ) -> bool:
        purged, revision = page.head.purge_revision, page.head.revision
        return (
            judge_page(self._maker, position, page, self._store.info.histories) is None
            and (before is None or purged <= before.revision <= revision)
            and (counted is None or purged <= counted.covered_revision)
        )

    async def _page(self, position: Position | None) -> Page:
        page = await read_page(
            self._store,
            self._dataset_number,
            position,
            max_changes=self._settings.page_changes,
            max_bytes=self._settings.page_bytes,
        )
        self._metrics.filter_changes.inc(len(page.changes))
        return page


def _parts(changes: Changes) -> Iterator[Changes]:
    """Changes in pieces that do not hold up the event loop."""
    if len(changes) <= _AT_ONCE:
        yield changes
        return
    for begin in range(0, len(changes), _AT_ONCE):
        piece = slice(begin, begin + _AT_ONCE)
        yield Changes(
            record_ids=changes.record_ids[piece],
            data=changes.data[piece],
            revisions=changes.revisions[piece],
            commit_times_us=changes.commit_times_us[piece],
            kinds=changes.kinds[piece],
            reasons=changes.reasons[piece],
        )
