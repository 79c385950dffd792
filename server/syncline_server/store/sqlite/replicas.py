"""How far replicas have come."""

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from syncline_server.errors import NotFound
from syncline_server.model import Replica, RequestIdentity
from syncline_server.store.rows import replica_of
from syncline_server.store.sqlite.requests import find_resource, remember_resource

# A revision of 0 says that the replica begins anew; otherwise reports may have overtaken each other.
_REPORT: Final = """
INSERT INTO replica (dataset_number, replica_id, key_id, revision, report_time_us)
SELECT k.value ->> 0, k.value ->> 1, k.value ->> 2, k.value ->> 3, k.value ->> 4
FROM json_each(?) k JOIN dataset d ON d.number = k.value ->> 0
WHERE true
ON CONFLICT (dataset_number, replica_id) DO UPDATE SET
    key_id = excluded.key_id,
    revision = CASE WHEN excluded.revision = 0 THEN 0 ELSE max(revision, excluded.revision) END,
    report_time_us = max(report_time_us, excluded.report_time_us)
"""
_LIST: Final = """
SELECT dataset_number, replica_id, key_id, revision, report_time_us FROM replica
WHERE dataset_number = ? AND report_time_us >= ? ORDER BY revision, replica_id
"""
_DELETE: Final = "DELETE FROM replica WHERE dataset_number = ? AND replica_id = ?"
_FORGET: Final = """
DELETE FROM replica WHERE (dataset_number, replica_id) IN
    (SELECT dataset_number, replica_id FROM replica WHERE report_time_us < ? LIMIT ?)
"""


def report(connection: sqlite3.Connection, replicas: Sequence[Replica]) -> None:
    """Record how far replicas have come, in one step."""
    rows = [(r.dataset_number, r.replica_id, r.key_id, r.revision, r.report_time_us) for r in replicas]
    connection.execute(_REPORT, (msgspec.json.encode(rows).decode(),))


def list_replicas(
    connection: sqlite3.Connection, dataset_number: int, *, reported_since_us: int
) -> Sequence[Replica]:
    """Read the replicas of a dataset, those furthest behind first."""
    return [
        replica_of(row) for row in connection.execute(_LIST, (dataset_number, reported_since_us)).fetchall()
    ]


def delete_replica(
    connection: sqlite3.Connection,
    dataset_number: int,
    replica_id: str,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Forget a replica. Raises NotFound(REPLICA_NOT_FOUND)."""
    if find_resource(connection, identity) is not None:
        return
    if not connection.execute(_DELETE, (dataset_number, replica_id)).rowcount:
        raise NotFound("REPLICA_NOT_FOUND", f"no replica {replica_id!r} has reported", replica=replica_id)
    remember_resource(connection, identity, replica_id, now_us=now_us)


def forget(connection: sqlite3.Connection, *, before_us: int, limit: int) -> int:
    """Forget replicas that last reported before this time."""
    return connection.execute(_FORGET, (before_us, limit)).rowcount
