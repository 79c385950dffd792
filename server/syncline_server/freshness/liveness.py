"""Liveness of producers: told from stored facts, and followed while somebody watches.

A dataset that is watched has a ``Board``, filled from the store once and moved on by what this process commits; one
timer for each such dataset waits for the next producer that may become late. Nobody asks the store again, unless other
nodes hear of producers too: then it is asked every second or so for as long as somebody watches.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from syncline_server.clock import Clock
from syncline_server.errors import NotFound, SynclineError
from syncline_server.freshness.board import Board, Standing, judge, standing_of
from syncline_server.model import Commit, Dataset, Producer, Source
from syncline_server.store.abc import GroupResult, Store

_log = structlog.get_logger()

PAGE_PRODUCERS: Final = 1_000
"""Read from the store, and told, at once."""
FOLLOW_SECONDS: Final = 1.0
"""How often the store is asked what other nodes have heard."""
FOLLOW_SHARE: Final = 20
"""Of the time, so great a part at most is spent on asking: many producers are asked for less often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a watcher is told at once."""

    standings: Sequence[Standing] = ()
    deleted: Sequence[Producer] = ()
    complete: bool = False
    """With this, everything that there was at the beginning has been told."""


@dataclass(frozen=True, slots=True)
class _Sign:
    """A durable reading that this process saw."""

    steady_us: int
    received_us: int
    last_sequence: int


@dataclass(slots=True)
class _Watcher:
    """One who watches: what it has not been told yet."""

    changed: set[int] = field(default_factory=set)
    deleted: list[Producer] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Watch:
    """A dataset that is watched."""

    board: Board = field(default_factory=Board)
    watchers: list[_Watcher] = field(default_factory=list)
    expect_every_us: dict[int, int | None] = field(default_factory=dict)
    """By number of the source."""
    gone_sources: set[int] = field(default_factory=set)
    gone_producers: set[int] = field(default_factory=set)
    filled: "asyncio.Task[None] | None" = None
    follower: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    error: SynclineError | None = None


class Liveness:
    """Knows which producers are heard from."""

    def __init__(self, store: Store, clock: Clock, *, keep_alive_seconds: float, alone: bool = True) -> None:
        """``alone``: nobody else commits to the store."""
        self._alone = alone
        self._store = store
        self._clock = clock
        self._keep_alive_seconds = keep_alive_seconds
        self._steady_offset_us = clock.now_us() - round(clock.monotonic() * 1e6)
        self._signs: dict[int, _Sign] = {}
        """By number of the producer, of all that were heard from since the start: some 100 bytes each."""
        self._watches: dict[int, _Watch] = {}
        self._draining = False

    # -- what the server tells ----------------------------------------------------------------------------

    def observe(self, commits: Sequence[Commit], written: GroupResult) -> None:
        """A group of commits is durable."""
        for commit, result in zip(commits, written.results, strict=True):
            numbers = commit.producer
            if numbers is None or commit.dry_run or isinstance(result, SynclineError) or result.replayed:
                continue
            now_us, received_us = self._steady_us(), self._clock.now_us()
            self._signs[numbers.producer_number] = _Sign(now_us, received_us, numbers.last_sequence)
            watch = self._watches.get(commit.dataset_number)
            if watch is not None:
                watch.board.hear(
                    numbers.producer_number,
                    last_sequence=numbers.last_sequence,
                    received_us=received_us,
                    now_us=now_us,
                )
                self._tell(watch)

    def opened(self, source: Source, producer: Producer) -> None:
        """A new epoch of a producer began."""
        if producer.number not in self._signs and producer.create_time_us == producer.open_time_us:
            self._signs[producer.number] = _Sign(self._steady_us(), producer.create_time_us, 0)
        watch = self._watches.get(source.dataset_number)
        if watch is not None:
            watch.expect_every_us.setdefault(source.number, source.expect_every_us)
            self._put(watch, producer)
            self._tell(watch)

    def producer_deleted(self, dataset_number: int, producer: Producer) -> None:
        """A producer was forgotten."""
        self._signs.pop(producer.number, None)
        watch = self._watches.get(dataset_number)
        if watch is not None:
            watch.gone_producers.add(producer.number)
            watch.board.remove([producer.number])
            self._tell(watch)

    def source_changed(self, source: Source) -> None:
        """Settings of a source changed."""
        watch = self._watches.get(source.dataset_number)
        if watch is not None:
            watch.expect_every_us[source.number] = source.expect_every_us
            watch.board.expect(source.number, source.expect_every_us, now_us=self._steady_us())
            self._tell(watch)

    def source_deleted(self, source: Source) -> None:
        """A source went, and its producers with it."""
        watch = self._watches.get(source.dataset_number)
        if watch is not None:
            watch.gone_sources.add(source.number)
            watch.board.remove(watch.board.of_source(source.number))
            self._tell(watch)

    def dataset_deleted(self, dataset_number: int) -> None:
        """A dataset went: whoever watches it is told so."""
        watch = self._watches.pop(dataset_number, None)
        if watch is not None:
            watch.error = NotFound("DATASET_NOT_FOUND", "the dataset was deleted")
            for watcher in watch.watchers:
                watcher.wake.set()

    def drain(self) -> None:
        """End whoever watches, in an orderly way."""
        self._draining = True
        for watch in self._watches.values():
            for watcher in watch.watchers:
                watcher.wake.set()

    # -- what is asked ------------------------------------------------------------------------------------

    def standing(self, source: Source, producer: Producer) -> Standing:
        """State of a producer as it was just read from the store."""
        age_us = self._steady_us() - self._sign_us(producer)
        return standing_of(producer, judge(age_us, source.expect_every_us))

    async def watch(self, dataset: Dataset) -> AsyncGenerator[Told, None]:
        """Every producer of a dataset, then those that change, then nothing at least every so often.

        Ends when the server is about to stop. Raises NotFound(DATASET_NOT_FOUND) when the dataset is deleted.
        """
        watch = self._watches.get(dataset.number)
        if watch is None:
            watch = self._watches[dataset.number] = _Watch()
        watcher = _Watcher()
        watch.watchers.append(watcher)
        try:
            if watch.filled is None:
                watch.filled = asyncio.create_task(self._fill(watch, dataset))
            await asyncio.shield(watch.filled)
            if watch.follower is None and not self._alone:
                watch.follower = asyncio.create_task(self._keep_following(watch, dataset))
            numbers = watch.board.numbers()
            watcher.changed.clear()  # what was read just now is told as it is
            watcher.deleted.clear()
            watcher.wake.clear()
            for start in range(0, len(numbers), PAGE_PRODUCERS):
                page = numbers[start : start + PAGE_PRODUCERS]
                yield Told(standings=_standings(watch.board, page), complete=page[-1] == numbers[-1])
            if not numbers:
                yield Told(complete=True)
            while not self._draining:
                told = await self._next(watch, watcher)
                if not self._draining:
                    yield told
        finally:
            self._leave(dataset.number, watch, watcher)

    async def _next(self, watch: _Watch, watcher: _Watcher) -> Told:
        """What changed, or nothing when nothing did for a while."""
        try:
            async with asyncio.timeout(self._keep_alive_seconds * random.uniform(0.9, 1.0)):  # noqa: S311 - no secret
                await watcher.wake.wait()
        except TimeoutError:
            return Told()
        if watch.error is not None:
            raise watch.error
        if watcher.deleted:  # first, since one of the same name may have been opened after it
            deleted, watcher.deleted = watcher.deleted, []
            return Told(deleted=deleted)
        changed = sorted(watcher.changed)
        watcher.changed = set(changed[PAGE_PRODUCERS:])
        if not watcher.changed:
            watcher.wake.clear()
        return Told(standings=_standings(watch.board, changed[:PAGE_PRODUCERS]))

    # -- inside -------------------------------------------------------------------------------------------

    def _steady_us(self) -> int:
        return self._steady_offset_us + round(self._clock.monotonic() * 1e6)

    def _sign_us(self, producer: Producer) -> int:
        """Steady time of the last sign of life; what is older than this process stands as it was stored."""
        sign = self._signs.get(producer.number)
        received_us = producer.last_received_us
        if sign is not None and (self._alone or received_us is None or received_us <= sign.received_us):
            return sign.steady_us
        told_us = producer.create_time_us if received_us is None else received_us
        return told_us if self._alone else self._steady_us() - (self._clock.now_us() - told_us)

    async def _fill(self, watch: _Watch, dataset: Dataset) -> None:
        after = ""
        while sources := await self._store.list_sources(
            dataset.dataset_id, after=after, limit=PAGE_PRODUCERS
        ):
            for source in sources:
                watch.expect_every_us.setdefault(source.number, source.expect_every_us)
                await self._fill_source(watch, source)
            after = sources[-1].source_id
        self._tell(watch)

    async def _fill_source(self, watch: _Watch, source: Source) -> None:
        after = ""
        while producers := await self._store.list_producers(source.number, after=after, limit=PAGE_PRODUCERS):
            for producer in producers:
                self._put(watch, producer)
            after = producers[-1].producer_id

    # -- what other nodes hear ----------------------------------------------------------------------------

    async def _keep_following(self, watch: _Watch, dataset: Dataset) -> None:
        took_seconds = 0.0
        while self._watches.get(dataset.number) is watch:
            await asyncio.sleep(max(FOLLOW_SECONDS, took_seconds * FOLLOW_SHARE))
            begun = self._clock.monotonic()
            try:
                await self._follow(watch, dataset)
            except NotFound:
                self.dataset_deleted(dataset.number)
            except SynclineError as error:
                _log.warning("upkeep.failed", task="liveness", reason=error.reason, message=error.message)
            took_seconds = self._clock.monotonic() - begun

    async def _follow(self, watch: _Watch, dataset: Dataset) -> None:
        """Bring the board to what the store has. Raises NotFound when the dataset was deleted or replaced."""
        before = set(watch.board.numbers())
        sources_before = set(watch.expect_every_us)
        after = ""
        while sources := await self._store.list_sources(
            dataset.dataset_id, after=after, limit=PAGE_PRODUCERS
        ):
            for source in sources:
                if source.dataset_number != dataset.number:
                    raise NotFound("DATASET_NOT_FOUND", "the dataset was replaced")
                sources_before.discard(source.number)
                if watch.expect_every_us.get(source.number, 0) != source.expect_every_us:
                    self.source_changed(source)
                before -= await self._follow_source(watch, source)
            after = sources[-1].source_id
        watch.gone_sources |= sources_before
        watch.gone_producers |= before
        watch.board.remove(before)
        self._tell(watch)

    async def _follow_source(self, watch: _Watch, source: Source) -> set[int]:
        """Numbers of the producers that are there."""
        found: set[int] = set()
        after = ""
        while producers := await self._store.list_producers(source.number, after=after, limit=PAGE_PRODUCERS):
            for producer in producers:
                found.add(producer.number)
                self._put(watch, producer)
                received_us, known_us = producer.last_received_us, watch.board.received_us(producer.number)
                if received_us is not None and (known_us is None or received_us > known_us):
                    watch.board.hear(
                        producer.number,
                        last_sequence=producer.last_sequence,
                        received_us=received_us,
                        now_us=self._steady_us(),
                        sign_us=self._sign_us(producer),
                    )
            after = producers[-1].producer_id
        return found

    def _put(self, watch: _Watch, producer: Producer) -> None:
        if producer.number in watch.gone_producers or producer.source_number in watch.gone_sources:
            return
        watch.board.put(
            producer,
            watch.expect_every_us[producer.source_number],
            sign_us=self._sign_us(producer),
            now_us=self._steady_us(),
        )
        sign = self._signs.get(producer.number)
        if sign is not None and sign.last_sequence > producer.last_sequence:  # read before it was heard
            watch.board.hear(
                producer.number,
                last_sequence=sign.last_sequence,
                received_us=sign.received_us,
                now_us=sign.steady_us,
            )

    def _tell(self, watch: _Watch) -> None:
        """Hand what changed to those who watch, and wait for the next one that may become late."""
        changed, deleted = watch.board.take()
        if changed or deleted:
            for watcher in watch.watchers:
                watcher.changed.update(changed)
                watcher.deleted.extend(deleted)
                watcher.wake.set()
        self._plan(watch)

    def _plan(self, watch: _Watch) -> None:
        if watch.timer is not None:
            watch.timer.cancel()
            watch.timer = None
        look_us = watch.board.next_look_us
        if look_us is not None and watch.watchers:
            seconds = max(0.0, (look_us - self._steady_us()) / 1e6)
            watch.timer = asyncio.get_running_loop().call_later(seconds, self._look, watch)

    def _look(self, watch: _Watch) -> None:
        watch.timer = None
        watch.board.look(self._steady_us())
        self._tell(watch)

    def _leave(self, dataset_number: int, watch: _Watch, watcher: _Watcher) -> None:
        watch.watchers.remove(watcher)
        if not watch.watchers:
            if self._watches.get(dataset_number) is watch:
                del self._watches[dataset_number]
            if watch.timer is not None:
                watch.timer.cancel()
            for task in (watch.filled, watch.follower):
                if task is not None:
                    task.cancel()


def _standings(board: Board, numbers: Sequence[int]) -> list[Standing]:
    standings = (board.standing(number) for number in numbers)
    return [standing for standing in standings if standing is not None]
