"""The rules of a feed, without I/O: what may follow what, and which token is safe at each point.

::

    Changes(from, to)     from is where the last one ended; 0 after a reset. Empty when only the revision moved, or
                          when nothing is left of a commit that was begun
    Checkpoint(r)         r is where the last batch ended
    Reset                 begins again at 0; there is no token until there is a new one
    anything else         UnknownEvent: a newer protocol; nothing is skipped over

``Order`` is told of every event as it comes and answers with its public form. On a contradiction it raises
FeedViolation, and ``reconnect`` goes back to the newest token, everything before which has been handed out.
"""

from collections.abc import Callable
from typing import Any, Final

from syncline._wire import to_batch, to_checkpoint
from syncline.errors import UnknownEvent
from syncline.events import DELETE, PUT, REMOVE, ChangeBatch, Checkpoint, Reset, ResetReason
from syncline.v1 import feed_pb2

DIGEST_BYTES: Final = 16

_KNOWN_KINDS: Final = frozenset({PUT, DELETE, REMOVE})


class FeedViolation(Exception):
    """Events that contradict each other. Not for users: they get FeedBroken when it repeats."""


class Order:
    """Where a feed stands."""

    __slots__ = (
        "_begun",
        "_filtered",
        "_revision",
        "_revision_at_resume",
        "decode",
        "has_begun",
        "token",
    )

    def __init__(
        self,
        token: bytes,
        decode: Callable[[bytes], Any],
        *,
        from_now: bool = False,
        filtered: bool = False,
    ) -> None:
        self.token = token
        """Resumes after everything that was handed out; empty after a reset: the copy is to hold nothing then."""
        self.has_begun = bool(token)
        """There is a token, or was one that was refused."""
        self.decode = decode
        self._filtered = (
            filtered  # with a filter or mask: there may be removes, and checkpoints without proof
        )
        self._begun = False  # something was handed out of a copy that has no token yet
        self._revision: int | None = None if token or from_now else 0
        self._revision_at_resume = self._revision

    @property
    def revision(self) -> int:
        """Where the last batch ended; 0 while that is not known."""
        return self._revision or 0

    @property
    def resume(self) -> bytes:
        """Token for the next connection of this feed."""
        return self.token

    def reconnect(self) -> Reset | None:
        """Go back to ``resume``: what came after it will come again.

        Where that is the very beginning, what was handed out has to be taken back: by a reset.
        """
        self._revision = self._revision_at_resume
        if not self._begun:
            return None
        self._begun = False
        return Reset(
            reason=ResetReason.UNSPECIFIED,
            message="the connection broke before the copy had a token; it begins anew",
            token=self.token,
        )

    def confirm(self, token: bytes) -> None:
        """Take the token of a page, which is that of its last event where that has one. Raises FeedViolation."""
        if not token:
            raise FeedViolation("a page without a token")
        self._keep(token)

    def accept(self, event: feed_pb2.FeedEvent) -> ChangeBatch[Any] | Checkpoint | Reset:
        """Check one event and make it public. Raises FeedViolation, UnknownEvent."""
        kind = event.WhichOneof("event")
        if kind == "changes":
            return self._changes(event.changes)
        if kind == "checkpoint":
            return self._checkpoint(event.checkpoint)
        if kind == "reset":
            return self._reset(event.reset)
        raise UnknownEvent(
            "the server sent an event of a kind that this version of syncline does not know; update the package. "
            "Nothing was skipped, the token is still before it"
        )

    def _changes(self, changes: feed_pb2.Changes) -> ChangeBatch[Any]:
        batch = to_batch(changes, previous_token=self.token, decode=self.decode)
        start, end, revisions = batch.from_revision, batch.to_revision, batch.revisions
        if self._revision is not None and start != self._revision:
            raise FeedViolation(
                f"a batch goes on from revision {start}, the last one ended at {self._revision}"
            )
        _check_columns(batch)
        if REMOVE in batch.kinds and not self._filtered:
            raise FeedViolation("records that left a filter, where there is no filter")
        if revisions and (revisions[0] < start or revisions[-1] > end):
            raise FeedViolation(
                f"a batch from {start} to {end} has revisions {revisions[0]} to {revisions[-1]}"
            )
        # One without changes may still say that the commit it begins in is complete: its last rows were purged.
        if end < start or (end == start and not revisions and batch.partial):
            raise FeedViolation(f"a batch from {start} to {end} with {len(revisions)} changes")
        self._revision = end
        if changes.token:
            self._keep(changes.token)
        elif not self.token:
            self._begun = True
        return batch

    def _checkpoint(self, message: feed_pb2.Checkpoint) -> Checkpoint:
        if self._revision is not None and message.revision != self._revision:
            raise FeedViolation(
                f"a checkpoint at revision {message.revision}, after changes up to {self._revision}"
            )
        unproven = self._filtered and message.record_count == -1 and not message.digest
        if not message.token or not (unproven or len(message.digest) == DIGEST_BYTES):
            raise FeedViolation("a checkpoint without a token or without a whole digest")
        self._revision = message.revision
        self._keep(message.token)
        return to_checkpoint(message)

    def _reset(self, message: feed_pb2.Reset) -> Reset:
        # One that is refused here may be good at another node, which remembers more; but not for what begins now.
        self.token = b""
        self._revision = self._revision_at_resume = 0
        self._begun = False
        return Reset(reason=ResetReason(message.reason), message=message.message, token=self.token)

    def _keep(self, token: bytes) -> None:
        self.token = token
        self.has_begun = True
        self._revision_at_resume = self._revision
        self._begun = False


def _check_columns(batch: ChangeBatch[Any]) -> None:
    count = len(batch.record_ids)
    if not (
        count == len(batch.json) == len(batch.revisions) == len(batch.commit_times_us)
        and len(batch.kinds) in (0, count)
        and len(batch.reasons) in (0, count)
    ):
        raise FeedViolation("a batch with columns of different lengths")
    if batch.kinds and not _KNOWN_KINDS.issuperset(batch.kinds):
        raise UnknownEvent(
            f"the server sent changes of kinds {sorted(set(batch.kinds))}, of which this version of syncline knows "
            f"only {PUT} to {REMOVE}; update the package. Nothing was skipped, the token is still before them"
        )
