"""A group of commits in one transaction: look up, plan, write."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any, Final

import msgspec

from syncline_server.errors import SynclineError
from syncline_server.model import Commit, CommitResult, Head, SessionMode
from syncline_server.store.carried import Carried
from syncline_server.store.plan import (
    DatasetState,
    Entry,
    Known,
    Plan,
    ProducerRow,
    Revision,
    SessionState,
    SourceState,
    call_request_id,
    record_ids_by_dataset,
)
from syncline_server.store.rows import dataset_state
from syncline_server.store.sqlite.columns import BulkInsert, integers, json_array
from syncline_server.store.sqlite.requests import find_answer, remember_answers

SLOT_BITS: Final = 40
"""Of a record's slot that are its position; the ones above are the dataset's number."""

_FIND_TARGETS: Final = """
SELECT
    (SELECT json_group_array(json_array(
            d.number, d.generation, hex(d.incarnation), d.record_scope, d.identity_kind, h.revision,
            hex(h.commit_id), h.record_count, hex(h.digest), h.commit_time_us, h.purge_revision, h.last_position))
        FROM json_each(?1) k JOIN dataset d ON d.number = k.value JOIN head h ON h.dataset_number = d.number),
    (SELECT json_group_array(json_array(s.number, s.dataset_number, s.source_id, s.disabled))
        FROM json_each(?2) k JOIN source s ON s.number = k.value),
    (SELECT json_group_array(json_array(s.session_id, s.source_number, s.mode, s.calls, s.records))
        FROM json_each(?3) k JOIN session s ON s.session_id = k.value),
    (SELECT json_group_array(r.request_id) FROM json_each(?4) k JOIN request r ON r.request_id = k.value),
    (SELECT json_group_array(json_array(p.number, p.source_number, p.producer_id, p.epoch, p.last_sequence))
        FROM json_each(?5) k JOIN producer p ON p.number = k.value WHERE p.last_sequence >= 0)
"""
_FIND_ENTRIES: Final = """
SELECT group_concat(k.key), group_concat(e.position), group_concat(e.revision),
       group_concat(ifnull(hex(e.hash), '')), group_concat(e.source_number)
FROM json_each(?2) k CROSS JOIN entry e ON e.dataset_number = ?1 AND e.record_id = k.value
"""
_DELETE_RECORDS: Final = "DELETE FROM record WHERE slot IN (SELECT ?1 + value FROM json_each(?2))"
_CREATE_TIMES: Final = """
SELECT group_concat(ifnull(r.create_time_us, r.commit_time_us))
FROM json_each(?2) k CROSS JOIN record r ON r.slot = ?1 + k.value
"""
_INSERT_RECORDS: Final = BulkInsert(
    "INSERT INTO record (slot, revision, commit_time_us, reason, record_id, data, create_time_us) "
    "SELECT ?1 + column1, column2, ?2, column3, column4, column5, column6 "
    "FROM (VALUES {values}) WHERE column1 IS NOT NULL",
    width=6,
    shared=2,
)
_PUT_ENTRIES: Final = BulkInsert(
    "INSERT INTO entry (dataset_number, record_id, position, revision, hash, source_number) "
    "SELECT ?1, column1, column2, column3, column4, column5 "
    "FROM (VALUES {values}) WHERE column1 IS NOT NULL "
    "ON CONFLICT (dataset_number, record_id) DO UPDATE SET position = excluded.position, "
    "revision = excluded.revision, hash = excluded.hash, source_number = excluded.source_number",
    width=5,
    shared=1,
)
_TAKE_OVER: Final = """
UPDATE entry SET source_number = k.value
FROM json_each(?2) k WHERE entry.dataset_number = ?1 AND entry.record_id = k.key
"""
_UPDATE_HEAD: Final = """
UPDATE head SET revision = ?2, commit_id = ?3, record_count = ?4, digest = ?5, commit_time_us = ?6,
    last_position = ?7
WHERE dataset_number = ?1
"""
_INSERT_REVISIONS: Final = BulkInsert(
    "INSERT INTO revision (dataset_number, revision, commit_id, commit_time_us, key_id, source_number, reason,"
    " puts, deletes) SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL",
    width=9,
    shared=0,
)
_RECEIVED: Final = "UPDATE source SET last_received_us = ?1 WHERE number IN (SELECT value FROM json_each(?2))"
_MOVE_PRODUCERS: Final = """
UPDATE producer SET last_sequence = k.value, last_received_us = ?1
FROM json_each(?2) k WHERE producer.number = CAST(k.key AS INTEGER)
"""
_UPDATE_SESSION: Final = (
    "UPDATE session SET calls = ?2, records = ?3, active_time_us = ?4 WHERE session_id = ?1"
)


def commit_group(
    connection: sqlite3.Connection,
    commits: Sequence[Commit],
    carried: Carried,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> list[CommitResult | SynclineError]:
    """Apply commits of Upserts and Deletes inside the running transaction."""
    known = look_up(connection, commits)
    for number, record_ids in record_ids_by_dataset(commits).items():
        if number in known.datasets:
            known.datasets[number].entries = find_entries(connection, number, record_ids)
    plan = Plan(known=known, now_us=now_us, random_bytes=_ahead(random_bytes, 8 * len(commits)))
    results = [plan.judge(commit) for commit in commits]
    write_plan(connection, plan)
    for dataset in known.datasets.values():
        carried.add(dataset.number, dataset.first_head, dataset.head, dataset.changes)
    return results


def _ahead(random_bytes: Callable[[int], bytes], size: int) -> Callable[[int], bytes]:
    """The same source, asked once for ``size`` bytes: the system's gives the GIL up at every call."""
    return BytesIO(random_bytes(size)).read


