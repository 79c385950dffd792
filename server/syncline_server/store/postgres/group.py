"""A group of commits: a look, a plan, and one call that applies it if nothing changed since the look.

The look is one statement, so one snapshot, and locks nothing. The plan is worked out in memory. The call locks the
datasets in the order of their numbers, compares the versions that the look saw, and writes: no lock is held over a
round trip (hazard F49). If a version has moved, nothing is written, and the same is done again under the locks.

So a call whose answer was lost is harmless: whenever it arrives, it writes only if nobody wrote in between, and
whoever retries the request sees, under the lock, whether it did (hazard F50).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Final

import msgspec

from syncline_server.errors import SynclineError
from syncline_server.model import (
    Commit,
    CommitResult,
    SessionMode,
)
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
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.requests import answer_of, columns_of
from syncline_server.store.postgres.text import lines
from syncline_server.store.rows import dataset_state

# $1 the time if a test holds it, $2 datasets, $3 sources, $4 sessions, $5 request ids, $6 producers.
_LOOK: Final = """
SELECT coalesce($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint),
    (SELECT json_agg(json_build_array(
            d.number, d.generation, encode(d.incarnation, 'hex'), d.record_scope, d.identity_kind, h.revision,
            encode(h.commit_id, 'hex'), h.record_count, encode(h.digest, 'hex'), h.commit_time_us, h.purge_revision,
            h.last_position, h.version))::text
        FROM dataset d JOIN head h ON h.dataset_number = d.number WHERE d.number = ANY ($2::bigint[])),
    (SELECT json_agg(json_build_array(number, dataset_number, source_id, disabled))::text
        FROM source WHERE number = ANY ($3::bigint[])),
    (SELECT json_agg(json_build_array(session_id, source_number, mode, calls, records))::text
        FROM session WHERE session_id = ANY ($4::text[])),
    (SELECT json_agg(json_build_array(request_id, encode(fingerprint, 'hex'), revision, changed,
            encode(statuses, 'hex'), record_ids, created, updated, unchanged, deleted, calls, kept))::text
        FROM request WHERE request_id = ANY ($5::text[])),
    (SELECT json_agg(json_build_array(number, source_number, producer_id, epoch, last_sequence))::text
        FROM producer WHERE number = ANY ($6::bigint[]) AND last_sequence >= 0),
    found.*
"""
# $7 and $8 datasets and record ids, side by side; the ids are lines of one text.
# LATERAL … LIMIT 1 is a look-up by key, whatever the planner thinks.
_LOOK_ONE_BY_ONE: Final = f"""{_LOOK}
FROM (SELECT array_agg(k.number), array_agg(e.position), array_agg(e.revision),
             array_agg(coalesce(e.hash, '')), array_agg(e.source_number)
      FROM unnest(string_to_array($8, E'\\n')) WITH ORDINALITY k (record_id, number)
      CROSS JOIN LATERAL (
          SELECT position, revision, hash, source_number FROM entry
          WHERE dataset_number = coalesce(($7::bigint[])[k.number], ($7::bigint[])[1]) AND record_id = k.record_id
          LIMIT 1) e) found
"""
# $7 the dataset, $8 the record ids in order. Neighbours are found on one page without another search.
_LOOK_TOGETHER: Final = f"""{_LOOK}
FROM (SELECT array_agg(record_id), array_agg(position), array_agg(revision), array_agg(coalesce(hash, '')),
             array_agg(source_number)
      FROM entry WHERE dataset_number = $7 AND record_id = ANY (string_to_array($8, E'\\n'))) found
"""
_TOGETHER_SINCE: Final = 17
"""The version of PostgreSQL that does so, and whose planner takes both conditions to the index whatever it knows of the
table. New ids cost a tenth of a microsecond each, where one by one they cost one."""
_NO_HASH: Final = bytes(16)
_APPLY: Final = "SELECT apply_group_1(" + ", ".join(f"${number}" for number in range(1, 50)) + ")"
IMPATIENT_MS: Final = 250
"""Who shares a group with others waits no longer for a dataset that somebody else holds: they would wait with it. A
commit of another node holds it for some milliseconds, unless it is that of a large session."""
_IMPATIENT: Final = f"set_config('lock_timeout', '{IMPATIENT_MS}', true)"
"""For this transaction, which is this statement where no other was begun."""
_APPLY_IMPATIENTLY: Final = f"{_APPLY} FROM {_IMPATIENT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A group with its verdicts, ready to be applied."""

    results: list[CommitResult | SynclineError]
    plan: Plan
    versions: dict[int, int]
    """Of the heads on which it was worked out, by dataset."""
    arguments: Sequence[Any] | None
    """Of ``apply_group_1``; None: there is nothing to write."""

    def carry(self, carried: Carried) -> None:
        """Note what was done, once it is durable."""
        for dataset in self.plan.known.datasets.values():
            carried.add(dataset.number, dataset.first_head, dataset.head, dataset.changes)


