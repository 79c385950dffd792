"""``connect`` and the client: datasets, sources and keys."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from google.protobuf.field_mask_pb2 import FieldMask

from syncline import _wire
from syncline._call import DEFAULT_TIMEOUT_SECONDS, LONG, LONG_TIMEOUT_SECONDS, Caller
from syncline._standing import list_heads
from syncline._transport import Endpoint, Tls, resolve
from syncline._update_feed import UpdateFeed
from syncline.dataset import Dataset
from syncline.errors import NotFound
from syncline.feed import ChangeFeed
from syncline.mirror import Mirror, prefix_of
from syncline.models import (
    DatasetHead,
    DatasetInfo,
    Identity,
    KeyInfo,
    Node,
    Retention,
    Role,
    Scope,
    ServerInfo,
    SourceInfo,
)
from syncline.names import dataset_name, source_name
from syncline.producers import ProducerInfo, ProducerWatch, delete_producer, list_producers
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1.catalog_service_pb2_grpc import CatalogServiceStub
from syncline.v1.dataset_pb2 import Dataset as DatasetMessage
from syncline.v1.key_pb2 import Key as KeyMessage
from syncline.v1.producer_service_pb2_grpc import ProducerServiceStub
from syncline.v1.push_service_pb2_grpc import PushServiceStub
from syncline.v1.record_service_pb2_grpc import RecordServiceStub
from syncline.v1.server_service_pb2 import GetServerInfoRequest, ListNodesRequest
from syncline.v1.server_service_pb2_grpc import ServerServiceStub
from syncline.v1.session_service_pb2_grpc import SessionServiceStub
from syncline.v1.source_pb2 import Source as SourceMessage
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub

T = TypeVar("T")

_LIST_PAGE: Final = 1_000
_CLOSE_SECONDS: Final = 5.0
"""How long closing waits for rollbacks that are under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What an open client holds: two channels, their stubs, and what has to end with them."""

    caller: Caller
    catalog: CatalogServiceStub
    push: PushServiceStub
    sessions: SessionServiceStub
    records: RecordServiceStub
    server: ServerServiceStub
    sync: SyncServiceStub
    """On the connection for calls."""
    subscriptions: SyncServiceStub
    """On the connection for streams."""
    producers: ProducerServiceStub
    """On the connection for calls."""
    producer_watches: ProducerServiceStub
    """On the connection for streams."""
    updates: UpdateFeed
    """One stream for all replicas and mirrors, on the connection for streams."""
    feeds: "weakref.WeakSet[ChangeFeed[Any]]" = field(default_factory=weakref.WeakSet)
    """Weak: a feed that nobody reads ends by itself."""
    watches: "weakref.WeakSet[ProducerWatch]" = field(default_factory=weakref.WeakSet)
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    """Rollbacks whose caller was cancelled."""


@asynccontextmanager
async def _open(endpoint: Endpoint, timeout_seconds: float) -> AsyncIterator[Connection]:
    async with AsyncExitStack() as stack:
        calls = await stack.enter_async_context(endpoint.open_channel())
        streams = await stack.enter_async_context(endpoint.open_channel(streams=True))
        server = ServerServiceStub(calls)
        caller = Caller(endpoint, server, timeout_seconds=timeout_seconds)
        subscriptions = SyncServiceStub(streams)
        connection = Connection(
            caller=caller,
            catalog=CatalogServiceStub(calls),
            push=PushServiceStub(calls),
            sessions=SessionServiceStub(calls),
            records=RecordServiceStub(calls),
            server=server,
            sync=SyncServiceStub(calls),
            subscriptions=subscriptions,
            producers=ProducerServiceStub(calls),
            producer_watches=ProducerServiceStub(streams),
            updates=UpdateFeed(subscriptions, caller),
        )
        try:
            yield connection
        finally:
            # Streams end before their channel: closing it under a reader leaks its socket.
            for feed in list(connection.feeds):
                await feed.aclose()
            for watch in list(connection.watches):
                await watch.aclose()
            await connection.updates.aclose()
            if connection.background:
                _, late = await asyncio.wait(connection.background, timeout=_CLOSE_SECONDS)
                for task in late:
                    task.cancel()


def connect(
    address: str | Sequence[str] = "127.0.0.1:7420",
    *,
    key: str | None = None,
    tls: Tls | bool | None = None,
    insecure: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> "Client":
    """A client for the server at ``address``, to be entered with ``async with``; connects on first use.

    ``address`` is ``HOST:PORT`` (7420 if left out), ``[IPV6]:PORT``, ``unix:PATH`` or a name as gRPC takes it. Of
    several, in a list or between commas, which must be servers of one store, the client uses one, drawn by lot, and
    goes to the next when that one is away. ``key``: the argument, or SYNCLINE_KEY, or for a server on this machine the
    admin key in its data directory (SYNCLINE_DATA, ``./syncline-data``). Other machines are reached by TLS, with
    the system's authorities or those in ``tls``, unless ``insecure``. ``timeout_seconds`` is the deadline of each
    call, retries included; deletes of datasets and sources, re-keying and sessions have longer ones.

    Raises ValueError for an address that cannot be one, and where a key would travel in plain text.
    """
    return Client(resolve(address, key=key, tls=tls, insecure=insecure), timeout_seconds=timeout_seconds)


class Client:
    """A connection to a server. Use ``connect`` to make one, and ``async with`` to open and close it.

    Every method raises SynclineError (see ``syncline.errors``): Unavailable when no server answers,
    NotAuthenticated and PermissionDenied where the key does not suffice.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._connection: Connection | None = None
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where the server is, as gRPC names it."""
        return self._endpoint.target

    @property
    def connection(self) -> Connection:
        """The open connection. Raises RuntimeError before ``async with`` and after it."""
        if self._connection is None:
            raise RuntimeError(
                "the client is not open: use it inside `async with syncline.connect(…) as client:`"
            )
        return self._connection

    async def __aenter__(self) -> "Client":
        if self._connection is not None:
            raise RuntimeError("the client is open already")
        self._connection = await self._stack.enter_async_context(_open(self._endpoint, self._timeout_seconds))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._connection = None
        await self._stack.aclose()

    @overload
    def dataset(self, dataset: str) -> Dataset[Mapping[str, Any]]: ...
    @overload
    def dataset(self, dataset: str, model: None) -> Dataset[Mapping[str, Any]]: ...
    @overload
    def dataset(self, dataset: str, model: type[T]) -> Dataset[T]: ...
    def dataset(self, dataset: str, model: type[Any] | None = None) -> Dataset[Any]:
        """Handle of a dataset, without I/O.

        ``model`` is what its records are: a dataclass, ``msgspec.Struct``, ``TypedDict`` or pydantic model;
        None: plain dicts.
        """
        return Dataset(self, dataset, model)

    async def server_info(self) -> ServerInfo:
        """Version, limits and clock of the server, and the role of the key in use."""
        connection = self.connection
        return _wire.to_server_info(
            await connection.caller.read(connection.server.GetServerInfo, GetServerInfoRequest())
        )

    async def nodes(self) -> list[Node]:
        """The servers that share the store, ordered by name. Needs an admin key."""
        connection = self.connection
        response = await connection.caller.read(connection.server.ListNodes, ListNodesRequest())
        return [_wire.to_node(message) for message in response.nodes]

    # -- datasets -------------------------------------------------------------------------------------------

    async def create_dataset(
        self,
        dataset: str,
        *,
        identity: Identity | None = None,
        scope: Scope = "shared",
        schema: Mapping[str, Any] | str | None = None,
        display_name: str = "",
        description: str = "",
        retention: Retention | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> DatasetInfo:
        """Make a dataset; ``identity`` is ``by_key(…)``, ``by_content()`` (the default) or ``append()``.

        ``schema`` is a JSON Schema 2020-12. Raises AlreadyExists, SchemaInvalid, InvalidArgument.
        """
        message = DatasetMessage(
            identity=None if identity is None else _wire.from_identity(identity),
            record_scope=_wire.scope_number(scope),
            schema=_wire.from_schema(schema),
            display_name=display_name,
            description=description,
            retention=None if retention is None else _wire.from_retention(retention),
            annotations=annotations,
        )
        request = catalog.CreateDatasetRequest(dataset_id=dataset, dataset=message)
        return _wire.to_dataset((await self._write("CreateDataset", request)).dataset)

    async def get_dataset(self, dataset: str, *, min_revision: int = 0) -> DatasetInfo:
        """Read a dataset. Raises NotFound."""
        request = catalog.GetDatasetRequest(name=dataset_name(dataset), min_revision=min_revision)
        return _wire.to_dataset((await self._read("GetDataset", request)).dataset)

    async def list_datasets(self) -> list[DatasetInfo]:
        """All datasets that the key may see, ordered by name."""
        request = catalog.ListDatasetsRequest(page_size=_LIST_PAGE)
        return await self._list("ListDatasets", request, lambda page: map(_wire.to_dataset, page.datasets))

    async def update_dataset(
        self,
        dataset: str,
        *,
        display_name: str | None = None,
        description: str | None = None,
        schema: Mapping[str, Any] | str | None = None,
        retention: Retention | None = None,
        annotations: Mapping[str, str] | None = None,
        identity: Identity | None = None,
        rekey: bool = False,
        etag: str = "",
    ) -> DatasetInfo:
        """Change the settings that are given; ``schema={}`` accepts everything again.

        ``rekey`` lets the identity change although there are records: all get their new ids in one commit.
        ``etag`` refuses the change when somebody else was faster. Raises NotFound, EtagMismatch, IdentityInUse,
        SchemaInvalid, InvalidArgument.
        """
        message = DatasetMessage(
            name=dataset_name(dataset),
            display_name=display_name or "",
            description=description or "",
            schema=_wire.from_schema(schema),
            retention=None if retention is None else _wire.from_retention(retention),
            annotations=annotations,
            identity=None if identity is None else _wire.from_identity(identity),
            etag=etag,
        )
        mask = _mask(
            display_name=display_name,
            description=description,
            schema=schema,
            retention=retention,
            annotations=annotations,
            identity=identity,
        )
        request = catalog.UpdateDatasetRequest(dataset=message, update_mask=mask, rekey=rekey)
        write = self._write_long if rekey else self._write
        return _wire.to_dataset((await write("UpdateDataset", request)).dataset)

    async def delete_dataset(self, dataset: str, *, etag: str = "", missing_ok: bool = False) -> None:
        """Delete a dataset with everything in it. Raises NotFound unless ``missing_ok``, EtagMismatch."""
        request = catalog.DeleteDatasetRequest(name=dataset_name(dataset), etag=etag)
        await self._delete("DeleteDataset", request, missing_ok=missing_ok)

    async def heads(self, prefix: str = "") -> list[DatasetHead]:
        """Where every dataset stands that the key may read and whose id begins with ``prefix``, ordered by id."""
        connection = self.connection
        return await list_heads(connection.sync, connection.caller, prefix)

    def mirror(
        self,
        pattern: str,
        directory: str | PathLike[str],
        *,
        filter: str | None = None,  # noqa: A002 - the word for it
        fields: Iterable[str] | None = None,
        replica_id: str | None = None,
    ) -> Mirror:
        """File replicas of many datasets in a directory, on one stream, to be entered with ``async with``.

        ``pattern`` is a prefix and a star, as in ``sensors-*``; ``*`` is everything that the key may read. The others
        are those of ``Dataset.replica``. See Mirror. Raises ValueError for another pattern.
        """
        return Mirror(
            self,
            prefix_of(pattern),
            Path(directory),
            filter=filter,
            fields=fields,
            replica_id=replica_id,
        )

    # -- sources --------------------------------------------------------------------------------------------

    async def create_source(
        self,
        dataset: str,
        source: str,
        *,
        display_name: str = "",
        disabled: bool = False,
        expect_every: timedelta | None = None,
    ) -> SourceInfo:
        """Make a source of a dataset; ``default`` is there from the beginning.

        ``expect_every``: how often each of its producers is expected to be heard from, 1 s to 366 days; see
        ``watch_producers``. Raises AlreadyExists, NotFound, InvalidArgument.
        """
        request = catalog.CreateSourceRequest(
            parent=dataset_name(dataset),
            source_id=source,
            source=SourceMessage(
                display_name=display_name,
                disabled=disabled,
                expect_every=_wire.to_duration(expect_every) if expect_every else None,
            ),
        )
        return _wire.to_source((await self._write("CreateSource", request)).source)

    async def get_source(self, dataset: str, source: str) -> SourceInfo:
        """Read a source. Raises NotFound."""
        request = catalog.GetSourceRequest(name=source_name(dataset, source))
        return _wire.to_source((await self._read("GetSource", request)).source)

    async def list_sources(self, dataset: str) -> list[SourceInfo]:
        """All sources of a dataset, ordered by name. Raises NotFound."""
        request = catalog.ListSourcesRequest(parent=dataset_name(dataset), page_size=_LIST_PAGE)
        return await self._list("ListSources", request, lambda page: map(_wire.to_source, page.sources))

    async def update_source(
        self,
        dataset: str,
        source: str,
        *,
        display_name: str | None = None,
        disabled: bool | None = None,
        expect_every: timedelta | None = None,
        etag: str = "",
    ) -> SourceInfo:
        """Change the settings that are given. A disabled source refuses writes, its data stays.

        ``expect_every=timedelta(0)`` expects nothing any more. Raises NotFound, EtagMismatch, InvalidArgument.
        """
        request = catalog.UpdateSourceRequest(
            source=SourceMessage(
                name=source_name(dataset, source),
                display_name=display_name or "",
                disabled=bool(disabled),
                expect_every=_wire.to_duration(expect_every) if expect_every else None,
                etag=etag,
            ),
            update_mask=_mask(display_name=display_name, disabled=disabled, expect_every=expect_every),
        )
        return _wire.to_source((await self._write("UpdateSource", request)).source)

    async def delete_source(
        self, dataset: str, source: str, *, etag: str = "", missing_ok: bool = False
    ) -> None:
        """Delete a source and the records that it owns. Raises NotFound unless ``missing_ok``, EtagMismatch."""
        request = catalog.DeleteSourceRequest(name=source_name(dataset, source), etag=etag)
        await self._delete("DeleteSource", request, missing_ok=missing_ok)

    # -- producers ------------------------------------------------------------------------------------------

    async def producers(self, dataset: str, source: str = "default") -> list[ProducerInfo]:
        """All producers of a source, ordered by id, with their states now. Raises NotFound."""
        connection = self.connection
        return await list_producers(connection.caller, connection.producers, dataset, source)

    def watch_producers(self, dataset: str) -> ProducerWatch:
        """Every producer of a dataset, then each whose state or epoch changes: iterate it with ``async for``."""
        connection = self.connection
        watch = ProducerWatch(connection.caller, connection.producer_watches, dataset)
        connection.watches.add(watch)
        return watch

    async def delete_producer(self, dataset: str, source: str, producer: str) -> None:
        """Forget a producer; what it wrote stays. A process of it that still runs is refused. Raises NotFound."""
        connection = self.connection
        await delete_producer(connection.caller, connection.producers, dataset, source, producer)

    # -- keys -----------------------------------------------------------------------------------------------

    async def create_key(
        self,
        role: Role,
        *,
        dataset: str | None = None,
        source: str | None = None,
        datasets: Sequence[str] = (),
        display_name: str = "",
        expire_time: datetime | None = None,
    ) -> KeyInfo:
        """Make a key; its ``secret`` is in this answer and nowhere else, ever.

        ``push`` takes a dataset and one of its sources (``default``); ``read`` takes a dataset, or ``datasets``
        with ids and prefixes that end in ``*``; ``admin`` takes neither. Raises NotFound, InvalidArgument.
        """
        message = KeyMessage(
            role=_wire.role_number(role),
            display_name=display_name,
            expire_time=None if expire_time is None else _wire.to_timestamp(expire_time),
        )
        if role == "push":
            if dataset is None:
                raise ValueError("a push key is for one source: name its dataset")
            message.source = source_name(dataset, source or "default")
        elif source is not None:
            raise ValueError(f"a {role} key takes no source")
        else:
            message.datasets.extend([*([] if dataset is None else [dataset]), *datasets])
        response = await self._write("CreateKey", catalog.CreateKeyRequest(key=message))
        return _wire.to_key(response.key, response.secret)

    async def get_key(self, key_id: str) -> KeyInfo:
        """Read a key, without its secret. Raises NotFound."""
        return _wire.to_key((await self._read("GetKey", catalog.GetKeyRequest(name=f"keys/{key_id}"))).key)

    async def list_keys(self) -> list[KeyInfo]:
        """All keys, without their secrets, ordered by id."""
        request = catalog.ListKeysRequest(page_size=_LIST_PAGE)
        return await self._list("ListKeys", request, lambda page: map(_wire.to_key, page.keys))

    async def update_key(
        self,
        key_id: str,
        *,
        display_name: str | None = None,
        datasets: Sequence[str] | None = None,
        expire_time: datetime | None = None,
        etag: str = "",
    ) -> KeyInfo:
        """Change the settings that are given. Raises NotFound, EtagMismatch, InvalidArgument."""
        request = catalog.UpdateKeyRequest(
            key=KeyMessage(
                name=f"keys/{key_id}",
                display_name=display_name or "",
                datasets=datasets or (),
                expire_time=None if expire_time is None else _wire.to_timestamp(expire_time),
                etag=etag,
            ),
            update_mask=_mask(display_name=display_name, datasets=datasets, expire_time=expire_time),
        )
        return _wire.to_key((await self._write("UpdateKey", request)).key)

    async def rotate_key(self, key_id: str, *, expire_time: datetime | None = None) -> KeyInfo:
        """Make a second key with the same rights, and end the first at ``expire_time`` (None: in 24 hours).

        Raises NotFound.
        """
        request = catalog.RotateKeyRequest(
            name=f"keys/{key_id}",
            expire_time=None if expire_time is None else _wire.to_timestamp(expire_time),
        )
        response = await self._write("RotateKey", request)
        return _wire.to_key(response.key, response.secret)

    async def delete_key(self, key_id: str, *, etag: str = "", missing_ok: bool = False) -> None:
        """Revoke a key at once. Raises NotFound unless ``missing_ok``, EtagMismatch."""
        request = catalog.DeleteKeyRequest(name=f"keys/{key_id}", etag=etag)
        await self._delete("DeleteKey", request, missing_ok=missing_ok)

    # -- calls ----------------------------------------------------------------------------------------------

    async def _read(self, method: str, request: Any) -> Any:
        connection = self.connection
        return await connection.caller.read(getattr(connection.catalog, method), request)

    async def _write(self, method: str, request: Any) -> Any:
        connection = self.connection
        return await connection.caller.write(getattr(connection.catalog, method), request)

    async def _write_long(self, method: str, request: Any) -> Any:
        """Make a call whose work grows with the dataset."""
        connection = self.connection
        return await connection.caller.write(
            getattr(connection.catalog, method), request, policy=LONG, timeout_seconds=LONG_TIMEOUT_SECONDS
        )

    async def _delete(self, method: str, request: Any, *, missing_ok: bool) -> None:
        try:
            await self._write_long(method, request)
        except NotFound:
            if not missing_ok:
                raise

    async def _list(self, method: str, request: Any, entries: Callable[[Any], Any]) -> list[Any]:
        found: list[Any] = []
        while True:
            page = await self._read(method, request)
            found.extend(entries(page))
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def _mask(**given: object) -> FieldMask:
    """The fields that were given."""
    return FieldMask(paths=[name for name, value in given.items() if value is not None])
