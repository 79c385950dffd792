"""The accounts of all filtered copies of a dataset, kept at one head. No I/O.

A copy is accounted for by its members. They are brought forward by every change, whoever follows, and a change is looked
at once for all copies: the index tells which of them want it, the holders which of them have the record.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from syncline_server.feed.filtered_members import MemberRoom, Members, State
from syncline_server.feed.filtered_rows import Columns
from syncline_server.filters.index import SelectionIndex
from syncline_server.filters.selection import Row
from syncline_server.model import ChangeKind, Changes, Head, Reason

_HEADS: Final = 1_024
"""Newest heads that are remembered."""


class Holders:
    """Record id → the copies that hold it. Mostly one or none."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: dict[str, Members | tuple[Members, ...]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def of(self, record_id: str) -> tuple[Members, ...]:
        """Copies that hold a record."""
        held = self._by_id.get(record_id)
        if held is None:
            return ()
        return held if type(held) is tuple else (held,)  # type: ignore[return-value]

    def add(self, record_id: str, members: Members) -> None:
        """Note one more."""
        held = self._by_id.get(record_id)
        if held is None:
            self._by_id[record_id] = members
        else:
            self._by_id[record_id] = (*self.of(record_id), members)

    def discard(self, record_id: str, members: Members) -> None:
        """Note one less, if it is there."""
        left = tuple(each for each in self.of(record_id) if each is not members)
        if len(left) > 1:
            self._by_id[record_id] = left
        elif left:
            self._by_id[record_id] = left[0]
        else:
            self._by_id.pop(record_id, None)


class Stretch:
    """What concerns each copy on the way from one head to the next."""

    __slots__ = ("by_copy", "size_bytes")

    def __init__(self) -> None:
        self.by_copy: dict[Members, Columns | None] = {}
        """None: too much to carry, or nobody wants it."""
        self.size_bytes = 0


