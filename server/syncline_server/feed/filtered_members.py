"""Which records the filtered copies of a dataset hold, so that their checkpoints have counts and digests. No I/O.

A copy is accounted for by its members: record id → revision and digest of the entry, over the data as it is sent.
They are brought forward by every change, whoever follows, and a change is looked at once for all copies: the index
tells which of them want it, the holders which of them have the record.
"""

import enum
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from syncline_server.digests import record_digest
from syncline_server.feed.filtered_rows import Columns
from syncline_server.filters.index import SelectionIndex
from syncline_server.filters.selection import Row, Selection
from syncline_server.model import DIGEST_MODULUS, ChangeKind, Changes, Head, Reason

_REMEMBERED: Final = 32
"""Newest changes of a copy whose counts are remembered."""
_HEADS: Final = 1_024
"""Newest heads that are remembered."""
_DIGEST_BITS: Final = 128
_DIGEST_MASK: Final = (1 << _DIGEST_BITS) - 1


class State(enum.Enum):
    """Of the account of a copy."""

    JOINING = 1
    """Being counted."""
    JOINED = 2
    """Exact at the ledger's head."""
    UNVERIFIED = 3
    """Not kept, because there were too many members."""
    LEFT = 4
    """Nobody asks any more."""


class Follower(ABC):
    """Who sends what concerns a copy."""

    @abstractmethod
    def joined(self) -> None:
        """The copy is accounted for from here on."""

    @abstractmethod
    def deliver(self, head: Head, columns: Columns | None, folded: int) -> None:
        """What happened to the copy up to ``head``, which is the copy's own. None: too much to carry.

        ``folded`` is the ledger's sum at that head.
        """

    @abstractmethod
    def lost(self) -> None:
        """The copy is not accounted for any more."""

    @property
    @abstractmethod
    def wants_changes(self) -> bool:
        """Whether anybody is there to get them."""


class MemberRoom:
    """How many members may be kept, of all filtered copies of a server together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.let_idle_go: Callable[[], bool] = lambda: False
        """Ends the account of a copy that nobody follows; False when there is none."""

    @property
    def full(self) -> bool:
        """Whether a copy that comes now has to do without."""
        return self.used >= self.limit

    def has_room(self) -> bool:
        """Whether what is used is within the limit, after idle copies have gone."""
        while self.used > self.limit:
            if not self.let_idle_go():
                return False
        return True


class Order:
    """Members of a copy in the order of positions."""

    __slots__ = ("_next", "_revisions", "head_revision", "record_ids")

    def __init__(self, entries: Mapping[str, int], head_revision: int) -> None:
        self.head_revision = head_revision
        self.record_ids = list(entries)
        self._revisions = [entry >> _DIGEST_BITS for entry in entries.values()]
        self._next: dict[int, int] = {}

    def first(self, revision: int, position: int) -> int:
        """Index from which members lie behind a place, except for some of that very revision."""
        return self._next.get(position) or bisect_left(self._revisions, revision)

    def end(self, revision: int) -> int:
        """Index behind the last member up to a revision."""
        return bisect_right(self._revisions, revision)

    def note(self, position: int, index: int) -> None:
        """Remember that what lies behind a position begins here."""
        self._next[position] = index


class Members:
    """The account of one filtered copy."""

    __slots__ = ("_history", "_order", "_sum", "entries", "follower", "selection", "state")

    def __init__(self, selection: Selection, follower: Follower) -> None:
        self.selection = selection
        self.follower = follower
        self.state = State.JOINING
        self.entries: dict[str, int] = {}
        """Record id → revision and digest as one number, in the order of positions."""
        self._sum = 0
        self._history: list[tuple[int, int, int]] = []
        """(revision, count, digest) after the newest deliveries."""
        self._order: Order | None = None

    def put(self, record_id: str, revision: int, data: bytes) -> bool:
        """Note a record that matches; return whether it is a new member."""
        digest = record_digest(record_id, revision, blake2b(data, digest_size=16).digest())
        known = self.entries.pop(record_id, None)
        self.entries[record_id] = revision << _DIGEST_BITS | digest
        self._sum += digest if known is None else digest - (known & _DIGEST_MASK)
        return known is None

    def discard(self, record_id: str) -> None:
        """Note that a member has gone."""
        self._sum -= self.entries.pop(record_id) & _DIGEST_MASK

    def holds(self, record_id: str, revision: int) -> bool:
        """Whether this version of a record is a member."""
        return self.entries.get(record_id, -1) >> _DIGEST_BITS == revision

    def note(self, revision: int) -> None:
        """Remember count and digest as those of this revision."""
        self._sum %= DIGEST_MODULUS
        self._history.append((revision, len(self.entries), self._sum))
        if len(self._history) > _REMEMBERED:
            del self._history[0]

    def at(self, revision: int) -> tuple[int, int] | None:
        """Count and digest at a revision that the ledger has passed; None: not remembered."""
        for noted, count, digest in reversed(self._history):
            if noted <= revision:
                return count, digest
        return None

    def in_order(self, base_revision: int, head_revision: int) -> "Order":
        """Members in the order of positions, as they were at ``base_revision`` or later.

        ``head_revision`` is the ledger's. What is made is kept, until ``forget_order``: it serves every base up to
        that head, because a record that has not changed since the base is in every later order too.
        """
        order = self._order
        if order is None or order.head_revision < base_revision:
            order = self._order = Order(self.entries, head_revision)
        return order

    def forget_order(self) -> None:
        """Free what ``in_order`` made."""
        self._order = None

    def clear(self) -> dict[str, int]:
        """Begin anew; return what was there."""
        entries, self.entries = self.entries, {}
        self._sum = 0
        self._history.clear()
        self._order = None
        return entries


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
