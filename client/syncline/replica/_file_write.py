# ruff: noqa: S608 - what is put into statements are names of tables, and never comes from outside
"""What is written into a replica's file. Everything here runs on one thread.

While the event loop is busy, each step of an SQLite statement may wait for the interpreter lock for milliseconds. So
a statement does its work in one step: rows are inserted many at a time, and what is looked up comes as one row.
"""

import json as jsonlib
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from syncline._digest import Tally, entry_digests
from syncline.events import (
    DELETE,
    PUT,
    REMOVE,
    Change,
    ChangeBatch,
    ChangeReason,
    Checkpoint,
    Delete,
    Put,
    Remove,
)
from syncline.replica import _file_schema as schema
from syncline.replica._copy import Point, Range, now_us, point_of, time_us

T = TypeVar("T")

_CHUNKS: Final = (512, 64, 8, 1)
"""Rows of one INSERT: few statements, which stay prepared."""

_IDS_AT_ONCE: Final = 1_000

_CHANGES_AT_ONCE: Final = 1_000

_BLOCK: Final = 256
"""Records between two known sums, for digests of ranges."""

_ROWS_AT_ONCE: Final = 2_048

_VALUES: Final = "(?, ?, ?, CAST(? AS TEXT), ?)"

Row = tuple[str, int, int, bytes | None, bytes]
"""record_id, revision, commit_time_us, json (None: gone), entry."""


_Made = tuple[Change[T], bytes]
"""What changed something, and the entry that was there before; empty: none."""

_CHANGED: Final = "(record_id, kind, revision, commit_time_us, reason, before)"


