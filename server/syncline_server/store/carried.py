"""What a group of commits added, gathered to be told to those who follow."""

from collections.abc import Sequence

from syncline_server.model import Appended, ChangeKind, Changes, Head, Reason
from syncline_server.store.plan import Change


class Carried:
    """The changes of a whole group of commits, to be told to those who follow, while they are few."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._from_revision: dict[int, int] = {}
        self._heads: dict[int, Head] = {}
        self._changes: dict[int, dict[str, tuple[Change, int]] | None] = {}

    def add(self, number: int, before: Head, after: Head, changes: dict[str, Change] | None) -> None:
        """Note what one transaction did to a dataset; None: more than can be carried.

        Where another node has committed since the transaction before this one, what it changed is not known here: then
        nothing is carried of the dataset.
        """
        if after.revision == before.revision:
            return
        if number in self._heads and self._heads[number].revision != before.revision:
            changes = None
        self._from_revision.setdefault(number, before.revision)
        self._heads[number] = after
        known = self._changes.setdefault(number, {})
        if known is None or changes is None or len(changes) > self._limit:
            self._changes[number] = None
            return
        for record_id, change in changes.items():
            known.pop(record_id, None)
            known[record_id] = (change, after.commit_time_us)
        if len(known) > self._limit:
            self._changes[number] = None

    def appended(self) -> Sequence[Appended]:
        """What to announce, an entry for each dataset that changed."""
        return [
            Appended(
                dataset_number=number,
                from_revision=self._from_revision[number],
                head=head,
                changes=None if changes is None else _columns(changes),
            )
            for (number, head), changes in zip(self._heads.items(), self._changes.values(), strict=True)
        ]


def _columns(changes: dict[str, tuple[Change, int]]) -> Changes:
    rows = [change for change, _ in changes.values()]
    data = [row[3] or b"" for row in rows]
    reasons = [row[2] for row in rows]
    return Changes(
        record_ids=list(changes),
        data=data,
        revisions=[row[1] for row in rows],
        commit_times_us=[time_us for _, time_us in changes.values()],
        kinds=[ChangeKind.PUT if body else ChangeKind.DELETE for body in data] if not all(data) else (),
        reasons=reasons if any(reason != Reason.API for reason in reasons) else (),
    )
