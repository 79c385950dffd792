"""All services, made of the rooms that they serve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncline.v1.catalog_service_pb2_grpc import add_CatalogServiceServicer_to_server
from syncline.v1.producer_service_pb2_grpc import add_ProducerServiceServicer_to_server
from syncline.v1.push_service_pb2_grpc import add_PushServiceServicer_to_server
from syncline.v1.record_service_pb2_grpc import add_RecordServiceServicer_to_server
from syncline.v1.server_service_pb2_grpc import add_ServerServiceServicer_to_server
from syncline.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from syncline.v1.sync_service_pb2_grpc import add_SyncServiceServicer_to_server
from syncline_server.catalog.catalog import Catalog
from syncline_server.catalog.keys import Keys
from syncline_server.clock import Clock
from syncline_server.feed.feed import Feed
from syncline_server.feed.uptake import Uptake
from syncline_server.freshness.liveness import Liveness
from syncline_server.ingest.producers import ProducerStreams
from syncline_server.ingest.records import Limits
from syncline_server.ingest.sessions import Sessions
from syncline_server.ingest.write_path import WritePath
from syncline_server.query.digests import Digests
from syncline_server.query.records import Records
from syncline_server.rpc.catalog import CatalogService
from syncline_server.rpc.convert import RequestIds
from syncline_server.rpc.heads import ListHeadsMethod
from syncline_server.rpc.info import ServerService
from syncline_server.rpc.producer import ProducerService
from syncline_server.rpc.push import PushService
from syncline_server.rpc.record import RecordService
from syncline_server.rpc.replicas import ReplicaMethods
from syncline_server.rpc.server import Service
from syncline_server.rpc.session import SessionService
from syncline_server.rpc.sync import SyncService
from syncline_server.rpc.update_feed import UpdateFeedMethod
from syncline_server.store.abc import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What the services are made of."""

    catalog: Catalog
    keys: Keys
    write_path: WritePath
    producer_streams: ProducerStreams
    liveness: Liveness
    sessions: Sessions
    feed: Feed
    records: Records
    uptake: Uptake
    digests: Digests
    store: Store
    clock: Clock
    node_id: str
    """Of this process."""
    limits: Limits
    writable: Callable[[], bool]
    request_retention_us: int
    revision_wait_seconds: float
    stream_age_seconds: float


def services(rooms: Rooms) -> Sequence[Service]:
    """Every service of this server."""
    request_ids = RequestIds(rooms.clock, retention_us=rooms.request_retention_us)
    wait = rooms.revision_wait_seconds
    return (
        (
            add_CatalogServiceServicer_to_server,
            CatalogService(
                rooms.catalog,
                rooms.keys,
                rooms.feed,
                rooms.liveness,
                request_ids,
                token_secret=rooms.store.info.token_secret,
                revision_wait_seconds=wait,
            ),
        ),
        (
            add_PushServiceServicer_to_server,
            PushService(rooms.write_path, rooms.producer_streams, request_ids),
        ),
        (
            add_ProducerServiceServicer_to_server,
            ProducerService(rooms.catalog, rooms.store, rooms.liveness, rooms.producer_streams, request_ids),
        ),
        (add_SessionServiceServicer_to_server, SessionService(rooms.sessions, request_ids)),
        (
            add_RecordServiceServicer_to_server,
            RecordService(rooms.catalog, rooms.records, revision_wait_seconds=wait),
        ),
        (
            add_SyncServiceServicer_to_server,
            SyncService(
                rooms.catalog,
                rooms.feed,
                UpdateFeedMethod(
                    rooms.catalog,
                    rooms.feed,
                    rooms.clock,
                    rooms.uptake,
                    stream_age_seconds=rooms.stream_age_seconds,
                ),
                ListHeadsMethod(rooms.store),
                ReplicaMethods(
                    rooms.catalog,
                    rooms.store,
                    rooms.uptake,
                    rooms.digests,
                    request_ids,
                    revision_wait_seconds=wait,
                ),
                revision_wait_seconds=wait,
            ),
        ),
        (
            add_ServerServiceServicer_to_server,
            ServerService(
                rooms.store,
                node_id=rooms.node_id,
                start_time_us=rooms.clock.now_us(),
                limits=rooms.limits,
                clock=rooms.clock,
                writable=rooms.writable,
            ),
        ),
    )
