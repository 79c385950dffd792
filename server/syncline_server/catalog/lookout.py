"""What other nodes did, found by looking: the net under the wake-ups, which may be lost.

One query finds where all datasets stand, every few seconds and with jitter (hazard F52). Compared with the look before,
it tells which datasets are new and which are gone; those who follow are told all heads.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from syncline_server.catalog.catalog import Catalog
from syncline_server.errors import NotFound, SynclineError
from syncline_server.metrics import Metrics
from syncline_server.model import Head
from syncline_server.notify.abc import Hint, Notifier
from syncline_server.store.abc import Store

_log = structlog.get_logger()

LOOK_SECONDS: Final = 5.0
DEAF_LOOK_SECONDS: Final = 1.0
"""While wake-ups do not come in."""
LEAST_SECONDS: Final = 0.5
"""Between two looks, however many hints ask for one."""
_PAGE: Final = 1_000
_AGES: Final = 20
"""Datasets whose oldest missed commit is looked up; of others the newest one's age is taken."""

Noticed = Callable[[Mapping[int, Head]], Mapping[int, int]]
"""Hears all heads by dataset number, and answers how far it had come where that is less."""


class Lookout:
    """Looks at the store for a node that is not alone. Works inside ``running``."""

    def __init__(self, store: Store, catalog: Catalog, notifier: Notifier, metrics: Metrics) -> None:
        self._store = store
        self._catalog = catalog
        self._notifier = notifier
        self._metrics = metrics
        self._known: dict[int, str] = {}
        """Datasets of the last look."""
        self._noticed: list[Noticed] = []
        self._gone: list[Callable[[int], None]] = []
        self._wanted = asyncio.Event()
        self.lag_us = 0
        """Age of the oldest commit that nobody here had noticed at the last look; 0: everything was known."""

    def tell(self, *, noticed: Noticed | None = None, gone: Callable[[int], None] | None = None) -> None:
        """Tell ``noticed`` the heads of every look, and ``gone`` the number of each dataset that was deleted."""
        if noticed is not None:
            self._noticed.append(noticed)
        if gone is not None:
            self._gone.append(gone)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look once, and then again and again while the block lasts. Failures are logged and counted."""
        stop_hearing = self._notifier.hear(self._hear)
        await self._try()
        task = asyncio.create_task(self._keep_looking(), name="lookout")
        try:
            yield
        finally:
            stop_hearing()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LEAST_SECONDS)
            seconds = LOOK_SECONDS if self._notifier.hears else DEAF_LOOK_SECONDS
            rest = seconds * random.uniform(0.8, 1.2) - LEAST_SECONDS  # noqa: S311 - spreads load
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._wanted.wait()
            await self._try()

    async def look(self) -> None:
        """Look once. Raises the store's troubles."""
        self._wanted.clear()
        names: dict[int, str] = {}
        heads: dict[int, Head] = {}
        after = ""
        while rows := await self._store.list_heads(after=after, limit=_PAGE):
            for dataset_id, _, number, head in rows:
                names[number] = dataset_id
                heads[number] = head
            after = rows[-1][0]
            if len(rows) < _PAGE:
                break
        known, self._known = self._known, names
        for number in known.keys() - names.keys():
            self._catalog.forget(known[number])
            for gone in self._gone:
                gone(number)
        behind = {n: revision for noticed in self._noticed for n, revision in noticed(heads).items()}
        if self._catalog.has_listeners:
            for number in names.keys() - known.keys():
                await self._tell_created(names[number])
        self.lag_us = await self._lag_us(behind, heads)

    async def _tell_created(self, dataset_id: str) -> None:
        with suppress(NotFound):  # deleted since; the next look finds out
            self._catalog.tell_created(await self._store.get_dataset(dataset_id))

    async def _lag_us(self, behind: Mapping[int, int], heads: Mapping[int, Head]) -> int:
        now_us = self._store.clock.now_us()
        oldest_us: list[int] = []
        for place, (number, revision) in enumerate(behind.items()):
            if place < _AGES:
                oldest_us += await self._store.revision_times(number, [revision + 1])
            else:
                oldest_us.append(heads[number].commit_time_us)
        return max(0, now_us - min(oldest_us)) if oldest_us else 0

    def _hear(self, hint: Hint) -> None:
        if not hint or not self._known.keys() >= hint.keys():
            self._wanted.set()

    async def _try(self) -> None:
        try:
            await self.look()
        except SynclineError as error:
            self._metrics.background_failures.labels("lookout").inc()
            _log.warning("upkeep.failed", task="lookout", reason=error.reason, message=error.message)
        except Exception:  # noqa: BLE001 - a task that never ends
            self._metrics.background_failures.labels("lookout").inc()
            _log.exception("upkeep.failed", task="lookout")
