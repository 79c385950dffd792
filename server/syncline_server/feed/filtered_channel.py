"""What the subscribers share that follow one dataset with the same filter and mask."""

import asyncio
from dataclasses import replace
from typing import Final

from syncline_server.feed import tokens
from syncline_server.feed.channel import Channel, Waiter, judge_page, read_page
from syncline_server.feed.filtered_first import Step, in_first_part, read_members
from syncline_server.feed.filtered_hub import Hub
from syncline_server.feed.filtered_members import Follower, Members, State
from syncline_server.feed.filtered_rows import Columns, select
from syncline_server.feed.frames import Frame, FrameMaker
from syncline_server.feed.progress import Progress
from syncline_server.feed.ring import FrameRoom
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Position
from syncline_server.filters.selection import Selection
from syncline_server.metrics import Metrics
from syncline_server.model import Appended, Changes, Head
from syncline_server.store.abc import Store

_READ_ON_SECONDS: Final = 1.0
"""Pages that hold nothing for a copy are passed over for so long before it hears how far it is."""

_PATIENCE_SECONDS: Final = 5.0
"""Longest wait for the account before a copy hears that it is not forgotten."""

_NOTHING: Final = Changes(record_ids=[], data=[], revisions=[], commit_times_us=[])


class FilteredChannel(Channel, Follower):
    """One dataset, seen through a selection. Works like a Channel, with these differences.

    Its ring moves only when a change concerned the copy: ``known_revision`` is the newest such, and a follower that
    is exact there is exact at the head too. ``settle`` moves it to the head without a change. Pages are read
    until they hold something for the copy, and end in a checkpoint only when the account says what the copy holds.
    """

    def __init__(
        self,
        store: Store,
        dataset_number: int,
        maker: FrameMaker,
        selection: Selection,
        hub: Hub,
        frames: FrameRoom,
        settings: FeedSettings,
        metrics: Metrics,
    ) -> None:
        super().__init__(store, dataset_number, maker, settings, metrics, frames)
        self.selection = selection
        self.members = Members(selection, self)
        self._hub = hub
        self._folded = 0
        """The ledger's sum at the ring's tail."""

    @property
    def unverified(self) -> bool:
        """Checkpoints come without count and digest, or will when the members have been counted."""
        state = self.members.state
        return state is State.UNVERIFIED or (state is State.JOINING and self._hub.ledger.room.full)

    @property
    def newest_revision(self) -> int:
        """Newest revision of the dataset heard of."""
        return max(self.known_revision, self._hub.heard_revision)

    # -- what the ledger tells ----------------------------------------------------------------------------

    @property
    def wants_changes(self) -> bool:
        """See Follower."""
        return bool(self.followers)

    def joined(self) -> None:
        """See Follower. What is in the ring ends in a gap: nobody looked between it and here."""
        ledger = self._hub.ledger
        assert ledger.head is not None
        own = ledger.own_head(self.members, ledger.head)
        assert own is not None
        self.ring.skip_to(own)
        self._folded = ledger.folded
        super().hear(own.revision)

    def deliver(self, head: Head, columns: Columns | None, folded: int) -> None:
        """See Follower."""
        self._move(head, None if columns is None else columns.changes(), folded)
        super().hear(head.revision)

    def lost(self) -> None:
        """See Follower. From here on every commit may concern the copy."""
        super().hear(self._hub.heard_revision)

    def hear(self, revision: int) -> None:
        """See Channel. Whether it concerns this copy, the hub finds out."""
        self._hub.hear(revision)

    def settle(self) -> None:
        """Go on to the ledger's head: nothing concerned the copy since the ring's tail."""
        ledger = self._hub.ledger
        if ledger.head is not None:
            self._settle_at(ledger.head)

    def _settle_at(self, head: Head) -> Head | None:
        """The copy's own head there; None: not known. The ring goes there unless it is further."""
        ledger = self._hub.ledger
        own, folded = ledger.own_head(self.members, head), ledger.passed(head)
        if own is not None and folded is not None:
            self._move(own, _NOTHING, folded)
            self.known_revision = max(self.known_revision, own.revision)
        return own

    def _move(self, head: Head, changes: Changes | None, folded: int) -> None:
        tail = self.ring.tail
        if tail is not None and tail.revision >= head.revision:
            return
        if tail is None or changes is None or not self.followers:
            self.ring.skip_to(head)
        else:
            appended = Appended(
                dataset_number=self._dataset_number, from_revision=tail.revision, head=head, changes=changes
            )
            self.ring.append(appended, folded=max(0, folded - self._folded))
        self._folded = folded

    def wait(self, waiter: Waiter, revision: int = 0) -> None:
        """See Channel."""
        super().wait(waiter)
        if revision:
            self._hub.call_at(revision, self.wake)

    # -- reading ------------------------------------------------------------------------------------------

    def start_read(self, progress: Progress, *, afresh: bool = False) -> asyncio.Task[Frame]:
        """See Channel."""
        under_way = None if afresh else self._reads.get(progress.position)
        return under_way or self._begin(progress.position, progress.page_changes, progress.page_bytes)

    async def _read(self, start: Position | None, max_changes: int, max_bytes: int) -> Frame:
        frame = await self.read_on(start, max_changes=max_changes, max_bytes=max_bytes)
        if frame.reset is None and frame.start != frame.end:
            self.shared.add(frame)
        return frame

    async def read_on(self, start: Position | None, *, max_changes: int, max_bytes: int) -> Frame:
        """Read what follows ``start`` until there is something for the copy, it is exact, or a while has passed.

        Raises NotFound(DATASET_NOT_FOUND) and the store's troubles.
        """
        if start is not None and (frame := self._go_on_unread(start)) is not None:
            return frame
        if in_first_part(start) and not await self._hub.reach(self.members, 0, seconds=_PATIENCE_SECONDS):
            # The members are still being counted. Reading everything here as well would only hold that up.
            if start is not None:
                return self.maker.step(start, start, Head(revision=start.seen_revision), _NOTHING, 0)
            max_changes = 1
        until = asyncio.get_running_loop().time() + _READ_ON_SECONDS
        columns, position, folded = Columns(), start, 0
        while True:
            step = await self._read_step(position, max_changes, max_bytes)
            page = step.page
            self._metrics.ring_misses.inc()
            reason = judge_page(self.maker, position, page, self._store.info.histories)
            if reason is not None and position is start:
                assert start is not None
                return self.maker.reset(start, reason, page.head)
            if reason is not None:
                break  # what was read until now is good; the next page is judged again
            select(self.selection, page.changes, step.end.base_revision, columns)
            folded += tokens.folded(position, step.end, len(page.changes))
            position = step.end
            if position.position == page.head.last_position:
                own = await self._own_head(page.head)
                if own is not None:
                    end = tokens.at_head(self.maker.origin, own)
                    return self.maker.step(start, end, own, columns.changes(), folded)
            if columns or asyncio.get_running_loop().time() >= until:
                break
        assert position is not None
        return self.maker.step(start, position, page.head, columns.changes(), folded)

    async def _read_step(self, position: Position | None, max_changes: int, max_bytes: int) -> Step:
        """By members while that is possible, else by position."""
        if in_first_part(position):
            step = await read_members(
                self._store,
                self._dataset_number,
                self._hub,
                self.members,
                self.maker.origin,
                position,
                max_changes=max_changes,
                max_bytes=max_bytes,
            )
            if step is not None:
                return step
        page = await read_page(
            self._store, self._dataset_number, position, max_changes=max_changes, max_bytes=max_bytes
        )
        return Step(page=page, end=tokens.pass_over(position, page, self.maker.origin))

    def _go_on_unread(self, start: Position) -> Frame | None:
        """Go on to the ledger's head from a checkpoint since which nothing concerned the copy.

        Everything after it was looked at here, so no page has to be judged. None: that is not known.
        """
        ledger, tail = self._hub.ledger, self.ring.tail
        head, passed = ledger.head, ledger.head_at(start.revision)
        if not start.complete or head is None or head.revision < self._hub.heard_revision:
            return None
        if tail is None or start.revision < tail.revision:
            return None
        if passed is None or passed.commit_id != start.seen_commit_id:
            return None
        before, own = ledger.passed(passed), self._settle_at(head)
        if before is None or own is None:
            return None
        end = tokens.at_head(self.maker.origin, own)
        return self.maker.step(start, end, own, _NOTHING, ledger.folded - before)

    async def _own_head(self, head: Head) -> Head | None:
        """What the copy holds at a head that was read; None: not known there, so read on."""
        there = await self._hub.reach(self.members, head.revision, seconds=_PATIENCE_SECONDS)
        if self.members.state is State.UNVERIFIED:
            return replace(head, record_count=-1, digest=0)
        return self._settle_at(head) if there else None
