"""A feed and what it stands on: a store in memory, or a real one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from support.feed_encoder import Copy, LineEncoder
from support.feed_store import MemoryStore, new_dataset
from support.store_values import STORES, opened
from syncline_server.clock import SystemClock
from syncline_server.feed.feed import Feed
from syncline_server.feed.settings import FeedSettings
from syncline_server.model import Appended, Commit, Dataset, Deletes, Upserts
from syncline_server.notify.local import LocalNotifier

PATIENCE_SECONDS = 20
BACKENDS = ("memory", *STORES)
"""What a feed can stand on here."""

Actions = list[tuple[str, bytes | None]]


def rows(*numbers: int, version: int = 0, size: int = 0) -> Actions:
    """Puts of ``k<number>``."""
    padding = "x" * size
    return [(f"k{number}", b'{"p":"%s","v":%d}' % (padding.encode(), version)) for number in numbers]


class Hooked:
    """A store whose page reads can be counted, delayed and interfered with."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads = 0
        self.before_read: Callable[[int], Any] | None = None
        """Awaited before each page is read, with the position that it follows."""
        self.after_read: Callable[[Any], Any] | None = None
        """Awaited between the read of a page and its delivery."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read_changes(self, dataset_number: int, *, after: int, **limits: int) -> Any:
        self.reads += 1
        if self.before_read:
            await self.before_read(after)
        page = await self._store.read_changes(dataset_number, after=after, **limits)
        if self.after_read:
            await self.after_read(page)
        return page


class House:
    """What tests do to a store and to the feed over it."""

    def __init__(self, store: Any, **settings: Any) -> None:
        self.store = Hooked(store)
        self.notifier = LocalNotifier()
        self.encoder = LineEncoder()
        self.feed = Feed(self.store, self.notifier, SystemClock(), self.encoder, FeedSettings(**settings))
        self.dataset: Dataset

    async def create(self, dataset_id: str = "books") -> Dataset:
        self.dataset = await self.store.create_dataset(new_dataset(dataset_id))
        return self.dataset

    async def write(self, actions: Actions, *, announce: bool = True) -> Appended:
        """Put and delete (data None) in one group, which must change something."""
        puts = {record_id: data for record_id, data in actions if data is not None}
        source = await self.store.get_source(self.dataset.dataset_id, "default")
        commits = []
        for write in (
            Upserts(
                record_ids=list(puts),
                data=list(puts.values()),
                hashes=[blake2b(data, digest_size=16).digest() for data in puts.values()],
            ),
            Deletes(record_ids=[record_id for record_id, data in actions if data is None]),
        ):
            if write.record_ids:
                commits.append(
                    Commit(
                        dataset_number=self.dataset.number,
                        generation=self.dataset.generation,
                        source_number=source.number,
                        write=write,
                    )
                )
        (appended,) = (await self.store.commit(commits)).appended
        if announce:
            self.notifier.announce(appended)
        return appended

    async def purge(self) -> None:
        """Move the watermark to the head."""
        await self.store.purge(
            self.dataset.number, before_us=1 << 62, min_revisions=0, max_tombstones=1 << 30
        )

    async def delete(self, *, tell: bool = True) -> None:
        await self.store.delete_dataset(self.dataset.number, expected_generation=None)
        if tell:
            self.feed.dropped(self.dataset.number)

    async def revision(self) -> int:
        return (await self.store.read_head(self.dataset.number)).revision

    async def assert_equal(self, copy: Copy) -> None:
        """The digest was compared with every checkpoint; this compares with what a reader sees."""
        assert copy.exact
        records, more, revision = await self.store.list_records(
            self.dataset.number, after="", limit=1 << 20, max_bytes=1 << 40
        )
        assert not more
        assert copy.revision == revision
        assert copy.records == {record.record_id: (record.revision, record.data) for record in records}

    def subscribe(self, **start: Any) -> Any:
        """The messages of a subscription, to be used in ``async with``."""
        return aclosing(self.feed.subscribe(self.dataset, **start))

    async def sync(self, copy: Copy, *, until: Callable[[], bool] | None = None, **how: Any) -> Copy:
        """Pages into a copy, to the head or until something is so."""
        while True:
            events, token = await self.feed.sync(self.dataset, copy.token, **how)
            copy.take(events)
            assert copy.token in (b"", token)
            copy.token = token
            if until() if until else copy.exact:
                return copy


@asynccontextmanager
async def running(backend: str, tmp_path: Path, **settings: Any) -> AsyncIterator[House]:
    """A house with one dataset, and its feed at work."""
    async with AsyncExitStack() as stack:
        store: Any = MemoryStore()
        if backend in STORES:
            store = await stack.enter_async_context(opened(backend, tmp_path, clock=SystemClock()))
        house = House(store, **settings)
        await house.create()
        await stack.enter_async_context(house.feed.run())
        yield house


async def follow(copy: Copy, messages: Any, *, until: Callable[[], bool] | None = None) -> Copy:
    """Take messages, one at least, until the copy is exact or something is so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            copy.take(await anext(messages))
            if until() if until else copy.exact:
                return copy


async def follow_to(copy: Copy, messages: Any, revision: int) -> Copy:
    """Take messages, if any are needed, until the copy is exact at this revision or later."""

    def there() -> bool:
        return copy.exact and copy.revision >= revision

    return copy if there() else await follow(copy, messages, until=there)


def other(dataset: Dataset, **fields: Any) -> Dataset:
    return replace(dataset, **fields)
