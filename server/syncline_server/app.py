"""The composition root.

Every part is made here and entered into one exit stack in the order of dependency; it is left in the reverse
order, after what is going on has been brought to an end (guarantee G20).

Shutting down: health says NOT_SERVING; new calls are refused; what producers have sent is written and acknowledged;
what waits for the disk is written; subscribers
get a last checkpoint and its token; calls end, or are ended when the grace is over; the store is closed.
"""

import asyncio
import ctypes
import gc
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import anyio
import structlog

from syncline_server import upkeep
from syncline_server.catalog.admin_key import ensure_admin_key, make_admin_key
from syncline_server.catalog.catalog import Catalog
from syncline_server.catalog.keys import Keys
from syncline_server.catalog.lookout import Lookout
from syncline_server.clock import Clock, SystemClock
from syncline_server.errors import SynclineError
from syncline_server.feed.feed import Feed
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.uptake import Uptake
from syncline_server.freshness.liveness import Liveness
from syncline_server.ingest.committer import Committer, GroupObserver
from syncline_server.ingest.producers import ProducerSettings, ProducerStreams
from syncline_server.ingest.records import Limits, record_id_rule
from syncline_server.ingest.sessions import Sessions, SessionSettings
from syncline_server.ingest.write_path import WritePath
from syncline_server.metrics import Metrics
from syncline_server.model import REPORT_SECONDS, Commit, MassDeleteGuard, Node, Status
from syncline_server.monitoring import monitoring_server
from syncline_server.notify.abc import Notifier
from syncline_server.notify.opening import make_notifier
from syncline_server.query.digests import Digests
from syncline_server.query.records import Records
from syncline_server.rpc.calls import OpenStreams
from syncline_server.rpc.frames import ProtobufEncoder
from syncline_server.rpc.interceptors import Edge
from syncline_server.rpc.server import GrpcServer, ServerSettings, Tls, grpc_server
from syncline_server.rpc.services import Rooms, services
from syncline_server.settings import Settings, split_address
from syncline_server.store.abc import GroupResult, Store
from syncline_server.store.opening import open_store, shown

_log = structlog.get_logger()

SWITCH_SECONDS: Final = 0.0002
"""How long a thread may keep the interpreter when another one wants it. SQLite gives it up at every step and
must get it back to go on: with Python's 5 ms a busy event loop would let the writer's thread do 200 steps a
second (measured: 15,000 rows/s against 85,000)."""

_MALLOPT: Final = (
    ("MALLOC_TRIM_THRESHOLD_", -1, 64 << 20),
    ("MALLOC_MMAP_THRESHOLD_", -3, 16 << 20),
)
"""Variable of the environment, number in glibc's malloc.h, bytes. A page of a copy needs buffers of some 100 KB to
1 MB. By default glibc gives each of them back to the system, and gets the next one page fault by page fault: a
sixth of the processor time of cold copies. So up to 64 MiB of freed memory are kept."""

_COLLECT_AFTER: Final = 50_000
"""Objects made, less those gone, before the collector looks at the youngest."""

_EXPIRE_SECONDS: Final = 1.0
_FORGET_SECONDS: Final = 60.0
_FLUSH_SECONDS: Final = 60.0
_UPTAKE_SECONDS: Final = 1.0
_MAINTAIN_SECONDS: Final = 1.0
_WRITES_SECONDS: Final = 5.0
_CLEANUP_SECONDS: Final = 2.0
"""For the cleanup of handlers that were cancelled because the grace was over."""
_FAILURE_SECONDS: Final = 1.5
"""A process whose store has failed is gone after this, whatever still hangs."""

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""The store failed or something broke; start again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that serves."""

    addresses: Sequence[str]
    http: str
    """Address of the monitoring endpoint; empty: none."""
    admin_key: Path
    admin_key_is_new: bool
    store: str
    """Where the store is, without its password."""
    store_engine: str


async def serve(settings: Settings, ready: Callable[[Running], None], *, clock: Clock | None = None) -> int:
    """Serve until a signal comes; return the exit code. ``ready`` is called when calls are accepted.

    A second signal ends the process at once, which is always safe.
    Raises StoreRefused, or OSError, when the server cannot start.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_freed_memory()
    stop = asyncio.Event()
    _stop_on_signals(stop)
    async with running(settings, clock or SystemClock(), stop) as (server, failed):
        _spare_collector()
        ready(server)
        await _first(stop, failed)
        if failed.is_set():
            _end_soon()
            return EXIT_FAILED
    _log.info("server.stopped")
    return EXIT_OK


