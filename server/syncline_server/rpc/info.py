"""ServerService: what a client should know of the server."""

# ruff: noqa: N802 - methods are named by the proto

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from syncline.v1 import server_service_pb2 as pb
from syncline.v1.server_service_pb2_grpc import ServerServiceServicer
from syncline_server.clock import Clock
from syncline_server.errors import PermissionDenied
from syncline_server.ingest.records import Limits
from syncline_server.model import Node, Role
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import duration, timestamp
from syncline_server.store.abc import Store


class ServerService(ServerServiceServicer):
    """See the proto."""

    def __init__(
        self,
        store: Store,
        *,
        node_id: str,
        start_time_us: int,
        limits: Limits,
        clock: Clock,
        writable: Callable[[], bool],
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._start_time_us = start_time_us
        self._limits = limits
        self._clock = clock
        self._writable = writable
        self._version = version("syncline")

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """Version, clock, limits, and the role of the key that asks."""
        del request, context
        limits = self._limits
        return pb.GetServerInfoResponse(
            version=self._version,
            store=self._store.info.kind,
            server_time=timestamp(self._clock.now_us()),
            start_time=timestamp(self._start_time_us),
            limits=pb.Limits(
                records_per_call=limits.records_per_call,
                bytes_per_call=limits.bytes_per_call,
                bytes_per_record=limits.bytes_per_record,
                depth=limits.depth,
                bytes_per_record_id=limits.bytes_per_record_id,
            ),
            role=caller().role.name.lower(),
            writable=self._writable(),
        )

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """Who shares the store."""
        del request, context
        if caller().role is not Role.ADMIN:
            raise PermissionDenied("PERMISSION_DENIED", "this needs an ADMIN key")
        now_us = self._clock.now_us()
        nodes = await self._store.list_nodes()
        return pb.ListNodesResponse(nodes=[self._node_out(node, now_us) for node in nodes])

    def _node_out(self, node: Node, now_us: int) -> pb.Node:
        return pb.Node(
            name=node.name,
            node_id=node.node_id,
            addresses=node.addresses,
            version=node.version,
            start_time=timestamp(node.start_time_us),
            report_time=timestamp(node.report_time_us),
            lag=duration(node.lag_us),
            silent=node.is_silent(now_us),
            this_node=node.node_id == self._node_id,
        )