def look_up(connection: sqlite3.Connection, commits: Sequence[Commit]) -> Known:
    """Read the datasets, sources, sessions and earlier answers that the commits name."""
    identities = {c.identity.request_id for c in commits if c.identity is not None and not c.dry_run}
    identities.update(filter(None, map(call_request_id, commits)))
    datasets, sources, sessions, answered, producers = connection.execute(
        _FIND_TARGETS,
        (
            json_array(list({c.dataset_number for c in commits})),
            json_array(list({c.source_number for c in commits})),
            json_array(list({c.session_id for c in commits if c.session_id})),
            json_array(list(identities)),
            json_array(list({c.producer.producer_number for c in commits if c.producer is not None})),
        ),
    ).fetchone()
    decode = msgspec.json.decode
    answers = {name: find_answer(connection, name) for name in decode(answered)}
    return Known(
        datasets={row[0]: dataset_state(row) for row in decode(datasets)},
        sources={
            row[0]: SourceState(number=row[0], dataset_number=row[1], source_id=row[2], disabled=bool(row[3]))
            for row in decode(sources)
        },
        sessions={
            row[0]: SessionState(
                session_id=row[0],
                source_number=row[1],
                mode=SessionMode(row[2]),
                calls=row[3],
                records=row[4],
            )
            for row in decode(sessions)
        },
        producers={
            row[0]: ProducerRow(
                number=row[0], source_number=row[1], producer_id=row[2], epoch=row[3], last_sequence=row[4]
            )
            for row in decode(producers)
        },
        answers={name: answer for name, answer in answers.items() if answer is not None},
    )


def find_entries(
    connection: sqlite3.Connection, dataset_number: int, record_ids: Sequence[str]
) -> dict[str, Entry]:
    """Look up record ids in one step."""
    row = connection.execute(_FIND_ENTRIES, (dataset_number, json_array(record_ids))).fetchone()
    if row[0] is None:
        return {}
    from_hex = bytes.fromhex
    columns = [column.split(",") for column in row]
    return {
        record_ids[int(key)]: (int(position), int(revision), from_hex(value_hash), int(source))
        for key, position, revision, value_hash, source in zip(*columns, strict=True)
    }


def write_plan(connection: sqlite3.Connection, plan: Plan) -> None:
    """Write what a plan has gathered."""
    for dataset in plan.known.datasets.values():
        if dataset.head is not dataset.first_head:
            _write_changes(connection, dataset, plan.commit_time_us(dataset))
        if dataset.taken_over:
            owners = msgspec.json.encode(dataset.taken_over).decode()
            connection.execute(_TAKE_OVER, (dataset.number, owners))
    if plan.revisions:
        write_revisions(connection, plan.revisions)
    if plan.requests:
        remember_answers(connection, plan.requests, now_us=plan.now_us)
    if plan.received:
        connection.execute(_RECEIVED, (plan.now_us, json_array(list(plan.received))))
    moved = {p.number: p.last_sequence for p in plan.known.producers.values() if p.changed}
    if moved:
        connection.execute(_MOVE_PRODUCERS, (plan.now_us, msgspec.json.encode(moved).decode()))
    for session in plan.known.sessions.values():
        if session.changed:
            connection.execute(
                _UPDATE_SESSION, (session.session_id, session.calls, session.records, plan.now_us)
            )


def _write_changes(connection: sqlite3.Connection, dataset: DatasetState, commit_time_us: int) -> None:
    first_slot = dataset.number << SLOT_BITS
    create_times = _create_times(connection, first_slot, dataset.kept)
    if dataset.replaced:
        connection.execute(_DELETE_RECORDS, (first_slot, json_array(dataset.replaced)))
    changes, stored = dataset.changes, dataset.entries
    records: list[Any] = []
    for record_id, (position, revision, reason, data) in changes.items():
        records += (position, revision, reason, record_id, data, create_times.get(record_id))
    _INSERT_RECORDS.run(connection, (first_slot, commit_time_us), records)
    entries: list[Any] = []
    for record_id in sorted(changes):  # the order of the index: neighbours share pages
        position, revision, value_hash, source_number = stored[record_id]
        entries += (record_id, position, revision, value_hash or None, source_number)
    _PUT_ENTRIES.run(connection, (dataset.number,), entries)
    write_head(connection, dataset.number, dataset.head)


def _create_times(connection: sqlite3.Connection, first_slot: int, kept: dict[str, int]) -> dict[str, int]:
    """When the records that are replaced came into being."""
    if not kept:
        return {}
    row = connection.execute(_CREATE_TIMES, (first_slot, json_array(list(kept.values())))).fetchone()
    return dict(zip(kept, integers(row[0]), strict=True))


def write_head(connection: sqlite3.Connection, dataset_number: int, head: Head) -> None:
    """Move the head of a dataset; its purge watermark stays."""
    connection.execute(
        _UPDATE_HEAD,
        (
            dataset_number,
            head.revision,
            head.commit_id,
            head.record_count,
            head.digest.to_bytes(16, "big"),
            head.commit_time_us,
            head.last_position,
        ),
    )


def write_revisions(connection: sqlite3.Connection, revisions: Iterable[Revision]) -> None:
    """Add rows to the table of revisions."""
    flat: list[Any] = []
    for row in revisions:
        flat += row
    _INSERT_REVISIONS.run(connection, (), flat)


def mark_received(connection: sqlite3.Connection, source_number: int, now_us: int) -> None:
    """Note that something was received from a source."""
    connection.execute(_RECEIVED, (now_us, json_array([source_number])))
