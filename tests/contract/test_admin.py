"""T15, T13, G13: backup, restore, and files that somebody else has touched."""

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from support.store_values import Bench, SqliteBackend, request, upserts
from syncline_server.model import SessionMode
from syncline_server.store.abc import StoreRefused
from syncline_server.store.sqlite import admin
from syncline_server.store.sqlite.files import StoreFiles, file_system_of
from syncline_server.store.sqlite.fsck import fsck


async def test_t15_a_backup_of_a_running_store_is_one_snapshot(tmp_path: Path) -> None:
    """T15: commits go on meanwhile; what was acknowledged before is in it."""
    backend = SqliteBackend(tmp_path)
    copy = tmp_path / "backup.db"
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put([f"k{i}" for i in range(3_000)], identity=request("r"))
        seen: list[tuple[int, int]] = []
        admin.backup(backend.path, copy, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        await bench.put(["later"])
        assert fsck(backend.path).ok
    report = fsck(copy)
    assert report.ok, report.problems
    assert [(d.dataset_id, d.revision, d.record_count) for d in report.datasets] == [("books", 1, 3_000)]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with pytest.raises(StoreRefused, match="never overwrites"):
        admin.backup(backend.path, copy)
    with pytest.raises(StoreRefused, match="does not exist"):
        admin.backup(tmp_path / "nothing.db", tmp_path / "b.db")


async def test_g13_a_restore_begins_a_new_history(tmp_path: Path) -> None:
    """T15, T57: histories after the backup are unknown, so their tokens RESET; retries are as restored."""
    backend = SqliteBackend(tmp_path)
    copy = tmp_path / "backup.db"
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put(["a"], identity=request("before"))
        await bench.open(SessionMode.ACCRUE)
        admin.backup(backend.path, copy)
        await bench.put(["lost"], identity=request("after"))
        lost_commit = (await bench.head()).commit_id
    async with backend.open() as store:
        lost_history = store.info.history_id
        with pytest.raises(StoreRefused, match="in use"):
            admin.restore(copy, backend.path)
    assert admin.restore(copy, backend.path) == ["books"]
    async with backend.open() as store:
        bench = Bench(store, backend.clock, bench.dataset, bench.source)
        assert set(await bench.copy()) == {"a"}
        assert lost_history not in store.info.histories
        assert await store.count_sessions() == 0
        assert (await bench.put(["a"], identity=request("before"))).replayed
        assert not (await bench.put(["other"], identity=request("after"))).replayed
        page = await bench.page(seen_revision=2)
        assert page.seen_commit_id != lost_commit, "the revision was given out again, to another commit"
    assert fsck(copy).ok, "the backup is as it was"
    backend.check()


async def test_a_damaged_backup_is_refused_and_nothing_happens(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put([f"k{i}" for i in range(500)])
    copy = tmp_path / "backup.db"
    admin.backup(backend.path, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("UPDATE record SET data = CAST('{}' AS BLOB) WHERE record_id = 'k7'")
    with pytest.raises(StoreRefused, match="damaged"):
        admin.restore(copy, backend.path)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(os.urandom(8_192))
    with pytest.raises(StoreRefused):
        admin.restore(garbage, backend.path)
    with pytest.raises(StoreRefused, match="does not exist"):
        admin.restore(tmp_path / "nothing", backend.path)
    assert not list(backend.path.parent.glob("*.restoring*"))
    backend.check()
    async with backend.open() as store:
        assert (await store.get_dataset("books")).head.record_count == 500


async def test_a_restore_into_an_empty_place(tmp_path: Path) -> None:
    backend, other = SqliteBackend(tmp_path / "one"), SqliteBackend(tmp_path / "two")
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put(["a"])
    admin.backup(backend.path, tmp_path / "b.db")
    admin.restore(tmp_path / "b.db", other.path)
    async with other.open() as store:
        assert (await store.get_dataset("books")).head.record_count == 1
    other.check()


async def test_t13_a_stale_wal_is_removed_by_restore(tmp_path: Path) -> None:
    """T13, F47: the WAL of the lost database beside the restored one would destroy it."""
    backend = SqliteBackend(tmp_path)
    copy = tmp_path / "backup.db"
    wal = backend.path.with_name("syncline.db-wal")
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put(["a"])
        admin.backup(backend.path, copy)
        await bench.put([f"lost{i}" for i in range(300)])
        stale = wal.read_bytes()
    assert stale
    wal.write_bytes(stale)
    admin.restore(copy, backend.path)
    assert not wal.exists()
    async with backend.open() as store:
        assert set(await Bench(store, backend.clock, bench.dataset, bench.source).copy()) == {"a"}
    backend.check()


@pytest.mark.parametrize("surgery", ["no shm", "no wal", "truncated wal", "foreign wal", "garbage shm"])
async def test_t13_files_that_somebody_touched(tmp_path: Path, surgery: str) -> None:
    """T13: either what was acknowledged is there, or an older whole state is; never half a commit."""
    backend = SqliteBackend(tmp_path / "a")
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        await bench.put(["a", "b"])
        await store.maintain()
        await store.maintain()  # idle: everything is in the database now
        await bench.put(["c", "d"])
        crashed = tmp_path / "crashed"
        shutil.copytree(backend.path.parent, crashed)
    backend.path = crashed / "syncline.db"
    wal, shm = StoreFiles(database=backend.path).side_files
    expected = {"a", "b", "c", "d"}
    if surgery == "no shm":
        shm.unlink()
    elif surgery == "no wal":
        wal.unlink()
        expected = {"a", "b"}
    elif surgery == "truncated wal":
        wal.write_bytes(wal.read_bytes()[:-100])
        expected = {"a", "b"}
    elif surgery == "foreign wal":
        other = SqliteBackend(tmp_path / "other")
        async with other.open() as store:
            await Bench.make(store, other.clock)
            wal.write_bytes(other.path.with_name("syncline.db-wal").read_bytes()[:32] + os.urandom(9_000))
        expected = {"a", "b"}
    else:
        shm.write_bytes(os.urandom(32_768))
    async with backend.open() as store:
        found = Bench(store, backend.clock, bench.dataset, bench.source)
        assert set(await found.copy()) == expected
        await found.put(["e"])
    backend.check()


async def test_everything_is_private(tmp_path: Path) -> None:
    """Threat 22: files 0600, directories 0700, whatever the umask."""
    before = os.umask(0)
    try:
        backend = SqliteBackend(tmp_path)
        async with backend.open() as store:
            bench = await Bench.make(store, backend.clock)
            session = await bench.open(SessionMode.ACCRUE)
            await bench.stage(session, upserts(["a"]))
            admin.backup(backend.path, tmp_path / "b.db")
            modes = {
                path: stat.S_IMODE(path.stat().st_mode)
                for path in [backend.path.parent, *backend.path.parent.rglob("*")]
            }
    finally:
        os.umask(before)
    assert len(modes) >= 8
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_orphans_among_the_staged_files_are_removed(tmp_path: Path) -> None:
    """T37: what a crash left behind goes at the next start; open sessions stay."""
    backend = SqliteBackend(tmp_path)
    staging = StoreFiles(database=backend.path).staging
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        session = await bench.open(SessionMode.ACCRUE)
        await bench.stage(session, upserts(["a"]))
        kept = {path.name for path in staging.glob("*.staged")}
    for name in ("orphan.staged", "orphan.staged-wal", "junk"):
        (staging / name).write_bytes(b"x")
    async with backend.open() as store:
        assert {path.name for path in staging.iterdir()} == kept
        bench = Bench(store, backend.clock, bench.dataset, bench.source)
        await bench.close(session, 1)
        assert not list(staging.iterdir())
        assert set(await bench.copy()) == {"a"}


def test_the_file_system_is_known(tmp_path: Path) -> None:
    assert file_system_of(tmp_path) != ""
    assert file_system_of(Path("/proc")) == "proc"
