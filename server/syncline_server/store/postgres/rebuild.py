"""Commits that come from a change of the catalog: a source that goes, another identity."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from syncline_server.model import Appended, Dataset, Reason, RequestIdentity, Source
from syncline_server.store.carried import Carried
from syncline_server.store.plan import Revision
from syncline_server.store.postgres import difference
from syncline_server.store.postgres.catalog import (
    end_sessions,
    expect_dataset,
    expect_source,
    lock_dataset_of_source,
    lock_datasets,
    next_version,
    write_settings,
)
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.requests import find_resource, remember_resource

CARRY_CHANGES: Final = 10_000
REKEY_ROWS: Final = 1_000
REKEY_BYTES: Final = 4 << 20

_DELETE_SOURCE: Final = "DELETE FROM source WHERE number = $1"
# A chunk of live records: as many as fit, the first one always.
_LIVE_RECORDS: Final = """
WITH sized AS MATERIALIZED (
    SELECT *, sum(octet_length(data)) OVER (ORDER BY position) AS total, row_number() OVER (ORDER BY position) AS place
    FROM (SELECT position, record_id, data FROM record
          WHERE dataset_number = $1 AND position > $2 AND data IS NOT NULL ORDER BY position LIMIT $3) live)
SELECT r.position, r.record_id, r.data, s.source_id
FROM sized r
CROSS JOIN LATERAL (SELECT source_number FROM entry WHERE dataset_number = $1 AND record_id = r.record_id LIMIT 1) e
CROSS JOIN LATERAL (SELECT source_id FROM source WHERE number = e.source_number LIMIT 1) s
WHERE total <= $4 OR place = 1 ORDER BY r.position
"""
_INSERT_REKEYED: Final = """
INSERT INTO pg_temp.rekeyed (position, old_id, new_id) SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[])
"""

MakeRecordId = Callable[[bytes, str], str]


async def delete_source(
    connection: Connection,
    source: Source,
    expected_generation: int | None,
    identity: RequestIdentity | None,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> Appended | None:
    """Remove a source, its keys, its sessions and its records."""
    await lock_dataset_of_source(connection, source.number)
    if await find_resource(connection, identity) is not None:
        return None
    present = await expect_source(connection, source.number, expected_generation)
    dataset = await expect_dataset(connection, present.dataset_number, None)
    await end_sessions(connection, source_number=present.number)
    await difference.begin(connection)
    await difference.fill_from_source(connection, dataset.number, present.number, Reason.SOURCE)
    appended = await _commit(connection, dataset, present.number, now_us=now_us, random_bytes=random_bytes)
    await connection.execute(_DELETE_SOURCE, present.number)
    await next_version(connection, dataset.number)
    await remember_resource(connection, identity, str(present.number), now_us=now_us)
    return appended


async def rekey(
    connection: Connection,
    dataset: Dataset,
    make_record_id: MakeRecordId,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[Dataset, Appended | None]:
    """Store settings with another identity and move every record to its new id."""
    await lock_datasets(connection, [dataset.number])
    if await find_resource(connection, identity) is not None:
        return await expect_dataset(connection, dataset.number, None), None
    present = await expect_dataset(connection, dataset.number, expected_generation)
    await end_sessions(connection, dataset_number=dataset.number)
    await difference.begin(connection)
    await _make_new_ids(connection, dataset.number, make_record_id)
    await difference.fill_from_rekeyed(connection, dataset.number, Reason.SOURCE)
    appended = await _commit(connection, present, 0, now_us=now_us, random_bytes=random_bytes)
    return await write_settings(connection, dataset, identity, now_us=now_us), appended


async def _make_new_ids(connection: Connection, dataset_number: int, make_record_id: MakeRecordId) -> None:
    after = 0
    while True:
        rows = await connection.fetch(_LIVE_RECORDS, dataset_number, after, REKEY_ROWS, REKEY_BYTES)
        if not rows:
            return
        new_ids = await asyncio.to_thread(_new_ids, rows, make_record_id)
        await connection.execute(_INSERT_REKEYED, [row[0] for row in rows], [row[1] for row in rows], new_ids)
        after = rows[-1][0]


def _new_ids(rows: Sequence[Any], make_record_id: MakeRecordId) -> list[str]:
    return [make_record_id(data, source_id) for _, _, data, source_id in rows]


async def _commit(
    connection: Connection,
    dataset: Dataset,
    source_number: int,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> Appended | None:
    counts = await difference.count(connection)
    if not counts.changed:
        return None
    before = dataset.head
    after = replace(
        before,
        revision=before.revision + 1,
        commit_id=random_bytes(8),
        commit_time_us=max(now_us, before.commit_time_us),
    )
    head = await difference.apply_difference(
        connection, dataset.number, before, after, counts, session_number=None
    )
    await difference.write_revision(
        connection,
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
        ),
    )
    carried = Carried(CARRY_CHANGES)
    changes = await difference.read_applied(connection, dataset.number, before, head, limit=CARRY_CHANGES)
    carried.add(dataset.number, before, head, changes)
    return carried.appended()[0]