def ahead(random_bytes: Callable[[int], bytes], size: int) -> Callable[[int], bytes]:
    """The same source, asked once for ``size`` bytes."""
    return BytesIO(random_bytes(size)).read


async def judge_group(
    connection: Connection,
    commits: Sequence[Commit],
    *,
    before: Judged | None = None,
    held_us: int | None,
    random_bytes: Callable[[int], bytes],
) -> Judged:
    """Look and plan. Upserts and Deletes alone.

    ``before``: a group of the same dataset, and no other, that was sent and will have been applied before this one.
    """
    named = record_ids_by_dataset(commits)
    known, versions, now_us = await look(connection, commits, named, held_us=held_us)
    if before is not None:
        _foresee(known, versions, before, named)
    stored = {number: frozenset(dataset.entries) for number, dataset in known.datasets.items()}
    plan = Plan(known=known, now_us=now_us, random_bytes=ahead(random_bytes, 8 * len(commits)))
    results = [plan.judge(commit) for commit in commits]
    return Judged(results=results, plan=plan, versions=versions, arguments=_arguments(plan, versions, stored))


def _foresee(known: Known, versions: dict[int, int], before: Judged, named: dict[int, list[str]]) -> None:
    """Bring what was seen before a group was applied to what will be there afterwards."""
    for number, version in before.versions.items():
        dataset, after = known.datasets.get(number), before.plan.known
        if dataset is None or versions[number] != version:
            continue  # deleted; or the look came after the group, or another node was faster
        versions[number] += 1
        written = after.datasets[number]
        dataset.head = dataset.first_head = written.head
        entries = written.entries
        for record_id in entries.keys() & named.get(number, ()):
            dataset.entries[record_id] = entries[record_id]
        for session_id in known.sessions.keys() & after.sessions.keys():
            known.sessions[session_id] = replace(after.sessions[session_id], changed=False)
        for producer_number in known.producers.keys() & after.producers.keys():
            known.producers[producer_number] = replace(after.producers[producer_number], changed=False)
        known.answers.update(after.answers)


async def look(
    connection: Connection, commits: Sequence[Commit], named: dict[int, list[str]], *, held_us: int | None
) -> tuple[Known, dict[int, int], int]:
    """Read everything that the commits name, the versions of the heads by dataset, and the time, in one snapshot.

    ``named``: the record ids, in order, by dataset.
    """
    identities = {c.identity.request_id for c in commits if c.identity is not None and not c.dry_run}
    identities.update(filter(None, map(call_request_id, commits)))
    numbers = list(named)
    if len(named) > 1:
        numbers = [number for number, record_ids in named.items() for _ in range(len(record_ids))]
    ids = [record_id for record_ids in named.values() for record_id in record_ids]
    together = len(named) == 1 and connection.get_server_version().major >= _TOGETHER_SINCE
    row = await connection.fetchrow(
        _LOOK_TOGETHER if together else _LOOK_ONE_BY_ONE,
        held_us,
        list({c.dataset_number for c in commits}),
        list({c.source_number for c in commits}),
        list({c.session_id for c in commits if c.session_id}),
        list(identities),
        list({c.producer.producer_number for c in commits if c.producer is not None}),
        numbers[0] if together else numbers,
        lines(ids),
    )
    now_us, datasets, sources, sessions, answers, producers, *entries = row
    decoded = [
        msgspec.json.decode(column) if column else []
        for column in (datasets, sources, sessions, answers, producers)
    ]
    known = _known(*decoded)
    if entries[0] is not None:
        found, *columns = entries
        if not together:  # places in what was asked
            numbers = numbers if len(numbers) == 1 else [numbers[place - 1] for place in found]
            found = [ids[place - 1] for place in found]
        _fill_entries(known, numbers, found, columns)
    return known, {one[0]: one[12] for one in decoded[0]}, now_us


def _fill_entries(
    known: Known, numbers: Sequence[int], record_ids: Sequence[str], columns: Sequence[Any]
) -> None:
    """``numbers``: the dataset of each, or of all."""
    rows: list[Entry] = list(zip(*columns, strict=True))
    if len(numbers) == 1:
        dataset = known.datasets.get(numbers[0])
        if dataset is not None:  # upkeep has not removed the entries of a deleted one yet
            dataset.entries = dict(zip(record_ids, rows, strict=True))
        return
    for number, record_id, entry in zip(numbers, record_ids, rows, strict=True):
        dataset = known.datasets.get(number)
        if dataset is not None:
            dataset.entries[record_id] = entry


