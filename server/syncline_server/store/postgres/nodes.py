"""Nodes that share the store, and leases on what only one of them at a time should do."""

from collections.abc import Sequence
from typing import Final

import msgspec

from syncline_server.model import Lease, Node
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.rows import lease_lost, node_of

# The time was read before the row was waited for, so it is early if anything: a lease is never taken too soon.
_ACQUIRE: Final = """
INSERT INTO lease (name, holder, fence, expire_time_us) VALUES ($1, $2, 1, $3::bigint + $4)
ON CONFLICT (name) DO UPDATE SET
    holder = excluded.holder,
    fence = lease.fence + CASE WHEN lease.holder = excluded.holder THEN 0 ELSE 1 END,
    expire_time_us = excluded.expire_time_us
WHERE lease.holder = excluded.holder OR lease.expire_time_us <= $3
RETURNING fence, expire_time_us
"""
_RELEASE: Final = "UPDATE lease SET holder = '', expire_time_us = 0 WHERE name = $1 AND fence = $2"
_FENCE: Final = "SELECT fence FROM lease WHERE name = $1"
_KEPT_FENCE: Final = _FENCE + " FOR SHARE"
_REPORT: Final = """
INSERT INTO node (node_id, name, addresses, version, start_time_us, report_time_us, lag_us)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (node_id) DO UPDATE SET
    name = excluded.name, addresses = excluded.addresses, version = excluded.version,
    start_time_us = excluded.start_time_us, report_time_us = excluded.report_time_us, lag_us = excluded.lag_us
"""
_REMOVE: Final = "DELETE FROM node WHERE node_id = $1"
_LIST: Final = """
SELECT node_id, name, addresses, version, start_time_us, report_time_us, lag_us FROM node
WHERE report_time_us >= $1 ORDER BY name, node_id
"""


async def acquire_lease(
    connection: Connection, name: str, holder: str, seconds: float, *, now_us: int
) -> Lease | None:
    """Take or extend a lease, in one statement; None while another holder has it."""
    row = await connection.fetchrow(_ACQUIRE, name, holder, now_us, round(seconds * 1e6))
    return None if row is None else Lease(name=name, holder=holder, fence=row[0], expire_time_us=row[1])


async def release_lease(connection: Connection, lease: Lease) -> None:
    """Give a lease back."""
    await connection.execute(_RELEASE, lease.name, lease.fence)


async def check_lease(connection: Connection, lease: Lease | None) -> None:
    """Make sure that nobody gets the lease before this transaction ends. Raises Aborted(LEASE_LOST).

    A node that is stopped inside the transaction keeps others from the lease until the server ends it
    (``idle_in_transaction_session_timeout``), and it then has had no effect.
    """
    if lease is not None and await connection.fetchval(_KEPT_FENCE, lease.name) != lease.fence:
        raise lease_lost(lease)


async def see_lease(connection: Connection, lease: Lease | None) -> None:
    """The same where nothing is to be done: without a lock, which would be a write each time that somebody looks."""
    if lease is not None and await connection.fetchval(_FENCE, lease.name) != lease.fence:
        raise lease_lost(lease)


async def report_node(connection: Connection, node: Node, *, now_us: int) -> None:
    """Record what a node tells about itself."""
    addresses = msgspec.json.encode(node.addresses).decode()
    await connection.execute(
        _REPORT, node.node_id, node.name, addresses, node.version, node.start_time_us, now_us, node.lag_us
    )


async def remove_node(connection: Connection, node_id: str) -> None:
    """Forget a node."""
    await connection.execute(_REMOVE, node_id)


async def list_nodes(connection: Connection, *, reported_since_us: int) -> Sequence[Node]:
    """Read the nodes that have reported since then."""
    return [node_of(row) for row in await connection.fetch(_LIST, reported_since_us)]
