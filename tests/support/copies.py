"""Stores with something of everything in them, what is in a store, and copies of them."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from support.store_values import Bench, HeldClock, key, request, source, upserts
from syncline_server.model import (
    ConflictPolicy,
    Identity,
    IdentityKind,
    Key,
    ProducerWrite,
    RecordScope,
    Replica,
    Role,
    SessionMode,
)
from syncline_server.store.abc import Store
from syncline_server.store.copy_places import copy_source, copy_target
from syncline_server.store.copying import CopyReport, copy


class Silent:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, done: int, total: int) -> None:
        self.steps.append((done, total))


async def copied(source: str | Path, target: str | Path, *, wait: bool = False) -> CopyReport:
    """Move a store, as the command does."""
    async with copy_source(str(source)) as old, copy_target(str(target)) as new:
        return await copy(old, new, Silent(), wait=wait)


def database_of(directory: Path) -> Path:
    """The store's file in a data directory."""
    return directory / "syncline.db"


async def fill(store: Store, clock: HeldClock) -> Bench:
    """Something of everything that a store can hold; the bench of its dataset ``books``."""
    books = await Bench.make(store, clock)
    other = await books.second_source()
    await books.put({f"k{n}": n for n in range(30)}, identity=request("first"))
    clock.pass_seconds(1)
    await books.put({f"k{n}": -n for n in range(0, 30, 3)}, identity=request("second"))
    await books.remove("k1", "k4", "k7", identity=request("removed"))
    await other.put({"k2": 2, "k5": 5})  # goes over to the other source, unchanged
    clock.pass_seconds(100)
    await store.purge(
        books.dataset.number, before_us=clock.us - 50_000_000, min_revisions=1, max_tombstones=100
    )
    await books.remove("k8", "k11")
    await books.put({"k8": "again"})

    private = await Bench.make(store, clock, dataset_id="private", record_scope=RecordScope.PER_SOURCE)
    await private.put({"default/é": "ä", "default/\U0001f600": 1})
    gone = await Bench.make(store, clock, dataset_id="gone")
    await store.delete_dataset(gone.dataset.number, expected_generation=None)
    by_content = await Bench.make(
        store,
        clock,
        dataset_id="content",
        identity=Identity(kind=IdentityKind.CONTENT),
        annotations={"a": "b"},
        schema='{"type":"object"}',
    )
    await by_content.put({"c1": 1, "c2": 2})
    await store.delete_source(
        await store.create_source(source(books.dataset, "short")), expected_generation=None
    )

    await store.create_key(key("reader", Role.READ, patterns=("books", "priv*")))
    await store.create_key(
        Key(
            key_id="pusher",
            secret_hash=b"p" * 32,
            role=Role.PUSH,
            dataset_id="books",
            source_id="other",
            source_number=other.source.number,
            create_time_us=clock.us,
            expire_time_us=clock.us + 1,
        )
    )
    producer, _ = await store.open_producer(books.source.number, "p", epoch=0)
    producer, _ = await store.open_producer(books.source.number, "p", epoch=0)
    await books.write(
        upserts(["p-1", "p-2"]),
        producer=ProducerWrite(
            producer_number=producer.number, epoch=producer.epoch, first_sequence=1, last_sequence=2
        ),
    )
    await store.open_producer(books.source.number, "forgotten", epoch=0)
    await store.delete_producer(books.source.number, "forgotten")
    await store.report_replicas(
        [
            Replica(
                dataset_number=books.dataset.number,
                replica_id=name,
                key_id="reader",
                revision=3,
                report_time_us=clock.us,
            )
            for name in ("here", "there")
        ]
    )
    replace = await books.open(SessionMode.REPLACE, conflict_policy=ConflictPolicy.KEEP_NEWER)
    await books.stage(replace, upserts({"k0": 1, "s1": 1, "s2": 2}), identity=request("staged"))
    await books.stage(replace, upserts({"s1": "later"}))
    accrue = await other.open(SessionMode.ACCRUE)
    await other.stage(accrue, upserts({"a1": 1}))
    await private.open(SessionMode.STREAM)
    await by_content.open(SessionMode.REPLACE, identity=request("opened"))  # nothing was sent to it yet
    for _ in range(3):
        await store.maintain()
    return books


def everything(path: Path) -> dict[str, list[Any]]:
    """All rows of all tables of a store's file, and of the files of its open sessions, in words that mean the same."""
    found: dict[str, list[Any]] = {}
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        for (name,) in names.fetchall():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            statement = f"SELECT * FROM {name}"  # noqa: S608 - a name from the schema
            rows = [dict(zip(columns, row, strict=True)) for row in connection.execute(statement)]
            for row in rows:
                _plain(name, row)
            found[name] = sorted((tuple(row.items()) for row in rows), key=repr)
    del found["schema_migration"]
    for file in sorted(path.with_name("staging").glob("*.staged")):
        with closing(sqlite3.connect(file)) as connection:
            found[file.name] = [
                *connection.execute("SELECT calls, records, active_time_us FROM state"),
                *connection.execute("SELECT * FROM call ORDER BY number"),
                *connection.execute(
                    "SELECT max(number), record_id, hash, data FROM action GROUP BY record_id ORDER BY 1"
                ),
            ]
    return found


def _plain(table: str, row: dict[str, Any]) -> None:
    if table == "record" and row["create_time_us"] is None:
        row["create_time_us"] = row["commit_time_us"]
    if table == "session" and row["mode"] != SessionMode.STREAM:
        for column in ("calls", "records", "active_time_us"):  # those of its file count
            del row[column]
