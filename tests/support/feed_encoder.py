"""An encoder whose bytes tests can read back: one JSON line for each event."""

import json
from dataclasses import dataclass, field
from typing import Any

from support.feed_store import digest
from syncline_server.feed.abc import EventEncoder
from syncline_server.model import ChangeKind, Changes, Head, ResetReason


class LineEncoder(EventEncoder):
    """Counts what it encodes, so that tests can tell that frames are shared."""

    def __init__(self) -> None:
        self.calls = 0

    def changes(
        self,
        changes: Changes,
        *,
        from_revision: int,
        to_revision: int,
        partial: bool,
        token: bytes,
        folded: int = 0,
    ) -> bytes:
        self.calls += 1
        return _line(
            event="changes",
            from_revision=from_revision,
            to_revision=to_revision,
            partial=partial,
            record_ids=list(changes.record_ids),
            data=[data.decode() for data in changes.data],
            revisions=list(changes.revisions),
            kinds=[int(kind) for kind in changes.kinds],
            folded=folded,
            token=token.hex(),
        )

    def checkpoint(self, head: Head, *, token: bytes, going_away: bool = False) -> bytes:
        return _line(
            event="checkpoint",
            revision=head.revision,
            record_count=head.record_count,
            digest=head.digest,
            going_away=going_away,
            token=token.hex(),
        )

    def reset(self, reason: ResetReason, message: str) -> bytes:
        return _line(event="reset", reason=reason.name, message=message)


def _line(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def parse(message: bytes) -> list[dict[str, Any]]:
    """Events of a message, or of several joined."""
    return [json.loads(line) for line in message.splitlines()]


@dataclass
class Copy:
    """A client that trusts nothing: it holds a copy and checks every event against the contract."""

    records: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    revision: int = 0
    """`to_revision` of the last batch, or revision of the last checkpoint."""
    partial: bool = False
    checkpoints: list[int] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    token: bytes = b""
    exact: bool = False
    """Nothing came after the last checkpoint."""
    whole: bool = True
    """False for a copy that was begun with ``from_now``: digests do not apply."""
    verified: bool = False
    """The last checkpoint came with count and digest."""
    going_away: bool = False
    batches: int = 0
    folded: int = 0
    largest: int = 0

    def take(self, message: bytes) -> None:
        self.largest = max(self.largest, len(message))
        for event in parse(message):
            getattr(self, "_" + event["event"])(event)
            if event.get("token"):
                self.token = bytes.fromhex(event["token"])

    def _changes(self, event: dict[str, Any]) -> None:
        assert event["from_revision"] == self.revision, "G8: batches are contiguous"
        revisions = event["revisions"]
        assert revisions == sorted(revisions), "changes are in order"
        assert all(self.revision - self.partial < r <= event["to_revision"] for r in revisions), "G8"
        assert event["folded"] >= 0
        self.folded += event["folded"]
        kinds = event["kinds"] or [int(ChangeKind.PUT)] * len(event["record_ids"])
        for record_id, data, revision, kind in zip(
            event["record_ids"], event["data"], revisions, kinds, strict=True
        ):
            if kind == ChangeKind.PUT:
                self.records[record_id] = (revision, data.encode())
            else:
                self.records.pop(record_id, None)
        self.batches += 1
        self.revision = event["to_revision"]
        self.partial = event["partial"]
        self.exact = False

    def _checkpoint(self, event: dict[str, Any]) -> None:
        assert not self.checkpoints or event["revision"] >= self.checkpoints[-1], "G12: no time travel"
        assert not self.partial
        self.checkpoints.append(event["revision"])
        self.revision = event["revision"]
        self.exact = True
        self.going_away = event["going_away"]
        self.verified = event["record_count"] >= 0
        if self.whole and self.verified:
            assert event["record_count"] == len(self.records), "G7"
            assert event["digest"] == digest(self.records), "G7"

    def _reset(self, event: dict[str, Any]) -> None:
        self.resets.append(event["reason"])
        self.records.clear()
        self.checkpoints.clear()
        self.revision = 0
        self.partial = self.exact = False
        self.token = b""
