"""What the feed needs of a store, in memory: the reference that the feed is tested against."""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from syncline_server.errors import NotFound
from syncline_server.model import (
    DIGEST_MODULUS,
    Appended,
    ChangeKind,
    Changes,
    Commit,
    Dataset,
    Head,
    Identity,
    IdentityKind,
    Page,
    Reason,
    Record,
    RecordScope,
    Retention,
    Source,
    Upserts,
)
from syncline_server.store.abc import GroupResult, Store, StoreInfo


def entry_digest(record_id: str, revision: int, data: bytes) -> int:
    value_hash = blake2b(data, digest_size=16).digest()
    entry = record_id.encode() + b"\0" + revision.to_bytes(8, "big") + value_hash
    return int.from_bytes(blake2b(entry, digest_size=16).digest(), "big")


def digest(records: dict[str, tuple[int, bytes]]) -> int:
    """The dataset digest of the contract, over (revision, data) by record id."""
    return sum(entry_digest(k, revision, data) for k, (revision, data) in records.items()) % DIGEST_MODULUS


@dataclass
class Row:
    position: int
    revision: int
    data: bytes | None


@dataclass
class Table:
    """One dataset."""

    head: Head
    rows: dict[str, Row] = field(default_factory=dict)
    """By record id, in the order of positions."""
    commit_ids: dict[int, bytes] = field(default_factory=dict)

    def live(self) -> dict[str, tuple[int, bytes]]:
        return {k: (row.revision, row.data) for k, row in self.rows.items() if row.data is not None}

    def commit(self, actions: Iterable[tuple[str, bytes | None]]) -> None:
        """Put (data) and delete (None) in one commit, which has no revision if it changes nothing."""
        revision, position = self.head.revision + 1, self.head.last_position
        count, total = self.head.record_count, self.head.digest
        for record_id, data in dict(actions).items():
            old = self.rows.get(record_id)
            if (old.data if old else None) == data:
                continue
            if old and old.data is not None:
                count, total = count - 1, total - entry_digest(record_id, old.revision, old.data)
            if data is not None:
                count, total = count + 1, total + entry_digest(record_id, revision, data)
            self.rows.pop(record_id, None)
            position += 1
            self.rows[record_id] = Row(position, revision, data)
        if position == self.head.last_position:
            return
        self.commit_ids[revision] = os.urandom(8)
        self.head = replace(
            self.head,
            revision=revision,
            commit_id=self.commit_ids[revision],
            record_count=count,
            digest=total % DIGEST_MODULUS,
            commit_time_us=revision,
            last_position=position,
        )

    def changes(self, after: int, limit: int | None = None) -> Changes:
        rows = [(k, row) for k, row in self.rows.items() if row.position > after][:limit]
        return Changes(
            record_ids=[k for k, _ in rows],
            data=[row.data or b"" for _, row in rows],
            revisions=[row.revision for _, row in rows],
            commit_times_us=[row.revision for _, row in rows],
            kinds=[ChangeKind.PUT if row.data is not None else ChangeKind.DELETE for _, row in rows],
            reasons=[Reason.API for _ in rows],
        )

    def page(self, after: int, max_changes: int, max_bytes: int, seen_revision: int) -> Page:
        rows = [(k, row) for k, row in self.rows.items() if row.position > after]
        count = size = 0
        for record_id, row in rows[:max_changes]:
            size += len(record_id) + len(row.data or b"")
            if count and size > max_bytes:
                break
            count += 1
        last = rows[count - 1][1] if count else None
        return Page(
            changes=self.changes(after, count),
            last_position=last.position if last else after,
            last_revision=last.revision if last else 0,
            complete=count == len(rows),
            head=self.head,
            seen_commit_id=self.commit_ids.get(seen_revision),
        )

    def purge(self, revision: int) -> None:
        """Move the watermark, dropping tombstones and commit ids below it."""
        assert self.head.purge_revision <= revision <= self.head.revision
        self.rows = {
            k: row for k, row in self.rows.items() if row.data is not None or row.revision > revision
        }
        self.commit_ids = {r: i for r, i in self.commit_ids.items() if r >= revision}
        self.head = replace(self.head, purge_revision=revision)


