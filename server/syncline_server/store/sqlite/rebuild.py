"""Commits that come from a change of the catalog: a source that goes, another identity."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from syncline_server.model import Appended, Dataset, Reason, RequestIdentity, Source
from syncline_server.store.carried import Carried
from syncline_server.store.plan import Revision
from syncline_server.store.sqlite import difference
from syncline_server.store.sqlite.catalog import expect_dataset, expect_source, write_settings
from syncline_server.store.sqlite.columns import BulkInsert, integers
from syncline_server.store.sqlite.group import SLOT_BITS, write_revisions
from syncline_server.store.sqlite.requests import find_resource, remember_resource
from syncline_server.store.sqlite.sessions import end_sessions

CARRY_CHANGES: Final = 10_000
REKEY_ROWS: Final = 1_000
REKEY_BYTES: Final = 4 << 20

_DELETE_SOURCE: Final = "DELETE FROM source WHERE number = ?"
# A chunk of live records: as many as fit, the first one always.
_LIVE_RECORDS: Final = """
SELECT group_concat(position), group_concat(record_id, char(10)), CAST(group_concat(data, char(10)) AS BLOB),
       group_concat(source_id)
FROM (SELECT r.slot - (?1 << 40) AS position, r.record_id, r.data, s.source_id,
             sum(length(r.data)) OVER (ORDER BY r.slot) AS total, row_number() OVER (ORDER BY r.slot) AS place
      FROM (SELECT * FROM record WHERE slot > (?1 << 40) + ?2 AND slot < (?1 + 1) << 40 AND data IS NOT NULL
            ORDER BY slot LIMIT ?3) r
      JOIN entry e ON e.dataset_number = ?1 AND e.record_id = r.record_id
      JOIN source s ON s.number = e.source_number)
WHERE total <= ?4 OR place = 1
"""
_INSERT_REKEYED: Final = BulkInsert(
    "INSERT INTO temp.rekeyed (position, old_id, new_id) "
    "SELECT column1, column2, column3 FROM (VALUES {values}) WHERE column1 IS NOT NULL",
    width=3,
    shared=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a change of the catalog did to a dataset."""

    dataset: Dataset | None
    appended: Appended | None
    ended_sessions: Sequence[str]


def delete_source(
    connection: sqlite3.Connection,
    source: Source,
    expected_generation: int | None,
    identity: RequestIdentity | None,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> Rebuilt:
    """Remove a source, its keys, its sessions and its records."""
    if find_resource(connection, identity) is not None:
        return Rebuilt(dataset=None, appended=None, ended_sessions=())
    present = expect_source(connection, source.number, expected_generation)
    dataset = expect_dataset(connection, present.dataset_number, None)
    ended = end_sessions(connection, source_number=present.number)
    difference.clear(connection)
    difference.fill_from_source(connection, dataset.number, present.number, Reason.SOURCE)
    appended = _commit(connection, dataset, present.number, now_us=now_us, random_bytes=random_bytes)
    connection.execute(_DELETE_SOURCE, (present.number,))
    remember_resource(connection, identity, str(present.number), now_us=now_us)
    return Rebuilt(dataset=None, appended=appended, ended_sessions=ended)


def rekey(
    connection: sqlite3.Connection,
    dataset: Dataset,
    make_record_id: Callable[[bytes, str], str],
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> Rebuilt:
    """Store settings with another identity and move every record to its new id."""
    if find_resource(connection, identity) is not None:
        present = expect_dataset(connection, dataset.number, None)
        return Rebuilt(dataset=present, appended=None, ended_sessions=())
    present = expect_dataset(connection, dataset.number, expected_generation)
    ended = end_sessions(connection, dataset_number=dataset.number)
    difference.clear(connection)
    _make_new_ids(connection, dataset.number, make_record_id)
    difference.fill_from_rekeyed(connection, dataset.number, Reason.SOURCE)
    appended = _commit(connection, present, 0, now_us=now_us, random_bytes=random_bytes)
    changed = write_settings(connection, dataset, identity, now_us=now_us)
    return Rebuilt(dataset=changed, appended=appended, ended_sessions=ended)


def _make_new_ids(
    connection: sqlite3.Connection, dataset_number: int, make_record_id: Callable[[bytes, str], str]
) -> None:
    after = 0
    while True:
        row = connection.execute(_LIVE_RECORDS, (dataset_number, after, REKEY_ROWS, REKEY_BYTES)).fetchone()
        if row[0] is None:
            return
        flat: list[Any] = []
        columns = (integers(row[0]), row[1].split("\n"), row[2].split(b"\n"), row[3].split(","))
        for position, record_id, data, source_id in zip(*columns, strict=True):
            flat += (position, record_id, make_record_id(data, source_id))
            after = position
        _INSERT_REKEYED.run(connection, (), flat)


def _commit(
    connection: sqlite3.Connection,
    dataset: Dataset,
    source_number: int,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> Appended | None:
    counts = difference.count(connection)
    if not counts.changed:
        return None
    before = dataset.head
    after = replace(
        before,
        revision=before.revision + 1,
        commit_id=random_bytes(8),
        commit_time_us=max(now_us, before.commit_time_us),
    )
    head = difference.apply_difference(connection, dataset.number, before, after, staged=False)
    write_revisions(
        connection,
        [
            Revision(
                dataset_number=dataset.number,
                revision=head.revision,
                commit_id=head.commit_id,
                commit_time_us=head.commit_time_us,
                key_id="",
                source_number=source_number,
                reason=Reason.SOURCE,
                puts=counts.created + counts.updated,
                deletes=counts.deleted,
            )
        ],
    )
    carried = Carried(CARRY_CHANGES)
    changes = difference.read_applied(connection, dataset.number, before, head, limit=CARRY_CHANGES)
    carried.add(dataset.number, before, head, changes)
    difference.clear(connection)
    return carried.appended()[0]


assert SLOT_BITS == 40, "the statements above shift by 40"
