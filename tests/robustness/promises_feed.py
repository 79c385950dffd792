"""Validators of what is promised to subscribers. Each yields violations in words."""

from collections.abc import Iterator, Sequence

from robustness.evidence import Evidence
from robustness.history import Batch, Checkpoint, Ended, Frame, History, Opened, Reset, View
from robustness.model import SELECTIONS, connections, digest_of

SLACK_SECONDS = 3.0
"""For a busy machine, where something is owed within a time."""
HARMLESS_CODES = {"LEFT", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}
UNVERIFIED = -1
STOP = "terminate"
"""The fault that is an orderly stop."""
GRANT_SECONDS = 2.0
"""A grant is with the server after this, on a busy machine too."""


def ordered(evidence: Evidence) -> Iterator[str]:
    """G8, G9, G12: batches join, revisions never go back, and nothing comes that a checkpoint has covered."""
    for view, frame, before in evidence.frames():
        if isinstance(frame, Batch):
            if frame.from_revision != before.revision:
                yield f"{view.name}: a batch goes on from {frame.from_revision}, the copy is at {before.revision}"
            lowest = before.revision - 1 if before.partial else before.revision
            revisions = [revision for _, _, revision, _ in frame.changes]
            if revisions != sorted(revisions):
                yield f"{view.name}: a batch with revisions out of order: {revisions}"
            if any(not lowest < revision <= frame.to_revision for revision in revisions):
                yield f"{view.name}: a batch from {lowest} to {frame.to_revision} with revisions {revisions}"
            for _, record_id, revision, _ in frame.changes:
                if revision <= before.checkpoint:
                    yield f"{view.name}: {record_id} of revision {revision}, after checkpoint {before.checkpoint}"
                if revision < before.seen.get(record_id, 0):
                    yield f"{view.name}: {record_id} went back from {before.seen[record_id]} to {revision}"
        elif isinstance(frame, Checkpoint):
            if frame.revision < before.checkpoint:
                yield f"{view.name}: checkpoint {frame.revision} after {before.checkpoint}"
            if frame.revision != before.revision:
                yield f"{view.name}: checkpoint {frame.revision}, the copy is at {before.revision}"


def unique(evidence: Evidence) -> Iterator[str]:
    """G8: no version of a record is sent twice to the same copy."""
    for view, frame, before in evidence.frames():
        if isinstance(frame, Batch):
            seen = dict(before.seen)
            for _, record_id, revision, _ in frame.changes:
                if seen.get(record_id) == revision:
                    yield f"{view.name}: {record_id} of revision {revision} came twice"
                seen[record_id] = revision


def convergent(evidence: Evidence) -> Iterator[str]:
    """G7: at each checkpoint the copy equals S(r) under its selection, and in the end all reach the head."""
    yield from evidence.history.complaints
    for view, frame, before in evidence.frames():
        if not isinstance(frame, Checkpoint):
            continue
        expected = evidence.model(view.dataset).selected(frame.revision, view.selection)
        if expected is None:
            yield f"{view.name}: checkpoint {frame.revision}, which there never was"
        elif before.records != expected:
            wrong = sorted(
                key
                for key in before.records.keys() | expected.keys()
                if before.records.get(key) != expected.get(key)
            )
            yield f"{view.name}: at checkpoint {frame.revision} {len(wrong)} records differ: {wrong[:5]}"
        elif frame.count != UNVERIFIED and (frame.count, frame.digest) != (
            len(expected),
            digest_of(expected),
        ):
            yield f"{view.name}: count or digest of checkpoint {frame.revision} are not those of S(r)"
    if evidence.history.ended is None:
        return
    for view in evidence.history.views:
        head = evidence.history.datasets[view.dataset].head
        reached = 0
        for frame in view.frames:
            if isinstance(frame, (Checkpoint, Reset)):
                reached = frame.revision if isinstance(frame, Checkpoint) else 0
        if reached < head:
            yield f"{view.name}: ended at checkpoint {reached}, the head is {head}"
    for name, dataset, revision, head in last_looks(evidence.history):
        if revision < head:
            yield f"{name}: its copy of {dataset} ended at revision {revision}, the head is {head}"


def last_looks(history: History) -> Iterator[tuple[str, str, int, int]]:
    """Of every application with a copy: its name, the dataset, the revision that it saw last, and the head."""
    last = {(read.name, read.dataset): read.revision for read in history.reads if not read.is_live}
    for (name, dataset), revision in last.items():
        yield name, dataset, revision, history.datasets[dataset].head


def filtered(evidence: Evidence) -> Iterator[str]:
    """G7: a selective copy is sent what matches, as its mask shows it, and holds nothing else at a checkpoint."""
    for view, frame, before in evidence.frames():
        selected = SELECTIONS[view.selection]
        if isinstance(frame, Batch):
            for kind, record_id, revision, data in frame.changes:
                if kind == "remove" and selected.is_whole:
                    yield f"{view.name}: {record_id} removed, where there is no filter"
                if kind != "put" or selected.is_whole:
                    continue
                whole = evidence.model(view.dataset).state(revision)
                version = whole.get(record_id) if whole else None
                if version is None or selected.of(version[1]) != data:
                    yield f"{view.name}: {record_id} of revision {revision} is not what the filter selects"
        elif isinstance(frame, Checkpoint) and not selected.is_whole:
            expected = evidence.model(view.dataset).selected(frame.revision, view.selection) or {}
            if stale := sorted(before.records.keys() - expected.keys()):
                yield f"{view.name}: at checkpoint {frame.revision} it holds what does not match: {stale[:5]}"
            if missing := sorted(expected.keys() - before.records.keys()):
                yield f"{view.name}: at checkpoint {frame.revision} it lacks what matches: {missing[:5]}"


