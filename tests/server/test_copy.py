"""A whole store moves to another place, and its clients go on there as if nothing had happened (G5, G6, G7, G11, G12)."""

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import asyncpg
import pytest

from examples.local_postgres import run_apart
from support.copies import Silent, copied, database_of, everything
from support.postgres_cluster import PostgresCluster
from support.store_values import Bench, HeldClock, request, upserts
from syncline_server.model import SessionMode
from syncline_server.store import copying
from syncline_server.store.abc import Store, StoreRefused
from syncline_server.store.copy_places import copy_source, copy_target, refuse_same_place
from syncline_server.store.copy_sides import BOOLEANS, CATALOG, REQUEST
from syncline_server.store.copying import copy
from syncline_server.store.postgres import copy_side
from syncline_server.store.postgres import copy_source as postgres_source
from syncline_server.store.postgres import copy_target as postgres_target
from syncline_server.store.postgres import open_store as open_postgres
from syncline_server.store.postgres.connection import single_connection
from syncline_server.store.sqlite import admin, open_store
from syncline_server.store.sqlite.copy_source import SqliteSource
from syncline_server.store.sqlite.files import StoreFiles, exclusive_lock
from syncline_server.store.sqlite.fsck import fsck

pytestmark = pytest.mark.usefixtures("postgres_cluster")


async def test_a_round_trip_over_both_kinds_of_store_gives_the_same_rows(
    tmp_path: Path, filled: Path, new_database: Callable[[], str]
) -> None:
    """All four directions: tombstones, purged and not, identities, sessions with what they hold, numbers used up."""
    before = everything(filled)
    first, second = new_database(), new_database()
    for source, target in (
        (filled.parent, first),
        (first, second),
        (second, tmp_path / "two"),
        (tmp_path / "two", tmp_path / "three"),
    ):
        report = await copied(source, target)
        assert report.datasets == 3
        assert report.rows > report.records > 30
    after = everything(database_of(tmp_path / "three"))
    assert set(before) == set(after)
    for table, rows in before.items():
        assert after[table] == rows, table
    assert fsck(database_of(tmp_path / "three")).ok
    assert filled.with_name("syncline.db.moved").exists()


async def test_every_column_of_both_schemas_is_copied(filled: Path, new_database: Callable[[], str]) -> None:
    """A column that a migration adds has to be said here to be left out, and in copy_sides to be copied."""
    left_out = {"history": {"place"}, "head": {"version"}, "session": {"number"}}
    dsn = new_database()
    async with open_postgres(dsn):
        pass
    async with single_connection(dsn) as connection, copy_source(str(filled)) as source:
        for table in (*CATALOG, REQUEST):
            rows = await connection.fetch(
                "SELECT attname, atttypid::regtype::text AS type FROM pg_attribute"
                " WHERE attrelid = $1::regclass AND attnum > 0",
                table.name,
            )
            columns = {row[0] for row in rows}
            assert columns - left_out.get(table.name, set()) == set(table.columns), table.name
            assert {row[0] for row in rows if row["type"] == "boolean"} <= BOOLEANS
            assert await source.rows(table, None), f"{table.name} is empty in this test"
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'syncline'::regnamespace"
        )
    apart = {"store", "record", "entry", "revision", "staged", "staged_call"}
    of_nodes_and_upkeep = {"schema_migration", "deleted_dataset", "ended_session", "lease", "node"}
    copied_whole = {table.name for table in (*CATALOG, REQUEST)}
    assert {row[0] for row in tables} == copied_whole | apart | of_nodes_and_upkeep


