"""Brings the commits of other nodes into the rings, in the order of their revisions.

A commit of this process comes with its changes. One of another node does not: whatever follows the ring's tail is read
from the store in one page, once for all subscribers, and goes in as if it had been committed here. The same where
a commit of this process does not follow the tail because another node's lies between.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from syncline_server.errors import NotFound, SynclineError
from syncline_server.feed import tokens
from syncline_server.feed.channel import read_page
from syncline_server.feed.channels import Channels
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Position
from syncline_server.metrics import Metrics
from syncline_server.model import Appended
from syncline_server.store.abc import Store

_log = structlog.get_logger()

READS_AT_ONCE: Final = 2
"""Of the store's few connections most are for what callers ask."""
VAIN_SECONDS: Final = 0.02
"""Pause after a look that found nothing, so that whoever makes up hints does not keep the store busy."""


class Tailer:
    """Reads behind the tails of what is followed. One read of a dataset at a time, and again if there was a reason."""

    def __init__(
        self,
        store: Store,
        channels: Channels,
        settings: FeedSettings,
        metrics: Metrics,
        *,
        take: Callable[[Appended], None],
        gone: Callable[[int], None],
    ) -> None:
        """``take`` gets what was committed, in order; ``gone`` the datasets that are not there any more."""
        self._store = store
        self._channels = channels
        self._settings = settings
        self._metrics = metrics
        self._take = take
        self._gone = gone
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._looks: dict[int, asyncio.Task[None]] = {}
        self._again: dict[int, int] = {}
        """Datasets that have to be looked at, and the newest revision that is known to be there."""

    def hear(self, appended: Appended) -> None:
        """Hear of a group of commits of this process."""
        number = appended.dataset_number
        tail = self._channels.tail(number)
        if number in self._looks or (tail is not None and tail.revision < appended.from_revision):
            self.look(number, appended.head.revision)
        else:
            self._take(appended)

    def look(self, dataset_number: int, revision: int = 0) -> None:
        """Look what follows the tail of a dataset; ``revision`` is known to be there."""
        self._again[dataset_number] = max(revision, self._again.get(dataset_number, 0))
        if dataset_number not in self._looks:
            task = asyncio.get_running_loop().create_task(self._look(dataset_number))
            self._looks[dataset_number] = task

    async def aclose(self) -> None:
        """Cancel the reads under way."""
        tasks = tuple(self._looks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._looks.clear()  # also of those that had not begun

    async def _look(self, number: int) -> None:
        try:
            while number in self._again:
                async with self._reads:
                    moved = await self._try(number, self._again.pop(number))
                if not moved:
                    await asyncio.sleep(VAIN_SECONDS)
        finally:
            self._looks.pop(number, None)

    async def _try(self, number: int, revision: int) -> bool:
        """Whether there was something new."""
        try:
            return await self._read(number)
        except NotFound:
            self._gone(number)
        except Exception as error:  # noqa: BLE001 - whoever follows reads then, and meets the trouble itself
            self._metrics.background_failures.labels("feed").inc()
            if not isinstance(error, SynclineError):
                _log.exception("upkeep.failed", task="feed")
            self._channels.hear(number, revision)
        return False

    async def _read(self, number: int) -> bool:
        tail = self._channels.tail(number)
        if tail is not None:
            appended = await self._what_follows(number, tail)
        else:
            head = await self._store.read_head(number)
            appended = Appended(dataset_number=number, from_revision=head.revision, head=head, changes=None)
        known_revision = self._channels.newest_revision(number)
        self._take(appended)
        return appended.head.revision > known_revision

    async def _what_follows(self, number: int, tail: Position) -> Appended:
        page = await read_page(
            self._store,
            number,
            tail,
            max_changes=self._settings.page_changes,
            max_bytes=self._settings.page_bytes,
        )
        self._metrics.tail_reads.inc()
        reason = tokens.judge(
            tail,
            origin=tail.origin,
            histories=self._store.info.histories,
            head=page.head,
            seen_commit_id=page.seen_commit_id,
        )
        # Too much for one page, or not what followed: whoever is there reads it from the store and is judged again.
        return Appended(
            dataset_number=number,
            from_revision=tail.revision,
            head=page.head,
            changes=page.changes if reason is None and page.complete else None,
        )