def _known(
    datasets: Sequence[Any],
    sources: Sequence[Any],
    sessions: Sequence[Any],
    answers: Sequence[Any],
    producers: Sequence[Any],
) -> Known:
    unhex = bytes.fromhex
    return Known(
        datasets={row[0]: dataset_state(row) for row in datasets},
        sources={
            row[0]: SourceState(number=row[0], dataset_number=row[1], source_id=row[2], disabled=row[3])
            for row in sources
        },
        sessions={
            row[0]: SessionState(
                session_id=row[0],
                source_number=row[1],
                mode=SessionMode(row[2]),
                calls=row[3],
                records=row[4],
            )
            for row in sessions
        },
        producers={
            row[0]: ProducerRow(
                number=row[0], source_number=row[1], producer_id=row[2], epoch=row[3], last_sequence=row[4]
            )
            for row in producers
        },
        answers={row[0]: (unhex(row[1]), answer_of([*row[2:4], unhex(row[4]), *row[5:]])) for row in answers},
    )


def _arguments(
    plan: Plan, versions: dict[int, int], stored: dict[int, frozenset[str]]
) -> Sequence[Any] | None:
    known = plan.known
    producers = [producer for producer in known.producers.values() if producer.changed]
    sessions = [session for session in known.sessions.values() if session.changed]
    if not plan.received:
        return None  # whatever is accepted counts as received
    touched = _touched(plan)
    return [
        plan.now_us,
        *_heads(touched, versions),
        *_revisions(plan),
        *_changes(plan, touched, stored),
        *_replaced(touched),
        *_columns([(d.number, *owner) for d in touched for owner in d.taken_over.items()], 3),
        *columns_of(plan.requests, now_us=plan.now_us),
        sorted(plan.received),
        *_columns([(p.number, p.last_sequence) for p in sorted(producers, key=lambda p: p.number)], 2),
        *_columns([(s.session_id, s.calls, s.records) for s in sessions], 3),
    ]


def _touched(plan: Plan) -> list[DatasetState]:
    """Datasets that something is written of, in the order in which they are locked."""
    numbers = {plan.known.sources[number].dataset_number for number in plan.received}
    return [plan.known.datasets[number] for number in sorted(numbers)]


def _heads(datasets: Sequence[DatasetState], versions: dict[int, int]) -> tuple[Sequence[Any], ...]:
    heads = [dataset.head for dataset in datasets]
    return (
        [dataset.number for dataset in datasets],
        [versions[dataset.number] for dataset in datasets],
        [head.revision for head in heads],
        [head.commit_id for head in heads],
        [head.record_count for head in heads],
        [head.digest.to_bytes(16, "big") for head in heads],
        [head.commit_time_us for head in heads],
        [head.last_position for head in heads],
    )


def _changes(
    plan: Plan, datasets: Sequence[DatasetState], stored: dict[int, frozenset[str]]
) -> Sequence[Any]:
    """Tags, positions, ids, data, hashes, whether some have an entry, whether some have none."""
    places = {(row.dataset_number, row.revision): 8 * place for place, row in enumerate(plan.revisions, 1)}
    tags: list[int] = []
    positions: list[int] = []
    ids: list[str] = []
    bodies: list[bytes] = []
    hashes: list[bytes] = []
    for dataset in datasets:
        number, known, kept, entries = dataset.number, stored[dataset.number], dataset.kept, dataset.entries
        for record_id, (position, revision, _, data) in dataset.changes.items():
            tag = places[number, revision]
            if record_id in known:
                tag += 3 if record_id in kept else 1
            tags.append(tag if data is not None else tag + 4)
            positions.append(position)
            ids.append(record_id)
            bodies.append(data or b"")
            hashes.append(entries[record_id][2] or _NO_HASH)
    some_known = [tag & 1 for tag in set(tags)]
    if len(places) == 1 and positions[-1] - positions[0] == len(positions) - 1:
        positions = positions[:1]
    text, data_text = lines(ids), b"\n".join(bodies).decode()
    return _one_for_all(tags), positions, text, data_text, b"".join(hashes), 1 in some_known, 0 in some_known


def _replaced(datasets: Sequence[DatasetState]) -> tuple[Sequence[int], Sequence[int]]:
    numbers = [dataset.number for dataset in datasets for _ in range(len(dataset.replaced))]
    return _one_for_all(numbers), [position for dataset in datasets for position in dataset.replaced]


def _one_for_all(values: list[int]) -> list[int]:
    """One element when all are equal."""
    return values[:1] if len(set(values)) == 1 else values


def _revisions(plan: Plan) -> tuple[Sequence[Any], ...]:
    return _columns(plan.revisions, len(Revision._fields))


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> tuple[Sequence[Any], ...]:
    """The rows as columns."""
    return tuple(zip(*rows, strict=True)) if rows else ((),) * width


async def apply(connection: Connection, judged: Judged, *, impatient: bool) -> bool:
    """Write what a plan has gathered, unless something has changed since the look; whether it was written.

    Impatiently: raises LockNotAvailableError soon.
    """
    statement = _APPLY_IMPATIENTLY if impatient else _APPLY
    return bool(await connection.fetchval(statement, *judged.arguments or ()))


async def be_impatient(connection: Connection) -> None:
    """Wait for locks as ``apply`` does, for the rest of the transaction."""
    await connection.execute(f"SELECT {_IMPATIENT}")
