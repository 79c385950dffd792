"""CatalogService: datasets, sources, keys."""

# ruff: noqa: N802 - methods are named by the proto

from typing import Any, Final

import structlog
from google.protobuf.field_mask_pb2 import FieldMask

from syncline.names import dataset_name, source_name
from syncline.v1 import catalog_service_pb2 as pb
from syncline.v1.catalog_service_pb2_grpc import CatalogServiceServicer
from syncline_server.catalog.catalog import Catalog
from syncline_server.catalog.keys import Keys
from syncline_server.errors import PermissionDenied
from syncline_server.feed.feed import Feed
from syncline_server.freshness.liveness import Liveness
from syncline_server.model import Role
from syncline_server.query import page_tokens
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import (
    Problems,
    RequestIds,
    begin,
    check_may_read,
    check_revision,
    dataset_of,
    key_of,
    new_id,
    source_of,
    time_us,
    wait_seconds,
)
from syncline_server.rpc.resources import (
    DATASET_FIELDS,
    KEY_FIELDS,
    SOURCE_FIELDS,
    changes_of,
    dataset_out,
    key_out,
    settings_of,
    source_out,
)

_log = structlog.get_logger()

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000


class CatalogService(CatalogServiceServicer):
    """See the proto."""

    def __init__(
        self,
        catalog: Catalog,
        keys: Keys,
        feed: Feed,
        liveness: Liveness,
        request_ids: RequestIds,
        *,
        token_secret: bytes,
        revision_wait_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._keys = keys
        self._feed = feed
        self._liveness = liveness
        self._request_ids = request_ids
        self._token_secret = token_secret
        self._revision_wait_seconds = revision_wait_seconds

    # -- datasets -----------------------------------------------------------------------------------------

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Any) -> pb.CreateDatasetResponse:
        """Make a dataset."""
        del context
        problems = begin(request)
        new_id(
            request.dataset_id, request.dataset.name, dataset_name(request.dataset_id), problems, "dataset"
        )
        settings = settings_of(request.dataset, DATASET_FIELDS, problems)
        identity = self._request_ids.identity("CreateDataset", request, problems)
        problems.raise_any()
        _check_admin()
        dataset = await self._catalog.create_dataset(
            request.dataset_id, settings, identity=identity, validate_only=request.validate_only
        )
        _audit("CreateDataset", dataset_name(dataset.dataset_id), request)
        return pb.CreateDatasetResponse(dataset=dataset_out(dataset))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:
        """Read one dataset."""
        problems = begin(request)
        dataset_id = dataset_of(request.name, problems, "name")
        check_revision(request.min_revision, problems)
        problems.raise_any()
        principal = caller()
        if principal.source is None or principal.source[0] != dataset_id:
            check_may_read(principal, dataset_id)
        dataset = await self._catalog.get_dataset(dataset_id)
        if request.min_revision > dataset.head.revision:
            await self._feed.wait_revision(
                dataset.number,
                request.min_revision,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
            )
            dataset = await self._catalog.get_dataset(dataset_id)
        return pb.GetDatasetResponse(dataset=dataset_out(dataset))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        """Read a page of datasets, ordered by name: those that the key may read."""
        del context
        problems = begin(request)
        size, after = self._page(request.page_size, request.page_token, b"datasets", problems)
        principal = caller()
        if principal.role is Role.PUSH:
            raise _needs_admin()
        found = await self._catalog.list_datasets(after=after, limit=size + 1)
        page, more = found[:size], found[size:]
        return pb.ListDatasetsResponse(
            datasets=[dataset_out(dataset) for dataset in page if principal.may_read(dataset.dataset_id)],
            next_page_token=self._next(page[-1].dataset_id, b"datasets") if more else "",
        )

    async def UpdateDataset(self, request: pb.UpdateDatasetRequest, context: Any) -> pb.UpdateDatasetResponse:
        """Change settings of a dataset."""
        del context
        problems = begin(request)
        dataset_id = dataset_of(_named(request.dataset.name, problems, "dataset"), problems, "dataset.name")
        changes = changes_of(request.dataset, _mask(request), DATASET_FIELDS, problems)
        identity = self._request_ids.identity("UpdateDataset", request, problems)
        problems.raise_any()
        _check_admin()
        dataset = await self._catalog.update_dataset(
            dataset_id,
            changes,
            etag=request.dataset.etag,
            rekey=request.rekey,
            identity=identity,
            validate_only=request.validate_only,
        )
        if request.rekey and not request.validate_only:
            self._feed.dropped(dataset.number)
        _audit("UpdateDataset", dataset_name(dataset_id), request)
        return pb.UpdateDatasetResponse(dataset=dataset_out(dataset))

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:
        """Delete a dataset with everything in it."""
        del context
        problems = begin(request)
        dataset_id = dataset_of(request.name, problems, "name")
        identity = self._request_ids.identity("DeleteDataset", request, problems)
        problems.raise_any()
        _check_admin()
        number = await self._catalog.delete_dataset(
            dataset_id, etag=request.etag, identity=identity, validate_only=request.validate_only
        )
        if number is not None and not request.validate_only:
            self._feed.dropped(number)
            self._liveness.dataset_deleted(number)
        _audit("DeleteDataset", request.name, request)
        return pb.DeleteDatasetResponse()

    # -- sources ------------------------------------------------------------------------------------------

    async def CreateSource(self, request: pb.CreateSourceRequest, context: Any) -> pb.CreateSourceResponse:
        """Make a source."""
        del context
        problems = begin(request)
        dataset_id = dataset_of(request.parent, problems, "parent")
        expected_name = source_name(dataset_id, request.source_id)
        new_id(request.source_id, request.source.name, expected_name, problems, "source")
        settings = settings_of(request.source, SOURCE_FIELDS, problems)
        identity = self._request_ids.identity("CreateSource", request, problems)
        problems.raise_any()
        _check_admin()
        source = await self._catalog.create_source(
            dataset_id, request.source_id, settings, identity=identity, validate_only=request.validate_only
        )
        _audit("CreateSource", expected_name, request)
        return pb.CreateSourceResponse(source=source_out(source))

    async def GetSource(self, request: pb.GetSourceRequest, context: Any) -> pb.GetSourceResponse:
        """Read one source."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.name, problems, "name")
        problems.raise_any()
        if not caller().may_push(dataset_id, source_id):
            raise _needs_admin()
        return pb.GetSourceResponse(source=source_out(await self._catalog.get_source(dataset_id, source_id)))

    async def ListSources(self, request: pb.ListSourcesRequest, context: Any) -> pb.ListSourcesResponse:
        """Read a page of sources, ordered by name."""
        del context
        problems = begin(request)
        dataset_id = dataset_of(request.parent, problems, "parent")
        scope = b"sources/" + dataset_id.encode()
        size, after = self._page(request.page_size, request.page_token, scope, problems)
        _check_admin()
        found = await self._catalog.list_sources(dataset_id, after=after, limit=size + 1)
        page, more = found[:size], found[size:]
        return pb.ListSourcesResponse(
            sources=[source_out(source) for source in page],
            next_page_token=self._next(page[-1].source_id, scope) if more else "",
        )

    async def UpdateSource(self, request: pb.UpdateSourceRequest, context: Any) -> pb.UpdateSourceResponse:
        """Change settings of a source."""
        del context
        problems = begin(request)
        name = _named(request.source.name, problems, "source")
        dataset_id, source_id = source_of(name, problems, "source.name")
        changes = changes_of(request.source, _mask(request), SOURCE_FIELDS, problems)
        identity = self._request_ids.identity("UpdateSource", request, problems)
        problems.raise_any()
        _check_admin()
        source = await self._catalog.update_source(
            dataset_id,
            source_id,
            changes,
            etag=request.source.etag,
            identity=identity,
            validate_only=request.validate_only,
        )
        if not request.validate_only:
            self._liveness.source_changed(source)
        _audit("UpdateSource", source_name(dataset_id, source_id), request)
        return pb.UpdateSourceResponse(source=source_out(source))

    async def DeleteSource(self, request: pb.DeleteSourceRequest, context: Any) -> pb.DeleteSourceResponse:
        """Delete a source, its open session and its records."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.name, problems, "name")
        identity = self._request_ids.identity("DeleteSource", request, problems)
        problems.raise_any()
        _check_admin()
        deleted = await self._catalog.delete_source(
            dataset_id,
            source_id,
            etag=request.etag,
            identity=identity,
            validate_only=request.validate_only,
        )
        if deleted is not None and not request.validate_only:
            self._liveness.source_deleted(deleted)
        _audit("DeleteSource", request.name, request)
        return pb.DeleteSourceResponse()

    # -- keys ---------------------------------------------------------------------------------------------

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        """Make a key. Its secret is in the answer and nowhere else."""
        del context
        problems = begin(request)
        if request.key.name:
            problems.add("key.name", "must be empty; the server makes it")
        settings = settings_of(request.key, KEY_FIELDS, problems)
        identity = self._request_ids.identity("CreateKey", request, problems)
        problems.raise_any()
        _check_admin()
        made = await self._keys.create_key(settings, identity=identity, validate_only=request.validate_only)
        _audit("CreateKey", f"keys/{made.key.key_id}", request)
        return pb.CreateKeyResponse(key=key_out(made.key), secret=made.secret)

    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:
        """Read one key."""
        del context
        problems = begin(request)
        key_id = key_of(request.name, problems)
        problems.raise_any()
        _check_admin()
        return pb.GetKeyResponse(key=key_out(await self._keys.get_key(key_id)))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        """Read a page of keys, ordered by name."""
        del context
        problems = begin(request)
        size, after = self._page(request.page_size, request.page_token, b"keys", problems)
        _check_admin()
        found = await self._keys.list_keys(after=after, limit=size + 1)
        page, more = found[:size], found[size:]
        return pb.ListKeysResponse(
            keys=[key_out(key) for key in page],
            next_page_token=self._next(page[-1].key_id, b"keys") if more else "",
        )

    async def UpdateKey(self, request: pb.UpdateKeyRequest, context: Any) -> pb.UpdateKeyResponse:
        """Change settings of a key."""
        del context
        problems = begin(request)
        key_id = key_of(_named(request.key.name, problems, "key"), problems, "key.name")
        changes = changes_of(request.key, _mask(request), KEY_FIELDS, problems)
        identity = self._request_ids.identity("UpdateKey", request, problems)
        problems.raise_any()
        _check_admin()
        key = await self._keys.update_key(
            key_id,
            changes,
            etag=request.key.etag,
            identity=identity,
            validate_only=request.validate_only,
        )
        _audit("UpdateKey", f"keys/{key_id}", request)
        return pb.UpdateKeyResponse(key=key_out(key))

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Any) -> pb.RotateKeyResponse:
        """Make a second key with the same rights, and end the first after an overlap."""
        del context
        problems = begin(request)
        key_id = key_of(request.name, problems)
        identity = self._request_ids.identity("RotateKey", request, problems)
        problems.raise_any()
        _check_admin()
        made = await self._keys.rotate_key(
            key_id,
            expire_time_us=time_us(request.expire_time) if request.HasField("expire_time") else None,
            identity=identity,
            validate_only=request.validate_only,
        )
        _audit("RotateKey", request.name, request)
        return pb.RotateKeyResponse(key=key_out(made.key), secret=made.secret)

    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: Any) -> pb.DeleteKeyResponse:
        """Revoke a key."""
        del context
        problems = begin(request)
        key_id = key_of(request.name, problems)
        identity = self._request_ids.identity("DeleteKey", request, problems)
        problems.raise_any()
        _check_admin()
        await self._keys.delete_key(
            key_id, etag=request.etag, identity=identity, validate_only=request.validate_only
        )
        _audit("DeleteKey", request.name, request)
        return pb.DeleteKeyResponse()

    # -- pages --------------------------------------------------------------------------------------------

    def _page(self, size: int, token: str, scope: bytes, problems: Problems) -> tuple[int, str]:
        """Size of a page, and the id that it follows; raises what is wrong with the request."""
        if size < 0:
            problems.add("page_size", "must not be negative")
        problems.raise_any()
        after = ""
        if token:
            after = page_tokens.decode(token, incarnation=scope, secret=self._token_secret)
        return min(size or DEFAULT_PAGE, MAX_PAGE), after

    def _next(self, after: str, scope: bytes) -> str:
        return page_tokens.encode(after, incarnation=scope, secret=self._token_secret)


def _audit(action: str, name: str, request: Any) -> None:
    """Leave a trace of who changed what; the request is only asked whether it changed anything."""
    if not request.validate_only:
        _log.info("catalog.changed", action=action, name=name, key=caller().key_id)


def _check_admin() -> None:
    if caller().role is not Role.ADMIN:
        raise _needs_admin()


def _needs_admin() -> PermissionDenied:
    return PermissionDenied("PERMISSION_DENIED", "this key may not do this, or there is no such thing")


def _named(name: str, problems: Problems, field: str) -> str:
    if not name:
        problems.add(f"{field}.name", "is required")
    return name


def _mask(request: Any) -> FieldMask | None:
    mask: FieldMask | None = request.update_mask if request.HasField("update_mask") else None
    return mask