def keep_freed_memory() -> None:
    """Tell glibc to keep buffers for the next use, unless the environment says otherwise. Elsewhere nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for variable, parameter, size_bytes in _MALLOPT:
        if mallopt is not None and variable not in os.environ:
            mallopt(parameter, size_bytes)


def _spare_collector() -> None:
    """Keep the cyclic collector from looking at what lives as long as the process, and from looking too often.

    A push makes thousands of objects and no cycle; the default threshold of 700 let the collector take a tenth
    of the time of single pushes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock, stop: asyncio.Event
) -> AsyncIterator[tuple[Running, asyncio.Event]]:
    """A server that serves while the block lasts; on leaving it drains. Yields it and the event of its failure."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(settings.store_address, settings.database, clock=clock)
        )
        stack.push_async_callback(_last_checkpoint, store)
        is_new = await ensure_admin_key(store, settings.admin_key)
        clock = store.clock  # the one whose time is stored (hazard F56)

        node_id = secrets.token_hex(8)
        notifier = make_notifier(settings.store_address, node_id, metrics)
        await stack.enter_async_context(notifier.running())
        keys = Keys(store, clock)
        stack.push_async_callback(_flush_keys, keys)
        limits = _limits(settings)
        catalog = Catalog(store, notifier, clock, record_id_rule=record_id_rule(limits))
        alone = not settings.store_address
        liveness = Liveness(store, clock, keep_alive_seconds=settings.checkpoint_seconds, alone=alone)
        committer = Committer(
            store,
            notifier,
            max_queue_bytes=settings.queue_bytes,
            observe=_each(group_observer(metrics), liveness.observe),
        )
        writes = AsyncExitStack()
        stack.push_async_callback(writes.aclose)
        await writes.enter_async_context(committer.running())
        write_path = WritePath(catalog, store, committer, limits=limits)
        producer_streams = ProducerStreams(
            write_path,
            catalog,
            store,
            committer,
            limits=limits,
            settings=ProducerSettings(
                credit_bytes=settings.producer_credit_bytes, backlog_bytes=settings.producer_backlog_bytes
            ),
            opened=liveness.opened,
        )
        _measure(metrics, committer, producer_streams)
        sessions = Sessions(write_path, store, committer, clock, _session_settings(settings))

        lookout = Lookout(store, catalog, notifier, metrics)
        feed = await stack.enter_async_context(
            _following(settings, store, notifier, lookout, liveness, metrics)
        )

        uptake = Uptake(store, clock, expiry_us=round(settings.replica_expiry_seconds * 1e6))
        stack.push_async_callback(_flush_uptake, uptake)

        streams = OpenStreams(
            keys.authenticate, per_key=settings.streams_per_key, write_seconds=settings.write_seconds
        )
        edge = Edge(
            keys.authenticate,
            streams,
            metrics,
            max_calls=settings.calls_in_flight,
            max_bytes=settings.bytes_in_flight,
        )
        probe = upkeep.WriteProbe(store, metrics)
        rooms = Rooms(
            catalog=catalog,
            keys=keys,
            write_path=write_path,
            producer_streams=producer_streams,
            liveness=liveness,
            sessions=sessions,
            feed=feed,
            records=Records(store, feed),
            uptake=uptake,
            digests=Digests(store, feed),
            store=store,
            clock=clock,
            node_id=node_id,
            limits=limits,
            writable=lambda: probe.writable and not stop.is_set(),
            request_retention_us=round(settings.request_retention_seconds * 1e6),
            revision_wait_seconds=settings.revision_wait_seconds,
            stream_age_seconds=settings.connection_age_seconds,
        )
        grpc = await stack.enter_async_context(grpc_server(edge, services(rooms), _server_settings(settings)))
        probe.tell = grpc.tell_writable
        http = ""
        if settings.http:
            http = await stack.enter_async_context(
                monitoring_server(*split_address(settings.http), metrics, rooms.writable)
            )
        beside = (
            upkeep.Task("uptake", _UPTAKE_SECONDS, uptake.flush),
            upkeep.Task("maintain", _MAINTAIN_SECONDS, store.maintain),
            upkeep.Task("last_used", _FLUSH_SECONDS, keys.flush_last_used),
            upkeep.Task("keys", settings.key_check_seconds, streams.check_keys),
            upkeep.Task("writes", min(_WRITES_SECONDS, settings.write_seconds / 4), streams.check_writes),
            upkeep.Task("probe", settings.probe_seconds, probe.run),
        )
        background = await stack.enter_async_context(
            _background(settings, rooms, metrics, grpc.addresses, lambda: lookout.lag_us, beside)
        )

        server = Running(
            addresses=grpc.addresses,
            http=http,
            admin_key=settings.admin_key,
            admin_key_is_new=is_new,
            store=shown(settings.store_address) or str(settings.database),
            store_engine=store.info.engine_version,
        )
        _log.info("server.started", addresses=", ".join(grpc.addresses), http=http, store=server.store)
        try:
            yield server, store.failed
        finally:
            background.cancel()
            if not store.failed.is_set():
                await _drain(
                    grpc, edge, producer_streams, liveness, writes, feed, seconds=settings.shutdown_seconds
                )


@asynccontextmanager
async def _following(
    settings: Settings,
    store: Store,
    notifier: Notifier,
    lookout: Lookout,
    liveness: Liveness,
    metrics: Metrics,
) -> AsyncIterator[Feed]:
    """The feed; where other nodes may commit, with somebody who looks what they did."""
    encoder, feed_settings = ProtobufEncoder(), _feed_settings(settings)
    feed = Feed(store, notifier, store.clock, encoder, feed_settings, metrics, alone=settings.is_alone)
    async with feed.run():
        if settings.is_alone:
            yield feed
            return
        lookout.tell(noticed=feed.notice)
        for gone in (feed.dropped, liveness.dataset_deleted):
            lookout.tell(gone=gone)
        async with lookout.running():
            yield feed


@asynccontextmanager
async def _background(
    settings: Settings,
    rooms: Rooms,
    metrics: Metrics,
    addresses: Sequence[str],
    lag_us: Callable[[], int],
    beside: Sequence[upkeep.Task],
) -> AsyncIterator[anyio.CancelScope]:
    """Do again and again what is to be done until the scope is cancelled; on leaving, take leave of the other nodes."""
    duty = upkeep.Duty(rooms.store, rooms.node_id)
    presence = upkeep.Presence(rooms.store, _node(settings, addresses, rooms), lag_us)
    metrics.upkeep_lease.set_function(lambda: duty.lease is not None)
    metrics.node_lag_seconds.set_function(lambda: lag_us() / 1e6)
    async with AsyncExitStack() as stack:
        for leave in (presence.leave, duty.release):
            stack.push_async_callback(_leave, rooms.store, leave)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for task in (*_shared_upkeep(settings, rooms, metrics, duty, presence), *beside):
            tasks.start_soon(upkeep.every, task, metrics, name=task.name)
        tasks.start_soon(upkeep.watch_lag, rooms.clock, metrics, name="lag")
        yield tasks.cancel_scope


async def _drain(
    grpc: GrpcServer,
    edge: Edge,
    producer_streams: ProducerStreams,
    liveness: Liveness,
    writes: AsyncExitStack,
    feed: Feed,
    *,
    seconds: float,
) -> None:
    """Bring what is going on to its end, in the order of the module's docstring."""
    _log.info("server.stopping")
    with anyio.CancelScope(shield=True):
        await grpc.tell_leaving()
        edge.close()
        await producer_streams.drain(within_seconds=seconds / 2)
        await writes.aclose()
        liveness.drain()
        feed.drain()
        if not await edge.finished(within_seconds=seconds):
            _log.warning("server.grace_over", calls=edge.open_calls)
        await grpc.stop()
        await edge.finished(within_seconds=_CLEANUP_SECONDS)