class Writer(Generic[T]):
    """The writing side of a file.

    What is worked on is one of two. Changes to the visible copy are made in a transaction that stays open until they
    are proven, so nobody sees them and a crash undoes them. A new copy goes to a table of its own, in transactions
    that store its token too, so that it is gone on with after a crash.
    """

    def __init__(self, path: Path, dataset: str, selection: str, *, is_filtered: bool) -> None:
        self._path = path
        self._vanished = REMOVE if is_filtered else DELETE
        self._connection = schema.connect(path, read_only=False)
        try:
            with schema.told(path):
                schema.prepare(self._connection, path, dataset, selection)
                self.point = schema.read_point(self._connection)
                # Of a new copy that was begun before the file was opened, empty when there is none to go on with.
                self.new_token, self._tally = schema.read_progress(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self._is_new_copy = bool(self.new_token)
        self._has_index = not self._is_new_copy
        if not self._is_new_copy:
            self._tally = self._visible()
        self._blocks: _Blocks | None = None
        self._direct: list[Change[T]] = []  # what the last commit changed, when it was little
        self._noted = 0  # place of the last change in the table of those, when it was much
        self._told = 0

    def close(self) -> None:
        """Undo what is not proven, and close."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._connection.close()

    def _visible(self) -> Tally:
        return Tally(self.point.record_count, int.from_bytes(self.point.digest, "big"))

    @property
    def _table(self) -> str:
        return "new_record" if self._is_new_copy else "record"

    # -- the copy that is worked on -------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a new copy."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._forget_changes()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("DROP TABLE IF EXISTS new_record")
        schema.create_records(self._connection, "new_record")
        self._tally = Tally()
        schema.write_progress(self._connection, b"", self._tally)
        self._connection.execute("COMMIT")
        self._is_new_copy, self._has_index, self._blocks = True, False, None
        self.new_token = b""

    def take(self, batches: Sequence[ChangeBatch[T]], token: bytes) -> None:
        """Take in changes; a new copy together with the token that goes on after them."""
        if self._has_index:
            self._note_edits(self._edit(batches))
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._append(batches)
        schema.write_progress(self._connection, token, self._tally)
        self._connection.execute("COMMIT")

    def settle(
        self, batches: Sequence[ChangeBatch[T]], checkpoint: Checkpoint, *, want_changes: bool
    ) -> Tally:
        """Take in the last changes and make everything visible, if it agrees with the checkpoint."""
        if not self._has_index:
            self._connection.execute("BEGIN IMMEDIATE")
            self._append(batches)
            self._complete()
            made: list[_Made[T]] = []
        else:
            made = self._edit(batches)
        if not self._tally.agrees(checkpoint):
            self._note_edits(made)
            return replace(self._tally)
        if self._is_new_copy:
            self._show_new(checkpoint, want_changes=want_changes)
        elif self._noted:
            self._note_edits(made)
        else:
            self._direct = [change for change, _ in made]
        if not want_changes:
            self._forget_changes()
        self._commit(point_of(checkpoint, self._tally))
        return replace(self._tally)

    def _commit(self, point: Point) -> None:
        self._begin_edits()
        schema.write_point(self._connection, point)
        self._connection.execute("COMMIT")
        self.point = point
        self._blocks = None

    def touch(self, token: bytes) -> None:
        """The dataset is still what is visible."""
        self._commit(replace(self.point, token=token, equal_time_us=now_us()))

    # -- a new copy -----------------------------------------------------------------------------------------

    def _append(self, batches: Sequence[ChangeBatch[T]]) -> None:
        """Add rows in the order in which they came."""
        for batch in batches:
            entries = entry_digests(batch.record_ids, batch.revisions, batch.json)
            json: Sequence[bytes | None] = batch.json
            if batch.kinds:
                json = [
                    data if kind == PUT else None for data, kind in zip(batch.json, batch.kinds, strict=True)
                ]
                entries = [b"" if data is None else entry for entry, data in zip(entries, json, strict=True)]
                self._tally.add([entry for entry in entries if entry])
            else:
                self._tally.add(entries)
            rows = zip(batch.record_ids, batch.revisions, batch.commit_times_us, json, entries, strict=True)
            self._insert("INSERT INTO new_record VALUES ", list(rows), "")

    def _complete(self) -> None:
        """Make the index. Of several rows of one id, and of what is gone in the end, only the last one counts."""
        try:
            schema.create_index(self._connection, "new_record")
        except sqlite3.IntegrityError:
            self._drop(
                "rowid IN (SELECT rowid FROM (SELECT rowid, max(rowid) OVER (PARTITION BY record_id) AS last "
                "FROM new_record) WHERE rowid < last)"
            )
            schema.create_index(self._connection, "new_record")
        self._connection.execute("DELETE FROM new_record WHERE json IS NULL")
        self._has_index = True

    def _drop(self, condition: str) -> None:
        (entries,) = self._connection.execute(
            f"SELECT group_concat(hex(entry), '') FROM new_record WHERE {condition} AND json IS NOT NULL"
        ).fetchone()
        self._tally.remove(_split_entries(entries))
        self._connection.execute(f"DELETE FROM new_record WHERE {condition}")

    def _show_new(self, checkpoint: Checkpoint, *, want_changes: bool) -> None:
        self._forget_changes()
        if want_changes:
            self._connection.execute(
                f"INSERT INTO changed {_CHANGED} SELECT record_id, ?, ?, ?, 0, x'00' "
                "FROM record WHERE NOT EXISTS (SELECT 1 FROM new_record WHERE record_id = record.record_id)",
                (self._vanished, checkpoint.revision, time_us(checkpoint.commit_time)),
            )
            self._connection.execute(
                f"INSERT INTO changed {_CHANGED} "
                f"SELECT record_id, {PUT}, revision, commit_time_us, 0, x'00' FROM new_record WHERE entry IS NOT "
                "(SELECT entry FROM record WHERE record_id = new_record.record_id) ORDER BY rowid"
            )
            (self._noted,) = self._connection.execute("SELECT ifnull(max(place), 0) FROM changed").fetchone()
        schema.swap(self._connection)
        self._is_new_copy = False
        self.new_token = b""

    # -- changes to a copy with an index --------------------------------------------------------------------

    def _begin_edits(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _edit(self, batches: Sequence[ChangeBatch[T]]) -> "list[_Made[T]]":
        """Apply changes, the last one of each record; returns those that changed something."""
        edits: dict[str, tuple[ChangeBatch[T], int]] = {}
        for batch in batches:
            for i, record_id in enumerate(batch.record_ids):
                edits.pop(record_id, None)  # the last one stands where it happened
                edits[record_id] = (batch, i)
        if not edits:
            return []
        puts = [(batch, i) for batch, i in edits.values() if not batch.kinds or batch.kinds[i] == PUT]
        entries = entry_digests(
            (batch.record_ids[i] for batch, i in puts),
            (batch.revisions[i] for batch, i in puts),
            (batch.json[i] for batch, i in puts),
        )
        rows: dict[str, Row] = {
            batch.record_ids[i]: (
                batch.record_ids[i],
                batch.revisions[i],
                batch.commit_times_us[i],
                batch.json[i],
                entry,
            )
            for (batch, i), entry in zip(puts, entries, strict=True)
        }
        before = self._replace(rows, [record_id for record_id in edits if record_id not in rows])
        return [
            (batch[i], before[record_id]) for record_id, (batch, i) in edits.items() if record_id in before
        ]

    def _replace(self, rows: dict[str, Row], gone: Sequence[str]) -> dict[str, bytes]:
        """Put rows and drop others, with the tally; returns what was there, where that changed (nothing: empty)."""
        self._begin_edits()
        self._blocks = None
        old = self._entries_of([*rows, *gone])
        self._tally.remove(list(old.values()))
        self._tally.add([row[4] for row in rows.values()])
        for ids in _parts([record_id for record_id in gone if record_id in old], _IDS_AT_ONCE):
            self._connection.execute(
                f"DELETE FROM {self._table} WHERE record_id IN (SELECT value FROM json_each(?))",
                (jsonlib.dumps(ids),),
            )
        self._insert(
            f"INSERT INTO {self._table} VALUES ",
            list(rows.values()),
            " ON CONFLICT (record_id) DO UPDATE SET revision = excluded.revision, "
            "commit_time_us = excluded.commit_time_us, json = excluded.json, entry = excluded.entry",
        )
        before = {i: old.get(i, b"") for i, row in rows.items() if old.get(i) != row[4]}
        return before | {record_id: old[record_id] for record_id in gone if record_id in old}

    def _entries_of(self, record_ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for ids in _parts(record_ids, _IDS_AT_ONCE):
            (pairs,) = self._connection.execute(
                f"SELECT json_group_array(json_array(record_id, hex(entry))) FROM {self._table} "
                "WHERE record_id IN (SELECT value FROM json_each(?))",
                (jsonlib.dumps(ids),),
            ).fetchone()
            found.update((record_id, bytes.fromhex(entry)) for record_id, entry in jsonlib.loads(pairs))
        return found

    def _insert(self, head: str, rows: Sequence[Row], tail: str) -> None:
        place = 0
        for size in _CHUNKS:
            sql = head + ", ".join([_VALUES] * size) + tail
            while len(rows) - place >= size:
                self._connection.execute(sql, tuple(chain.from_iterable(rows[place : place + size])))
                place += size

    # -- what was changed -----------------------------------------------------------------------------------

    def _note_edits(self, made: "Iterable[_Made[T]]") -> None:
        """Keep changes, of which there may be many, until they are proven and told."""
        rows = [
            (
                change.record_id,
                _kind(change),
                change.revision,
                change.commit_time_us,
                int(change.reason),
                before,
            )
            for change, before in made
        ]
        for part in _parts(rows, _CHUNKS[0]):
            places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(part))
            sql = f"INSERT INTO changed {_CHANGED} VALUES {places}"
            self._connection.execute(sql, tuple(chain.from_iterable(part)))
        self._noted += len(rows)

    def _forget_changes(self) -> None:
        if self._noted:
            self._connection.execute("DELETE FROM changed")
        self._direct = []
        self._noted = self._told = 0

    def take_changes(self, decode: Callable[[bytes], T]) -> list[Change[T]]:
        """The next changes of the last commit: of each record the last one, if it is not as it was before."""
        if self._direct:
            direct, self._direct = self._direct[:_CHANGES_AT_ONCE], self._direct[_CHANGES_AT_ONCE:]
            return direct
        while self._told < self._noted:
            rows = self._connection.execute(
                "SELECT c.record_id, c.kind, c.revision, c.commit_time_us, c.reason, CAST(json AS BLOB) "
                "FROM changed AS c LEFT JOIN record ON record.record_id = c.record_id "
                "WHERE c.place > ? AND c.place <= ? "
                "AND c.place = (SELECT max(place) FROM changed WHERE record_id = c.record_id) "
                "AND ifnull(entry, x'') != (SELECT before FROM changed WHERE record_id = c.record_id ORDER BY place) "
                "ORDER BY c.place",
                (self._told, self._told + _CHANGES_AT_ONCE),
            ).fetchall()
            self._told += _CHANGES_AT_ONCE
            if rows:
                return [self._change(row, decode) for row in rows]
        self._forget_changes()
        return []

    def _change(self, row: Any, decode: Callable[[bytes], T]) -> Change[T]:
        record_id, kind, revision, commit_time_us, reason, json = row
        common: Any = {
            "record_id": record_id,
            "revision": revision,
            "commit_time_us": commit_time_us,
            "reason": ChangeReason(reason),
            "token": self.point.token,
        }
        if kind == PUT:
            return Put(json=json, _decode=decode, **common)
        return (Delete if kind == DELETE else Remove)(**common)

    # -- finding out where it differs -----------------------------------------------------------------------

    def summarise(self, ranges: Sequence[Range]) -> list[Tally]:
        """Count and digest of ranges."""
        if self._blocks is None:
            self._blocks = _Blocks(self._connection, self._table)
        return [self._blocks.tally(part) for part in ranges]

    def entries(self, part: Range) -> dict[str, bytes]:
        """Digests by id of a small range."""
        where, values = _within(part)
        (pairs,) = self._connection.execute(
            f"SELECT json_group_array(json_array(record_id, hex(entry))) FROM {self._table} WHERE {where}",
            values,
        ).fetchone()
        return {record_id: bytes.fromhex(entry) for record_id, entry in jsonlib.loads(pairs)}

    def mend(self, puts: Sequence[Put[Any]], gone: Sequence[str]) -> None:
        """Put and drop records."""
        entries = entry_digests(
            (put.record_id for put in puts), (put.revision for put in puts), (put.json for put in puts)
        )
        rows: dict[str, Row] = {
            put.record_id: (put.record_id, put.revision, put.commit_time_us, put.json, entry)
            for put, entry in zip(puts, entries, strict=True)
        }
        before = self._replace(rows, gone)
        kind = Delete if self._vanished == DELETE else Remove
        removed: list[Change[T]] = [
            kind(
                record_id=record_id,
                revision=self.point.revision,
                commit_time_us=0,
                reason=ChangeReason.UNSPECIFIED,
                token=b"",
            )
            for record_id in gone
        ]
        made = [change for change in (*puts, *removed) if change.record_id in before]
        self._note_edits((change, before[change.record_id]) for change in made)

    def recount(self) -> bool:
        """Compute the digests of all records from their bytes; whether they are as they were."""
        if self._connection.in_transaction:
            return False  # it is being mended already
        self._connection.execute("BEGIN IMMEDIATE")
        tally = Tally()
        for rows in _rows(self._connection):
            entries = entry_digests(
                (row[1] for row in rows), (row[2] for row in rows), (row[3] or b"" for row in rows)
            )
            tally.add(entries)
            for row, entry in zip(rows, entries, strict=True):
                if row[4] != entry:
                    self._connection.execute("UPDATE record SET entry = ? WHERE rowid = ?", (entry, row[0]))
        as_before = tally == self._visible()
        if not as_before:
            self.point = replace(self.point, record_count=tally.count, digest=tally.digest, is_verified=False)
            self._connection.execute(
                "UPDATE state SET record_count = ?, digest = ?, is_verified = 0", (tally.count, tally.digest)
            )
        self._connection.execute("COMMIT")
        if not self._is_new_copy:
            self._tally = tally
        return as_before


class _Blocks:
    """Sums of the digests of a table, ordered by id, up to every so many records."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._table = table
        self._ends: list[str] = []  # last id of each block
        self._sums: list[Tally] = []  # of everything up to there
        after = ""
        total = Tally()
        while True:
            count, last, entries = connection.execute(
                "SELECT count(*), max(record_id), group_concat(hex(entry), '') FROM (SELECT record_id, entry "
                f"FROM {table} WHERE record_id > ? ORDER BY record_id LIMIT {_BLOCK})",
                (after,),
            ).fetchone()
            if not count:
                break
            total.add(_split_entries(entries))
            self._ends.append(last)
            self._sums.append(replace(total))
            after = last

    def tally(self, part: Range) -> Tally:
        """Count and digest of a range."""
        first = bisect_left(self._ends, part.after) if part.after else -1
        last = bisect_left(self._ends, part.through) if part.through else len(self._ends)
        if last - first <= 1:
            return self._scan(part)
        tally = self._up_to(part.through, last)
        before = self._up_to(part.after, first) if part.after else Tally()
        return tally - before

    def _up_to(self, record_id: str, block: int) -> Tally:
        """Of all ids up to this one, which lies in this block."""
        if block == 0:
            return self._scan(Range("", record_id))
        tally = replace(self._sums[block - 1])
        if block < len(self._ends):
            rest = self._scan(Range(self._ends[block - 1], record_id))
            tally += rest
        return tally

    def _scan(self, part: Range) -> Tally:
        where, values = _within(part)
        (entries,) = self._connection.execute(
            f"SELECT group_concat(hex(entry), '') FROM {self._table} WHERE {where}", values
        ).fetchone()
        tally = Tally()
        tally.add(_split_entries(entries))
        return tally


def _within(part: Range) -> tuple[str, tuple[str, ...]]:
    if part.through:
        return "record_id > ? AND record_id <= ?", (part.after, part.through)
    return "record_id > ?", (part.after,)


def _split_entries(text: str | None) -> list[bytes]:
    data = bytes.fromhex(text or "")
    return [data[i : i + 16] for i in range(0, len(data), 16)]


def _rows(connection: sqlite3.Connection) -> Iterator[list[tuple[int, str, int, bytes | None, bytes | None]]]:
    """All rows of the visible copy, many at a time."""
    after = -1
    while rows := connection.execute(
        "SELECT rowid, record_id, revision, CAST(json AS BLOB), entry FROM record WHERE rowid > ? ORDER BY rowid LIMIT ?",
        (after, _ROWS_AT_ONCE),
    ).fetchall():
        yield rows
        after = rows[-1][0]


def _kind(change: Change[Any]) -> int:
    return PUT if isinstance(change, Put) else DELETE if isinstance(change, Delete) else REMOVE


V = TypeVar("V")


def _parts(values: Sequence[V], size: int) -> Iterator[Sequence[V]]:
    return (values[i : i + size] for i in range(0, len(values), size))
