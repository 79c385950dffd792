"""The reference model of a store: leases and nodes. See store_model."""

from dataclasses import replace

from syncline_server.errors import Aborted
from syncline_server.model import Lease, Node
from syncline_server.store.abc import Store


class ModelNodes(Store):
    """The part of the model that is about who has the store open."""

    def __init__(self, clock) -> None:
        self._clock = clock
        self._grants: dict[str, list[Lease]] = {}
        """All that were granted, in order: one for each fence."""
        self._given_back: set[tuple[str, int]] = set()
        self._nodes: list[Node] = []

    async def acquire_lease(self, name, *, holder, seconds):
        now_us = self._clock.now_us()
        grants = self._grants.setdefault(name, [])
        lease = Lease(
            name=name, holder=holder, fence=len(grants) + 1, expire_time_us=now_us + int(seconds * 1_000_000)
        )
        if grants and (name, len(grants)) not in self._given_back:
            if grants[-1].holder == holder:
                grants[-1] = replace(lease, fence=len(grants))
                return grants[-1]
            if grants[-1].expire_time_us > now_us:
                return None
        grants.append(lease)
        return lease

    async def release_lease(self, lease):
        self._given_back.add((lease.name, lease.fence))

    def check_lease(self, lease) -> None:
        if lease is not None and len(self._grants.get(lease.name, [])) != lease.fence:
            raise Aborted("LEASE_LOST", "it went to another node", lease=lease.name)

    async def report_node(self, node):
        await self.remove_node(node.node_id)
        self._nodes.append(replace(node, report_time_us=self._clock.now_us()))

    async def remove_node(self, node_id):
        self._nodes = [node for node in self._nodes if node.node_id != node_id]

    async def list_nodes(self, *, reported_since_us=0):
        found = [node for node in self._nodes if node.report_time_us >= reported_since_us]
        return sorted(found, key=lambda node: (node.name.encode(), node.node_id.encode()))
