"""What only the store of many nodes has to keep: several nodes, lost answers, strangers, settings, fail-overs."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from support.postgres_cluster import PostgresCluster
from support.postgres_strangers import stranger, waiting_for_a_lock
from support.store_values import Bench, PostgresBackend, deletes, request, upserts
from syncline_server.errors import Aborted, InvalidArgument, SynclineError, Unavailable
from syncline_server.model import CommitResult, SessionMode
from syncline_server.store.abc import Contended, StoreRefused
from syncline_server.store.postgres import PostgresStore, admin, open_store, upkeep
from syncline_server.store.postgres.connection import SETTINGS
from syncline_server.store.postgres.fsck import check_store

pytestmark = pytest.mark.only_store("postgres", reason="nodes that share a database, and its faults")


@pytest.fixture
def postgres(durable: PostgresBackend) -> PostgresBackend:
    return durable


# -- nodes ------------------------------------------------------------------------------------------------


async def test_t19_two_nodes_make_one_order(postgres: PostgresBackend) -> None:
    """T19, T71, G3: both write the same dataset at once; revisions have no gaps, each commit happens once."""
    async with postgres.open() as one, postgres.open() as two:
        first = await Bench.make(one, postgres.clock)
        second = replace(first, store=two)

        async def write(bench: Bench, name: str) -> list[CommitResult | SynclineError]:
            results: list[CommitResult | SynclineError] = []
            for turn in range(20):
                commits = [
                    bench.commit(upserts({f"k{turn % 3}": f'"{name}{turn}"', name: turn})),
                    bench.commit(deletes(f"k{turn % 2}"), identity=request(f"{name}-{turn}")),
                ]
                results += (await bench.group(*commits)).results
            return results

        written = await asyncio.gather(write(first, "a"), write(second, "b"))
        revisions = sorted(r.revision for results in written for r in results if r.changed)
        assert revisions == list(range(1, len(revisions) + 1))
        assert await first.head() == await second.head()
        assert await first.copy() == await second.copy()


async def test_t23_one_effect_over_two_nodes(postgres: PostgresBackend) -> None:
    """T23, G5: the same request on both at once, on one dataset and on two."""
    async with postgres.open() as one, postgres.open() as two:
        first = await Bench.make(one, postgres.clock)
        second = replace(first, store=two)
        other = await Bench.make(two, postgres.clock, dataset_id="other")
        third = await Bench.make(one, postgres.clock, dataset_id="third")
        for turn in range(10):
            same = request(f"same-{turn}")
            results = await asyncio.gather(
                *(bench.put({"a": turn}, identity=same) for bench in (first, second) for _ in range(3))
            )
            assert [r.revision for r in results] == [turn + 1] * 6
            assert sum(not r.replayed for r in results) == 1
            reused = await asyncio.gather(
                third.put({"b": 1}, identity=request(f"reused-{turn}", b"one")),
                other.put({"b": 1}, identity=request(f"reused-{turn}", b"two")),
                return_exceptions=True,
            )
            assert sum(isinstance(r, InvalidArgument) for r in reused) == 1


async def test_a_node_sees_what_another_changed(postgres: PostgresBackend) -> None:
    """Settings, sources, sessions and producers that another node changed count at once."""
    async with postgres.open() as one, postgres.open() as two:
        first = await Bench.make(one, postgres.clock)
        second = replace(first, store=two)
        await first.put(["a"])
        session = await first.open(SessionMode.ACCRUE)
        await second.stage(session, upserts(["b"]))
        await first.stage(session, upserts(["c"]))
        assert (await second.close(session, 2)).created == 2
        changed = await two.update_dataset(replace(first.dataset, display_name="x"), expected_generation=1)
        with pytest.raises(Aborted) as raised:
            await first.put(["d"])
        assert raised.value.reason == "DATASET_CHANGED"
        first.dataset = changed
        producer, _ = await two.open_producer(first.source.number, "p", epoch=0)
        assert await one.get_producer(first.source.number, "p") == producer
        assert one.info.histories == two.info.histories


async def test_migrations_run_once_however_many_nodes_start(postgres: PostgresBackend) -> None:
    """T80: nodes that start together on an empty database; then a newer schema, and another one, are refused."""
    name = f"{postgres.name}_empty"
    postgres.cluster.execute(f"CREATE DATABASE {name}")
    dsn = postgres.cluster.dsn(name)
    assert len(await admin.migrate(dsn, dry_run=True)) >= 2

    async def opened() -> bytes:
        async with open_store(dsn) as store:
            return store.info.history_id

    assert len(set(await asyncio.gather(*(opened() for _ in range(4))))) == 1
    assert await admin.migrate(dsn) == []
    postgres.cluster.execute("UPDATE syncline.schema_migration SET checksum = 'x' WHERE version = 1", name)
    with pytest.raises(StoreRefused, match="not the one of this program"):
        await opened()
    postgres.cluster.execute("INSERT INTO syncline.schema_migration VALUES (999, 'newer', 'x', 0)", name)
    with pytest.raises(StoreRefused, match="newer"):
        await opened()


# -- trouble ----------------------------------------------------------------------------------------------


async def test_f50_a_lost_answer_is_found_under_the_lock(postgres: PostgresBackend) -> None:
    """F50, T73: the connection breaks while the commit waits; the retry waits behind it, and finds its answer."""
    async with postgres.open() as store, stranger(postgres) as other, stranger(postgres) as watcher:
        assert isinstance(store, PostgresStore)
        bench = await Bench.make(store, postgres.clock)
        await bench.put(["a"])
        for turn in range(3):
            async with other.transaction():
                await other.execute("SELECT 1 FROM head FOR UPDATE")
                lost = asyncio.create_task(bench.put({"a": turn + 7}, identity=request(f"r{turn}")))
                await waiting_for_a_lock(watcher, 1)
                for holder in store._database._writers._holders:
                    if holder._in_use is not None:
                        holder._con._transport.abort()
                with pytest.raises(Unavailable) as raised:
                    await lost
                assert raised.value.reason == "STORE_UNAVAILABLE"
                retry = asyncio.create_task(bench.put({"a": turn + 7}, identity=request(f"r{turn}")))
                await waiting_for_a_lock(watcher, 2)
            again = await retry
            assert again.revision == turn + 2, "one effect, whichever of the two made it"
            # The one call goes on without its caller; a transaction of several ends with the connection.
            assert again.replayed is (turn == 0)
        assert (await bench.head()).revision == 4


async def test_t83_a_stranger_with_a_lock_is_waited_for(
    postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T83, F49, G18: after the lock time-out UNAVAILABLE; reads and other datasets go on; then everything works again."""
    monkeypatch.setitem(SETTINGS, "lock_timeout", "200")  # type: ignore[arg-type]
    async with postgres.open() as store, stranger(postgres) as other:
        bench = await Bench.make(store, postgres.clock)
        elsewhere = await Bench.make(store, postgres.clock, dataset_id="elsewhere")
        await bench.put(["a"])
        async with other.transaction():
            await other.execute(
                "SELECT 1 FROM head WHERE dataset_number = $1 FOR UPDATE", bench.dataset.number
            )
            for refused in (bench.put(["b"]), bench.open(), bench.second_source()):
                with pytest.raises(Unavailable) as raised:
                    await refused
                assert raised.value.reason == "STORE_UNAVAILABLE"
            assert set(await bench.copy()) == {"a"}
            await elsewhere.put(["z"])
        assert (await bench.put(["b"])).revision == 2


