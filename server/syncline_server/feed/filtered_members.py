"""The account of one filtered copy: which records it holds, so that its checkpoints have count and digest. No I/O."""

import enum
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from syncline_server.digests import record_digest
from syncline_server.feed.filtered_rows import Columns
from syncline_server.filters.selection import Selection
from syncline_server.model import DIGEST_MODULUS, Head

_REMEMBERED: Final = 32
"""Newest changes of a copy whose counts are remembered."""
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