class Between(Silent):
    """Does something at the moment of the check, when most has been copied."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def say(self, line: str) -> None:
        super().say(line)
        if line == "checking the copy":
            self._act()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_g7_what_changes_meanwhile_is_followed(
    tmp_path: Path, filled: Path, new_database: Callable[[], str], kind: str
) -> None:
    """Updates, deletes, owners that change alone, purges, datasets and sessions that go, between two passes."""
    source = str(filled)
    if kind == "postgres":
        source = new_database()
        await copied(filled, source)
    clock = HeldClock()
    clock.pass_seconds(1_000)

    async def change() -> None:
        opened = open_store(filled, clock=clock) if kind == "sqlite" else open_postgres(source, clock=clock)
        async with opened as store:
            dataset = await store.get_dataset("books")
            books = Bench(store, clock, dataset, await store.get_source("books", "default"))
            other = Bench(store, clock, dataset, await store.get_source("books", "other"))
            await books.put({"k0": "newer", "new": 1}, identity=request("meanwhile"))
            await other.put({"k6": -6, "k9": -9})  # unchanged, so they only go over
            await books.remove("k12")
            clock.pass_seconds(1_000)
            await store.purge(
                dataset.number, before_us=clock.us - 500_000_000, min_revisions=1, max_tombstones=100
            )
            await books.put({"k12": "back"})
            await store.delete_dataset((await store.get_dataset("content")).number, expected_generation=None)
            await store.discard_session("session-2-1", source_number=other.source.number)
            await store.forget_requests(before_us=clock.us + 10**13, limit=1)
            await store.delete_key("reader", expected_generation=None)
            for _ in range(3):
                await store.maintain()

    def act() -> None:
        run_apart(change())

    target = tmp_path / "two"
    async with copy_source(source) as old, copy_target(str(target)) as new:
        await copy(old, new, Between(act), wait=False)
    await assert_equal(source, target, tmp_path)


async def assert_equal(source: str, target: Path, directory: Path) -> None:
    """What was set aside is what is in the new store, row by row."""
    if source.startswith("postgresql:"):  # compared through another copy, with nothing going on
        async with single_connection(source) as connection:
            moved = await connection.fetchval(
                "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'syncline_moved_')"
            )
            await connection.execute(f"ALTER SCHEMA {moved} RENAME TO syncline")
        await copied(source, directory / "moved")
        before = everything(database_of(directory / "moved"))
    else:
        before = everything(StoreFiles(database=Path(source)).moved)
    after = everything(database_of(target))
    numbers = {dict(row)["number"] for row in after["dataset"]}
    for side in (before, after):
        side["deleted_dataset"].clear()  # upkeep removes their rows
        for table in ("record", "entry", "revision"):
            side[table] = [row for row in side[table] if _number(table, dict(row)) in numbers]
    for table, rows in before.items():
        assert after[table] == rows, table
    assert fsck(database_of(target)).ok


def _number(table: str, row: dict[str, int]) -> int:
    return row["slot"] >> 40 if table == "record" else row["dataset_number"]


class Throughout(Silent):
    """Does something whenever a batch has been copied, a limited number of times."""

    def __init__(self, act: Callable[[], None], times: int) -> None:
        super().__init__()
        self._act = act
        self._times = times

    def progress(self, done: int, total: int) -> None:
        super().progress(done, total)
        if self._times > 0:
            self._times -= 1
            self._act()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("round_", range(4))
async def test_g7_whatever_happens_between_two_batches(
    tmp_path: Path,
    filled: Path,
    new_database: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    round_: int,
) -> None:
    """Random writes of all kinds while a copy in very small batches goes on, is interrupted and begun again."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    source = str(filled)
    if kind == "postgres":
        source = new_database()
        await copied(filled, source)
    monkeypatch.setattr(copying, "BATCH_ROWS", 3)
    monkeypatch.setattr(copying, "LITTLE_SECONDS", 0.0)
    monkeypatch.setattr(copying, "MAX_PASSES", 4)
    clock = HeldClock()
    clock.pass_seconds(1_000)

    async def change() -> None:
        opened = open_store(filled, clock=clock) if kind == "sqlite" else open_postgres(source, clock=clock)
        async with opened as store:
            for _ in range(rng.randrange(1, 4)):
                await disturb(store, clock, rng)

    opened_sides: list[SqliteSource] = []

    def act() -> None:
        if opened_sides and opened_sides[-1]._connection.in_transaction:
            return  # a writer that closes waits for readers, and these wait for it here
        run_apart(change())
        if rng.random() < 0.1:
            raise InterruptedError

    target = tmp_path / "two"
    reporter = Throughout(act, times=25)
    while True:
        with suppress(InterruptedError):
            async with copy_source(source) as old, copy_target(str(target)) as new:
                if isinstance(old, SqliteSource):
                    opened_sides.append(old)
                await copy(old, new, reporter, wait=False)
            break
    await assert_equal(source, target, tmp_path)


