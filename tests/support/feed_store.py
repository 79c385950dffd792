"""What the feed needs of a store, in memory: the reference that the feed is tested against."""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from syncline_server.errors import NotFound
from syncline_server.model import (
    DIGEST_MODULUS,
    Appended,
    ChangeKind,
    Changes,
    Dataset,
    Head,
    Identity,
    IdentityKind,
    Page,
    Reason,
    RecordScope,
    Retention,
)
from syncline_server.store.abc import Store, StoreInfo


def digest(records: dict[str, tuple[int, bytes]]) -> int:
    """The dataset digest of the contract, over (revision, data) by record id."""
    total = 0
    for record_id, (revision, data) in records.items():
        value_hash = blake2b(data, digest_size=16).digest()
        entry = record_id.encode() + b"\0" + revision.to_bytes(8, "big") + value_hash
        total += int.from_bytes(blake2b(entry, digest_size=16).digest(), "big")
    return total % DIGEST_MODULUS


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

    def commit(self, actions: Iterable[tuple[str, bytes | None]]) -> Appended | None:
        """Put (data) and delete (None) in one commit. None if it changed nothing."""
        revision, position = self.head.revision + 1, self.head.last_position
        for record_id, data in dict(actions).items():
            old = self.rows.get(record_id)
            if (old.data if old else None) == data:
                continue
            self.rows.pop(record_id, None)
            position += 1
            self.rows[record_id] = Row(position, revision, data)
        if position == self.head.last_position:
            return None
        from_revision, after = self.head.revision, self.head.last_position
        commit_id = os.urandom(8)
        self.commit_ids[revision] = commit_id
        live = self.live()
        self.head = replace(
            self.head,
            revision=revision,
            commit_id=commit_id,
            record_count=len(live),
            digest=digest(live),
            commit_time_us=revision,
            last_position=position,
        )
        return Appended(
            dataset_number=0, from_revision=from_revision, head=self.head, changes=self.changes(after)
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
    """Datasets in memory. Methods that the feed does not use are not there."""

    def __init__(self) -> None:
        self.tables: dict[int, Table] = {}
        self.info = StoreInfo(
            kind="memory",
            store_id=os.urandom(8),
            token_secret=os.urandom(32),
            history_id=(history := os.urandom(8)),
            histories=frozenset({history}),
            engine_version="",
        )
        self.reads = 0
        self.before_read: Any = None
        """Awaited before each page is read, with the position: tests delay or change things there."""
        self.after_read: Any = None
        """Awaited between the read of a page and its delivery."""

    def create(self, dataset_id: str = "books") -> Dataset:
        number = len(self.tables) + 1
        incarnation = os.urandom(16)
        head = Head(commit_id=incarnation[:8])
        self.tables[number] = Table(head=head, commit_ids={0: incarnation[:8]})
        return Dataset(
            number=number,
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
            head=head,
        )

    def drop(self, dataset_number: int) -> None:
        self.tables[dataset_number] = None

    def write(self, dataset_number: int, actions: Iterable[tuple[str, bytes | None]]) -> Appended | None:
        appended = self.tables[dataset_number].commit(actions)
        return appended and replace(appended, dataset_number=dataset_number)

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
        self.reads += 1
        if self.before_read:
            await self.before_read(after)
        page = self._table(dataset_number).page(after, max_changes, max_bytes, seen_revision)
        if self.after_read:
            await self.after_read(page)
        return page

    async def read_head(self, dataset_number: int) -> Head:
        return self._table(dataset_number).head

    def _table(self, dataset_number: int) -> Table:
        table = self.tables.get(dataset_number)
        if table is None:
            raise NotFound("DATASET_NOT_FOUND", "there is no such dataset")
        return table


MemoryStore.__abstractmethods__ = frozenset()
