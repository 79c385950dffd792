"""A history that a fail-over has cut in two: each part is held against the log of the primary that there was then.

A standby that had not received everything becomes the primary. What it lacks is lost, although it was acknowledged
and seen: that is the one loss that there may be, and everybody who saw any of it has to be told (G13).
"""

from dataclasses import dataclass, replace

from robustness.history import (
    DatasetLog,
    Ended,
    History,
    Opened,
    Operation,
    Reset,
    View,
)
from robustness.model import Model, digest_of
from robustness.promises import judge


@dataclass(frozen=True, slots=True, kw_only=True)
class FailOver:
    """What became of everybody."""

    forks: dict[str, int]
    """By dataset: the last revision that both primaries have."""
    lost: list[Operation]
    """Acknowledged by the old primary, and not on the new one."""
    told: list[str]
    """Views that had seen what is lost, and began anew with HISTORY_CHANGED."""
    violations: dict[str, list[str]]


def judge_fail_over(history: History, old: dict[str, DatasetLog], moment: float) -> FailOver:
    """Hold a history against both logs: ``old`` up to ``moment``, its own from then on."""
    forks = {name: _fork(old[name], log) for name, log in history.datasets.items()}
    lost = [
        operation
        for operation in history.acknowledged()
        if (operation.returned or 0.0) < moment and (operation.revision or 0) > forks[operation.dataset]
    ]
    told: list[str] = []
    silent: list[str] = []
    views = [_after(history, view, forks[view.dataset], moment, told, silent) for view in history.views]
    violations = {f"before: {name}": found for name, found in judge(_before(history, old, moment)).items()}
    violations |= {
        f"after: {name}": found for name, found in judge(_since(history, views, lost, moment)).items()
    }
    if silent:
        violations["told"] = silent
    return FailOver(forks=forks, lost=lost, told=told, violations=violations)


def _fork(old: DatasetLog, new: DatasetLog) -> int:
    """How many commits are the same in both."""
    same = 0
    for before, after in zip(old.commits, new.commits, strict=False):
        if before.commit_id != after.commit_id:
            break
        same += 1
    return same


def _before(history: History, old: dict[str, DatasetLog], moment: float) -> History:
    """The first part. What was under way at its end is of unknown outcome."""
    operations = [
        _answered_once(operation) if (operation.returned or moment) < moment else _unknown(operation)
        for operation in history.operations
        if operation.invoked < moment
    ]
    for log in old.values():
        log.final = Model(log).states[-1]
        log.head, log.count, log.digest = len(log.commits), len(log.final), digest_of(log.final)
    return replace(
        history,
        operations=operations,
        reads=[read for read in history.reads if read.returned < moment],
        views=[
            replace(view, frames=[frame for frame in view.frames if frame.at < moment])
            for view in history.views
        ],
        datasets=old,
        requests={},
        complaints=[],
        calm_since=None,
        ended=None,
    )


def _since(history: History, views: list[View], lost: list[Operation], moment: float) -> History:
    """The second part. What was lost may have been sent again, or not."""
    numbers = {operation.number for operation in lost}
    return replace(
        history,
        operations=[_unknown(op) if op.number in numbers else op for op in history.operations],
        reads=[read for read in history.reads if read.invoked > moment],
        views=views,
    )


def _answered_once(operation: Operation) -> Operation:
    """As it was answered first; it may have been sent again in the second part, and found to be lost."""
    return replace(operation, answers=operation.answers[:1])


def _unknown(operation: Operation) -> Operation:
    return replace(operation, outcome="unknown", code="", revision=None, changed=None, answers=[])


def _after(
    history: History, view: View, fork: int, moment: float, told: list[str], silent: list[str]
) -> View:
    """The view as the new primary has to answer for it."""
    opened, first = _first_answer(view, moment)
    if first is None:
        silent.append(f"{view.name} was never answered again")
        return view
    frame = view.frames[first]
    seen = history.seen.get(opened.token, 0)
    if seen <= fork:
        if isinstance(frame, Reset):
            silent.append(f"{view.name} began anew ({frame.reason}), and had seen nothing that is lost")
        return view
    if not isinstance(frame, Reset) or frame.reason != "HISTORY_CHANGED":
        silent.append(f"{view.name} had seen revision {seen}, of which {fork} are left, and was not told")
        return view
    told.append(view.name)
    return replace(view, frames=[Opened(at=opened.at), *view.frames[first + 1 :]])


def _first_answer(view: View, moment: float) -> tuple[Opened, int | None]:
    """The first frame that came after the moment, and what it answered."""
    opened = Opened(at=0.0)
    for number, frame in enumerate(view.frames):
        if isinstance(frame, Opened):
            opened = frame
        elif frame.at >= moment and not isinstance(frame, Ended):
            return opened, number
    return opened, None