class Ledger:
    """The accounts of all filtered copies of one dataset, at one head."""

    def __init__(self, room: MemberRoom, *, max_bytes: int, max_copy_bytes: int) -> None:
        self.head: Head | None = None
        """All that have joined are exact at it. None: none have."""
        self.folded = 0
        """Positions passed without a row, all together."""
        self.joining: dict[Members, None] = {}
        self.unverified: dict[Members, None] = {}
        self.retired: deque[tuple[Members, dict[str, int]]] = deque()
        """What is gone and still among the holders."""
        self.room = room
        self._max_bytes = max_bytes
        self._max_copy_bytes = max_copy_bytes
        self._holders = Holders()
        self._joined: dict[Members, None] = {}
        self._index: SelectionIndex[Members] = SelectionIndex()
        self._counting: SelectionIndex[Members] = SelectionIndex()
        self._heads: dict[int, tuple[Head, int]] = {}

    # -- who is accounted for -----------------------------------------------------------------------------

    def join(self, members: Members) -> None:
        """Begin an account; its members are found by ``count``."""
        members.state = State.JOINING
        self.joining[members] = None

    def begin_count(self) -> Sequence[Members]:
        """Count for all that are waiting, from nothing. Those that come later wait for the next time."""
        newcomers = tuple(self.joining)
        self._counting = SelectionIndex()
        for members in newcomers:
            entries = members.clear()
            self.room.used -= len(entries)
            for record_id in entries:  # seldom: a count was given up
                self._holders.discard(record_id, members)
            self._counting.add(members.selection, members)
        return newcomers

    def leave(self, members: Members) -> None:
        """End an account."""
        self._part(members, State.LEFT)

    def restart(self) -> None:
        """Begin every account anew: what happened in between is not known."""
        everybody = [*self._joined, *self.joining, *self.unverified]
        for members in everybody:
            self._part(members, State.LEFT)
        self._counting = SelectionIndex()
        self._holders = Holders()
        self.retired.clear()
        self.head = None
        self._heads.clear()
        for members in everybody:
            self.join(members)

    def admit(self, newcomers: Sequence[Members], head: Head) -> None:
        """End the counting of those that are exact at the ledger's head now."""
        for members in newcomers:
            if members.state is State.JOINING:
                del self.joining[members]
                self._index.add(members.selection, members)
                self._joined[members] = None
                members.state = State.JOINED
                members.note(head.revision)
                members.follower.joined()
        self._counting = SelectionIndex()

    def sweep(self, most: int) -> None:
        """Drop up to about ``most`` of what is gone and still among the holders."""
        while self.retired and most > 0:
            members, entries = self.retired[0]
            while entries and most > 0:
                self._holders.discard(entries.popitem()[0], members)
                most -= 1
            if not entries:
                self.retired.popleft()

    # -- changes ------------------------------------------------------------------------------------------

    def count(self, changes: Changes) -> None:
        """Look at rows of a scan for those that are joining."""
        self._look(self._counting, State.JOINING, changes, 0, None)

    def look(self, changes: Changes, stretch: Stretch) -> int:
        """Look at changes for those that have joined; return how many are newer than the head."""
        assert self.head is not None
        return self._look(self._index, State.JOINED, changes, self.head.revision, stretch)

    def deliver(self, members: Members, columns: Columns | None, head: Head, folded: int) -> None:
        """Tell one copy what concerned it on the way to ``head``."""
        if members.state is not State.JOINED:
            return
        members.note(head.revision)
        count, digest = len(members.entries), members.at(head.revision)[1]  # type: ignore[index]
        own = replace(head, record_count=count, digest=digest)
        members.follower.deliver(own, columns, folded)

    def move(self, head: Head, folded: int) -> None:
        """Say that all are exact at ``head``: everything up to it was looked at and delivered."""
        self.head = head
        self.folded = folded
        self._heads[head.revision] = (head, folded)
        if len(self._heads) > _HEADS:
            del self._heads[next(iter(self._heads))]

    def passed(self, head: Head) -> int | None:
        """Sum of the folded changes at a head that was passed; None: not remembered."""
        known = self._heads.get(head.revision)
        return known[1] if known is not None and known[0].commit_id == head.commit_id else None

    def head_at(self, revision: int) -> Head | None:
        """Head of a revision that was passed, if it is remembered."""
        known = self._heads.get(revision)
        return None if known is None else known[0]

    def own_head(self, members: Members, head: Head) -> Head | None:
        """``head`` with the count and digest of a copy; None: not remembered."""
        if members.state is not State.JOINED or self.passed(head) is None:
            return None
        known = members.at(head.revision)
        return None if known is None else replace(head, record_count=known[0], digest=known[1])

    # -- inside -------------------------------------------------------------------------------------------

    def _look(
        self,
        index: SelectionIndex[Members],
        state: State,
        changes: Changes,
        above: int,
        stretch: Stretch | None,
    ) -> int:
        if not len(index):
            return sum(revision > above for revision in changes.revisions)
        looked = 0
        reasons = changes.reasons
        for at, (record_id, data, revision, commit_time_us) in enumerate(
            zip(changes.record_ids, changes.data, changes.revisions, changes.commit_times_us, strict=True)
        ):
            if revision <= above:
                continue
            looked += 1
            reason = reasons[at] if reasons else Reason.API
            if data:
                row = Row(record_id, revision, commit_time_us, data)
                for members in index.matching(row):
                    if members.state is state:
                        self._put(members, row, reason, stretch)
            for members in self._holders.of(record_id):
                if members.state is state and not members.holds(record_id, revision):
                    members.discard(record_id)
                    self._holders.discard(record_id, members)
                    self.room.used -= 1
                    if stretch is not None:
                        kind = ChangeKind.REMOVE if data else ChangeKind.DELETE
                        self._gather(stretch, members, record_id, b"", revision, commit_time_us, kind, reason)
        return looked

    def _put(self, members: Members, row: Row, reason: int, stretch: Stretch | None) -> None:
        body = members.selection.project(row)
        if members.put(row.record_id, row.revision, body):
            self._holders.add(row.record_id, members)
            self.room.used += 1
            if not self.room.has_room():
                self._give_up(members)
                return
        if stretch is not None:
            self._gather(
                stretch,
                members,
                row.record_id,
                body,
                row.revision,
                row.update_time_us,
                ChangeKind.PUT,
                reason,
            )

    def _gather(
        self,
        stretch: Stretch,
        members: Members,
        record_id: str,
        data: bytes,
        revision: int,
        commit_time_us: int,
        kind: int,
        reason: int,
    ) -> None:
        by_copy = stretch.by_copy
        if members in by_copy:
            columns = by_copy[members]
        else:
            columns = by_copy[members] = Columns() if members.follower.wants_changes else None
        if columns is None:
            return
        before = columns.size_bytes
        columns.add(record_id, data, revision, commit_time_us, kind, reason)
        stretch.size_bytes += columns.size_bytes - before
        if columns.size_bytes > self._max_copy_bytes or stretch.size_bytes > self._max_bytes:
            stretch.size_bytes -= columns.size_bytes
            by_copy[members] = None

    def _give_up(self, members: Members) -> None:
        self._part(members, State.UNVERIFIED)
        self.unverified[members] = None
        members.follower.lost()

    def _part(self, members: Members, state: State) -> None:
        if members.state is State.JOINED:
            del self._joined[members]
            self._index.remove(members.selection, members)
        self.joining.pop(members, None)
        self.unverified.pop(members, None)
        self.room.used -= len(members.entries)
        entries = members.clear()
        if entries:
            self.retired.append((members, entries))
        members.state = state
