"""Short ways to make the values that store tests need, a clock that stands still, and the backends."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from support.postgres_cluster import shared_cluster
from support.store_model import ModelStore
from syncline_server.model import (
    Commit,
    CommitResult,
    Dataset,
    Deletes,
    Head,
    Identity,
    IdentityKind,
    Key,
    MassDeleteGuard,
    Reason,
    RecordScope,
    RequestIdentity,
    Retention,
    Role,
    Session,
    SessionCommit,
    SessionMode,
    Source,
    Upserts,
)
from syncline_server.store.abc import GroupResult, Store
from syncline_server.store.postgres import open_store as open_postgres
from syncline_server.store.sqlite import open_store
from syncline_server.store.sqlite.fsck import fsck

START_US = 1_800_000_000_000_000


class HeldClock:
    """Moves only when it is told to."""

    def __init__(self) -> None:
        self.us = START_US

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1_000_000

    def pass_seconds(self, seconds: float) -> None:
        self.us += int(seconds * 1_000_000)


class Backend(Protocol):
    """Something that makes stores: opening it again finds what was there."""

    clock: HeldClock
    begins_history_when_opened: bool

    def open(self) -> Any: ...
    def check(self) -> None: ...


class ModelBackend:
    """The reference model itself, so that the oracle keeps the contract too."""

    begins_history_when_opened = False

    def __init__(self, directory: Path) -> None:
        self.clock = HeldClock()
        self._store: ModelStore | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        if self._store is None:
            self._store = ModelStore(self.clock)
        yield self._store

    def check(self) -> None:
        pass


class SqliteBackend:
    """The embedded store."""

    begins_history_when_opened = True

    def __init__(self, directory: Path) -> None:
        self.clock = HeldClock()
        self.path = directory / "data" / "syncline.db"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        async with open_store(self.path, clock=self.clock) as store:
            yield store

    def kept(self) -> bytes:
        """Everything that is on the disk."""
        return b"".join(file.read_bytes() for file in self.path.parent.rglob("*") if file.is_file())

    def check(self) -> None:
        """T16: after every test the file is what it promises to be."""
        if self.path.exists():
            report = fsck(self.path)
            assert report.ok, report.problems


class PostgresBackend:
    """The store of many nodes, in a database of its own on the cluster that the tests share."""

    begins_history_when_opened = False
    """Nodes that open one database share its history."""

    def __init__(self, directory: Path) -> None:
        self.clock = HeldClock()
        self.cluster = shared_cluster()
        self.name = self.cluster.new_database()
        self.dsn = self.cluster.dsn(self.name)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        async with open_postgres(self.dsn, clock=self.clock, reader_connections=2) as store:
            yield store

    def kept(self) -> bytes:
        """Everything that is in the database, as text; bytes in hexadecimal."""
        file = self.cluster.directory / f"{self.name}.sql"
        self.cluster.run("pg_dump", f"--file={file}", f"--dbname={self.dsn}")
        return file.read_bytes()

    def check(self) -> None:
        """T16 for this store."""
        self.cluster.take_back(self.name)


BACKENDS = {"model": ModelBackend, "sqlite": SqliteBackend, "postgres": PostgresBackend}
STORES = ("sqlite", "postgres")
"""Those of them that keep what they have when they are closed: what a server can have."""


@asynccontextmanager
async def opened(store_name: str, directory: Path, *, clock: Any) -> AsyncIterator[Store]:
    """A new one of ``STORES``, on any clock. At the end it is checked for what it left behind."""
    backend = BACKENDS[store_name](directory)
    backend.clock = clock
    async with backend.open() as store:
        yield store
    backend.check()


def dataset(dataset_id: str = "books", **settings: Any) -> Dataset:
    values: dict[str, Any] = {
        "number": 0,
        "dataset_id": dataset_id,
        "incarnation": uuid.uuid4().bytes,
        "generation": 0,
        "identity": Identity(kind=IdentityKind.KEY, key_fields=("isbn",)),
        "record_scope": RecordScope.SHARED,
        "schema": "",
        "display_name": "",
        "description": "",
        "retention": Retention(),
        "annotations": {},
        "create_time_us": START_US,
        "update_time_us": START_US,
        "head": Head(),
    }
    return Dataset(**(values | settings))


def source(of: Dataset, source_id: str) -> Source:
    return Source(
        number=0,
        dataset_number=of.number,
        dataset_id=of.dataset_id,
        source_id=source_id,
        generation=0,
        create_time_us=START_US,
        update_time_us=START_US,
    )


def key(key_id: str, role: Role = Role.ADMIN, **settings: Any) -> Key:
    return Key(key_id=key_id, secret_hash=b"s" * 32, role=role, create_time_us=START_US, **settings)


def body(record_id: str, value: object = 1) -> bytes:
    return f'{{"id":"{record_id}","v":{value}}}'.encode()


def upserts(records: Sequence[str] | dict[str, object], **more: Any) -> Upserts:
    pairs = records.items() if isinstance(records, dict) else [(r, 1) for r in records]
    data = [body(record_id, value) for record_id, value in pairs]
    return Upserts(
        record_ids=[record_id for record_id, _ in pairs],
        data=data,
        hashes=[blake2b(one, digest_size=16).digest() for one in data],
        **more,
    )


def deletes(*record_ids: str) -> Deletes:
    return Deletes(record_ids=record_ids)


def request(name: str, content: bytes = b"same", time_us: int = START_US) -> RequestIdentity:
    return RequestIdentity(
        request_id=name, fingerprint=blake2b(content, digest_size=16).digest(), time_us=time_us
    )


@dataclass(slots=True)
class Bench:
    """A dataset with its default source in an open store, and the common things to do with it."""

    store: Store
    clock: HeldClock
    dataset: Dataset
    source: Source
    sessions: int = field(default=0)

    @classmethod
    async def make(cls, store: Store, clock: HeldClock, **settings: Any) -> "Bench":
        made = await store.create_dataset(dataset(**settings))
        return cls(store, clock, made, await store.get_source(made.dataset_id, "default"))

    def commit(self, write: Any, **more: Any) -> Commit:
        values = {
            "dataset_number": self.dataset.number,
            "generation": self.dataset.generation,
            "source_number": self.source.number,
        }
        return Commit(write=write, **(values | more))

    async def group(self, *commits: Commit, **more: Any) -> GroupResult:
        return await self.store.commit(commits, **more)

    async def write(self, write: Any, **more: Any) -> CommitResult:
        """Commit one write; raise its error."""
        result = (await self.group(self.commit(write, **more))).results[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def put(self, records: Sequence[str] | dict[str, object], **more: Any) -> CommitResult:
        return await self.write(upserts(records), **more)

    async def remove(self, *record_ids: str, **more: Any) -> CommitResult:
        return await self.write(deletes(*record_ids), **more)

    async def head(self) -> Head:
        return await self.store.read_head(self.dataset.number)

    async def page(self, after: int = 0, **limits: Any) -> Any:
        bounds = {"max_changes": 1_000, "max_bytes": 1 << 20} | limits
        return await self.store.read_changes(self.dataset.number, after=after, **bounds)

    async def copy(self) -> dict[str, tuple[int, bytes]]:
        """What somebody who syncs from nothing holds, with small pages."""
        held: dict[str, tuple[int, bytes]] = {}
        after = 0
        while True:
            page = await self.page(after, max_changes=3)
            changes = page.changes
            for record_id, data, revision in zip(
                changes.record_ids, changes.data, changes.revisions, strict=True
            ):
                if data:
                    held[record_id] = (revision, data)
                else:
                    held.pop(record_id, None)
            after = page.last_position
            if page.complete:
                assert page.head.record_count == len(held)
                assert page.head.digest == digest(held)
                return held

    async def second_source(self, source_id: str = "other") -> "Bench":
        made = await self.store.create_source(source(self.dataset, source_id))
        return replace(self, source=made)

    async def open(self, mode: SessionMode = SessionMode.REPLACE, **more: Any) -> Session:
        self.sessions += 1
        values: dict[str, Any] = {
            "session_id": f"session-{self.source.number}-{self.sessions}",
            "dataset_number": self.dataset.number,
            "source_number": self.source.number,
            "mode": mode,
            "allow_mass_delete": False,
            "idle_timeout_us": None if mode is SessionMode.STREAM else 3_600_000_000,
            "create_time_us": self.clock.us,
            "active_time_us": self.clock.us,
        }
        identity = more.pop("identity", None)
        return await self.store.open_session(Session(**(values | more)), identity=identity)

    async def stage(self, session: Session, write: Any, **more: Any) -> Any:
        return await self.store.stage(session.session_id, write, source_number=session.source_number, **more)

    async def close(
        self, session: Session, calls: int, guard: MassDeleteGuard | None = None, **more: Any
    ) -> CommitResult:
        write = SessionCommit(session_id=session.session_id, calls=calls, guard=guard)
        return await self.write(write, **({"reason": Reason.SESSION} | more))


def digest(records: dict[str, tuple[int, bytes]]) -> int:
    """The digest of the contract, from (revision, data) by record id."""
    total = 0
    for record_id, (revision, data) in records.items():
        term = (
            record_id.encode() + b"\0" + revision.to_bytes(8, "big") + blake2b(data, digest_size=16).digest()
        )
        total += int.from_bytes(blake2b(term, digest_size=16).digest(), "big")
    return total % (1 << 128)