async def test_t74_terminated_backends_are_replaced(postgres: PostgresBackend) -> None:
    """T74: whatever they were doing; a retry with the same identity has one effect."""
    async with postgres.open() as store, stranger(postgres) as other:
        bench = await Bench.make(store, postgres.clock)
        for turn in range(4):
            task = asyncio.create_task(bench.put({f"k{turn}": 1}, identity=request(f"r{turn}")))
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(10):
                while True:
                    try:
                        await bench.put({f"k{turn}": 1}, identity=request(f"r{turn}"))
                        await bench.copy()
                        break
                    except Unavailable as error:
                        assert error.reason == "STORE_UNAVAILABLE"
            assert (await bench.head()).revision == turn + 1
        await store.probe()
        assert not store.failed.is_set()


async def test_f49_nobody_holds_a_lock_and_sleeps(postgres: PostgresBackend) -> None:
    """F49: every connection has its time-outs, and readers cannot write."""
    async with postgres.open() as store:
        assert isinstance(store, PostgresStore)
        async with store._database.writing() as connection:
            for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                assert await connection.fetchval("SELECT current_setting($1)", name) != "0"
            assert await connection.fetchval("SHOW transaction_isolation") == "read committed"
        with pytest.raises(Unavailable, match="read-only"):
            async with store._database.reading() as connection:
                await connection.execute("DELETE FROM dataset")


