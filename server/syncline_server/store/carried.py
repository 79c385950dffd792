"""What a group of commits added, gathered to be told to those who follow."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from syncline_server.model import Appended, ChangeKind, Changes, Head, Reason
from syncline_server.store.plan import Change


@dataclass(slots=True, kw_only=True)
class _Added:
    """What was added to one dataset."""

    from_revision: int
    head: Head
    changes: Mapping[str, Change] | None
    """In the order of positions; None: more than can be carried."""
    ends: list[int]
    """Last revision of each transaction."""
    times_us: list[int]
    """Time of its commits."""


class Carried:
    """The changes of a whole group of commits, to be told to those who follow, while they are few."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._added: dict[int, _Added] = {}

    def add(self, number: int, before: Head, after: Head, changes: Mapping[str, Change] | None) -> None:
        """Note what one transaction did to a dataset; None: more than can be carried.

        Where another node has committed since the transaction before this one, what it changed is not known here: then
        nothing is carried of the dataset.
        """
        if after.revision == before.revision:
            return
        added = self._added.get(number)
        if added is None:
            added = self._added[number] = _Added(
                from_revision=before.revision, head=after, changes=changes, ends=[], times_us=[]
            )
        elif added.head.revision != before.revision or changes is None or added.changes is None:
            added.changes = None
        else:
            older = {key: change for key, change in added.changes.items() if key not in changes}
            added.changes = {**older, **changes}
        if added.changes is not None and len(added.changes) > self._limit:
            added.changes = None
        added.head = after
        added.ends.append(after.revision)
        added.times_us.append(after.commit_time_us)

    def appended(self) -> Sequence[Appended]:
        """What to announce, an entry for each dataset that changed."""
        return [
            Appended(
                dataset_number=number,
                from_revision=added.from_revision,
                head=added.head,
                changes=None
                if added.changes is None
                else _columns(added.changes, added.ends, added.times_us),
            )
            for number, added in self._added.items()
        ]


def _columns(changes: Mapping[str, Change], ends: Sequence[int], times_us: Sequence[int]) -> Changes:
    rows = list(changes.values())
    revisions = [row[1] for row in rows]
    reasons = [row[2] for row in rows]
    data = [row[3] or b"" for row in rows]
    if len(ends) == 1:
        commit_times_us = [*times_us] * len(rows)
    else:
        commit_times_us = [times_us[bisect_left(ends, revision)] for revision in revisions]
    return Changes(
        record_ids=list(changes),
        data=data,
        revisions=revisions,
        commit_times_us=commit_times_us,
        kinds=() if all(data) else [ChangeKind.PUT if body else ChangeKind.DELETE for body in data],
        reasons=reasons if set(reasons) - {int(Reason.API)} else (),
    )
