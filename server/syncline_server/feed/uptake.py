"""Uptake: which replicas have which revision, who is behind, and whom purge waits for.

Reports are kept in memory and written to the store once a second, all in one transaction: an acknowledgement
costs no commit. What a crash loses is told again when the replicas come back, by their tokens.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from syncline_server.clock import Clock
from syncline_server.model import Dataset, Lease, Replica
from syncline_server.store.abc import Store

LOOK_SECONDS: Final = 1.0
"""How often one who waits looks into the store, for reports that came to another node."""

_REFRESH_US: Final = 60_000_000
"""A replica that reports the same revision again is written down this often, so that it is not forgotten."""

_FORGET_LIMIT: Final = 1_000

_Name = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStanding:
    """How far one replica has come."""

    replica: Replica
    behind_since_us: int | None
    """Commit time of the first revision that it lacks; None: it has the newest."""
    connected: bool
    holds_purge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UptakeReport:
    """How many replicas have reached a revision."""

    revision: int
    head_revision: int
    replica_count: int
    reached_count: int
    replicas: Sequence[ReplicaStanding]
    """Those furthest behind first."""


class Uptake:
    """Hears of replicas, and tells how far they are.

    A replica counts until it has not reported for ``expiry_us``; so long purge waits for it, if it has reached any
    revision at all: one that begins from nothing needs no deletes of before.
    """

    def __init__(self, store: Store, clock: Clock, *, expiry_us: int) -> None:
        self._store = store
        self._clock = clock
        self._expiry_us = expiry_us
        self._heard: dict[_Name, Replica] = {}
        """What was heard and is not in the store yet, or belongs to a stream that is open."""
        self._unwritten: dict[_Name, list[Replica]] = {}
        self._streams: Counter[_Name] = Counter()
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}

    # -- what is heard ------------------------------------------------------------------------------------

    def connected(self, dataset_number: int, replica_id: str, key_id: str, revision: int) -> None:
        """Hear that a stream of a replica was opened. ``revision``: what its token says that it has; 0: nothing.

        That is the truth, also where it is less than before: its file may have been restored.
        """
        name = (dataset_number, replica_id)
        self._streams[name] += 1
        told = self._replica(name, key_id, revision)
        self._heard[name] = told
        self._unwritten[name] = [replace(told, revision=0), told] if revision else [told]
        self._wake(dataset_number)

    def applied(self, dataset_number: int, replica_id: str, key_id: str, revision: int) -> None:
        """Hear that a replica has applied a revision."""
        name = (dataset_number, replica_id)
        known = self._heard.get(name)
        told = self._replica(name, key_id, revision)
        if known is not None and known.revision >= revision:
            if told.report_time_us - known.report_time_us < _REFRESH_US:
                return
            told = replace(told, revision=known.revision)
        self._heard[name] = told
        self._unwritten.setdefault(name, []).append(told)
        self._wake(dataset_number)

    def disconnected(self, dataset_number: int, replica_id: str) -> None:
        """Hear that a stream of a replica has ended."""
        name = (dataset_number, replica_id)
        self._streams[name] -= 1
        if self._streams[name] <= 0:
            del self._streams[name]
            if name not in self._unwritten:
                self._heard.pop(name, None)

    async def flush(self) -> None:
        """Write down what was heard. Raises the store's troubles; nothing is forgotten then."""
        unwritten, self._unwritten = self._unwritten, {}
        if not unwritten:
            return
        # Of a row of reports only a fall to 0 and the last one matter.
        reports = [
            r for told in unwritten.values() for r in (*(t for t in told[:-1] if not t.revision), told[-1])
        ]
        try:
            await self._store.report_replicas(reports)
        except BaseException:
            for name, told in self._unwritten.items():
                unwritten.setdefault(name, []).extend(told)
            self._unwritten = unwritten
            raise
        for name in unwritten:
            if name not in self._streams and name not in self._unwritten:
                self._heard.pop(name, None)

    async def forget(self, lease: Lease) -> None:
        """Forget replicas that have not reported for too long, in small transactions. Raises Aborted(LEASE_LOST)."""
        before_us = self._clock.now_us() - self._expiry_us
        forgotten = _FORGET_LIMIT
        while forgotten == _FORGET_LIMIT:
            forgotten = await self._store.forget_replicas(
                before_us=before_us, limit=_FORGET_LIMIT, lease=lease
            )

    def dropped(self, dataset_number: int, replica_id: str) -> None:
        """Hear that a replica was deleted from the store."""
        self._unwritten.pop((dataset_number, replica_id), None)
        self._heard.pop((dataset_number, replica_id), None)

    # -- what is told -------------------------------------------------------------------------------------

    async def replicas(self, dataset_number: int) -> Sequence[Replica]:
        """All that count, those furthest behind first. Raises the store's troubles."""
        since_us = self._clock.now_us() - self._expiry_us
        stored = await self._store.list_replicas(dataset_number, reported_since_us=since_us)
        known = {replica.replica_id: replica for replica in stored}
        for (number, replica_id), heard in self._heard.items():
            # It may have gone over to another node, and this one not have noticed yet.
            if number == dataset_number and (
                replica_id not in known or known[replica_id].report_time_us <= heard.report_time_us
            ):
                known[replica_id] = heard
        return sorted(known.values(), key=lambda replica: (replica.revision, replica.replica_id))

    async def holding(self, dataset_number: int) -> Replica | None:
        """The replica that purge has to wait for first; None: it is free. Raises the store's troubles."""
        return next((r for r in await self.replicas(dataset_number) if r.revision), None)

    async def get(
        self,
        dataset: Dataset,
        revision: int,
        *,
        wait_ratio: float = 0.0,
        timeout_seconds: float = 0.0,
        limit: int,
    ) -> UptakeReport:
        """Tell who has ``revision`` (0: the newest), naming at most ``limit`` replicas.

        With ``wait_ratio`` not before so great a part of them has it, or time is up. Raises NotFound.
        """
        head = await self._store.read_head(dataset.number)
        asked = revision or head.revision
        replicas = await self._wait(dataset.number, asked, wait_ratio, timeout_seconds)
        head = await self._store.read_head(dataset.number)
        reached = sum(replica.revision >= asked for replica in replicas)
        named = replicas[:limit]
        behind = [r.revision + 1 for r in named if r.revision < head.revision]
        times = await self._store.revision_times(dataset.number, behind)
        since = dict(zip(behind, times, strict=True))
        holding = next((r.replica_id for r in replicas if r.revision), None)
        return UptakeReport(
            revision=asked,
            head_revision=head.revision,
            replica_count=len(replicas),
            reached_count=reached,
            replicas=[
                ReplicaStanding(
                    replica=replica,
                    behind_since_us=since.get(replica.revision + 1),
                    connected=(dataset.number, replica.replica_id) in self._streams,
                    holds_purge=replica.replica_id == holding and replica.revision < head.revision,
                )
                for replica in named
            ],
        )

    # -- inside -------------------------------------------------------------------------------------------

    async def _wait(
        self, dataset_number: int, revision: int, ratio: float, timeout_seconds: float
    ) -> Sequence[Replica]:
        until = self._clock.monotonic() + timeout_seconds
        while True:
            with self._waiting(dataset_number) as waiter:
                replicas = await self.replicas(dataset_number)
                reached = sum(replica.revision >= revision for replica in replicas)
                left = until - self._clock.monotonic()
                if reached >= math.ceil(ratio * len(replicas)) or left <= 0:
                    return replicas
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await waiter

    @contextlib.contextmanager
    def _waiting(self, dataset_number: int) -> Iterator[asyncio.Future[None]]:
        """Registered before the look, so that a report between the two is not missed."""
        waiters = self._waiters.setdefault(dataset_number, set())
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(dataset_number, None)

    def _wake(self, dataset_number: int) -> None:
        for waiter in self._waiters.get(dataset_number, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _replica(self, name: _Name, key_id: str, revision: int) -> Replica:
        return Replica(
            dataset_number=name[0],
            replica_id=name[1],
            key_id=key_id,
            revision=revision,
            report_time_us=self._clock.now_us(),
        )
