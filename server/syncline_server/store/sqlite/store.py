"""The SQLite store: the contract's methods, each a function handed to the writer's or a reader's thread."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

from syncline_server.clock import Clock
from syncline_server.errors import ResourceExhausted, SynclineError
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
    SessionCommit,
    Source,
    Upserts,
)
from syncline_server.store.abc import GroupResult, PurgeResult, StagedCall, Store, StoreInfo
from syncline_server.store.carried import Carried
from syncline_server.store.plan import check_fingerprint, parts_of
from syncline_server.store.sqlite import (
    catalog,
    entries,
    named_changes,
    producers,
    reads,
    rebuild,
    replicas,
    requests,
    sessions,
    upkeep,
)
from syncline_server.store.sqlite.files import (
    RESERVE_BYTES,
    StoreFiles,
    drop_ballast,
    free_bytes,
    load_ballast,
)
from syncline_server.store.sqlite.group import commit_group
from syncline_server.store.sqlite.nodes import Nodes
from syncline_server.store.sqlite.readers import Readers
from syncline_server.store.sqlite.staging import Staging
from syncline_server.store.sqlite.writer import Done, Writer
from syncline_server.store.trouble import store_full

P = ParamSpec("P")
T = TypeVar("T")

CHECKPOINT_BYTES: Final = 16 << 20
"""``maintain`` moves the WAL into the database from this size on."""
WAL_CAP_BYTES: Final = 256 << 20
"""A commit that leaves the WAL larger has it emptied before the next one, whatever that costs."""
RECLAIM_STEPS: Final = 50
"""Transactions with which one ``maintain`` removes rows of deleted datasets."""


class SqliteStore(Store):
    """A store in one SQLite file. Made by ``open_store``."""

    def __init__(
        self,
        *,
        info: StoreInfo,
        files: StoreFiles,
        writer: Writer,
        readers: Readers,
        staging: Staging,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.info = info
        self.clock = clock
        self.failed = writer.failed
        """Set when the process should end and be started again: what became of a write is not known."""
        self._files = files
        self._writer = writer
        self._readers = readers
        self._staging = staging
        self._random_bytes = random_bytes
        self._nodes = Nodes()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._maintained_at = 0

    async def finish(self) -> None:
        """Wait for whatever outlived its caller, and leave an empty WAL behind."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if not self.failed.is_set():
            with suppress(SynclineError):  # the next one to open the store does it
                await self._writer.outside(upkeep.checkpoint, "TRUNCATE")

    async def _detached(self, work: Coroutine[Any, Any, T]) -> T:
        """Await several steps that belong together; a caller that is cancelled leaves them running."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may have gone; nobody else is to be told

    async def _write(self, work: Callable[..., T], *args: Any) -> T:
        """One transaction of the catalog."""
        done = await self._writer.transact(work, *args, now_us=self.clock.now_us())
        return done.value

    async def _free(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """One transaction of the kind that frees space: it may use what is held back for it."""
        try:
            return (await self._writer.transact(work, *args, **kwargs)).value
        except ResourceExhausted:
            if not drop_ballast(self._files):
                raise
        return (await self._writer.transact(work, *args, **kwargs)).value

    async def _fenced(self, lease: Lease | None, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The same, beginning by making sure of a lease."""

        def checked(connection: sqlite3.Connection) -> T:
            self._nodes.check_lease(lease)
            return work(connection, *args, **kwargs)

        return await self._free(checked)

    # -- catalog ------------------------------------------------------------------------------------------

    async def create_dataset(self, dataset: Dataset, *, identity: RequestIdentity | None = None) -> Dataset:
        """See Store."""
        return await self._write(catalog.create_dataset, dataset, identity)

    async def get_dataset(self, dataset_id: str) -> Dataset:
        """See Store."""
        return await self._readers.read(catalog.dataset_by_id, dataset_id)

    async def list_datasets(self, *, after: str = "", limit: int) -> Sequence[Dataset]:
        """See Store."""
        return await self._readers.read(catalog.datasets_after, after, limit)

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
        """See Store."""
        done = await self._detached(
            self._rebuild(rebuild.rekey, dataset, make_record_id, expected_generation, identity)
        )
        assert done.dataset is not None
        return done.dataset, done.appended

    async def _rebuild(self, work: Callable[..., rebuild.Rebuilt], *args: Any) -> rebuild.Rebuilt:
        now_us, random_bytes = self.clock.now_us(), self._random_bytes
        done = await self._writer.transact(work, *args, now_us=now_us, random_bytes=random_bytes)
        await self._staging.discard(done.value.ended_sessions)
        return done.value

    async def delete_dataset(
        self, dataset_number: int, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> None:
        """See Store."""
        await self._detached(self._delete_dataset(dataset_number, expected_generation, identity))

    async def _delete_dataset(
        self, dataset_number: int, expected_generation: int | None, identity: RequestIdentity | None
    ) -> None:
        await self._free(
            catalog.delete_dataset,
            dataset_number,
            expected_generation,
            identity,
            now_us=self.clock.now_us(),
        )
        staged = self._staging.sessions()
        await self._staging.discard([s.session_id for s in staged if s.dataset_number == dataset_number])

    async def create_source(self, source: Source, *, identity: RequestIdentity | None = None) -> Source:
        """See Store."""
        return await self._write(catalog.create_source, source, identity)

    async def get_source(self, dataset_id: str, source_id: str) -> Source:
        """See Store."""
        return await self._readers.read(catalog.source_by_id, dataset_id, source_id)

    async def list_sources(self, dataset_id: str, *, after: str = "", limit: int) -> Sequence[Source]:
        """See Store."""
        return await self._readers.read(catalog.sources_after, dataset_id, after, limit)

    async def update_source(
        self, source: Source, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Source:
        """See Store."""
        return await self._write(catalog.update_source, source, expected_generation, identity)

    async def delete_source(
        self, source: Source, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> Appended | None:
        """See Store."""
        done = await self._detached(
            self._rebuild(rebuild.delete_source, source, expected_generation, identity)
        )
        return done.appended

    async def create_key(self, key: Key, *, identity: RequestIdentity | None = None) -> Key:
        """See Store."""
        return await self._write(catalog.create_key, key, identity)

    async def get_key(self, key_id: str) -> Key:
        """See Store."""
        return await self._readers.read(catalog.key_by_id, key_id)

    async def list_keys(self, *, after: str = "", limit: int) -> Sequence[Key]:
        """See Store."""
        return await self._readers.read(catalog.keys_after, after, limit)

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
        await self._writer.transact(catalog.touch_keys, last_used_us)

    # -- writing ------------------------------------------------------------------------------------------

    async def commit(
        self,
        commits: Sequence[Commit],
        *,
        carry_changes: int = 10_000,
        sent: Callable[[], None] | None = None,
    ) -> GroupResult:
        """See Store. One lane: ``sent`` is never called."""
        del sent
        if any(isinstance(commit.write, SessionCommit) for commit in commits):
            return await self._detached(self._commit_in_parts(commits, carry_changes))
        carried = Carried(carry_changes)
        done = await self._commit_part(commits, carried, carry_changes)
        return GroupResult(
            results=done.value,
            appended=carried.appended(),
            transaction_seconds=done.transaction_seconds,
            sync_seconds=done.sync_seconds,
        )

    async def _commit_in_parts(self, commits: Sequence[Commit], carry_changes: int) -> GroupResult:
        """Give each SessionCommit a transaction of its own: a file cannot be attached inside one."""
        carried = Carried(carry_changes)
        results: list[CommitResult | SynclineError] = []
        transaction_seconds = sync_seconds = 0.0
        for part in parts_of(commits):
            try:
                done = await self._commit_part(part, carried, carry_changes)
            except SynclineError as error:
                if not results:
                    raise
                results += [error] * (len(commits) - len(results))
                break
            results += done.value
            transaction_seconds += done.transaction_seconds
            sync_seconds += done.sync_seconds
        return GroupResult(
            results=results,
            appended=carried.appended(),
            transaction_seconds=transaction_seconds,
            sync_seconds=sync_seconds,
        )

    async def _commit_part(
        self, commits: Sequence[Commit], carried: Carried, carry_changes: int
    ) -> Done[list[CommitResult | SynclineError]]:
        now_us, random_bytes = self.clock.now_us(), self._random_bytes
        if isinstance(commits[0].write, SessionCommit):
            done = await self._commit_session(commits[0], carried, carry_changes)
        else:
            done = await self._writer.transact(
                commit_group, commits, carried, now_us=now_us, random_bytes=random_bytes
            )
        if self._writer.wal_bytes() > WAL_CAP_BYTES:
            self._start(self._checkpoint("TRUNCATE"))
        return done

    async def _commit_session(
        self, commit: Commit, carried: Carried, carry_changes: int
    ) -> Done[list[CommitResult | SynclineError]]:
        assert isinstance(commit.write, SessionCommit)
        session_id = commit.write.session_id
        arguments: dict[str, Any] = {"now_us": self.clock.now_us(), "random_bytes": self._random_bytes}
        async with self._staging.frozen(session_id) as uri:
            if uri is None:  # a stream session, or one that has ended: the transaction says what that means
                return await self._writer.transact(
                    sessions.commit_session, commit, carried, carry_changes, **arguments
                )
            done = await self._writer.attached(
                (uri, "staged"), sessions.commit_session, commit, carried, carry_changes, **arguments
            )
            if isinstance(done.value[0], CommitResult) and not commit.dry_run:
                await self._staging.forget(session_id)
        return done

    async def find_answer(self, identity: RequestIdentity) -> CommitResult | None:
        """See Store."""
        found = await self._readers.read(requests.find_answer, identity.request_id)
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
        return await self._detached(self._open_session(session, identity))

    async def _open_session(self, session: Session, identity: RequestIdentity | None) -> Session:
        opened: sessions.Opened = await self._write(sessions.open_session, session, identity)
        if opened.replayed:
            return self._staging.counted(opened.session)
        self._staging.add(opened.session)
        await self._staging.discard(opened.superseded)
        return opened.session

    async def get_session(self, session_id: str, *, source_number: int) -> Session:
        """See Store."""
        session = await self._readers.read(sessions.session_by_id, session_id, source_number)
        return self._staging.counted(session)

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
            self._staging.keep(
                session_id, write, source_number=source_number, sequence=sequence, identity=identity
            )
        )

    async def prepare_session(self, session_id: str) -> None:
        """See Store."""
        if self._staging.holds(session_id):
            await self._detached(self._staging.prepare(session_id))

    async def discard_session(
        self, session_id: str, *, source_number: int, identity: RequestIdentity | None = None
    ) -> int:
        """See Store."""
        return await self._detached(self._discard_session(session_id, source_number, identity))

    async def _discard_session(
        self, session_id: str, source_number: int, identity: RequestIdentity | None
    ) -> int:
        revision = await self._write(sessions.discard_session, session_id, source_number, identity)
        await self._staging.discard([session_id])
        return revision

    async def expire_sessions(self, *, now_us: int, lease: Lease | None = None) -> int:
        """See Store."""
        return await self._detached(self._expire_sessions(now_us, lease))

    async def _expire_sessions(self, now_us: int, lease: Lease | None) -> int:
        expired = [
            session.session_id
            for session in self._staging.sessions()
            if session.expire_time_us is not None and session.expire_time_us <= now_us
        ]
        if not expired and not await self._readers.read(sessions.expires_streams):
            await self._on_writer(self._nodes.check_lease, lease)
            return 0
        ended = await self._fenced(lease, sessions.expire, expired, now_us)
        await self._staging.discard(expired)
        return ended

    async def count_sessions(self) -> int:
        """See Store."""
        return await self._readers.read(sessions.count_sessions)

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
        return await self._readers.read(
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
        return await self._readers.read(
            named_changes.read_named_changes,
            dataset_number,
            record_ids,
            after=after,
            through_revision=through_revision,
            max_bytes=max_bytes,
            seen_revision=seen_revision,
        )

    async def read_head(self, dataset_number: int) -> Head:
        """See Store."""
        return await self._readers.read(reads.read_head, dataset_number)

    async def get_records(
        self, dataset_number: int, record_ids: Sequence[str], *, max_bytes: int
    ) -> tuple[Sequence[Record], Sequence[str], int]:
        """See Store."""
        return await self._readers.read(reads.get_records, dataset_number, record_ids, max_bytes=max_bytes)

    async def list_records(
        self, dataset_number: int, *, after: str, limit: int, max_bytes: int
    ) -> tuple[Sequence[Record], bool, int]:
        """See Store."""
        return await self._readers.read(
            reads.list_records, dataset_number, after=after, limit=limit, max_bytes=max_bytes
        )

    async def list_entries(
        self, dataset_number: int, *, after: str, through: str = "", limit: int
    ) -> EntryPage:
        """See Store."""
        return await self._readers.read(
            entries.list_entries, dataset_number, after=after, through=through, limit=limit
        )

    async def count_entries(self, dataset_number: int, *, after: str, through: str = "") -> int:
        """See Store."""
        return await self._readers.read(entries.count_entries, dataset_number, after=after, through=through)

    async def list_heads(self, *, after: str = "", limit: int) -> Sequence[tuple[str, bytes, int, Head]]:
        """See Store."""
        return await self._readers.read(entries.list_heads, after=after, limit=limit)

    async def revision_times(self, dataset_number: int, revisions: Sequence[int]) -> Sequence[int]:
        """See Store."""
        return await self._readers.read(entries.revision_times, dataset_number, revisions)

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
        done = await self._writer.transact(
            producers.open_producer,
            source_number,
            producer_id,
            epoch=epoch,
            previous_epoch=previous_epoch,
            dry_run=dry_run,
            identity=identity,
            now_us=self.clock.now_us(),
        )
        return done.value

    async def get_producer(self, source_number: int, producer_id: str) -> Producer:
        """See Store."""
        return await self._readers.read(producers.producer_by_id, source_number, producer_id)

    async def list_producers(self, source_number: int, *, after: str = "", limit: int) -> Sequence[Producer]:
        """See Store."""
        return await self._readers.read(producers.producers_after, source_number, after, limit)

    async def delete_producer(
        self, source_number: int, producer_id: str, *, identity: RequestIdentity | None = None
    ) -> None:
        """See Store."""
        await self._write(producers.delete_producer, source_number, producer_id, identity)

    # -- replicas -----------------------------------------------------------------------------------------

    async def report_replicas(self, reports: Sequence[Replica]) -> None:
        """See Store."""
        await self._writer.transact(replicas.report, reports)

    async def list_replicas(self, dataset_number: int, *, reported_since_us: int = 0) -> Sequence[Replica]:
        """See Store."""
        return await self._readers.read(
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
        now_us = self.clock.now_us()
        return await self._on_writer(self._nodes.acquire_lease, name, holder, seconds, now_us=now_us)

    async def release_lease(self, lease: Lease) -> None:
        """See Store."""
        await self._on_writer(self._nodes.release_lease, lease)

    async def report_node(self, node: Node) -> None:
        """See Store."""
        await self._on_writer(self._nodes.report_node, node, now_us=self.clock.now_us())

    async def remove_node(self, node_id: str) -> None:
        """See Store."""
        await self._on_writer(self._nodes.remove_node, node_id)

    async def list_nodes(self, *, reported_since_us: int = 0) -> Sequence[Node]:
        """See Store."""
        return await self._on_writer(self._nodes.list_nodes, reported_since_us=reported_since_us)

    async def _on_writer(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what is about this process on the writer's thread, so that it is never inside a transaction."""
        return await self._writer.outside(lambda _: work(*args, **kwargs))

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
        wanted = await self._readers.read(
            upkeep.newest_before, dataset_number, before_us=before_us, min_revisions=min_revisions
        )
        if not_beyond is not None:
            wanted = min(wanted, not_beyond)
        return await self._fenced(lease, upkeep.purge, dataset_number, wanted, max_tombstones)

    async def maintain(self) -> None:
        """See Store. Checkpoints the WAL, removes what deleted datasets left, closes idle files."""
        idle = self._maintained_at == self._writer.transactions
        if await self._readers.read(upkeep.has_deleted):
            idle = False
            for _ in range(RECLAIM_STEPS):
                if not await self._free(upkeep.reclaim):
                    break
        await self._staging.close_idle()
        self._maintained_at = self._writer.transactions
        size = self._writer.wal_bytes()
        if size > WAL_CAP_BYTES or (idle and size):
            await self._checkpoint("TRUNCATE")
        elif size > CHECKPOINT_BYTES:
            await self._checkpoint("PASSIVE")
        if not self._writer.full:
            load_ballast(self._files)

    async def _checkpoint(self, mode: str) -> None:
        await self._writer.outside(upkeep.checkpoint, mode)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_ignoring_trouble(work))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def probe(self) -> None:
        """See Store."""
        self._writer.check()
        free = free_bytes(self._files.database.parent)
        if free < RESERVE_BYTES:
            raise store_full(f"{free} bytes are free")
        await self._writer.outside(upkeep.try_lock)


async def _ignoring_trouble(work: Coroutine[Any, Any, None]) -> None:
    """What a checkpoint meets, the next commit meets as well, and tells its caller."""
    with suppress(SynclineError):
        await work