class MemoryStore(Store):
    """Datasets in memory. Methods that the feed does not need are not there."""

    def __init__(self) -> None:
        self.tables: dict[int, Table] = {}
        self.datasets: dict[str, Dataset] = {}
        self.info = StoreInfo(
            kind="memory",
            store_id=os.urandom(8),
            token_secret=os.urandom(32),
            history_id=(history := os.urandom(8)),
            histories=frozenset({history}),
            engine_version="",
        )

    async def create_dataset(self, dataset: Dataset, **_: Any) -> Dataset:
        head = Head(commit_id=dataset.incarnation[:8])
        created = replace(dataset, number=len(self.tables) + 1, generation=1, head=head)
        self.tables[created.number] = Table(head=head, commit_ids={0: head.commit_id})
        self.datasets[created.dataset_id] = created
        return created

    async def get_source(self, dataset_id: str, source_id: str) -> Source:
        number = self.datasets[dataset_id].number
        return Source(
            number=number, dataset_number=number, dataset_id=dataset_id, source_id=source_id, generation=1
        )

    async def delete_dataset(self, dataset_number: int, **_: Any) -> None:
        self.tables[dataset_number] = None

    async def commit(self, commits: Sequence[Commit], **_: Any) -> GroupResult:
        """All as one group of one dataset, one revision each."""
        table = self._table(commits[0].dataset_number)
        before = table.head
        for commit in commits:
            write = commit.write
            data = write.data if isinstance(write, Upserts) else [None] * len(write.record_ids)
            table.commit(zip(write.record_ids, data, strict=True))
        appended = Appended(
            dataset_number=commits[0].dataset_number,
            from_revision=before.revision,
            head=table.head,
            changes=table.changes(before.last_position),
        )
        return GroupResult(
            results=[],
            appended=[appended] if table.head != before else [],
            transaction_seconds=0,
            sync_seconds=0,
        )

    async def purge(self, dataset_number: int, **_: Any) -> None:
        table = self._table(dataset_number)
        table.purge(table.head.revision)

    def restart(self) -> None:
        """What a process start does: one more history."""
        history = os.urandom(8)
        self.info = replace(
            self.info, history_id=history, histories=frozenset({*self.info.histories, history})
        )

    def backup(self) -> Any:
        return copy.deepcopy((self.tables, self.info))

    def restore(self, backup: Any) -> None:
        """Put a backup in place, as a restart from copied files does."""
        self.tables, self.info = copy.deepcopy(backup)
        self.restart()

    async def read_changes(
        self,
        dataset_number: int,
        *,
        after: int,
        max_changes: int,
        max_bytes: int,
        seen_revision: int = 0,
    ) -> Page:
        return self._table(dataset_number).page(after, max_changes, max_bytes, seen_revision)

    async def read_named_changes(
        self,
        dataset_number: int,
        record_ids: Sequence[str],
        *,
        after: int,
        through_revision: int,
        max_bytes: int,
        seen_revision: int = 0,
    ) -> Page:
        table = self._table(dataset_number)
        named = {
            k: row
            for k, row in table.rows.items()
            if k in record_ids
            and row.data is not None
            and row.position > after
            and row.revision <= through_revision
        }
        kept, size = {}, 0
        for k, row in named.items():
            size += len(k) + len(row.data)
            if kept and size > max_bytes:
                break
            kept[k] = row
        last = list(kept.values())[-1] if kept else None
        return Page(
            changes=Table(head=table.head, rows=kept).changes(0),
            last_position=last.position if last else after,
            last_revision=last.revision if last else 0,
            complete=len(kept) == len(named),
            head=table.head,
            seen_commit_id=table.commit_ids.get(seen_revision),
        )

    async def read_head(self, dataset_number: int) -> Head:
        return self._table(dataset_number).head

    async def list_records(
        self, dataset_number: int, *, after: str, limit: int, max_bytes: int
    ) -> tuple[Sequence[Record], bool, int]:
        table = self._table(dataset_number)
        live = [(k, row) for k, row in sorted(table.rows.items()) if row.data is not None and k > after]
        return [record_of(k, row) for k, row in live[:limit]], len(live) > limit, table.head.revision

    async def get_records(
        self, dataset_number: int, record_ids: Sequence[str], *, max_bytes: int
    ) -> tuple[Sequence[Record], Sequence[str], int]:
        table = self._table(dataset_number)
        live = [(k, row) for k in record_ids if (row := table.rows.get(k)) and row.data is not None]
        kept, size = [], 0
        for k, row in live:
            size += len(k) + len(row.data)
            if not kept or size <= max_bytes:
                kept.append(record_of(k, row))
        return kept[::-1], [k for k, _ in live[len(kept) :]], table.head.revision

    def _table(self, dataset_number: int) -> Table:
        table = self.tables.get(dataset_number)
        if table is None:
            raise NotFound("DATASET_NOT_FOUND", "there is no such dataset")
        return table


MemoryStore.__abstractmethods__ = frozenset()


def record_of(record_id: str, row: Row) -> Record:
    return Record(
        record_id=record_id,
        data=row.data,
        revision=row.revision,
        source_id="default",
        create_time_us=row.revision,
        update_time_us=row.revision,
    )


def new_dataset(dataset_id: str) -> Dataset:
    """A dataset as it is before the store has it."""
    incarnation = os.urandom(16)
    return Dataset(
        number=0,
        dataset_id=dataset_id,
        incarnation=incarnation,
        generation=1,
        identity=Identity(kind=IdentityKind.KEY, key_fields=("id",)),
        record_scope=RecordScope.SHARED,
        schema="",
        display_name="",
        description="",
        retention=Retention(),
        annotations={},
        create_time_us=0,
        update_time_us=0,
        head=Head(),
    )
