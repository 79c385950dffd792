"""T05…T08, T11, G18: a disk that is full or broken, a database that a stranger holds, a pragma not in force."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import aiosqlite
import pytest

from support.store_values import Bench, SqliteBackend, request, upserts
from syncline_server.errors import ResourceExhausted, SynclineError, Unavailable
from syncline_server.store.abc import StoreRefused
from syncline_server.store.sqlite import connection as connections
from syncline_server.store.sqlite.connection import READER, WRITER, open_plain, run_on


async def test_f39_every_pragma_is_read_back(tmp_path: Path) -> None:
    """F39, M3: SQLite ignores what it cannot do; we refuse to go on."""
    path = tmp_path / "a.db"
    path.touch()
    with closing(open_plain(path, WRITER, mode="rw")) as plain:
        for name, (_, expected) in WRITER.items():
            assert plain.execute(f"PRAGMA {name}").fetchone()[0] == expected
    with pytest.raises(StoreRefused, match="journal_mode"):
        open_plain(path, {"journal_mode": ("nonsense", "nonsense")}, mode="rw")
    with pytest.raises(StoreRefused, match="synchronous"):
        open_plain(path, {"synchronous": ("OFF", 2)}, mode="rw")


async def test_readers_cannot_write(tmp_path: Path) -> None:
    """M1: one connection writes and checkpoints, structurally."""
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        await Bench.make(store, backend.clock)
        with closing(open_plain(backend.path, READER, mode="ro")) as plain:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                plain.execute("DELETE FROM dataset")
            assert plain.execute("PRAGMA synchronous").fetchone() is not None


async def test_aiosqlite_still_has_what_run_on_uses(tmp_path: Path) -> None:
    """`run_on` goes through two private names; if they go, this says so before anything else does."""
    assert asyncio.iscoroutinefunction(aiosqlite.Connection._execute)
    opened = await connections.connect(tmp_path / "a.db", {}, mode="rwc")
    try:
        threads = {
            await run_on(opened, lambda plain, _=i: __import__("threading").get_ident()) for i in range(3)
        }
        assert len(threads) == 1
        assert threads != {__import__("threading").get_ident()}
        assert await run_on(opened, lambda plain: isinstance(plain, sqlite3.Connection))
    finally:
        await opened.close()


async def test_t11_a_stranger_with_a_lock_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T11: after the busy time-out UNAVAILABLE, reads go on, and then everything works again."""
    quick = {"busy_timeout": ("200", 200)}
    monkeypatch.setattr("syncline_server.store.sqlite.opening.WRITER", {**WRITER, **quick})
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put(["a"])
        with closing(sqlite3.connect(backend.path, isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            for refused in (bench.put(["b"]), store.probe(), store.create_dataset(bench.dataset)):
                with pytest.raises(Unavailable) as raised:
                    await refused
                assert raised.value.reason == "STORE_UNAVAILABLE"
            assert set(await bench.copy()) == {"a"}
            stranger.execute("ROLLBACK")
        assert not store.failed.is_set(), "waiting is no reason to restart"
        assert (await bench.put(["b"])).revision == 2
        await store.probe()
    backend.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.root
async def test_t05_a_full_disk_refuses_writes_and_recovers(small_disk: Path) -> None:
    """T05, G18, M5: refused with a reason and a hint, reads go on, nothing acknowledged is lost."""
    backend = SqliteBackend(small_disk)
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put({f"k{i}": 1 for i in range(100)})
        filler = small_disk / "filler"
        acknowledged = 1
        filler.write_bytes(b"")
        with filler.open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4_096)
        refusals = 0
        for turn in range(40):
            try:
                await bench.put(
                    {f"t{turn}-{i}": '"' + "y" * 900 + '"' for i in range(200)}, identity=request(f"r{turn}")
                )
                acknowledged += 1
            except ResourceExhausted as error:
                assert (error.reason, error.retry_after_seconds) == ("STORE_FULL", 5.0)
                refusals += 1
        assert refusals > 0
        with pytest.raises(ResourceExhausted):
            await store.probe()
        assert (await bench.head()).revision == acknowledged
        await bench.copy()
        assert not store.failed.is_set()
        # What frees space still runs: it gets what was held back.
        await bench.store.purge(bench.dataset.number, before_us=1 << 60, min_revisions=0, max_tombstones=9)
        filler.unlink()
        await store.probe()
        assert (await bench.put(["after"])).revision == acknowledged + 1
        await store.maintain()
    backend.check()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("number", [12, 16, 25])
async def test_t07_an_fsync_that_fails_ends_the_process(tmp_path: Path, number: int) -> None:
    """T07, M4, F43: the outcome is unknown, so the store fails for good, and the next start is whole."""
    script = """
import asyncio, sys
from pathlib import Path
from support.store_values import Bench, SqliteBackend
async def main():
    backend = SqliteBackend(Path(sys.argv[1]))
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        for turn in range(40):
            try:
                await bench.put([f"k{turn}"])
                print("acked", turn, flush=True)
            except Exception as error:
                print(type(error).__name__, error.reason, flush=True)
                await asyncio.wait_for(store.failed.wait(), 5)
                try:
                    await bench.put(["no"])
                except Exception as again:
                    print("still", again.reason, flush=True)
                return
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        f"inject=fdatasync:error=EIO:when={number}",
        "python3" if False else __import__("sys").executable,
        "-c",
        script,
        str(tmp_path),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await child.communicate()
    lines = output.decode().splitlines()
    if not lines and b"ptrace" in errors:
        pytest.skip("this machine does not allow ptrace")
    assert lines[-2:] == ["Unavailable STORE_UNAVAILABLE", "still STORE_UNAVAILABLE"], (
        lines,
        errors.decode(),
    )
    acknowledged = [line for line in lines if line.startswith("acked")]
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        found = Bench(
            store, backend.clock, await store.get_dataset("books"), await store.get_source("books", "default")
        )
        copy = await found.copy()
        assert len(copy) in (len(acknowledged), len(acknowledged) + 1)
        assert {f"k{i}" for i in range(len(acknowledged))} <= set(copy)
    backend.check()


async def test_the_wal_is_emptied_when_idle_and_capped_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F42, T12: constant writing without anybody calling `maintain` does not let the WAL grow for ever."""
    monkeypatch.setattr("syncline_server.store.sqlite.store.WAL_CAP_BYTES", 1 << 20)
    backend = SqliteBackend(tmp_path)
    wal = backend.path.with_name("syncline.db-wal")
    largest = 0
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        for turn in range(30):
            await bench.put({f"k{turn}-{i}": '"' + "z" * 500 + '"' for i in range(300)})
            largest = max(largest, wal.stat().st_size)
        assert 1 << 20 < largest < 3 << 20
        await store.maintain()
        await store.maintain()
        assert wal.stat().st_size == 0
        await bench.copy()
    backend.check()


async def test_many_sessions_hold_few_threads(tmp_path: Path) -> None:
    import threading

    from syncline_server.store.sqlite.staging import IDLE_SECONDS, MAX_OPEN_FILES

    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        before = threading.active_count()
        writers = [await bench.second_source(f"s{i}") for i in range(MAX_OPEN_FILES + 12)]
        sessions = [await writer.open() for writer in writers]
        for turn in range(2):
            for writer, session in zip(writers, sessions, strict=True):
                await writer.stage(session, upserts([f"{session.session_id}-{turn}"]))
                backend.clock.pass_seconds(0.01)
        assert threading.active_count() <= before + MAX_OPEN_FILES + 4  # the executor's threads remove files
        backend.clock.pass_seconds(IDLE_SECONDS)
        await store.maintain()
        assert not store._staging._open[sessions[0].session_id].connection
        for writer, session in zip(writers, sessions, strict=True):
            assert (await writer.close(session, 2)).created == 2
        assert len(await bench.copy()) == 2 * len(writers)
    backend.check()


async def test_what_is_no_trouble_is_a_mistake(tmp_path: Path) -> None:
    """A wrong statement is not dressed up as a busy disk."""
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        with pytest.raises(sqlite3.OperationalError) as raised:
            await store._writer.transact(lambda plain: plain.execute("SELECT nonsense"))
        assert not isinstance(raised.value, SynclineError)
        bench = await Bench.make(store, backend.clock)
        await bench.put(["a"])


async def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    backend.path.parent.mkdir()
    backend.path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreRefused, match="not a database"):
        async with backend.open():
            pass
    backend.path.unlink()
    async with backend.open() as store:
        await store.probe()
