"""T14: the schema comes in numbered steps, each whole or not at all, and never goes back."""

import asyncio
import hashlib
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from support.store_values import Bench, SqliteBackend
from syncline_server.clock import SystemClock
from syncline_server.model import ConflictPolicy
from syncline_server.store.abc import StoreRefused
from syncline_server.store.migrate import Migration, load_migrations, pending
from syncline_server.store.sqlite import admin, schema

STEPS = [Migration(version=n, name=f"step{n}", script=f"CREATE TABLE t{n} (a);\n") for n in (1, 2, 3)]


def test_only_what_is_missing_is_pending() -> None:
    applied = {step.version: step.checksum for step in STEPS[:2]}
    assert pending(STEPS, {}) == STEPS
    assert pending(STEPS, applied) == STEPS[2:]
    assert pending(STEPS, {step.version: step.checksum for step in STEPS}) == []


def test_t14_a_newer_schema_is_refused() -> None:
    with pytest.raises(StoreRefused, match="opened by a newer Syncline"):
        pending(STEPS, {step.version: "x" for step in STEPS} | {4: "x"})


def test_a_step_that_was_changed_is_refused() -> None:
    with pytest.raises(StoreRefused, match="migration 1"):
        pending(STEPS, {1: "another checksum"})


def test_released_steps_never_change() -> None:
    """Add the checksum of a new step here; never change one that is here."""
    released = {
        "0001_initial": "1153e9b2c6b7c06a6de461f473b756c34e430b1644d79a27c74beefaa906d669",
        "0002_session_conflicts": "aa51511a1fe552ce8a65c7c2a2ad889f177a4e1707da92ba5e885946ba1cb913",
        "0003_live": "efa3c0e9647808a6acf45eabb11b410c446b7e892de8fc498cff00d2503303af",
    }
    found = load_migrations(schema.PACKAGE)
    assert {f"{m.version:04d}_{m.name}": m.checksum for m in found} == released
    assert all(hashlib.sha256(m.script.encode()).hexdigest() == m.checksum for m in found)


def test_scripts_are_split_at_statements() -> None:
    script = "-- a; comment\nCREATE TABLE a (b CHECK (b <> ';'));\n\nCREATE INDEX i\n  ON a (b);\n"
    parts = list(schema.statements(script))
    assert len(parts) == 2
    with closing(sqlite3.connect(":memory:")) as connection:
        for part in parts:
            connection.execute(part)


async def test_an_open_by_an_older_program_is_refused(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        await Bench.make(store, backend.clock)
    with closing(sqlite3.connect(backend.path)) as connection, connection:
        connection.execute("INSERT INTO schema_migration VALUES (999, 'future', 'x', 0)")
    with pytest.raises(StoreRefused, match="newer"):
        async with backend.open():
            pass
    with pytest.raises(StoreRefused, match="newer"):
        admin.migrate(backend.path)
    with closing(sqlite3.connect(backend.path)) as connection, connection:
        connection.execute("DELETE FROM schema_migration WHERE version = 999")
    backend.check()


CHILD = """
import sqlite3, sys
from syncline_server.clock import SystemClock
from syncline_server.model import ConflictPolicy
from syncline_server.store.migrate import Migration
from syncline_server.store.sqlite import schema
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
for n in (1, 2, 3):
    step = Migration(version=n, name=f"step{n}", script=f"CREATE TABLE t{n} (a);\\nINSERT INTO t{n} VALUES ({n});\\n")
    schema.apply_migration(connection, step, now_us=SystemClock().now_us())
"""


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_t14_killed_in_every_step(tmp_path: Path, step: int) -> None:
    """T14: after a crash the step is not there and not noted, and can be done again."""
    database = tmp_path / "m.db"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(database),
        env={**os.environ, "SYNCLINE_FAILPOINTS": f"migration.{step}=kill"},
    )
    assert await child.wait() == -signal.SIGKILL
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
        assert {f"t{n}" in tables for n in range(1, step)} <= {True}
        assert f"t{step}" not in tables
        if step > 1:
            noted = [row[0] for row in connection.execute("SELECT version FROM schema_migration")]
            assert noted == list(range(1, step))
        again = Migration(version=step, name="again", script=f"CREATE TABLE t{step} (a);\n")
        schema.apply_migration(connection, again, now_us=SystemClock().now_us())
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_step_that_fails_is_rolled_back(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as connection:
        wrong = Migration(version=1, name="wrong", script="CREATE TABLE a (b);\nCREATE TABLE a (b);\n")
        with pytest.raises(sqlite3.OperationalError):
            schema.apply_migration(connection, wrong, now_us=0)
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0


async def test_migrate_tells_what_it_does(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    with pytest.raises(StoreRefused, match="does not exist"):
        admin.migrate(backend.path)
    backend.path.parent.mkdir(parents=True)
    backend.path.touch()
    steps = ["0001 initial", "0002 session_conflicts", "0003 live"]
    assert admin.migrate(backend.path, dry_run=True) == steps
    assert admin.migrate(backend.path) == steps
    assert admin.migrate(backend.path) == []
    async with backend.open() as store:
        await Bench.make(store, backend.clock)
        with pytest.raises(StoreRefused, match="in use"):
            admin.migrate(backend.path)
    backend.check()


def test_0002_sessions_that_were_open_overwrite(tmp_path: Path) -> None:
    """Step 2: what an older program left in the tables gets the meaning that it had."""
    first, second = load_migrations(schema.PACKAGE)[:2]
    with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as connection:
        schema.apply_migration(connection, first, now_us=0)
        connection.execute("INSERT INTO session VALUES ('s', 1, 1, 3, 0, NULL, 0, 0, 2, 9)")
        connection.execute("INSERT INTO request VALUES ('r', x'00', 0, '', 7, 1, x'00', '', 1, 2, 3, 4, 5)")
        schema.apply_migration(connection, second, now_us=0)
        session = connection.execute("SELECT records, conflict_policy, base_revision FROM session")
        assert session.fetchall() == [(9, ConflictPolicy.OVERWRITE, 0)]
        assert connection.execute("SELECT deleted, calls, kept FROM request").fetchall() == [(4, 5, 0)]
