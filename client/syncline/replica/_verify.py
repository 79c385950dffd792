"""Proving a replica's file against its server, without changing it and whoever writes it meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from syncline._digest import Tally, entry_digests
from syncline._selection import Selection
from syncline.errors import ReplicaUnusable
from syncline.events import PUT, ChangeBatch, SyncPage
from syncline.replica._copy import Point
from syncline.replica._file_schema import check, connect, read_point, told

_ROWS_AT_ONCE: Final = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProof:
    """What was found about a replica's file."""

    filter: str
    fields: tuple[str, ...]
    revision: int
    """The revision that the file equals, as it says itself."""
    record_count: int
    """Records in it."""
    digest: bytes
    """Computed from their bytes."""
    is_intact: bool
    """Count and digest are those that the file says."""
    server_revision: int
    """Of the checkpoint that it was compared with."""
    changes: int
    """Changes between the two, which were counted in before comparing."""
    is_proven: bool
    """Count and digest are those of the checkpoint."""
    reason: str
    """Why it is not proven; empty when it is."""


class _Snapshot:
    """One state of a file, whatever is written meanwhile."""

    def __init__(self, path: Path, dataset: str) -> None:
        self._connection = connect(path, read_only=True)
        try:
            check(self._connection, path, dataset)
            self._connection.execute("BEGIN")
            self.point: Point = read_point(self._connection)
            (text,) = self._connection.execute("SELECT selection FROM state").fetchone()
        except BaseException:
            self._connection.close()
            raise
        self.selection = Selection.parse(text)

    def close(self) -> None:
        """Let it go."""
        self._connection.close()

    def tally(self) -> Tally:
        """Count and digest of all records, computed from their bytes."""
        tally = Tally()
        cursor = self._connection.execute("SELECT record_id, revision, CAST(json AS BLOB) FROM record")
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            tally.add(_entries(rows))
        return tally

    def entry(self, record_id: str) -> bytes:
        """Digest of a record; empty when it is not there."""
        rows = self._connection.execute(
            "SELECT record_id, revision, CAST(json AS BLOB) FROM record WHERE record_id = ?", (record_id,)
        ).fetchall()
        return _entries(rows)[0] if rows else b""


def _entries(rows: Sequence[tuple[str, int, bytes | None]]) -> list[bytes]:
    return entry_digests((row[0] for row in rows), (row[1] for row in rows), (row[2] or b"" for row in rows))


ReadPages = Callable[[bytes, Selection], Awaitable[SyncPage[Any]]]
"""Reads everything after a token, up to a checkpoint."""


async def verify_file(path: Path, dataset: str, read: ReadPages) -> ReplicaProof:
    """Compare a file with the dataset: the digest of its bytes, and of what changed since, with a checkpoint's.

    Raises ReplicaUnusable, and what ``read`` raises.
    """
    if not await asyncio.to_thread(path.exists):
        raise ReplicaUnusable(f"{path} does not exist")

    def look() -> tuple[_Snapshot, Tally]:
        with told(path):
            snapshot = _Snapshot(path, dataset)
            try:
                return snapshot, snapshot.tally()
            except BaseException:
                snapshot.close()
                raise

    snapshot, tally = await asyncio.to_thread(look)
    with closing(snapshot), told(path):
        return await _compare(snapshot, tally, read)


async def _compare(snapshot: _Snapshot, tally: Tally, read: ReadPages) -> ReplicaProof:
    point, count, digest = snapshot.point, tally.count, tally.digest
    is_intact = (count, digest) == (point.record_count, point.digest)
    page = await read(point.token, snapshot.selection)
    checkpoint = page.checkpoint
    assert checkpoint is not None
    if page.reset is None:
        _count_in(snapshot, tally, page.changes)
    is_proven = bool(checkpoint.digest) and page.reset is None and tally.agrees(checkpoint)
    if not point.is_complete:
        reason = "it is not complete yet"
    elif page.reset is not None:
        reason = f"its token cannot be continued ({page.reset.message}): it has to be made anew"
    elif not checkpoint.digest:
        reason = "the server keeps no count and digest of its filter"
    elif not is_intact:
        reason = "it is not what was written: the file was changed or damaged"
    else:
        reason = "it differs from the dataset"
    return ReplicaProof(
        filter=snapshot.selection.filter,
        fields=snapshot.selection.fields,
        revision=point.revision,
        record_count=count,
        digest=digest,
        is_intact=is_intact,
        server_revision=checkpoint.revision,
        changes=len(page.changes),
        is_proven=is_proven,
        reason="" if is_proven else reason,
    )


def _count_in(snapshot: _Snapshot, tally: Tally, changes: ChangeBatch[Any]) -> None:
    entries: dict[str, bytes] = {}
    made = entry_digests(changes.record_ids, changes.revisions, changes.json)
    for i, record_id in enumerate(changes.record_ids):
        entries[record_id] = made[i] if not changes.kinds or changes.kinds[i] == PUT else b""
    tally.remove([old for record_id in entries if (old := snapshot.entry(record_id))])
    tally.add([entry for entry in entries.values() if entry])
