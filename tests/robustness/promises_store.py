"""Validators of what is promised about writes and reads. Each yields violations in words."""

from collections import defaultdict
from collections.abc import Iterator

from robustness.evidence import Evidence
from robustness.history import Checkpoint, Operation
from robustness.model import connections, digest_of


def reliable(evidence: Evidence) -> Iterator[str]:
    """G2, G3, G4: revisions are 1, 2, 3, …; what was acknowledged is among them; what was rejected is not."""
    history = evidence.history
    for name, log in history.datasets.items():
        revisions = [logged.revision for logged in log.commits]
        if revisions != list(range(1, len(revisions) + 1)):
            yield f"{name}: the log is not contiguous: {_odd(revisions)}"
        if revisions and log.head != revisions[-1]:
            yield f"{name}: the head is {log.head}, the log ends at {revisions[-1]}"
    for operation in history.operations:
        places = evidence.places[operation.number]
        if operation.code in {"INTERNAL", "UNKNOWN"}:
            yield f"{_name(operation)} ended with {operation.code}"
        if operation.outcome == "rejected" and places:
            yield f"{_name(operation)} was rejected ({operation.code}) and yet took effect at {sorted(places)}"
        if operation.outcome != "ok" or not operation.changed:
            continue
        if operation.kind == "reading":
            if not places:
                yield f"{_name(operation)} was acknowledged and is lost"
        elif not _holds(evidence, operation):
            yield f"{_name(operation)} was acknowledged at revision {operation.revision}, which does not hold it"
    for name, log in history.datasets.items():
        model = evidence.model(name)
        if log.final != model.states[-1]:
            yield f"{name}: what the server holds at the end is not what was committed: {_differ(log.final, model.states[-1])}"
        elif (log.count, log.digest) != (len(log.final), digest_of(log.final)):
            yield f"{name}: count or digest of the head are not those of its records"


def atomic(evidence: Evidence) -> Iterator[str]:
    """G1: a revision holds one write, all of it and nothing else; a read sees whole revisions."""
    for name, logged in evidence.commits():
        operations = evidence.by_place.get((name, logged.revision), [])
        readings = [operation for operation in operations if operation.kind == "reading"]
        if not operations:
            yield f"{name}: revision {logged.revision} was written by nobody: {_ids(logged.changes)}"
        elif readings:
            expected = sorted(data for reading in readings for data in reading.puts.values())
            if sorted(data or b"" for data in logged.changes.values()) != expected:
                yield f"{name}: revision {logged.revision} does not hold its readings whole"
        elif len(operations) == 1 and logged.revision <= evidence.model(name).head:
            model = evidence.model(name)
            if model.changes[logged.revision] != model.effect(operations[0], logged.revision):
                yield f"{name}: revision {logged.revision} is not the whole effect of {_name(operations[0])}"
    for read in evidence.history.reads:
        states = [
            evidence.model(read.dataset).selected(revision, read.selection)
            for revision in range(read.revision, max(read.revision, read.latest) + 1)
        ]
        if states[0] is None:
            yield f"{read.name} read revision {read.revision}, which there never was"
            continue
        if read.asked is not None:
            states = [{key: state[key] for key in read.asked if key in state} for state in states]
        if read.records not in states:
            differ = _differ(read.records, states[0])
            yield f"{read.name} at revision {read.revision} did not see it as it was: {differ}"


def exactly_once(evidence: Evidence) -> Iterator[str]:
    """G5: a write has one effect however often it was sent, and everybody who asks gets the same answer."""
    owners: dict[tuple[str, int], list[int]] = defaultdict(list)
    for operation in evidence.history.operations:
        places = evidence.places[operation.number]
        if len(places) > 1:
            yield f"{_name(operation)} took effect at revisions {sorted(places)}"
        copies = sum(map(len, evidence.written.get(operation.number, {}).values()))
        if operation.kind == "reading" and copies > 1:
            yield f"{_name(operation)} made {copies} records"
        if len(set(operation.answers)) > 1:
            yield f"{_name(operation)} was answered with revisions {operation.answers}"
        if operation.outcome == "ok" and operation.changed and operation.kind != "reading":
            owners[operation.dataset, operation.revision or 0].append(operation.number)
    for (name, revision), numbers in owners.items():
        if len(numbers) > 1:
            yield f"{name}: revision {revision} was given to operations {numbers}"


