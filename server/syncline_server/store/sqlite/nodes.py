"""The node that has this file open, and its leases, in memory.

One process at a time has the file open, and what it holds ends with it. Written down, leases and reports would keep an
idle server writing, and a disk that is full would keep expiry and purge from making room.
"""

from collections.abc import Sequence
from dataclasses import replace

from syncline_server.model import Lease, Node
from syncline_server.store.rows import lease_lost


class Nodes:
    """Leases and nodes. Used on the writer's thread only, so that nothing changes hands inside a transaction."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        """The newest of each name; without a holder: given back."""
        self._nodes: dict[str, Node] = {}

    def acquire_lease(self, name: str, holder: str, seconds: float, *, now_us: int) -> Lease | None:
        """Take or extend a lease; None while another holder has it."""
        newest = self._leases.get(name)
        expire_time_us = now_us + round(seconds * 1e6)
        if newest is not None and newest.holder == holder:
            taken = replace(newest, expire_time_us=expire_time_us)
        elif newest is None or newest.expire_time_us <= now_us:
            fence = 1 if newest is None else newest.fence + 1
            taken = Lease(name=name, holder=holder, fence=fence, expire_time_us=expire_time_us)
        else:
            return None
        self._leases[name] = taken
        return taken

    def release_lease(self, lease: Lease) -> None:
        """Give a lease back."""
        newest = self._leases.get(lease.name)
        if newest is not None and newest.fence == lease.fence:
            self._leases[lease.name] = replace(newest, holder="", expire_time_us=0)

    def check_lease(self, lease: Lease | None) -> None:
        """Raise Aborted(LEASE_LOST) when somebody got the lease after its holder."""
        if lease is None:
            return
        newest = self._leases.get(lease.name)
        if newest is None or newest.fence != lease.fence:
            raise lease_lost(lease)

    def report_node(self, node: Node, *, now_us: int) -> None:
        """Record what a node tells about itself."""
        self._nodes[node.node_id] = replace(node, report_time_us=now_us)

    def remove_node(self, node_id: str) -> None:
        """Forget a node."""
        self._nodes.pop(node_id, None)

    def list_nodes(self, *, reported_since_us: int) -> Sequence[Node]:
        """Read the nodes that have reported since then."""
        found = (node for node in self._nodes.values() if node.report_time_us >= reported_since_us)
        return sorted(found, key=lambda node: (node.name.encode(), node.node_id.encode()))
