"""What a server does beside serving: expiry, purge, forgetting, checkpoints of the store, watching itself.

A failed run is logged and counted, and the next one comes at its time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from syncline_server.clock import Clock
from syncline_server.errors import NotFound, SynclineError
from syncline_server.feed.uptake import Uptake
from syncline_server.ingest.sessions import Sessions
from syncline_server.metrics import Metrics
from syncline_server.model import Dataset
from syncline_server.store.abc import Store

_log = structlog.get_logger()

LAG_SECONDS: Final = 0.1
"""How often the event loop's lag is measured."""
LAG_WARNING_SECONDS: Final = 1.0

_PURGE_RUNS: Final = 20
"""Most transactions of one purge of one dataset, so that a great one is spread over several looks."""
_PAUSE_SECONDS: Final = 0.02
"""Between two transactions of upkeep: commits that wait go first."""
_FORGET_LIMIT: Final = 2_000
_DATASETS_PAGE: Final = 100


async def every(seconds: float, name: str, run: Callable[[], Awaitable[object]], metrics: Metrics) -> None:
    """Call ``run`` again and again, with a pause of ``seconds`` ± 10 % before each; never returns."""
    while True:
        await asyncio.sleep(seconds * random.uniform(0.9, 1.1))  # noqa: S311 - spreads load, hides nothing
        try:
            await run()
        except SynclineError as error:
            metrics.background_failures.labels(name).inc()
            _log.warning("upkeep.failed", task=name, reason=error.reason, message=error.message)
        except Exception:  # noqa: BLE001 - a task of upkeep must not end
            metrics.background_failures.labels(name).inc()
            _log.exception("upkeep.failed", task=name)


async def watch_lag(clock: Clock, metrics: Metrics) -> None:
    """Measure how late the event loop comes to its timers; never returns."""
    while True:
        due = clock.monotonic() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        lag = max(0.0, clock.monotonic() - due)
        metrics.loop_lag_seconds.observe(lag)
        if lag > LAG_WARNING_SECONDS:
            _log.warning("loop.lag", seconds=round(lag, 3))


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

    async def run(self) -> None:
        """Look at every dataset once."""
        after = ""
        while datasets := await self._store.list_datasets(after=after, limit=_DATASETS_PAGE):
            for dataset in datasets:
                await self._purge(dataset)
            after = datasets[-1].dataset_id

    async def _purge(self, dataset: Dataset) -> None:
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
    """Rolls back sessions whose time is over."""

    def __init__(self, sessions: Sessions, store: Store, metrics: Metrics) -> None:
        self._sessions = sessions
        self._store = store
        self._metrics = metrics

    async def run(self) -> None:
        """Look once."""
        self._metrics.expired_sessions.inc(await self._sessions.expire())
        self._metrics.sessions.set(await self._store.count_sessions())


class Forgetting:
    """Forgets request ids whose time is over."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> None:
        """Forget all that may be forgotten now, in small transactions."""
        while True:
            count = await self._store.forget_requests(before_us=self._clock.now_us(), limit=_FORGET_LIMIT)
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
