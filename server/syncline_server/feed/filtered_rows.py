"""What a filtered copy is sent of changes that were read from the store. No I/O."""

from syncline_server.filters.selection import Row, Selection
from syncline_server.model import ChangeKind, Changes, Reason


class Columns:
    """Changes that are being gathered, column by column."""

    __slots__ = (
        "_plain",
        "commit_times_us",
        "data",
        "kinds",
        "reasons",
        "record_ids",
        "revisions",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.record_ids: list[str] = []
        self.data: list[bytes] = []
        self.revisions: list[int] = []
        self.commit_times_us: list[int] = []
        self.kinds: list[int] = []
        self.reasons: list[int] = []
        self.size_bytes = 0
        """Of ids and data, about."""
        self._plain = True
        """All are PUT, by API."""

    def __len__(self) -> int:
        return len(self.record_ids)

    def add(
        self, record_id: str, data: bytes, revision: int, commit_time_us: int, kind: int, reason: int
    ) -> None:
        """Append a change."""
        self.record_ids.append(record_id)
        self.data.append(data)
        self.revisions.append(revision)
        self.commit_times_us.append(commit_time_us)
        self.kinds.append(kind)
        self.reasons.append(reason)
        self.size_bytes += len(record_id) + len(data) + 16
        if kind != ChangeKind.PUT or reason != Reason.API:
            self._plain = False

    def changes(self) -> Changes:
        """What was gathered."""
        return Changes(
            record_ids=self.record_ids,
            data=self.data,
            revisions=self.revisions,
            commit_times_us=self.commit_times_us,
            kinds=() if self._plain else self.kinds,
            reasons=() if self._plain else self.reasons,
        )


def select(selection: Selection, changes: Changes, base_revision: int, columns: Columns) -> None:
    """Gather what a copy with this filter, begun or last exact at ``base_revision``, has to be sent of a page.

    A row that matches is put. One that does not, or a tombstone, is taken away if it is newer than
    ``base_revision``, and otherwise passed over: the copy cannot hold another version of that record. For a
    copy that was exact there, the row comes after its cursor, so it *is* newer. A copy that was begun from nothing
    has only what was read since, at that head or later ones, and each read gave newest versions: an older version
    of this record, replaced at or before ``base_revision``, was in none of them.

    Whether the version that a row replaced had matched tells nothing, because the copy may hold one that is older
    still; nor does the revision that the record was created at, because it may have been deleted and created
    again meanwhile (``tests/server/test_feed_filter_model.py`` has both rules, and how they fail).
    """
    reasons = changes.reasons
    for index, (record_id, data, revision, commit_time_us) in enumerate(
        zip(changes.record_ids, changes.data, changes.revisions, changes.commit_times_us, strict=True)
    ):
        if data:
            row = Row(record_id, revision, commit_time_us, data)
            if selection.matches(row):
                reason = reasons[index] if reasons else Reason.API
                columns.add(
                    record_id, selection.project(row), revision, commit_time_us, ChangeKind.PUT, reason
                )
                continue
        if revision > base_revision:
            kind = ChangeKind.REMOVE if data else ChangeKind.DELETE
            reason = reasons[index] if reasons else Reason.API
            columns.add(record_id, b"", revision, commit_time_us, kind, reason)
