"""The SQLite store: the contract's methods, each a function handed to the writer's or a reader's thread."""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from syncline_server import failpoints
from syncline_server.clock import Clock
from syncline_server.errors import SynclineError, Unimplemented
from syncline_server.model import (
    Appended,
    Commit,
    CommitResult,
    Dataset,
    Deletes,
    Head,
    Key,
    Page,
    Record,
    RequestIdentity,
    Session,
    SessionCommit,
    Source,
    Upserts,
)
from syncline_server.store.abc import GroupResult, PurgeResult, StagedCall, Store, StoreInfo
from syncline_server.store.sqlite import catalog, reads, requests
from syncline_server.store.sqlite.connection import WRITER, connect, run_on
from syncline_server.store.sqlite.files import (
    StoreFiles,
    exclusive_lock,
    load_ballast,
    refuse_network_file_system,
)
from syncline_server.store.sqlite.group import Carried, commit_group
from syncline_server.store.sqlite.plan import check_fingerprint
from syncline_server.store.sqlite.readers import Readers
from syncline_server.store.sqlite.schema import append_history, apply_migration, missing_migrations
from syncline_server.store.sqlite.writer import Writer

T = TypeVar("T")

READER_CONNECTIONS: Final = 2


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    clock: Clock,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    reader_connections: int = READER_CONNECTIONS,
) -> AsyncIterator["SqliteStore"]:
    """Open the store in the file ``path``, made when it is not there, and own it until the block ends.

    Raises StoreRefused when it cannot be used: another process has it, its schema is newer, its file system
    is not local, a pragma is not in force.
    """
    files = StoreFiles(database=path)
    async with AsyncExitStack() as stack:
        refuse_network_file_system(path)
        files.prepare()
        stack.enter_context(exclusive_lock(files))
        connection = await connect(path, WRITER, mode="rw")
        stack.push_async_callback(connection.close)
        for migration in await run_on(connection, missing_migrations):
            await run_on(connection, apply_migration, migration, now_us=clock.now_us())
        writer = Writer(connection, path, clock)
        opened = await writer.transact(append_history, "open", random_bytes, now_us=clock.now_us())
        load_ballast(files)
        readers = await stack.enter_async_context(Readers.open(path, connections=reader_connections))
        store = SqliteStore(
            info=opened.value,
            files=files,
            writer=writer,
            readers=readers,
            clock=clock,
            random_bytes=random_bytes,
        )
        stack.push_async_callback(store.finish)
        yield store


class SqliteStore(Store):
    """A store in one SQLite file. Made by ``open_store``."""

    def __init__(
        self,
        *,
        info: StoreInfo,
        files: StoreFiles,
        writer: Writer,
        readers: Readers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.info = info
        self.failed = writer.failed
        """Set when the process should end and be started again: what became of a write is not known."""
        self._files = files
        self._writer = writer
        self._readers = readers
        self._clock = clock
        self._random_bytes = random_bytes
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self) -> None:
        """Wait for whatever outlived its caller."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _detached(self, work: Coroutine[Any, Any, T]) -> T:
        """Await several steps that belong together; a caller that is cancelled leaves them running."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _write(self, work: Callable[..., T], *args: Any) -> T:
        """One transaction of the catalog."""
        done = await self._writer.transact(work, *args, now_us=self._clock.now_us())
        return done.value

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
        return await self._readers.read(catalog.source_by_id, dataset_id, source_id)

    async def list_sources(self, dataset_id: str, *, after: str = "", limit: int) -> Sequence[Source]:
        """See Store."""
        return await self._readers.read(catalog.sources_after, dataset_id, after, limit)

    async def update_source(
        self, source: Source, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Source:
        """See Store."""
        return await self._write(catalog.update_source, source, expected_generation, identity)

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

    async def commit(self, commits: Sequence[Commit], *, carry_changes: int = 10_000) -> GroupResult:
        """See Store."""
        carried = Carried(carry_changes)
        done = await self._writer.transact(
            commit_group, commits, carried, now_us=self._clock.now_us(), random_bytes=self._random_bytes
        )
        return GroupResult(
            results=done.value,
            appended=carried.appended(),
            transaction_seconds=done.transaction_seconds,
            sync_seconds=done.sync_seconds,
        )

    async def find_answer(self, identity: RequestIdentity) -> CommitResult | None:
        """See Store."""
        found = await self._readers.read(requests.find_answer, identity.request_id)
        if found is None:
            return None
        check_fingerprint(identity, found[0])
        return found[1]

    async def forget_requests(self, *, before_us: int, limit: int) -> int:
        """See Store."""
        done = await self._writer.transact(requests.forget, before_us=before_us, limit=limit)
        return done.value

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

    # -- not there yet ------------------------------------------------------------------------------------

    async def _missing(self, *_: Any, **__: Any) -> Any:
        raise Unimplemented("NOT_OFFERED", "this version of the store does not offer it")

    rekey = delete_source = open_session = get_session = stage = prepare_session = _missing  # type: ignore[assignment]
    discard_session = expire_sessions = purge = _missing  # type: ignore[assignment]

    async def count_sessions(self) -> int:
        return 0

    async def maintain(self) -> None:
        return

    async def probe(self) -> None:
        return
