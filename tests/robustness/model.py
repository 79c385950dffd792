"""The reference: what a dataset is at every revision, what a write does to it, and what a copy must be.

Plain dicts, and none of the server's code.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from robustness.history import (
    Batch,
    Checkpoint,
    DatasetLog,
    Frame,
    Opened,
    Operation,
    Reset,
    State,
    View,
    canonical,
)

# -- selections ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A filter and a mask in the server's words, and the same in Python."""

    filter: str = ""
    fields: tuple[str, ...] = ()
    matches: Callable[[dict[str, Any]], bool] = lambda value: True

    @property
    def is_whole(self) -> bool:
        """Neither filter nor mask."""
        return not (self.filter or self.fields)

    def of(self, data: bytes) -> bytes | None:
        """What a copy holds of a record; None: it does not hold it."""
        if self.is_whole:
            return data
        value = json.loads(data)
        if not self.matches(value):
            return None
        if not self.fields:
            return data
        return canonical({name: value[name] for name in self.fields if name in value})


SELECTIONS = {
    "all": Selected(),
    "red": Selected(filter='color = "red"', matches=lambda value: value.get("color") == "red"),
    "large": Selected(filter="size >= 50", matches=lambda value: value.get("size", -1) >= 50),
    "two": Selected(
        filter='color = "green" OR color = "blue"',
        matches=lambda value: value.get("color") in {"green", "blue"},
    ),
    "none": Selected(filter='color = "infrared"', matches=lambda value: False),
    "masked": Selected(fields=("id", "op")),
    "red masked": Selected(
        filter='color = "red"', fields=("id", "op"), matches=lambda value: value.get("color") == "red"
    ),
}
"""By the name that views have."""


# -- states -------------------------------------------------------------------------------------------------


def entry_digest(record_id: str, revision: int, data: bytes) -> int:
    """As Checkpoint.digest in the protocol says."""
    value_hash = blake2b(data, digest_size=16).digest()
    entry = record_id.encode() + b"\0" + revision.to_bytes(8, "big") + value_hash
    return int.from_bytes(blake2b(entry, digest_size=16).digest(), "big")


def digest_of(state: State) -> bytes:
    """Digest of a copy."""
    total = sum(entry_digest(key, revision, data) for key, (revision, data) in state.items())
    return (total % (1 << 128)).to_bytes(16, "big")


class Model:
    """S(r) of one dataset for all r, by replaying its log."""

    def __init__(
        self, log: DatasetLog, writers: Callable[[int], Sequence[Operation]] = lambda revision: ()
    ) -> None:
        """``writers``: the operations that took effect at a revision, for what the log leaves out."""
        self.states: list[State] = [{}]
        """By revision; the state before the first commit at 0."""
        self.changes: list[dict[str, bytes | None]] = [{}]
        """By revision: what it changed, with what was replaced in the same group."""
        self._selected: dict[tuple[str, int], State] = {}
        later = _replaced_later(log, writers)
        for logged in log.commits:
            changes = dict(logged.changes)
            for operation in writers(len(self.states)):
                if operation.kind != "reading":
                    effect = self.effect(operation, len(self.states))
                    replaced = effect.keys() & later[len(self.states)] - changes.keys()
                    changes.update((key, effect[key]) for key in replaced)
            state = dict(self.states[-1])
            for record_id, data in changes.items():
                if data is None:
                    state.pop(record_id, None)
                else:
                    state[record_id] = (logged.revision, data)
            self.states.append(state)
            self.changes.append(changes)

    @property
    def head(self) -> int:
        """The newest revision."""
        return len(self.states) - 1

    def state(self, revision: int) -> State | None:
        """S(r); None: there never was such a revision."""
        return self.states[revision] if 0 <= revision <= self.head else None

    def selected(self, revision: int, selection: str) -> State | None:
        """S(r) as a copy with this selection holds it."""
        state = self.state(revision)
        if state is None or selection == "all":
            return state
        found = self._selected.get((selection, revision))
        if found is None:
            of = SELECTIONS[selection].of
            found = {key: (at, kept) for key, (at, data) in state.items() if (kept := of(data)) is not None}
            self._selected[selection, revision] = found
        return found

    def effect(self, operation: Operation, revision: int) -> dict[str, bytes | None]:
        """What this write must have changed, if it was committed as ``revision``."""
        before = self.states[revision - 1]
        changes: dict[str, bytes | None] = {
            key: data for key, data in operation.puts.items() if key not in before or before[key][1] != data
        }
        gone = list(operation.deletes)
        if operation.kind == "replace":
            gone = [key for key in before if key.startswith(operation.scope) and key not in operation.puts]
        changes.update((key, None) for key in gone if key in before)
        return changes


def _replaced_later(log: DatasetLog, writers: Callable[[int], Sequence[Operation]]) -> list[set[str]]:
    """By revision: record ids that later revisions of the same group wrote."""
    later: list[set[str]] = [set() for _ in range(len(log.commits) + 1)]
    touched: set[str] = set()
    group = 0
    for number in range(len(log.commits), 0, -1):
        logged = log.commits[number - 1]
        if logged.group != group or not group:
            touched, group = set(), logged.group
        later[number] = set(touched)
        touched |= logged.changes.keys()
        for operation in writers(number):
            touched |= {*operation.puts, *operation.deletes}
    return later


# -- copies -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Copy:
    """What a view holds, by the frames that it was sent."""

    records: State = field(default_factory=dict)
    revision: int = 0
    """Where the last batch or checkpoint ended."""
    partial: bool = False
    checkpoint: int = 0
    """Revision of the last one."""
    seen: dict[str, int] = field(default_factory=dict)
    """Newest revision of each record id that an event told of in this copy, gone or not."""

    def clone(self) -> "Copy":
        """The same, to go on from later."""
        return Copy(dict(self.records), self.revision, self.partial, self.checkpoint, dict(self.seen))

    def take(self, frame: Frame) -> None:
        """Apply a frame, right or wrong."""
        if isinstance(frame, Batch):
            for kind, record_id, revision, data in frame.changes:
                if kind == "put":
                    self.records[record_id] = (revision, data)
                else:
                    self.records.pop(record_id, None)
                self.seen[record_id] = revision
            self.revision, self.partial = frame.to_revision, frame.partial
        elif isinstance(frame, Checkpoint):
            self.revision = self.checkpoint = frame.revision
            self.partial = False


def replay(view: View) -> Iterator[tuple[Frame, Copy]]:
    """Each frame with the copy that it comes to, which is changed when the next one is asked for.

    A view that resumes goes on with the copy that it had when it was given the token.
    """
    resumed = {frame.token for frame in view.frames if isinstance(frame, Opened)}
    copy, kept = Copy(), {b"": Copy()}
    for frame in view.frames:
        yield frame, copy
        if isinstance(frame, Opened):
            copy = kept.get(frame.token, kept[b""]).clone()
        elif isinstance(frame, Reset):
            copy = Copy()
        elif isinstance(frame, (Batch, Checkpoint)):
            copy.take(frame)
            if frame.token in resumed and frame.token:
                kept[frame.token] = copy.clone()


def connections(view: View) -> Iterator[tuple[Opened, Sequence[Frame]]]:
    """The frames of each connection, after the one that opened it."""
    opened: Opened | None = None
    frames: list[Frame] = []
    for frame in view.frames:
        if isinstance(frame, Opened):
            if opened is not None:
                yield opened, frames
            opened, frames = frame, []
        else:
            frames.append(frame)
    if opened is not None:
        yield opened, frames
