"""The rules of a replica, without I/O.

A replica holds a copy that was proven at its last checkpoint and is what readers see, and what came since then,
which nobody sees. ``Course`` is told of every part of the feed and says what is to be done:

::

    batch        goes to what nobody sees
    reset        what nobody sees is void; a complete new copy begins beside the old one
    checkpoint   SHOW    count and digest agree (or the server keeps none): one local transaction makes it visible
                         together with its token
                 WAIT    it was mended with what later revisions hold: prove it at one of those
                 MEND    it differs: find out where by digests of ranges, and fetch only that
                 RENEW   mended, and it differs still: everything anew, without a token

So readers see proven states only, and the token is never ahead of the data nor behind it.
"""

import enum
from typing import Final

from syncline._digest import Tally
from syncline.errors import CopyDiverged
from syncline.events import Checkpoint

MENDS: Final = 2
"""Attempts to mend a copy before it begins anew."""

RENEWALS: Final = 3
"""Complete new copies in a row that cannot be proven either; then the replica stops."""


class Verdict(enum.Enum):
    """What to do at a checkpoint."""

    SHOW = enum.auto()
    WAIT = enum.auto()
    MEND = enum.auto()
    RENEW = enum.auto()


class Course:
    """Where a replica is between its checkpoints."""

    __slots__ = ("_mends", "_proven_from", "_renewals", "is_new_copy")

    def __init__(self, *, is_complete: bool) -> None:
        self.is_new_copy = not is_complete
        """What comes is a complete new copy, not changes to the one that is there."""
        self._mends = 0
        self._proven_from = 0
        self._renewals = 0

    def reset(self) -> None:
        """A complete new copy follows."""
        self._begin()

    def judge(self, checkpoint: Checkpoint, tally: Tally) -> Verdict:
        """What to do, where ``tally`` is of all that came up to the checkpoint."""
        if tally.agrees(checkpoint):
            self.is_new_copy = False
            self._mends = self._proven_from = self._renewals = 0
            return Verdict.SHOW
        if checkpoint.revision < self._proven_from:
            return Verdict.WAIT
        return Verdict.MEND if self._mends < MENDS else Verdict.RENEW

    def mended(self, revision: int) -> None:
        """It was mended with what the dataset held at ``revision``: earlier checkpoints prove nothing."""
        self._mends += 1
        self._proven_from = revision

    def renew(self, checkpoint: Checkpoint, tally: Tally) -> None:
        """A complete new copy follows, because of this checkpoint. Raises CopyDiverged when that was tried enough."""
        self._renewals += 1
        if self._renewals > RENEWALS:
            raise CopyDiverged(
                f"at revision {checkpoint.revision} a copy made anew {RENEWALS} times has {tally.count} records with "
                f"digest {tally.digest.hex()}, the dataset {checkpoint.record_count} with {checkpoint.digest.hex()}",
                metadata={"revision": str(checkpoint.revision)},
            )
        self._begin()

    def _begin(self) -> None:
        self.is_new_copy = True
        self._mends = self._proven_from = 0
