"""The PostgreSQL store: the contract's methods, each a function handed a connection.

Any number of nodes may have one store open. What one of them does is seen by the others through the database alone.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from syncline_server import failpoints
from syncline_server.model import (
    Appended,
    Commit,
    CommitResult,
    Dataset,
    Deletes,
    EntryPage,
    Head,
    Key,
    Lease,
    Node,
    Page,
    Producer,
    Record,
    Replica,
    RequestIdentity,
    Session,
    Source,
    Upserts,
)
from syncline_server.store.abc import GroupResult, PurgeResult, StagedCall, Store, StoreInfo
from syncline_server.store.plan import check_fingerprint
from syncline_server.store.postgres import (
    catalog,
    nodes,
    producers,
    reads,
    rebuild,
    replicas,
    requests,
    sessions,
    upkeep,
)
from syncline_server.store.postgres.commits import Commits
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.database import Database

T = TypeVar("T")

RECLAIM_STEPS: Final = 50
"""Transactions with which one ``maintain`` removes rows that nobody can reach any more."""
SNAPSHOT_CHECK_SECONDS: Final = 60.0
"""Between two looks for transactions that stand still."""


class PostgresStore(Store):
    """A store in a PostgreSQL database. Made by ``open_store``."""

    def __init__(
        self,
        *,
        info: StoreInfo,
        database: Database,
        commit_lanes: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.info = info
        self.commit_lanes = commit_lanes
        self.clock = database.clock
        self.failed = database.failed
        """Set when the process should end and be started again: the database is another one than it was."""
        self._database = database
        self._random_bytes = random_bytes
        self._tasks: set[asyncio.Task[Any]] = set()
        self._commits = Commits(database, random_bytes)
        self._look_for_snapshots = 0.0
        self._staging: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Held while a call of that session is staged: on two connections a later one could come first."""

    async def finish(self) -> None:
        """Wait for whatever outlived its caller."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _detached(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a write; a caller that is cancelled leaves it running, so that it ends as if the caller were there."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may have gone; nobody else is to be told

    async def _write(self, work: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """One transaction, which is told the time."""

        async def timed(connection: Connection) -> T:
            now_us = await self._database.now_us(connection)
            return await work(connection, *args, now_us=now_us, **kwargs)

        return await self._detached(self._database.transact(timed))

    async def _transact(self, work: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        return await self._detached(self._database.transact(work, *args, **kwargs))

    async def _fenced(
        self, lease: Lease | None, work: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
    ) -> T:
        """One transaction, which begins by making sure of a lease."""

        async def checked(connection: Connection) -> T:
            await nodes.check_lease(connection, lease)
            return await work(connection, *args, **kwargs)

        return await self._transact(checked)

    # -- catalog ------------------------------------------------------------------------------------------

    async def create_dataset(self, dataset: Dataset, *, identity: RequestIdentity | None = None) -> Dataset:
        """See Store."""
        return await self._write(catalog.create_dataset, dataset, identity)

    async def get_dataset(self, dataset_id: str) -> Dataset:
        """See Store."""
        return await self._database.read(catalog.dataset_by_id, dataset_id)

    async def list_datasets(self, *, after: str = "", limit: int) -> Sequence[Dataset]:
        """See Store."""
        return await self._database.read(catalog.datasets_after, after, limit)

    async def update_dataset(
        self, dataset: Dataset, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Dataset:
        """See Store."""
        return await self._write(catalog.update_dataset, dataset, expected_generation, identity)

    async def rekey(
        self,
        dataset: Dataset,
        make_record_id: Callable[[bytes, str], str],
        *,
        expected_generation: int,
        identity: RequestIdentity | None = None,
    ) -> tuple[Dataset, Appended | None]:
        """See Store. ``make_record_id`` runs on a thread of the event loop's executor."""
        return await self._write(
            rebuild.rekey,
            dataset,
            make_record_id,
            expected_generation,
            identity,
            random_bytes=self._random_bytes,
        )

    async def delete_dataset(
        self, dataset_number: int, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> None:
        """See Store."""
        await self._write(catalog.delete_dataset, dataset_number, expected_generation, identity)

    async def create_source(self, source: Source, *, identity: RequestIdentity | None = None) -> Source:
        """See Store."""
        return await self._write(catalog.create_source, source, identity)

    async def get_source(self, dataset_id: str, source_id: str) -> Source:
        """See Store."""
        return await self._database.read(catalog.source_by_id, dataset_id, source_id)

    async def list_sources(self, dataset_id: str, *, after: str = "", limit: int) -> Sequence[Source]:
        """See Store."""
        return await self._database.read(catalog.sources_after, dataset_id, after, limit)

    async def update_source(
        self, source: Source, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Source:
        """See Store."""
        return await self._write(catalog.update_source, source, expected_generation, identity)

    async def delete_source(
        self, source: Source, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> Appended | None:
        """See Store."""
        return await self._write(
            rebuild.delete_source, source, expected_generation, identity, random_bytes=self._random_bytes
        )

    async def create_key(self, key: Key, *, identity: RequestIdentity | None = None) -> Key:
        """See Store."""
        return await self._write(catalog.create_key, key, identity)

    async def get_key(self, key_id: str) -> Key:
        """See Store."""
        return await self._database.read(catalog.key_by_id, key_id)

    async def list_keys(self, *, after: str = "", limit: int) -> Sequence[Key]:
        """See Store."""
        return await self._database.read(catalog.keys_after, after, limit)

    async def update_key(
        self, key: Key, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Key:
        """See Store."""
        return await self._write(catalog.update_key, key, expected_generation, identity)

    async def delete_key(
        self, key_id: str, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> None:
        """See Store."""
        await self._write(catalog.delete_key, key_id, expected_generation, identity)

    async def touch_keys(self, last_used_us: dict[str, int]) -> None:
        """See Store."""
        await self._transact(catalog.touch_keys, last_used_us)

    # -- writing ------------------------------------------------------------------------------------------

    async def commit(
        self,
        commits: Sequence[Commit],
        *,
        carry_changes: int = 10_000,
        sent: Callable[[], None] | None = None,
    ) -> GroupResult:
        """See Store."""
        return await self._detached(self._commits.commit(commits, carry_changes, sent))

    async def find_answer(self, identity: RequestIdentity) -> CommitResult | None:
        """See Store."""
        found = await self._database.read(requests.find_answer, identity.request_id)
        if found is None:
            return None
        check_fingerprint(identity, found[0])
        return found[1]

    async def forget_requests(self, *, before_us: int, limit: int, lease: Lease | None = None) -> int:
        """See Store."""
        return await self._fenced(lease, requests.forget, before_us=before_us, limit=limit)

    # -- sessions -----------------------------------------------------------------------------------------

    async def open_session(self, session: Session, *, identity: RequestIdentity | None = None) -> Session:
        """See Store."""
        return await self._write(sessions.open_session, session, identity)

    async def get_session(self, session_id: str, *, source_number: int) -> Session:
        """See Store."""
        return await self._database.read(sessions.session_by_id, session_id, source_number)

    async def stage(
        self,
        session_id: str,
        write: Upserts | Deletes,
        *,
        source_number: int,
        sequence: int = 0,
        identity: RequestIdentity | None = None,
    ) -> StagedCall:
        """See Store."""
        return await self._detached(
            self._stage(session_id, write, source_number=source_number, sequence=sequence, identity=identity)
        )

    async def _stage(self, session_id: str, write: Upserts | Deletes, **named: Any) -> StagedCall:
        turn = self._staging.setdefault(session_id, asyncio.Lock())
        async with turn, self._database.writing() as connection:
            staged = await sessions.stage(
                connection, session_id, write, held_us=self._database.held_us, **named
            )
        failpoints.hit("stage.after")
        return staged

    async def prepare_session(self, session_id: str) -> None:
        """See Store. Nothing is left to do: staging keeps the last action of each record id."""

    async def discard_session(
        self, session_id: str, *, source_number: int, identity: RequestIdentity | None = None
    ) -> int:
        """See Store."""
        return await self._write(sessions.discard_session, session_id, source_number, identity)

    async def expire_sessions(self, *, now_us: int, lease: Lease | None = None) -> int:
        """See Store."""
        if not await self._database.read(sessions.is_any_due, now_us):
            await self._database.read(nodes.see_lease, lease)
            return 0
        return await self._fenced(lease, sessions.expire, now_us)

    async def count_sessions(self) -> int:
        """See Store."""
        return await self._database.read(sessions.count_sessions)

    # -- reading ------------------------------------------------------------------------------------------

    async def read_changes(
        self,
        dataset_number: int,
        *,
        after: int,
        max_changes: int,
        max_bytes: int,
        seen_revision: int = 0,
    ) -> Page:
        """See Store."""
        return await self._database.read(
            reads.read_changes,
            dataset_number,
            after=after,
            max_changes=max_changes,
            max_bytes=max_bytes,
            seen_revision=seen_revision,
        )

    async def read_named_changes(
        self,
        dataset_number: int,
        record_ids: Sequence[str],
        *,
        after: int,
        through_revision: int,
        max_bytes: int,
        seen_revision: int = 0,
    ) -> Page:
        """See Store."""
        return await self._database.read(
            reads.read_named_changes,
            dataset_number,
            record_ids,
            after=after,
            through_revision=through_revision,
            max_bytes=max_bytes,
            seen_revision=seen_revision,
        )

    async def read_head(self, dataset_number: int) -> Head:
        """See Store."""
        return await self._database.read(catalog.read_head, dataset_number)

    async def get_records(
        self, dataset_number: int, record_ids: Sequence[str], *, max_bytes: int
    ) -> tuple[Sequence[Record], Sequence[str], int]:
        """See Store."""
        return await self._database.read(reads.get_records, dataset_number, record_ids, max_bytes=max_bytes)

    async def list_records(
        self, dataset_number: int, *, after: str, limit: int, max_bytes: int
    ) -> tuple[Sequence[Record], bool, int]:
        """See Store."""
        return await self._database.read(
            reads.list_records, dataset_number, after=after, limit=limit, max_bytes=max_bytes
        )

    async def list_entries(
        self, dataset_number: int, *, after: str, through: str = "", limit: int
    ) -> EntryPage:
        """See Store."""
        return await self._database.read(
            reads.list_entries, dataset_number, after=after, through=through, limit=limit
        )

    async def count_entries(self, dataset_number: int, *, after: str, through: str = "") -> int:
        """See Store."""
        return await self._database.read(reads.count_entries, dataset_number, after=after, through=through)

    async def list_heads(self, *, after: str = "", limit: int) -> Sequence[tuple[str, bytes, int, Head]]:
        """See Store."""
        return await self._database.read(reads.list_heads, after=after, limit=limit)

    async def revision_times(self, dataset_number: int, revisions: Sequence[int]) -> Sequence[int]:
        """See Store."""
        return await self._database.read(reads.revision_times, dataset_number, revisions)

    # -- producers ----------------------------------------------------------------------------------------

    async def open_producer(
        self,
        source_number: int,
        producer_id: str,
        *,
        epoch: int,
        previous_epoch: int = 0,
        dry_run: bool = False,
        identity: RequestIdentity | None = None,
    ) -> tuple[Producer, int]:
        """See Store."""
        return await self._write(
            producers.open_producer,
            source_number,
            producer_id,
            epoch=epoch,
            previous_epoch=previous_epoch,
            dry_run=dry_run,
            identity=identity,
        )

    async def get_producer(self, source_number: int, producer_id: str) -> Producer:
        """See Store."""
        return await self._database.read(producers.producer_by_id, source_number, producer_id)

    async def list_producers(self, source_number: int, *, after: str = "", limit: int) -> Sequence[Producer]:
        """See Store."""
        return await self._database.read(producers.producers_after, source_number, after, limit)

    async def delete_producer(
        self, source_number: int, producer_id: str, *, identity: RequestIdentity | None = None
    ) -> None:
        """See Store."""
        await self._write(producers.delete_producer, source_number, producer_id, identity)

    # -- replicas -----------------------------------------------------------------------------------------

    async def report_replicas(self, reports: Sequence[Replica]) -> None:
        """See Store."""
        await self._transact(replicas.report, reports)

    async def list_replicas(self, dataset_number: int, *, reported_since_us: int = 0) -> Sequence[Replica]:
        """See Store."""
        return await self._database.read(
            replicas.list_replicas, dataset_number, reported_since_us=reported_since_us
        )

    async def delete_replica(
        self, dataset_number: int, replica_id: str, *, identity: RequestIdentity | None = None
    ) -> None:
        """See Store."""
        await self._write(replicas.delete_replica, dataset_number, replica_id, identity)

    async def forget_replicas(self, *, before_us: int, limit: int, lease: Lease | None = None) -> int:
        """See Store."""
        return await self._fenced(lease, replicas.forget, before_us=before_us, limit=limit)

    # -- nodes --------------------------------------------------------------------------------------------

    async def acquire_lease(self, name: str, *, holder: str, seconds: float) -> Lease | None:
        """See Store."""
        return await self._write(nodes.acquire_lease, name, holder, seconds)

    async def release_lease(self, lease: Lease) -> None:
        """See Store."""
        await self._transact(nodes.release_lease, lease)

    async def report_node(self, node: Node) -> None:
        """See Store."""
        await self._write(nodes.report_node, node)

    async def remove_node(self, node_id: str) -> None:
        """See Store."""
        await self._transact(nodes.remove_node, node_id)

    async def list_nodes(self, *, reported_since_us: int = 0) -> Sequence[Node]:
        """See Store."""
        return await self._database.read(nodes.list_nodes, reported_since_us=reported_since_us)

    # -- upkeep -------------------------------------------------------------------------------------------

    async def purge(
        self,
        dataset_number: int,
        *,
        before_us: int,
        min_revisions: int,
        max_tombstones: int,
        not_beyond: int | None = None,
        lease: Lease | None = None,
    ) -> PurgeResult:
        """See Store."""
        wanted, present = await self._database.read(
            upkeep.newest_before, dataset_number, before_us=before_us, min_revisions=min_revisions
        )
        if not_beyond is not None:
            wanted = min(wanted, not_beyond)
        if wanted <= present:
            await self._database.read(nodes.see_lease, lease)
            return PurgeResult(purge_revision=present, tombstones=0, more=False)
        return await self._fenced(lease, upkeep.purge, dataset_number, wanted, max_tombstones)

    async def maintain(self) -> None:
        """See Store. Removes what deleted datasets and ended sessions left; VACUUM is PostgreSQL's own business."""
        await self._database.measure_time()
        if time.monotonic() >= self._look_for_snapshots:
            self._look_for_snapshots = time.monotonic() + SNAPSHOT_CHECK_SECONDS
            await self._database.read(upkeep.warn_of_old_snapshots)
        if await self._database.read(upkeep.has_left_over):
            for _ in range(RECLAIM_STEPS):
                if not await self._transact(upkeep.reclaim):
                    break

    async def probe(self) -> None:
        """See Store."""
        await self._transact(upkeep.probe, was_full=self._database.was_full)
        self._database.was_full = False