def bookmarked(evidence: Evidence) -> Iterator[str]:
    """G10, G20: checkpoints come in order with the data, at least every interval, and last before a clean end."""
    history = evidence.history
    longest = history.checkpoint_seconds * 1.1 + SLACK_SECONDS
    for view, frame, before in evidence.frames():
        if isinstance(frame, Checkpoint) and before.partial:
            yield f"{view.name}: checkpoint {frame.revision} inside a commit"
        if isinstance(frame, Batch) and any(r > frame.to_revision for _, _, r, _ in frame.changes):
            yield f"{view.name}: data beyond the end of its batch {frame.to_revision}"
    for view in history.views:
        for opened, frames in connections(view):
            yield from _last_word(history, view, frames)
            if history.calm_since is None or history.ended is None:
                continue
            # A copy that is in the middle of a commit has not caught up; of a large one that may take its time.
            marks = [
                f.at for f in frames if isinstance(f, Checkpoint) or (isinstance(f, Batch) and f.partial)
            ]
            ends = frames[-1].at if frames and isinstance(frames[-1], Ended) else history.ended
            since = max(opened.at, history.calm_since)
            for mark in [*(mark for mark in marks if mark > since), ends]:
                if mark - since > longest:
                    yield f"{view.name}: no checkpoint for {mark - since:.1f} s"
                since = max(mark, since)


def _last_word(history: History, view: View, frames: Sequence[Frame]) -> Iterator[str]:
    """A server that stops in an orderly way gives a last token to whoever was exact and had credit left for it."""
    if view.mode == "pages" or not frames or not isinstance(frames[-1], Ended):
        return
    if frames[-1].reason != "SHUTTING_DOWN" or _may_lack_credit(history, frames[-1]):
        return
    data = [frame for frame in frames if isinstance(frame, (Batch, Checkpoint))]
    if data and isinstance(data[-1], Checkpoint) and not data[-1].going_away:
        yield f"{view.name}: the server stopped without a last checkpoint"


def _may_lack_credit(history: History, ended: Ended) -> bool:
    """Whether the server, when it was told to stop, may not have had what grants it all of the credit.

    A busy client hears of the end much later, and grants meanwhile.
    """
    told = [at for at, what in history.faults if what == STOP and at <= ended.at]
    return ended.credit_since is not None and ended.credit_since > max(told, default=ended.at) - GRANT_SECONDS


def resumable(evidence: Evidence) -> Iterator[str]:
    """G11: a token goes on where it was given, or the stream begins with a reset; never anything else.

    One whose tombstones are gone may still be continued, when the server knows from memory what came after it; whether
    that was right is seen at the next checkpoint (``convergent``).
    """
    for view in evidence.history.views:
        given = {b"": 0}
        """Where each token of the view stands."""
        opened: Opened | None = None
        for frame in view.frames:
            if isinstance(frame, Opened):
                opened = frame
                if frame.token not in given:
                    yield f"{view.name}: resumed with a token that it was never given"
            elif isinstance(frame, (Batch, Checkpoint)):
                began = frame.from_revision if isinstance(frame, Batch) else frame.revision
                if opened is not None and opened.token and began != given.get(opened.token, began):
                    yield f"{view.name}: resumed at {given[opened.token]}, and the stream began at {began}"
                opened = None
                given[frame.token] = frame.to_revision if isinstance(frame, Batch) else frame.revision
            elif isinstance(frame, Reset):
                opened = None
            elif isinstance(frame, Ended) and frame.code not in HARMLESS_CODES:
                yield f"{view.name}: ended with {frame.code} {frame.reason}"


def no_gratuitous_reset(evidence: Evidence) -> Iterator[str]:
    """G11, G13: a copy begins anew only where the tombstones that it needs were purged."""
    for view in evidence.history.views:
        token = b""
        for frame in view.frames:
            if isinstance(frame, Opened):
                token = frame.token
            elif isinstance(frame, (Batch, Checkpoint)):
                token = frame.token or token
            elif isinstance(frame, Reset):
                covered = evidence.history.covered.get(token, 0)
                purges = evidence.history.datasets[view.dataset].purges
                if frame.reason != "COMPACTED":
                    yield f"{view.name}: reset for {frame.reason}, where nothing of the kind happened"
                elif not any(p.revision > covered and p.at <= frame.at for p in purges):
                    yield f"{view.name}: reset at a token that covers {covered}, and nothing above was purged"
                token = b""


def revoked(evidence: Evidence) -> Iterator[str]:
    """G21: who holds a key that was deleted hears nothing more after its time, and is told why."""
    for view in evidence.history.guests:
        if view.revoked is None:
            continue
        limit = view.revoked + evidence.history.revocation_seconds
        late = [f for f in view.frames if isinstance(f, (Batch, Checkpoint, Reset)) and f.at > limit]
        if late:
            yield f"{view.name}: heard {len(late)} messages more, {late[-1].at - view.revoked:.1f} s after its key was deleted"
        elif not any(isinstance(f, Ended) and f.code == "UNAUTHENTICATED" for f in view.frames):
            yield f"{view.name}: was never told that its key is gone"