def real_time(evidence: Evidence) -> Iterator[str]:
    """G3, G14: what began after something had returned is of a later state."""
    acknowledged: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name in evidence.history.datasets:
        earliest_return = float("inf")
        for operation in reversed(evidence.history.acknowledged(name)):
            if operation.kind == "reading":
                continue  # noted when its acknowledgement came, which says nothing of when it was committed
            if earliest_return < operation.invoked:
                yield f"{_name(operation)} (revision {operation.revision}) began after a later revision had returned"
            earliest_return = min(earliest_return, operation.returned or 0.0)
            acknowledged[name].append((operation.returned or 0.0, operation.revision or 0))
        acknowledged[name].sort()
    for read in evidence.history.reads:
        if read.revision < read.min_revision:
            yield f"{read.name} asked for revision {read.min_revision} and got {read.revision}"
        newest = _newest_before(acknowledged[read.dataset], read.invoked) if read.is_live else 0
        if read.revision < newest:
            yield f"{read.name} saw revision {read.revision} after {newest} had been acknowledged"
    for view in evidence.history.views:
        for opened, frames in connections(view):
            first = next((frame for frame in frames if isinstance(frame, Checkpoint)), None)
            newest = _newest_before(acknowledged[view.dataset], opened.at)
            if first is not None and first.revision < newest and not opened.token:
                yield f"{view.name}: first checkpoint at {first.revision}, {newest} was acknowledged before it came"


def fenced(evidence: Evidence) -> Iterator[str]:
    """G6, G16: once a newer epoch of a producer, or session of a source, is open, the older one has no effect."""
    newest: dict[str, tuple[int, int]] = {}
    for name, logged in evidence.commits():
        for operation in evidence.by_place.get((name, logged.revision), ()):
            if operation.kind != "reading":
                continue
            epoch, revision = newest.get(operation.owner, (0, 0))
            if operation.epoch < epoch:
                yield (
                    f"{_name(operation)} of epoch {operation.epoch} of {operation.owner} took effect at revision "
                    f"{logged.revision}, after one of epoch {epoch} at {revision}"
                )
            else:
                newest[operation.owner] = (operation.epoch, logged.revision)
    for opening in evidence.history.openings:
        for operation in evidence.history.operations:
            if (
                operation.owner == opening.owner
                and operation.epoch < opening.epoch
                and operation.invoked > opening.returned
                and (evidence.places[operation.number] or operation.outcome == "ok")
            ):
                yield (
                    f"{_name(operation)} of {opening.owner}, epoch {operation.epoch}, took effect after epoch "
                    f"{opening.epoch} was open"
                )


def sequenced(evidence: Evidence) -> Iterator[str]:
    """G5: the readings of a program stand in the log in the order in which it sent them, over all its starts."""
    newest: dict[tuple[str, str], tuple[int, int]] = {}
    for operation in evidence.history.operations:
        if operation.kind != "reading" or operation.epoch:
            continue
        owner = (operation.dataset, operation.owner)
        for revision in evidence.places[operation.number]:
            number, before = newest.get(owner, (0, 0))
            if revision < before:
                yield (
                    f"{_name(operation)} of {operation.owner} stands at revision {revision}, and operation {number}, "
                    f"which was sent before it, at {before}"
                )
            newest[owner] = max((number, before), (operation.number, revision), key=lambda one: one[1])


def alone(evidence: Evidence) -> Iterator[str]:
    """F53: tombstones are purged by the node that holds the lease, and by no other."""
    leases = evidence.history.leases
    for name, log in evidence.history.datasets.items():
        for purge in log.purges:
            holder = next((node for order, node in reversed(leases) if order < purge.order), purge.node)
            if purge.node != holder:
                yield f"{name}: {purge.node} purged up to {purge.revision}, while {holder} had the lease"


def _holds(evidence: Evidence, operation: Operation) -> bool:
    """Whether the log has the write where its answer says."""
    revision = operation.revision or 0
    model = evidence.model(operation.dataset)
    if not 1 <= revision <= model.head:
        return False
    return model.changes[revision] == model.effect(operation, revision)


def _newest_before(acknowledged: list[tuple[float, int]], moment: float) -> int:
    newest = 0
    for returned, revision in acknowledged:
        if returned >= moment:
            break
        newest = max(newest, revision)
    return newest


def _name(operation: Operation) -> str:
    return f"operation {operation.number} ({operation.kind})"


def _ids(changes: dict[str, bytes | None]) -> str:
    return ", ".join(sorted(changes)[:5]) or "nothing"


def _odd(revisions: list[int]) -> str:
    pairs = zip([0, *revisions], revisions, strict=False)
    return ", ".join(f"{after} after {before}" for before, after in pairs if after != before + 1)[:200]


def _differ(found: dict[str, object], expected: dict[str, object]) -> str:
    keys = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    return "; ".join(f"{key}: {found.get(key)} for {expected.get(key)}" for key in sorted(keys)[:3])
