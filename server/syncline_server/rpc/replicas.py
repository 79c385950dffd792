"""What SyncService tells of replicas and to them: uptake, and digests of ranges."""

from typing import Any, Final

from syncline.v1 import sync_service_pb2 as pb
from syncline_server.catalog.catalog import Catalog
from syncline_server.errors import PermissionDenied
from syncline_server.feed.uptake import ReplicaStanding, Uptake
from syncline_server.filters.selection import parse_selection
from syncline_server.model import Principal, Role
from syncline_server.query.digests import DEFAULT_PARTS, MAX_PARTS, MAX_RANGES, Digests, Part
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import (
    Problems,
    RequestIds,
    begin,
    check_may_read,
    check_member_id,
    check_revision,
    dataset_of,
    timestamp,
    wait_seconds,
)
from syncline_server.store.abc import Store

_DEFAULT_REPLICAS: Final = 100
_MAX_REPLICAS: Final = 1_000
_DIGEST_BYTES: Final = 16


class ReplicaMethods:
    """Three methods of SyncService; see the proto."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        uptake: Uptake,
        digests: Digests,
        request_ids: RequestIds,
        *,
        revision_wait_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._uptake = uptake
        self._digests = digests
        self._request_ids = request_ids
        self._revision_wait_seconds = revision_wait_seconds

    async def get_uptake(self, request: pb.GetUptakeRequest, context: Any) -> pb.GetUptakeResponse:
        """Who has a revision."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        if request.revision < 0:
            problems.add("revision", "must not be negative")
        if not 0 <= request.wait_ratio <= 1:
            problems.add("wait_ratio", "must be from 0 to 1")
        if request.page_size < 0:
            problems.add("page_size", "must not be negative")
        problems.raise_any()
        _check_may_ask(caller(), dataset_id)
        report = await self._catalog.use(
            dataset_id,
            lambda dataset: self._uptake.get(
                dataset,
                request.revision,
                wait_ratio=request.wait_ratio,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
                limit=min(request.page_size or _DEFAULT_REPLICAS, _MAX_REPLICAS),
            ),
        )
        return pb.GetUptakeResponse(
            revision=report.revision,
            head_revision=report.head_revision,
            replica_count=report.replica_count,
            reached_count=report.reached_count,
            replicas=[_standing_out(standing) for standing in report.replicas],
        )

    async def delete_replica(self, request: pb.DeleteReplicaRequest) -> pb.DeleteReplicaResponse:
        """Forget a replica."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_member_id(request.replica_id, problems, "replica_id")
        identity = self._request_ids.identity("DeleteReplica", request, problems)
        problems.raise_any()
        if caller().role is not Role.ADMIN:
            raise PermissionDenied("PERMISSION_DENIED", "this needs an ADMIN key")
        dataset = await self._catalog.get_dataset(dataset_id)
        if not request.validate_only:
            await self._store.delete_replica(dataset.number, request.replica_id, identity=identity)
            self._uptake.dropped(dataset.number, request.replica_id)
        return pb.DeleteReplicaResponse()

    async def digest_ranges(self, request: pb.DigestRangesRequest, context: Any) -> pb.DigestRangesResponse:
        """Counts and digests of ranges of record ids."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_revision(request.min_revision, problems)
        ranges = [(span.after, span.through) for span in request.ranges] or [("", "")]
        _check_ranges(ranges, problems)
        if not 0 <= request.parts <= MAX_PARTS:
            problems.add("parts", f"must be from 0 to {MAX_PARTS}")
        problems.raise_any()
        check_may_read(caller(), dataset_id)
        selection = parse_selection(request.filter, request.read_mask.paths)
        cut, revision = await self._catalog.use(
            dataset_id,
            lambda dataset: self._digests.ranges(
                dataset,
                ranges,
                selection=selection,
                parts=request.parts or DEFAULT_PARTS,
                min_revision=request.min_revision,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
            ),
        )
        parts: list[Part] = [part for span in cut for part in span]
        return pb.DigestRangesResponse(
            revision=revision,
            part_counts=[len(span) for span in cut],
            through=[part.through for part in parts],
            record_counts=[part.record_count for part in parts],
            digests=[part.digest.to_bytes(_DIGEST_BYTES, "big") for part in parts],
        )


def _check_may_ask(principal: Principal, dataset_id: str) -> None:
    """Those who read the dataset, and those who push into it, may know who has it."""
    if principal.role is Role.PUSH:
        if principal.source is None or principal.source[0] != dataset_id:
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"this key is of no source of dataset {dataset_id!r}, or there is no such dataset",
            )
    else:
        check_may_read(principal, dataset_id)


def _check_ranges(ranges: list[tuple[str, str]], problems: Problems) -> None:
    if len(ranges) > MAX_RANGES:
        problems.add("ranges", f"must be at most {MAX_RANGES}")
        return
    ended: bytes | None = b""
    for index, (after, through) in enumerate(ranges):
        if ended is None or after.encode() < ended or (through and through.encode() <= after.encode()):
            problems.add(f"ranges[{index}]", "must follow the one before it, and not be empty")
            return
        ended = through.encode() or None


def _standing_out(standing: ReplicaStanding) -> pb.ReplicaUptake:
    replica = standing.replica
    return pb.ReplicaUptake(
        replica_id=replica.replica_id,
        revision=replica.revision,
        report_time=timestamp(replica.report_time_us),
        behind_since=timestamp(standing.behind_since_us),
        connected=standing.connected,
        holds_purge=standing.holds_purge,
    )