async def renew_admin_key(settings: Settings, clock: Clock | None = None) -> None:
    """Make another admin key; in an SQLite file only while no server has it open. Raises StoreRefused."""
    async with open_store(settings.store_address, settings.database, clock=clock or SystemClock()) as store:
        await make_admin_key(store, settings.admin_key)


def _measure(metrics: Metrics, committer: Committer, producer_streams: ProducerStreams) -> None:
    """Have gauges read what waits."""
    metrics.queue_commits.set_function(lambda: committer.queued_commits)
    metrics.queue_bytes.set_function(lambda: committer.queued_bytes)
    metrics.producer_streams.set_function(lambda: len(producer_streams))
    metrics.producer_backlog_bytes.set_function(lambda: producer_streams.backlog_bytes)


def _each(*observers: GroupObserver) -> GroupObserver:
    """Tell several who want to know of each group of commits."""

    def observe(commits: Sequence[Commit], written: GroupResult) -> None:
        for observer in observers:
            observer(commits, written)

    return observe


def group_observer(metrics: Metrics) -> Callable[[Sequence[Commit], GroupResult], None]:
    """Count what the committer did."""

    def observe(commits: Sequence[Commit], written: GroupResult) -> None:
        metrics.group_commits.observe(len(commits))
        metrics.transaction_seconds.observe(written.transaction_seconds)
        metrics.fsync_seconds.observe(written.sync_seconds)
        for result in written.results:
            if isinstance(result, SynclineError):
                metrics.commits_refused.inc()
            elif result.replayed:
                metrics.commits_replayed.inc()
            else:
                (metrics.commits_changed if result.changed else metrics.commits_unchanged).inc()
                for status in set(result.statuses):
                    metrics.records[Status(status)].inc(result.statuses.count(status))

    return observe


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Set the event at the first SIGTERM, SIGINT or SIGHUP, end the process at the second."""

    def hear(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, hear, number)


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of the events."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _end_soon() -> None:
    """End the process even if something hangs on the disk that has failed."""
    _log.critical("store.failed", action="the process ends; start it again")
    timer = threading.Timer(_FAILURE_SECONDS, os._exit, (EXIT_FAILED,))
    timer.daemon = True
    timer.start()


async def _last_checkpoint(store: Store) -> None:
    if not store.failed.is_set():
        with suppress(SynclineError):  # the next start does it
            await store.maintain()


async def _leave(store: Store, leave: Callable[[], Awaitable[None]]) -> None:
    """Tell other nodes that they need not wait for this one; without it they find out by time."""
    if store.failed.is_set():
        return
    try:
        async with asyncio.timeout(_CLEANUP_SECONDS):
            await leave()
    except (SynclineError, TimeoutError) as error:
        _log.warning("upkeep.failed", task="leave", reason=str(error))


async def _flush_keys(keys: Keys) -> None:
    try:
        await keys.flush_last_used()
    except SynclineError as error:
        _log.warning("upkeep.failed", task="last_used", reason=error.reason)


async def _flush_uptake(uptake: Uptake) -> None:
    try:
        await uptake.flush()
    except SynclineError as error:
        _log.warning("upkeep.failed", task="uptake", reason=error.reason)


def _shared_upkeep(
    settings: Settings, rooms: Rooms, metrics: Metrics, duty: upkeep.Duty, presence: upkeep.Presence
) -> Sequence[upkeep.Task]:
    """What one of the nodes does for all, and how they agree on which."""
    expiry = upkeep.Expiry(rooms.sessions, rooms.store, metrics)
    forgetting = upkeep.Forgetting(rooms.store, rooms.clock, metrics)
    purge = upkeep.Purge(
        rooms.store,
        rooms.uptake,
        rooms.clock,
        metrics,
        min_age_us=round(settings.retention_seconds * 1e6),
        min_revisions=settings.retention_revisions,
        max_tombstones=settings.purge_tombstones,
    )
    return (
        upkeep.Task("lease", upkeep.EXTEND_SECONDS, duty.run, at_once=True),
        upkeep.Task("node", REPORT_SECONDS, presence.report, at_once=True),
        upkeep.Task("nodes", _FORGET_SECONDS, duty.alone(presence.forget)),
        upkeep.Task("expire", _EXPIRE_SECONDS, duty.alone(expiry.run)),
        upkeep.Task("sessions", _EXPIRE_SECONDS, expiry.count),
        upkeep.Task("purge", settings.purge_seconds, duty.alone(purge.run)),
        upkeep.Task("replicas", _FORGET_SECONDS, duty.alone(rooms.uptake.forget)),
        upkeep.Task("forget", _FORGET_SECONDS, duty.alone(forgetting.run)),
    )


def _node(settings: Settings, addresses: Sequence[str], rooms: Rooms) -> Node:
    """What this node is to others. One that has no name goes by its machine, and its port or path."""
    place = addresses[0] if addresses[0].startswith("unix:") else addresses[0].rpartition(":")[2]
    return Node(
        node_id=rooms.node_id,
        name=settings.node or f"{socket.gethostname()}:{place}",
        addresses=tuple(addresses),
        version=version("syncline"),
        start_time_us=rooms.clock.now_us(),
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        records_per_call=settings.records_per_call,
        bytes_per_call=settings.bytes_per_call,
        bytes_per_record=settings.bytes_per_record,
        depth=settings.depth,
        bytes_per_record_id=settings.bytes_per_record_id,
    )


def _session_settings(settings: Settings) -> SessionSettings:
    return SessionSettings(
        idle_timeout_us=round(settings.session_idle_seconds * 1e6),
        max_open=settings.sessions,
        guard=MassDeleteGuard(
            max_ratio=settings.mass_delete_ratio, above_records=settings.mass_delete_above_records
        ),
    )


def _feed_settings(settings: Settings) -> FeedSettings:
    return FeedSettings(
        page_changes=settings.page_changes,
        page_bytes=settings.page_bytes,
        ring_bytes=settings.ring_bytes,
        page_cache_bytes=settings.page_cache_bytes,
        filter_members=settings.filter_members,
        subscriptions_per_stream=settings.subscriptions_per_stream,
        credit_bytes=settings.credit_bytes,
        checkpoint_seconds=settings.checkpoint_seconds,
        revision_wait_seconds=settings.revision_wait_seconds,
    )


def _server_settings(settings: Settings) -> ServerSettings:
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = Tls(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
    ids = settings.records_per_call * (settings.bytes_per_record_id + 4)
    return ServerSettings(
        addresses=settings.listen,
        tls=tls,
        # The records or the ids of a call, and what a message holds beside them.
        message_bytes=max(settings.bytes_per_call, ids) + settings.records_per_call * 32 + (64 << 10),
        streams_per_connection=settings.streams_per_connection,
        keepalive_seconds=settings.keepalive_seconds,
        keepalive_timeout_seconds=settings.keepalive_timeout_seconds,
        client_ping_seconds=settings.client_ping_seconds,
        connection_age_seconds=settings.connection_age_seconds,
        reflection=settings.reflection,
    )