async def disturb(store: Store, clock: HeldClock, rng: random.Random) -> None:
    """One thing that somebody may do to a store that ``fill`` has filled."""
    clock.pass_seconds(rng.choice([0, 1, 100]))
    dataset = await store.get_dataset("books")
    source = await store.get_source("books", rng.choice(["default", "other"]))
    bench = Bench(store, clock, dataset, source, sessions=rng.randrange(1 << 30))
    names = rng.sample([f"k{n}" for n in range(30)], rng.randrange(1, 6))
    match rng.randrange(8):
        case 0 | 1 | 2:
            values = {name: rng.randrange(3) for name in names}
            await bench.put(values, identity=request(f"r{rng.random()}", time_us=clock.us))
        case 3:
            await bench.remove(*names)
        case 4:
            await store.purge(dataset.number, before_us=clock.us - 1, min_revisions=1, max_tombstones=3)
        case 5:
            session = await bench.open(rng.choice([SessionMode.ACCRUE, SessionMode.REPLACE]))
            await bench.stage(session, upserts({name: rng.randrange(3) for name in names}))
            match rng.randrange(3):
                case 0:
                    await bench.close(session, 1)
                case 1:
                    await store.discard_session(session.session_id, source_number=source.number)
        case 6:
            producer, _ = await store.open_producer(source.number, rng.choice("pqr"), epoch=0)
            if rng.random() < 0.3:
                await store.delete_producer(source.number, producer.producer_id)
        case 7:
            made = await Bench.make(store, clock, dataset_id=f"d{rng.randrange(1 << 30)}")
            await made.put(names)
            if rng.random() < 0.5:
                await store.delete_dataset(made.dataset.number, expected_generation=None)


# -- what is refused ------------------------------------------------------------------------------------------


async def test_what_cannot_be_copied_is_refused_and_left_alone(
    tmp_path: Path, filled: Path, new_database: Callable[[], str]
) -> None:
    database, other = new_database(), new_database()
    with pytest.raises(StoreRefused, match="does not exist"):
        await copied(tmp_path / "nothing", database)
    with pytest.raises(StoreRefused, match="no store in"):
        await copied(database, tmp_path / "x")
    async with open_postgres(other) as store:
        await Bench.make(store, HeldClock())
    with pytest.raises(StoreRefused, match="holds a store already"):
        await copied(filled, other)
    busy = StoreFiles(database=tmp_path / "busy.db")
    with pytest.raises(StoreRefused, match="is in use by another process"), exclusive_lock(busy):
        await copied(filled, busy.database)
    with pytest.raises(StoreRefused, match="stop the server"), exclusive_lock(StoreFiles(database=filled)):
        await copied(filled, database)
    with pytest.raises(StoreRefused, match="unfinished copy of another store"):
        await copied(other, database)
    with pytest.raises(StoreRefused, match="unfinished copy of a store: run syncline-server copy again"):
        async with open_postgres(database):
            pass
    with pytest.raises(StoreRefused, match="a directory of its own"):
        refuse_same_place(str(filled), str(filled.with_name("other.db")))
    await copied(filled, database)
    with pytest.raises(StoreRefused, match="moved away from here"):
        async with open_store(filled, clock=HeldClock()):
            pass
    for tool in (fsck, admin.migrate):
        with pytest.raises(StoreRefused, match="moved away from here"):
            tool(filled)
    with pytest.raises(StoreRefused, match="moved away from here"):
        admin.backup(filled, filled.with_name("backup"))


