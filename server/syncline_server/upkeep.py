"""What a server does beside serving: expiry, purge, forgetting, telling that it is there, watching itself.

A failed run is logged and counted, and the next one comes at its time. Of the nodes that share a store one does what is
to be done once, under a lease; the others try to get the lease.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from syncline_server.clock import Clock
from syncline_server.errors import Aborted, NotFound, SynclineError
from syncline_server.feed.uptake import Uptake
from syncline_server.ingest.sessions import Sessions
from syncline_server.metrics import Metrics
from syncline_server.model import Dataset, Lease, Node
from syncline_server.store.abc import Store

_log = structlog.get_logger()

LAG_SECONDS: Final = 0.1
"""How often the event loop's lag is measured."""
LAG_WARNING_SECONDS: Final = 1.0

LEASE: Final = "upkeep"
LEASE_SECONDS: Final = 15.0
"""A node that dies is replaced after this; one that is suspended for longer has lost the right by then."""
EXTEND_SECONDS: Final = 5.0
_FORGET_NODE_SECONDS: Final = 3_600.0

_PURGE_RUNS: Final = 20
"""Most transactions of one purge of one dataset, so that a great one is spread over several looks."""
_PAUSE_SECONDS: Final = 0.02
"""Between two transactions of upkeep: commits that wait go first."""
_FORGET_LIMIT: Final = 2_000
_DATASETS_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is done again and again."""

    name: str
    seconds: float
    """The pause before each run, ± 10 %."""
    run: Callable[[], Awaitable[object]]
    at_once: bool = field(default=False, kw_only=True)
    """No pause before the first run."""


async def every(task: Task, metrics: Metrics) -> None:
    """Run a task again and again; never returns."""
    reason = await _run(task, metrics, "") if task.at_once else ""
    while True:
        await asyncio.sleep(task.seconds * random.uniform(0.9, 1.1))  # noqa: S311 - spreads load, hides nothing
        reason = await _run(task, metrics, reason)


async def _run(task: Task, metrics: Metrics, told: str) -> str:
    """Run a task once; the reason why it failed, empty if it did not. It is logged unless it was before (``told``)."""
    try:
        await task.run()
    except SynclineError as error:
        metrics.background_failures.labels(task.name).inc()
        if error.reason != told:
            _log.warning("upkeep.failed", task=task.name, reason=error.reason, message=error.message)
        return error.reason
    except Exception:  # noqa: BLE001 - a task of upkeep must not end
        metrics.background_failures.labels(task.name).inc()
        _log.exception("upkeep.failed", task=task.name)
        return ""
    if told:
        _log.info("upkeep.recovered", task=task.name)
    return ""


async def watch_lag(clock: Clock, metrics: Metrics) -> None:
    """Measure how late the event loop comes to its timers; never returns."""
    while True:
        due = clock.monotonic() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        lag = max(0.0, clock.monotonic() - due)
        metrics.loop_lag_seconds.observe(lag)
        if lag > LAG_WARNING_SECONDS:
            _log.warning("loop.lag", seconds=round(lag, 3))


class Duty:
    """The lease on what one node does for all of them."""

    def __init__(self, store: Store, holder: str) -> None:
        self._store = store
        self._holder = holder
        self._lease: Lease | None = None
        self._until = 0.0

    @property
    def lease(self) -> Lease | None:
        """Held, and not over as far as this node can tell. Nothing may rest on that: the store checks the fence."""
        return self._lease if self._store.clock.monotonic() < self._until else None

    async def run(self) -> None:
        """Take the lease if it can be had, or extend it. Raises the store's troubles."""
        had = self._lease
        asked = self._store.clock.monotonic()
        self._lease = await self._store.acquire_lease(LEASE, holder=self._holder, seconds=LEASE_SECONDS)
        self._until = asked + LEASE_SECONDS
        if self._lease is None and had is not None:
            _lost(had)
        elif self._lease is not None and (had is None or had.fence != self._lease.fence):
            _log.info("lease.taken", lease=LEASE, fence=self._lease.fence)

    def alone(self, work: Callable[[Lease], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
        """``work`` for the node that holds the lease, nothing for the others. It ends where the lease is lost."""

        async def run() -> None:
            lease = self.lease
            if lease is None:
                return
            try:
                await work(lease)
            except Aborted as error:
                if error.reason != "LEASE_LOST":
                    raise
                if self._lease is not None and self._lease.fence == lease.fence:
                    self._lease = None
                    _lost(lease)

        return run

    async def release(self) -> None:
        """Give the lease back, so that another node can go on at once. Raises the store's troubles."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._store.release_lease(lease)


def _lost(lease: Lease) -> None:
    _log.warning("lease.lost", lease=lease.name, fence=lease.fence)


class Presence:
    """Tells the other nodes, through the store, that this one is there and how far behind it is."""

    def __init__(self, store: Store, node: Node, lag_us: Callable[[], int]) -> None:
        self.node = node
        self._store = store
        self._lag_us = lag_us
        self._has_come = False

    async def report(self) -> None:
        """Report once; the first time, whoever had this name before goes off the list."""
        if not self._has_come:
            for node in await self._store.list_nodes():
                if node.name == self.node.name and node.node_id != self.node.node_id:
                    await self._store.remove_node(node.node_id)
            self._has_come = True
        await self._store.report_node(replace(self.node, lag_us=self._lag_us()))

    async def leave(self) -> None:
        """Take this node off the list."""
        await self._store.remove_node(self.node.node_id)

    async def forget(self, lease: Lease) -> None:
        """Take nodes off the list that have been silent for long.

        Not fenced: a node that was taken off by mistake is on the list again when it reports.
        """
        del lease
        now_us = self._store.clock.now_us()
        for node in await self._store.list_nodes():
            silent_us = now_us - node.report_time_us
            if silent_us >= _FORGET_NODE_SECONDS * 1e6:
                await self._store.remove_node(node.node_id)
                _log.info("node.forgotten", node=node.name, silent_seconds=silent_us // 1_000_000)


class Purge:
    """Drops tombstones that are old enough and that every replica has, dataset by dataset."""

    def __init__(
        self,
        store: Store,
        uptake: Uptake,
        clock: Clock,
        metrics: Metrics,
        *,
        min_age_us: int,
        min_revisions: int,
        max_tombstones: int,
    ) -> None:
        self._store = store
        self._uptake = uptake
        self._clock = clock
        self._metrics = metrics
        self._min_age_us = min_age_us
        self._min_revisions = min_revisions
        self._max_tombstones = max_tombstones

    async def run(self, lease: Lease) -> None:
        """Look at every dataset once. Raises Aborted(LEASE_LOST)."""
        after = ""
        while datasets := await self._store.list_datasets(after=after, limit=_DATASETS_PAGE):
            for dataset in datasets:
                await self._purge(dataset, lease)
            after = datasets[-1].dataset_id

    async def _purge(self, dataset: Dataset, lease: Lease) -> None:
        kept = dataset.retention
        min_age_us = self._min_age_us if kept.min_age_us is None else kept.min_age_us
        min_revisions = self._min_revisions if kept.min_revisions is None else kept.min_revisions
        if dataset.head.revision - min_revisions <= dataset.head.purge_revision:
            return
        held_by = await self._uptake.holding(dataset.number)
        for _ in range(_PURGE_RUNS):
            try:
                result = await self._store.purge(
                    dataset.number,
                    before_us=self._clock.now_us() - min_age_us,
                    min_revisions=min_revisions,
                    max_tombstones=self._max_tombstones,
                    not_beyond=None if held_by is None else held_by.revision,
                    lease=lease,
                )
            except NotFound:
                return  # deleted since it was listed
            self._metrics.purged_tombstones.inc(result.tombstones)
            if not result.more:
                if held_by is not None and result.purge_revision == held_by.revision < dataset.head.revision:
                    _log.info(
                        "purge.held_back",
                        dataset=dataset.dataset_id,
                        replica=held_by.replica_id,
                        revision=held_by.revision,
                        head_revision=dataset.head.revision,
                    )
                return
            await asyncio.sleep(_PAUSE_SECONDS)


class Expiry:
    """Rolls back sessions whose time is over, and counts those that are open."""

    def __init__(self, sessions: Sessions, store: Store, metrics: Metrics) -> None:
        self._sessions = sessions
        self._store = store
        self._metrics = metrics

    async def run(self, lease: Lease) -> None:
        """Look once. Raises Aborted(LEASE_LOST)."""
        self._metrics.expired_sessions.inc(await self._sessions.expire(lease))

    async def count(self) -> None:
        """Set the gauge of open sessions."""
        self._metrics.sessions.set(await self._store.count_sessions())


class Forgetting:
    """Forgets request ids whose time is over."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def run(self, lease: Lease) -> None:
        """Forget all that may be forgotten now, in small transactions. Raises Aborted(LEASE_LOST)."""
        while True:
            count = await self._store.forget_requests(
                before_us=self._clock.now_us(), limit=_FORGET_LIMIT, lease=lease
            )
            self._metrics.forgotten_requests.inc(count)
            if count < _FORGET_LIMIT:
                return
            await asyncio.sleep(_PAUSE_SECONDS)


class WriteProbe:
    """Knows whether writes are accepted: asks the store, and tells of changes."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self.writable = True
        self.tell: Callable[[bool], Awaitable[None]] | None = None
        """Called with each change."""
        self._store = store
        self._metrics = metrics
        metrics.writable.set(1)

    async def run(self) -> None:
        """Ask once."""
        try:
            await self._store.probe()
        except SynclineError as error:
            await self._set(writable=False, reason=error.reason)
        else:
            await self._set(writable=True, reason="")

    async def _set(self, *, writable: bool, reason: str) -> None:
        if writable == self.writable:
            return
        self.writable = writable
        self._metrics.writable.set(int(writable))
        if writable:
            _log.info("store.writable")
        else:
            _log.error("store.not_writable", reason=reason)
        if self.tell is not None:
            await self.tell(writable)