async def test_t83_a_group_does_not_wait_for_one_of_its_datasets(postgres: PostgresBackend) -> None:
    """T83: nothing of it is done, and whoever asks for the others alone gets them at once."""
    async with postgres.open() as store, stranger(postgres) as other:
        held = await Bench.make(store, postgres.clock, dataset_id="held")
        free = await Bench.make(store, postgres.clock, dataset_id="free")
        both = (held.commit(upserts(["a"])), free.commit(upserts(["a"])))
        for is_locked_from_the_look_on in (False, True):
            async with other.transaction():
                await other.execute(
                    "SELECT 1 FROM head WHERE dataset_number = $1 FOR UPDATE", held.dataset.number
                )
                assert isinstance(store, PostgresStore)
                store._locked_groups = int(is_locked_from_the_look_on)
                with pytest.raises(Contended):
                    await store.commit(both)
                assert (await free.head()).revision == is_locked_from_the_look_on
                await free.put({"b": int(is_locked_from_the_look_on)})
        assert [r.revision for r in (await store.commit(both)).results] == [1, 3]


async def test_t84_a_transaction_that_stands_still_is_told_of(
    postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T84, F55: what it keeps vacuum from removing grows without a bound."""
    monkeypatch.setattr(upkeep, "OLD_SNAPSHOT_SECONDS", 0.2)
    async with postgres.open() as store, stranger(postgres) as other:
        with capture_logs() as logged:
            await store.maintain()
        assert logged == []
        assert isinstance(store, PostgresStore)
        async with other.transaction(isolation="repeatable_read"):
            pid = await other.fetchval("SELECT pg_backend_pid() FROM head")
            pid = pid or other.get_server_pid()
            await asyncio.sleep(0.25)
            store._look_for_snapshots = 0.0
            with capture_logs() as logged:
                await store.maintain()
                await store.maintain()
        (event,) = logged
        assert (event["event"], event["log_level"]) == ("store.old_snapshot", "warning")
        assert (event["pid"], event["state"]) == (pid, "idle in transaction")


async def test_t84_our_own_transactions_do_not_stand_still(
    postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T84, F49: a node that stops inside one, or is stopped, loses its connection, and with it its locks."""
    monkeypatch.setitem(SETTINGS, "idle_in_transaction_session_timeout", "200")  # type: ignore[arg-type]
    async with postgres.open() as store:
        assert isinstance(store, PostgresStore)
        with pytest.raises(Unavailable) as raised:
            async with store._database.transaction() as connection:
                await connection.execute("UPDATE store SET one = one")
                await asyncio.sleep(0.5)
        assert raised.value.reason == "STORE_UNAVAILABLE"
        await (await Bench.make(store, postgres.clock)).put(["a"])


async def test_f49_a_server_that_is_gone_without_a_word_is_noticed(own_cluster: PostgresCluster) -> None:
    """F49: connections over a network are kept alive, which asyncpg leaves to others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own_cluster.start(listen_addresses="127.0.0.1", port=str(port))
    async with open_store(f"postgresql://postgres@127.0.0.1:{port}/postgres") as store:
        async with store._database.reading() as connection:
            found = connection._transport.get_extra_info("socket")
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10


async def test_f10_a_commit_that_was_not_replicated_is_not_acknowledged(postgres: PostgresBackend) -> None:
    """F10: a wait for the standby that somebody cancels ends in a warning, and the commit is there all the same."""
    async with postgres.open() as store:
        assert isinstance(store, PostgresStore)
        with pytest.raises(Unavailable, match="might not have been replicated"):
            async with store._database.writing() as connection:
                await connection.execute(
                    "DO $$ BEGIN RAISE WARNING 'might not have been replicated to the standby'; END $$"
                )
        bench = await Bench.make(store, postgres.clock)
        await bench.put(["a"])


@pytest.mark.parametrize(
    ("setting", "value"), [("synchronous_commit", "off"), ("default_transaction_read_only", "on")]
)
async def test_f10_a_database_that_is_not_durable_is_refused(
    postgres: PostgresBackend, setting: str, value: str
) -> None:
    postgres.cluster.execute(f"ALTER DATABASE {postgres.name} SET {setting} = {value}")
    try:
        with pytest.raises(StoreRefused, match=setting if value == "off" else "read-only"):
            async with postgres.open():
                pass
    finally:
        postgres.cluster.execute(f"ALTER DATABASE {postgres.name} RESET {setting}")
    async with postgres.open() as store:
        await store.probe()


async def test_a_role_that_may_make_a_schema_is_enough(postgres: PostgresBackend) -> None:
    """No superuser is needed, also not to see system identifier and timeline."""
    name, role = f"{postgres.name}_role", f"{postgres.name}_someone"
    postgres.cluster.execute(f"CREATE ROLE {role} LOGIN")
    postgres.cluster.execute(f"CREATE DATABASE {name}")
    postgres.cluster.execute(f"GRANT CREATE ON DATABASE {name} TO {role}")
    dsn = postgres.cluster.dsn(name).replace("//postgres@", f"//{role}@")
    async with open_store(dsn, clock=postgres.clock) as store:
        bench = await Bench.make(store, postgres.clock)
        session = await bench.open()
        await bench.stage(session, upserts(["a"]))
        await bench.close(session, 1)
        assert set(await bench.copy()) == {"a"}


async def test_what_cannot_be_reached_is_refused(postgres: PostgresBackend) -> None:
    for dsn in (postgres.cluster.dsn("nothing_there"), "postgresql://u@/d?host=/nowhere", "nonsense"):
        with pytest.raises(StoreRefused, match="cannot be reached"):
            async with open_store(dsn):
                pass


async def test_what_is_no_trouble_is_a_mistake(postgres: PostgresBackend) -> None:
    """A wrong statement is not dressed up as a busy server."""
    async with postgres.open() as store:
        assert isinstance(store, PostgresStore)
        with pytest.raises(asyncpg.UndefinedColumnError):
            async with store._database.writing() as connection:
                await connection.execute("SELECT nonsense")
        await (await Bench.make(store, postgres.clock)).put(["a"])


# -- history ----------------------------------------------------------------------------------------------


async def test_g13_a_restore_into_the_same_database_begins_a_history(postgres: PostgresBackend) -> None:
    async with postgres.open() as store:
        bench = await Bench.make(store, postgres.clock)
        await bench.put(["a"])
        await bench.open(SessionMode.ACCRUE)
        before = store.info
    assert await admin.restored(postgres.dsn) == ["books"]
    async with postgres.open() as store:
        assert store.info.history_id not in before.histories
        assert before.history_id in store.info.histories
        assert await store.count_sessions() == 0
    postgres.cluster.execute("UPDATE syncline.head SET record_count = 9", postgres.name)
    with pytest.raises(StoreRefused, match="damaged"):
        await admin.restored(postgres.dsn)
    postgres.cluster.execute("UPDATE syncline.head SET record_count = 1", postgres.name)


@pytest.fixture
def own_cluster() -> Iterator[PostgresCluster]:
    directory = Path(tempfile.mkdtemp(prefix="syncline-pg-"))
    cluster = PostgresCluster(directory)
    try:
        cluster.make()
        yield cluster
    finally:
        cluster.stop("immediate")
        shutil.rmtree(directory)


async def test_f51_another_timeline_is_another_history(own_cluster: PostgresCluster) -> None:
    """F51, T77, G13: refused while a standby; a running node notices the promotion and gives up; then a new history."""
    for setting in ("fsync", "full_page_writes"):
        own_cluster.start(**{setting: "off"})
        with pytest.raises(StoreRefused, match=f"{setting} is off"):
            async with open_store(own_cluster.dsn("postgres")):
                pass
        own_cluster.stop()
    own_cluster.start()
    dsn = own_cluster.dsn("postgres")
    async with open_store(dsn) as store:
        first = store.info
        await store.probe()
        own_cluster.stop("immediate")
        with pytest.raises(Unavailable):
            await store.probe()
        own_cluster.start()
        await store.probe()
        assert not store.failed.is_set(), "the same server, started again"
        own_cluster.stop()
        (own_cluster.data / "standby.signal").touch()
        own_cluster.start()
        with pytest.raises(Unavailable):
            await store.probe()
        with pytest.raises(StoreRefused, match="standby"):
            async with open_store(dsn):
                pass
        own_cluster.run("pg_ctl", "promote", "-D", str(own_cluster.data), "-w")
        with pytest.raises(Unavailable):
            await store.probe()
        assert store.failed.is_set(), "the process is to be started again"
        with pytest.raises(Unavailable, match="restarts"):
            await store.list_datasets(limit=1)
    async with open_store(dsn) as store:
        assert store.info.history_id not in first.histories
        assert first.history_id in store.info.histories
    async with open_store(dsn) as again:
        assert again.info.history_id == store.info.history_id


# -- checks -----------------------------------------------------------------------------------------------


async def test_t16_fsck_finds_what_is_wrong(postgres: PostgresBackend) -> None:
    """T16: each promise broken by hand is noticed, so that the fixture can fail."""
    breakages = {
        "UPDATE record SET data = '{}' WHERE record_id = 'a'": "does not match their hashes",
        "UPDATE entry SET revision = 9 WHERE record_id = 'a'": "does not match its row",
        "DELETE FROM record WHERE record_id = 'b'": "index entries for",
        "DELETE FROM entry WHERE record_id = 'b'": "index entries for",
        "UPDATE head SET digest = decode(repeat('00', 16), 'hex')": "digest",
        "UPDATE head SET record_count = 7": "the head counts 7",
        "UPDATE head SET commit_id = decode(repeat('00', 8), 'hex')": "commit id",
        "DELETE FROM revision WHERE revision = 1": "revisions 2 to 3",
        "UPDATE revision SET commit_time_us = 5 WHERE revision = 2": "commit times decrease",
        "UPDATE head SET purge_revision = 3": "below the purge watermark",
        "UPDATE head SET last_position = 1": "beyond the head",
        "INSERT INTO entry VALUES (77, 'x', 1, 1, 1, 1, NULL)": "orphans: entry",
        "INSERT INTO record VALUES (77, 1, 1, 1, 1, 'x', NULL)": "orphans: record",
        "INSERT INTO staged VALUES (77, 'x', 1, NULL, NULL)": "orphans: staged",
        "DELETE FROM source": "source of record",
        "DELETE FROM head": "dataset without head",
    }
    async with postgres.open() as store:
        bench = await Bench.make(store, postgres.clock)
        await bench.put(["a", "b"])
        await bench.put(["c", "d"])
        await bench.remove("d")
    async with stranger(postgres) as other:
        for statement, expected in breakages.items():
            broken = other.transaction()
            await broken.start()
            await other.execute("SET LOCAL session_replication_role = replica")  # no foreign keys
            await other.execute(statement)
            problems = (await check_store(other, None)).problems
            assert any(expected in problem for problem in problems), (statement, problems)
            await broken.rollback()


# -- a node that dies -------------------------------------------------------------------------------------

NODE = """
import asyncio, sys
from support.store_values import Bench, HeldClock, request, upserts
from syncline_server import failpoints
from syncline_server.model import SessionMode
from syncline_server.store.postgres import open_store

async def main(dsn, points):
    async with open_store(dsn, clock=HeldClock()) as store:
        bench = await Bench.make(store, HeldClock())
        session = await bench.open(SessionMode.ACCRUE)
        failpoints.configure(points)
        for turn in range(10):
            print("try", turn, flush=True)
            await bench.put([f"p{turn}-{i}" for i in range(5)], identity=request(f"r{turn}"))
            await bench.stage(session, upserts([f"s{turn}"]), sequence=turn + 1)
            if turn == 5:
                await bench.remove("p1-0")
                await store.purge(bench.dataset.number, before_us=1 << 60, min_revisions=1, max_tombstones=9)
            print("done", turn, flush=True)
        await bench.close(session, 10, identity=request("close"))
        await store.maintain()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("place", "hit"),
    [
        ("commit.before", 5),
        ("commit.rows", 1),
        ("commit.after", 5),
        ("stage.after", 5),
        ("purge", 1),
        ("session.applied", 1),
        ("reclaim", 1),
    ],
)
async def test_t02_a_node_killed_at_every_named_place(
    postgres: PostgresBackend, place: str, hit: int
) -> None:
    """T02, T45: another node finds what was acknowledged, and the rest whole or not at all."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        NODE,
        postgres.dsn,
        f"{place}=kill@{hit}",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert child.returncode == -signal.SIGKILL, f"{place} was never reached"
    lines = output.decode().split("\n")
    tried = sum(line.startswith("try") for line in lines)
    done = sum(line.startswith("done") for line in lines)
    async with postgres.open() as store:
        found = await store.get_dataset("books")
        bench = Bench(store, postgres.clock, found, await store.get_source("books", "default"))
        copy = await bench.copy()
        for turn in range(tried):
            there = {f"p{turn}-{i}" for i in range(1, 5)} & set(copy)
            assert len(there) == 4 or (not there and turn >= done), "an acknowledged commit is missing"
            again = await bench.put([f"p{turn}-{i}" for i in range(5)], identity=request(f"r{turn}"))
            assert again.replayed is bool(there)
        if await store.count_sessions():
            session = await store.get_session("session-1-1", source_number=bench.source.number)
            assert done <= session.calls <= tried, "an acknowledged call is missing"
            await bench.close(session, session.calls)
        await store.maintain()
