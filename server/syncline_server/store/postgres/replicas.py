"""How far replicas have come."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from syncline_server.errors import NotFound
from syncline_server.model import Replica, RequestIdentity
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.requests import find_resource, remember_resource, rows_of
from syncline_server.store.rows import replica_of

# A revision of 0 says that the replica begins anew; otherwise reports may have overtaken each other. In the order of
# the keys, so that two nodes cannot wait for each other.
_REPORT: Final = """
INSERT INTO replica (dataset_number, replica_id, key_id, revision, report_time_us)
SELECT d.number, k.replica_id, k.key_id, k.revision, k.time_us
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
     k (dataset_number, replica_id, key_id, revision, time_us)
JOIN dataset d ON d.number = k.dataset_number
ORDER BY d.number, k.replica_id
ON CONFLICT (dataset_number, replica_id) DO UPDATE SET
    key_id = excluded.key_id,
    revision = CASE WHEN excluded.revision = 0 THEN 0 ELSE greatest(replica.revision, excluded.revision) END,
    report_time_us = greatest(replica.report_time_us, excluded.report_time_us)
"""
_LIST: Final = """
SELECT dataset_number, replica_id, key_id, revision, report_time_us FROM replica
WHERE dataset_number = $1 AND report_time_us >= $2 ORDER BY revision, replica_id
"""
_DELETE: Final = "DELETE FROM replica WHERE dataset_number = $1 AND replica_id = $2"
_FORGET: Final = """
DELETE FROM replica WHERE (dataset_number, replica_id) IN
    (SELECT dataset_number, replica_id FROM replica WHERE report_time_us < $1 LIMIT $2)
"""


async def report(connection: Connection, replicas: Sequence[Replica]) -> None:
    """Record how far replicas have come."""
    folded: dict[tuple[int, str], Replica] = {}
    for one in replicas:
        before = folded.get((one.dataset_number, one.replica_id), one)
        revision = max(before.revision, one.revision) if one.revision else 0
        time_us = max(before.report_time_us, one.report_time_us)
        folded[one.dataset_number, one.replica_id] = replace(one, revision=revision, report_time_us=time_us)
    newest = folded.values()
    await connection.execute(
        _REPORT,
        [r.dataset_number for r in newest],
        [r.replica_id for r in newest],
        [r.key_id for r in newest],
        [r.revision for r in newest],
        [r.report_time_us for r in newest],
    )


async def list_replicas(
    connection: Connection, dataset_number: int, *, reported_since_us: int
) -> Sequence[Replica]:
    """Read the replicas of a dataset, those furthest behind first."""
    return [replica_of(row) for row in await connection.fetch(_LIST, dataset_number, reported_since_us)]


async def delete_replica(
    connection: Connection,
    dataset_number: int,
    replica_id: str,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Forget a replica. Raises NotFound(REPLICA_NOT_FOUND)."""
    if await find_resource(connection, identity) is not None:
        return
    if not rows_of(await connection.execute(_DELETE, dataset_number, replica_id)):
        raise NotFound("REPLICA_NOT_FOUND", f"no replica {replica_id!r} has reported", replica=replica_id)
    await remember_resource(connection, identity, replica_id, now_us=now_us)


async def forget(connection: Connection, *, before_us: int, limit: int) -> int:
    """Forget replicas that last reported before this time."""
    return rows_of(await connection.execute(_FORGET, before_us, limit))
