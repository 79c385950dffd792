"""ServerService: what a client should know of the server."""

# ruff: noqa: N802 - methods are named by the proto

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from syncline.v1 import server_service_pb2 as pb
from syncline.v1.server_service_pb2_grpc import ServerServiceServicer
from syncline_server.clock import Clock
from syncline_server.ingest.records import Limits
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import timestamp


class ServerService(ServerServiceServicer):
    """See the proto."""

    def __init__(
        self,
        *,
        store_kind: str,
        start_time_us: int,
        limits: Limits,
        clock: Clock,
        writable: Callable[[], bool],
    ) -> None:
        self._store_kind = store_kind
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
            store=self._store_kind,
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
