"""What clients did and saw, and the checks that hold it against the guarantees.

Every write carries a number that is found again in the records it wrote, and every OK carries its revision. So the
total order is given and all checks are linear: no search for a linearisation is needed.
"""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Operation:
    """One write: puts (key to payload) or deletes of keys. ``revision`` is None while the outcome is not known."""

    number: int
    keys: tuple[str, ...]
    delete: bool
    invoked: float
    returned: float | None = None
    outcome: str = "unknown"
    revision: int | None = None
    changed: bool = False


@dataclass(slots=True)
class History:
    """Operations of all writers, and what one subscriber saw."""

    operations: dict[int, Operation] = field(default_factory=dict)
    events: list[tuple[str, str, int, int | None]] = field(default_factory=list)
    """(kind, key, revision, number of the operation that wrote it) in the order seen."""
    checkpoints: list[tuple[int, int]] = field(default_factory=list)
    """(revision, number of events seen before it)."""
    resets: list[str] = field(default_factory=list)
    """Reasons."""
    restarts: list[int] = field(default_factory=list)
    """Number of events seen before each reset: what follows is a new copy, from its beginning."""

    def invoke(self, keys: tuple[str, ...], *, delete: bool, now: float) -> Operation:
        operation = Operation(number=len(self.operations) + 1, keys=keys, delete=delete, invoked=now)
        self.operations[operation.number] = operation
        return operation

    @property
    def acknowledged(self) -> list[Operation]:
        """Writes that changed something and were answered OK, by revision."""
        done = [op for op in self.operations.values() if op.outcome == "ok" and op.changed]
        return sorted(done, key=lambda op: op.revision)


def check(history: History, final: dict[str, tuple[int, int]], head: int) -> list[str]:
    """All violations. ``final`` is the dump: key to (revision, number of the operation that wrote it)."""
    return [
        *unique_revisions(history, head),
        *real_time_order(history),
        *nothing_acknowledged_is_lost(history, final),
        *rejected_never_appears(history, final),
        *at_most_one_effect(history, final),
        *events_in_order(history),
        *checkpoints_never_go_back(history),
    ]


def unique_revisions(history, head):
    """G3: every acknowledged write that changed something has a revision of its own, none above the head."""
    owners = defaultdict(list)
    for op in history.acknowledged:
        owners[op.revision].append(op.number)
        if not 1 <= op.revision <= head:
            yield f"operation {op.number} was acknowledged at revision {op.revision}, head is {head}"
    for revision, numbers in owners.items():
        if len(numbers) > 1:
            yield f"revision {revision} was given to operations {numbers}"


def real_time_order(history):
    """G3: a write that began after another had returned has the higher revision."""
    earliest_return = float("inf")
    for op in reversed(history.acknowledged):
        if earliest_return < op.invoked:
            yield f"operation {op.number} (revision {op.revision}) began after one with a higher revision returned"
        earliest_return = min(earliest_return, op.returned)


def nothing_acknowledged_is_lost(history, final):
    """G2: each key is in the state of its newest acknowledged write, or of a later one of unknown outcome."""
    newest = {}
    for op in history.acknowledged:
        for key in op.keys:
            newest[key] = op
    unknown_deletes = {
        key for op in history.operations.values() if op.outcome == "unknown" and op.delete for key in op.keys
    }
    for key, op in newest.items():
        revision, writer = final.get(key, (None, None))
        if revision is None:
            if not op.delete and key not in unknown_deletes:
                yield f"key {key}: operation {op.number} at revision {op.revision} is lost"
        elif revision < op.revision:
            yield f"key {key}: revision {revision} is older than the acknowledged {op.revision} of operation {op.number}"
        elif revision == op.revision and (op.delete or writer != op.number):
            yield f"key {key}: revision {revision} belongs to operation {op.number} but holds {writer}'s"
        elif revision > op.revision and history.operations[writer].outcome != "unknown":
            yield f"key {key}: operation {writer} was acknowledged at another revision than {revision}"


def rejected_never_appears(history, final):
    """G4: a write that was refused has no effect, then or later."""
    seen = {writer for _, writer in final.values()} | {number for _, _, _, number in history.events if number}
    for op in history.operations.values():
        if op.outcome == "rejected" and op.number in seen:
            yield f"operation {op.number} was rejected and yet is seen"


def at_most_one_effect(history, final):
    """G5: whatever a write was retried through, it has one revision."""
    revisions = defaultdict(set)
    for _, _, revision, number in history.events:
        if number:
            revisions[number].add(revision)
    for revision, writer in final.values():
        revisions[writer].add(revision)
    for op in history.acknowledged:
        revisions[op.number].add(op.revision)
    for number, seen in revisions.items():
        if len(seen) > 1 and not history.operations[number].delete:
            yield f"operation {number} took effect at revisions {sorted(seen)}"


def events_in_order(history):
    """G3, G8: what a subscriber sees never goes back, and no event follows a checkpoint that covered it."""
    newest_of_key = defaultdict(int)
    restarts = set(history.restarts)
    covered = iter([*history.checkpoints, (0, len(history.events))])
    checkpoint, position = 0, 0
    revision_before, (revision_next, position) = 0, next(covered)
    for index, (_, key, revision, _) in enumerate(history.events):
        while index >= position:
            checkpoint = revision_next
            revision_next, position = next(covered)
        if index in restarts:
            newest_of_key.clear()
            checkpoint = revision_before = 0
        if revision <= checkpoint:
            yield f"event of revision {revision} came after the checkpoint at {checkpoint}"
        if revision < revision_before:
            yield f"event of revision {revision} came after one of {revision_before}"
        if revision <= newest_of_key[key]:
            yield f"key {key}: revision {revision} after {newest_of_key[key]}"
        newest_of_key[key] = revision_before = revision


def checkpoints_never_go_back(history):
    """G12: within one history a checkpoint never decreases."""
    for (before, _), (after, _) in zip(history.checkpoints, history.checkpoints[1:], strict=False):
        if after < before:
            yield f"checkpoint {after} after {before}"
