"""A whole server in the test's own loop, and stubs of the wire without the SDK in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import dataset_pb2, key_pb2
from syncline.v1.catalog_service_pb2_grpc import CatalogServiceStub
from syncline.v1.push_service_pb2_grpc import PushServiceStub
from syncline.v1.record_service_pb2_grpc import RecordServiceStub
from syncline.v1.server_service_pb2_grpc import ServerServiceStub
from syncline.v1.session_service_pb2_grpc import SessionServiceStub
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub
from syncline_server.app import Running, running
from syncline_server.clock import SystemClock
from syncline_server.settings import load_settings

TIMEOUT = 10.0
WIDE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Wire:
    """Stubs that send one key."""

    def __init__(self, channel: grpc.aio.Channel, secret: str) -> None:
        self.channel = channel
        self.secret = secret
        self.metadata = (("authorization", f"Bearer {secret}"),)
        self.catalog = CatalogServiceStub(channel)
        self.push = PushServiceStub(channel)
        self.session = SessionServiceStub(channel)
        self.record = RecordServiceStub(channel)
        self.sync = SyncServiceStub(channel)
        self.server = ServerServiceStub(channel)

    def as_key(self, secret: str) -> "Wire":
        return Wire(self.channel, secret)

    async def call(self, method, request, timeout=TIMEOUT):
        """One unary call."""
        return await method(request, metadata=self.metadata, timeout=timeout)

    async def refused(self, method, request, timeout=TIMEOUT) -> "Refused":
        """One unary call that must be refused."""
        try:
            answer = await self.call(method, request, timeout)
        except grpc.aio.AioRpcError as error:
            return Refused(error)
        raise AssertionError(f"not refused: {answer}")

    def subscribe(self, request):
        return self.sync.Subscribe(request, metadata=self.metadata)

    async def make_dataset(self, dataset_id="books", *, key_fields=("isbn",), **settings):
        identity = dataset_pb2.Identity(kind=dataset_pb2.Identity.KIND_KEY, key_fields=key_fields)
        request = catalog.CreateDatasetRequest(
            dataset_id=dataset_id, dataset=dataset_pb2.Dataset(identity=identity, **settings)
        )
        return (await self.call(self.catalog.CreateDataset, request)).dataset

    async def make_key(self, role, **settings) -> "Wire":
        """Stubs that send a new key."""
        key = key_pb2.Key(role=key_pb2.Key.Role.Value(f"ROLE_{role}"), **settings)
        made = await self.call(self.catalog.CreateKey, catalog.CreateKeyRequest(key=key))
        wire = self.as_key(made.secret)
        wire.key_name = made.key.name
        return wire


class Refused:
    """What a caller learns of an error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code().name
        self.message = error.details()
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.fields: dict[str, str] = {}
        self.retry_seconds: float | None = None
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in Status.FromString(value).details:
                    self._read(detail)

    def _read(self, detail) -> None:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind.FromString(detail.value)
                if kind is ErrorInfo:
                    self.reason, self.metadata = message.reason, dict(message.metadata)
                elif kind is BadRequest:
                    self.fields = {v.field: v.description for v in message.field_violations}
                else:
                    self.retry_seconds = message.retry_delay.seconds + message.retry_delay.nanos / 1e9

    def __repr__(self) -> str:
        return f"{self.code} {self.reason}: {self.message}"


class House:
    """A running server, and its admin's stubs."""

    def __init__(self, server: Running, wire: Wire, stop: asyncio.Event) -> None:
        self.server = server
        self.wire = wire
        self.stop = stop


def channel_to(server, *options):
    """A connection of its own to a server process."""
    own = [*WIDE, ("grpc.use_local_subchannel_pool", 1), *options]
    return grpc.aio.insecure_channel(server.address, options=own)


def wire_to(server, channel):
    """With the admin key of a server process."""
    return Wire(channel, server.key)


@asynccontextmanager
async def house(directory: Path, *, clock=None, **settings) -> AsyncIterator[House]:
    """A server in this process. Enter and leave it in one task (``support.hosted`` for fixtures).

    With ``store=`` the address of a PostgreSQL database it is a node; nodes in one directory share the admin key.
    """
    given = {"data": directory / "data", "listen": "127.0.0.1:0", "http": "", "shutdown_seconds": 3.0}
    stop = asyncio.Event()
    async with running(load_settings(**given | settings), clock or SystemClock(), stop) as (server, _):
        secret = (directory / "data" / "admin.key").read_text().strip()
        async with grpc.aio.insecure_channel(server.addresses[0], options=WIDE) as channel:
            yield House(server, Wire(channel, secret), stop)