async def test_a_store_that_lost_commits_is_not_mixed_with_what_it_was(
    tmp_path: Path, filled: Path, new_database: Callable[[], str]
) -> None:
    """A backup was restored between two runs: same store, other contents."""
    backup = tmp_path / "backup.db"
    admin.backup(filled, backup)
    clock = HeldClock()
    async with open_store(filled, clock=clock) as store:
        dataset = await store.get_dataset("books")
        books = Bench(store, clock, dataset, await store.get_source("books", "default"))
        await books.put({"lost": 1})
    database = new_database()
    with pytest.raises(StoreRefused, match="stop the server"), exclusive_lock(StoreFiles(database=filled)):
        await copied(filled, database)
    admin.restore(backup, filled)
    with pytest.raises(StoreRefused, match="lost commits since this copy began"):
        await copied(filled, database)


async def test_damage_is_not_copied(filled: Path, tmp_path: Path, new_database: Callable[[], str]) -> None:
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute("UPDATE record SET data = CAST('{}' AS BLOB) WHERE record_id = 'k5'")
    with pytest.raises(StoreRefused, match="the copy is damaged: dataset books: the data of 1 records"):
        await copied(filled, new_database())
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute("UPDATE entry SET hash = zeroblob(16) WHERE record_id = 'k5'")
    with pytest.raises(StoreRefused, match="the copy of dataset books has"):
        await copied(filled, tmp_path / "two")
    assert filled.exists()


async def test_two_copies_at_once(
    filled: Path, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_target, "ALONE_SECONDS", 1)
    database = new_database()
    async with copy_target(database):
        with pytest.raises(StoreRefused, match="another copy to this database is running"):
            await copied(filled, database)


async def test_a_pooler_that_drops_settings_is_noticed(
    filled: Path, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is meant for the unfinished schema must not get into that of a store."""
    monkeypatch.setattr(copy_side, "single_connection", lambda dsn, _: single_connection(dsn))
    with pytest.raises(StoreRefused, match="not through a pooler"):
        await copied(filled, new_database())


async def test_a_role_without_the_right_is_told_so(
    filled: Path, new_database: Callable[[], str], postgres_cluster: PostgresCluster
) -> None:
    database = new_database()
    postgres_cluster.execute("CREATE ROLE copier LOGIN")
    with pytest.raises(
        StoreRefused, match="run it as the owner of the store, or GRANT CREATE ON DATABASE"
    ) as refused:
        await copied(filled, database.replace("//postgres@", "//copier:pass-word@"))
    assert "pass-word" not in str(refused.value)


async def test_a_long_transaction_is_waited_for(
    tmp_path: Path, filled: Path, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds a table for long: others get their turn between the attempts, and the copy ends after it."""
    monkeypatch.setattr(postgres_source, "LOCK_PAUSE_SECONDS", 0.1)
    database = new_database()
    await copied(filled, database)
    reporter = Silent()
    stranger = await asyncpg.connect(database)
    async with copy_source(database) as old, copy_target(str(tmp_path / "two")) as new:
        transaction = stranger.transaction()
        await transaction.start()
        await stranger.execute("LOCK TABLE syncline.replica IN ROW EXCLUSIVE MODE")
        copying = asyncio.create_task(copy(old, new, reporter, wait=False))
        while not any("waiting for a long transaction" in line for line in reporter.lines):
            await asyncio.sleep(0.05)
        await transaction.rollback()
        await stranger.close()
        assert (await copying).datasets == 3


async def test_a_reader_of_the_old_file_is_not_left_without_it(tmp_path: Path, filled: Path) -> None:
    """Somebody looks into the file with a tool: its WAL cannot go, so the copy waits for another time."""
    with closing(sqlite3.connect(filled, isolation_level=None)) as tool:
        tool.execute("BEGIN")
        tool.execute("SELECT * FROM store").fetchall()
        with pytest.raises(StoreRefused, match="is read by another process; end it and run this again"):
            await copied(filled, tmp_path / "two")
    assert filled.exists()
    await copied(filled, tmp_path / "two")
    there = tmp_path / "two"
    await copied(there, tmp_path / "three")
    await copied(tmp_path / "three", there)  # where one was moved away from before
    await copied(there, tmp_path / "four")
    assert len(list(there.glob("syncline.db.moved*"))) == 2
    with pytest.raises(StoreRefused, match=r"four/syncline\.db has it"):
        await copied(there, tmp_path / "four")
