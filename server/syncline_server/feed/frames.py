"""Frames: encoded steps of a copy from one position to the next."""

from dataclasses import dataclass

from syncline_server.feed import tokens
from syncline_server.feed.abc import EventEncoder
from syncline_server.feed.tokens import Origin, Position
from syncline_server.model import Appended, Changes, Head, Page, ResetReason

_RESET_MESSAGES = {
    ResetReason.COMPACTED: "the token is older than what is kept",
    ResetReason.HISTORY_CHANGED: "the store was restored or rolled back, the token's history does not exist here",
    ResetReason.FILTER_CHANGED: "the token was made with another filter",
    ResetReason.DATASET_REPLACED: "the dataset was deleted and created again",
    ResetReason.SCHEMA: "the form of the data changed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Bytes that bring every copy at ``start`` to ``end``.

    They serve each such copy, also later: for it, the page was read in time and delivered late. That is why
    frames may be kept and shared without being judged again.
    """

    start: Position | None
    end: Position | None
    """None after a reset: the copy begins anew."""
    head: Head
    """Of the snapshot that it was read from; the copy equals it when ``end.complete``."""
    body: bytes
    reset: ResetReason | None = None

    @property
    def is_exact(self) -> bool:
        """A copy at ``end`` equals the dataset at ``head``."""
        return self.end is not None and self.end.complete

    @property
    def is_inside(self) -> bool:
        """It leads from one position of a scan to the next, and tells of no head."""
        return self.end is not None and not self.end.complete


class FrameMaker:
    """Encodes the frames of one dataset."""

    def __init__(self, encoder: EventEncoder, origin: Origin, secret: bytes) -> None:
        self.origin = origin
        self._encoder = encoder
        self._secret = secret

    def token(self, position: Position) -> bytes:
        """Token of a position."""
        return tokens.encode(position, self._secret)

    def page(self, start: Position | None, page: Page) -> Frame:
        """Frame of a page that was judged good: its changes and, if it reached the head, a checkpoint."""
        end = tokens.advance(start, page, self.origin)
        folded = tokens.folded(start, end, len(page.changes))
        return self.step(start, end, page.head, page.changes, folded)

    def step(self, start: Position | None, end: Position, head: Head, changes: Changes, folded: int) -> Frame:
        """Frame of changes that lead from ``start`` to ``end``, with a checkpoint at ``head`` if it is complete."""
        from_revision = 0 if start is None else start.revision
        token = self.token(end)
        parts = []
        # Also without changes, when the revision moved or a commit was left open: every `from` meets a `to`,
        # and every open commit is closed.
        if changes or end.revision != from_revision or not (start is None or start.complete):
            parts.append(
                self._changes(
                    changes, from_revision, end, token=b"" if end.complete else token, folded=folded
                )
            )
        if end.complete:
            parts.append(self._encoder.checkpoint(head, token=token))
        return Frame(start=start, end=end, head=head, body=b"".join(parts))

    def group(
        self, start: Position, appended: Appended, changes: Changes, *, folded: int | None = None
    ) -> Frame:
        """Frame of a group of commits that follows ``start``: its changes and a checkpoint.

        ``folded`` None: the changes are all that the store has of the group.
        """
        end = tokens.at_head(self.origin, appended.head)
        if folded is None:
            folded = end.position - start.position - len(changes)
        body = self._changes(changes, start.revision, end, token=b"", folded=folded)
        body += self.checkpoint(appended.head)
        return Frame(start=start, end=end, head=appended.head, body=body)

    def reset(self, start: Position, reason: ResetReason, head: Head) -> Frame:
        """Frame that ends the copy at ``start``."""
        body = self._encoder.reset(reason, _RESET_MESSAGES[reason])
        return Frame(start=start, end=None, head=head, body=body, reset=reason)

    def checkpoint(self, head: Head, *, going_away: bool = False) -> bytes:
        """Encode a checkpoint at ``head``."""
        token = self.token(tokens.at_head(self.origin, head))
        return self._encoder.checkpoint(head, token=token, going_away=going_away)

    def _changes(
        self, changes: Changes, from_revision: int, end: Position, *, token: bytes, folded: int
    ) -> bytes:
        return self._encoder.changes(
            changes,
            from_revision=from_revision,
            to_revision=end.revision,
            partial=not end.complete,
            token=token,
            folded=folded,
        )
