"""Traffic that records itself: writers that push and delete, a subscriber that holds a copy, and their judge."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import syncline
from robustness.history import History, Operation, check

KEYS = [f"k{n:03d}" for n in range(60)]
CHANGED = {syncline.RecordStatus.CREATED, syncline.RecordStatus.UPDATED, syncline.RecordStatus.DELETED}
CATCH_UP_SECONDS = 20.0
OPTIONS = syncline.FeedOptions(reconnect=syncline.RetryPolicy(attempts=None, max_seconds=0.5))
"""Where the server dies every second, pauses that double each time would be all that there is."""


class Traffic:
    """Writers and one subscriber of a dataset that is keyed by ``id``."""

    def __init__(self, client: syncline.Client, dataset: str = "things") -> None:
        self.client = client
        self.things = client.dataset(dataset)
        self.history = History()
        self.copy: syncline.Copy = syncline.Copy()
        self.following: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._writers: list[asyncio.Task[None]] = []

    @classmethod
    @asynccontextmanager
    async def on(
        cls,
        client: syncline.Client,
        *,
        seed: int,
        writers: int = 4,
        sessions: int = 0,
        keys: Sequence[str] = KEYS,
    ) -> AsyncIterator["Traffic"]:
        """Make the dataset and begin; on leaving stop. ``finish`` judges.

        ``sessions``: writers that work by accrue sessions, each of a source of its own.
        """
        await client.create_dataset("things", identity=syncline.by_key("id"))
        traffic = cls(client)
        traffic.following = asyncio.create_task(traffic._follow(), name="subscriber")
        traffic._writers = [
            asyncio.create_task(traffic._write(random.Random(seed + n), keys), name=f"writer {n}")
            for n in range(writers)
        ]
        for n in range(sessions):
            await client.create_source("things", f"feed-{n}")
            work = traffic._write_sessions(random.Random(seed - n - 1), keys, f"feed-{n}")
            traffic._writers.append(asyncio.create_task(work, name=f"session writer {n}"))
        try:
            yield traffic
        finally:
            tasks = [*traffic._writers, traffic.following]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def acknowledged(self, count: int) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted = len(self.history.acknowledged) + count
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while len(self.history.acknowledged) < wanted:
                self._see_that_all_live()
                await asyncio.sleep(0.005)

    async def stop_writing(self) -> None:
        """Let every writer finish what it is about."""
        self._stop.set()
        await asyncio.gather(*self._writers)

    async def finish(self) -> dict[str, tuple[int, int]]:
        """Stop, wait for the subscriber, and hold everything against the guarantees. Returns the dump."""
        await self.stop_writing()
        last = self.history.invoke(("last",), delete=False, now=time.monotonic())
        with noting(last):
            last.revision = head = (await self.things.push([{"id": "last", "op": last.number}])).revision
            last.changed = True
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while self.copy.revision < head:
                self._see_that_all_live()
                await asyncio.sleep(0.02)
        final = {
            record.record_id: (record.revision, record.data["op"]) async for record in self.things.records()
        }
        info = await self.client.get_dataset(self.things.dataset)
        violations = check(self.history, final, info.revision)
        assert not violations, violations
        assert self.revisions_of_copy() == {key: revision for key, (revision, _) in final.items()}
        assert self.copy.digest == info.digest
        return final

    def revisions_of_copy(self) -> dict[str, int]:
        """Which revision of each record the subscriber holds."""
        return {key: self.copy.event(key).revision for key in self.copy}

    def _see_that_all_live(self) -> None:
        for task in (self.following, *self._writers):
            assert task is not None
            if task.done() and not task.cancelled():
                task.result()

    async def _write(self, rng: random.Random, keys: Sequence[str]) -> None:
        while not self._stop.is_set():
            await write_once(self.things, self.history, rng, keys)

    async def _write_sessions(self, rng: random.Random, keys: Sequence[str], source: str) -> None:
        while not self._stop.is_set():
            await accrue_once(self.things, self.history, rng, keys, source)

    async def _follow(self) -> None:
        async with self.things.changes(options=OPTIONS) as stream:
            async for event in stream:
                self.copy.apply(event)
                if isinstance(event, syncline.Put):
                    self.history.events.append(("put", event.record_id, event.revision, event.data["op"]))
                elif isinstance(event, syncline.Delete):
                    self.history.events.append(("delete", event.record_id, event.revision, None))
                elif isinstance(event, syncline.Checkpoint):
                    self.history.checkpoints.append((event.revision, len(self.history.events)))
                elif isinstance(event, syncline.Reset):
                    self.history.resets.append(event.reason.name)
                    self.history.restarts.append(len(self.history.events))


async def write_once(
    dataset: syncline.Dataset, history: History, rng: random.Random, keys: Sequence[str]
) -> Operation:
    """Push or delete a few keys, and note what came of it."""
    chosen = tuple(rng.sample(keys, rng.randint(1, min(6, len(keys)))))
    delete = rng.random() < 0.25
    operation = history.invoke(chosen, delete=delete, now=time.monotonic())
    with noting(operation):
        if delete:
            result = await dataset.delete([{"id": key} for key in chosen])
        else:
            pad = "x" * rng.randint(0, 400)
            result = await dataset.push([{"id": key, "op": operation.number, "pad": pad} for key in chosen])
        operation.revision = result.revision
        operation.changed = any(one.status in CHANGED for one in result.results)
    return operation


async def accrue_once(
    dataset: syncline.Dataset, history: History, rng: random.Random, keys: Sequence[str], source: str
) -> Operation:
    """Upsert a few keys in an accrue session of three calls, and note what came of it."""
    chosen = tuple(rng.sample(keys, 6))
    operation = history.invoke(chosen, delete=False, now=time.monotonic())
    with noting(operation):
        async with dataset.session("accrue", source=source) as session:
            for start in range(0, 6, 2):
                await session.upsert(
                    [{"id": key, "op": operation.number} for key in chosen[start : start + 2]]
                )
        assert session.result is not None
        operation.revision = session.result.revision
        operation.changed = session.result.created + session.result.updated > 0
    return operation


@contextmanager
def noting(operation: Operation) -> Iterator[None]:
    """Note the outcome of what the block does, by the three that there are (G4)."""
    try:
        yield
    except syncline.OutcomeUnknown:
        return  # and stays unknown
    except syncline.Rejected:
        operation.outcome = "rejected"
        return
    operation.returned = time.monotonic()
    operation.outcome = "ok"
