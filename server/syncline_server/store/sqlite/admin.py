"""Tools for operators: backup, restore, migrate. Plain functions that block; the command line calls them.

``fsck`` is in its own module. Everything here goes through SQLite, never through the bytes of a database that
may be open in this process: closing such a descriptor would drop SQLite's locks (hazard F41).
"""

import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from syncline_server.clock import Clock, SystemClock
from syncline_server.store.abc import StoreRefused
from syncline_server.store.migrate import Migration
from syncline_server.store.report import FsckReport
from syncline_server.store.sqlite.connection import READER, WRITER, open_plain
from syncline_server.store.sqlite.files import (
    PRIVATE_FILE,
    StoreFiles,
    exclusive_lock,
    refuse_other_states,
    sync_directory,
)
from syncline_server.store.sqlite.fsck import fsck
from syncline_server.store.sqlite.schema import append_history, apply_migration, missing_migrations

Progress = Callable[[int, int], None]
"""Called with (done, total), in pages."""

STEP_PAGES: Final = 1_024

_END_SESSIONS: Final = "DELETE FROM session"


def backup(path: Path, to: Path, *, progress: Progress | None = None) -> None:
    """Copy the store in ``path`` to the new file ``to``; safe while a server runs.

    The copy is one snapshot: whatever was acknowledged before the call is in it. Staged sessions are not.
    Raises StoreRefused when ``to`` exists, ``path`` is no store, or the disk is full.
    """
    if to.exists():
        raise StoreRefused(f"{to} exists already; a backup never overwrites a file")
    partial = to.with_name(to.name + ".partial")
    try:
        with closing(_open_existing(path)) as source:
            _copy(source, partial, progress)
        _sync_file(partial)
        partial.rename(to)
        sync_directory(to.parent)
    except (sqlite3.Error, OSError) as error:
        _remove(partial)
        raise StoreRefused(f"the backup of {path} failed: {error}") from error


def restore(
    copy: Path, path: Path, *, clock: Clock | None = None, progress: Progress | None = None
) -> Sequence[str]:
    """Replace the store in ``path`` by a backup; returns the ids of the datasets in it.

    The backup is checked first (fsck) and left as it is. A new history begins, so whoever followed what the
    backup does not hold is told to start again (guarantee G13). Open sessions end. Raises StoreRefused when a
    server has the store open, or the backup is damaged or of a newer version; then nothing has changed.
    """
    files = StoreFiles(database=path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".restoring")
    with exclusive_lock(files):
        try:
            with closing(_open_existing(copy)) as source:
                _copy(source, fresh, progress)
            report = _checked(fresh, copy)
            _begin_history(fresh, clock or SystemClock())
        except sqlite3.Error as error:
            _remove(fresh)
            raise StoreRefused(f"{copy} cannot be restored: {error}") from error
        except BaseException:
            _remove(fresh)
            raise
        _put_in_place(fresh, files)
    return [dataset.dataset_id for dataset in report.datasets]


def migrate(path: Path, *, dry_run: bool = False, clock: Clock | None = None) -> Sequence[str]:
    """Bring the schema of ``path`` up to date; returns the names of the steps that were (to be) done.

    Opening a store does this as well. Raises StoreRefused when a server has it open or it is newer.
    """
    files, now = StoreFiles(database=path), clock or SystemClock()
    if not path.exists():
        refuse_other_states(files)
        raise StoreRefused(f"{path} does not exist")
    with exclusive_lock(files), closing(open_plain(path, WRITER, mode="rw")) as connection:
        missing: Sequence[Migration] = missing_migrations(connection)
        if not dry_run:
            for migration in missing:
                apply_migration(connection, migration, now_us=now.now_us())
        return [f"{migration.version:04d} {migration.name}" for migration in missing]


def _open_existing(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        refuse_other_states(StoreFiles(database=path))
        raise StoreRefused(f"{path} does not exist")
    try:
        return open_plain(path, READER, mode="ro")
    except sqlite3.Error as error:
        raise StoreRefused(f"{path} cannot be read as a store: {error}") from error


def _checked(fresh: Path, copy: Path) -> FsckReport:
    report = fsck(fresh)
    if not report.ok:
        raise StoreRefused(f"{copy} is damaged: {report.problems[0]}")
    return report


def _copy(source: sqlite3.Connection, to: Path, progress: Progress | None) -> None:
    """Copy one snapshot. The read transaction keeps the copy from starting again with every commit."""
    _remove(to)
    os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE))
    source.execute("BEGIN")
    try:
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        with closing(sqlite3.connect(to, isolation_level=None)) as target:
            source.backup(
                target,
                pages=STEP_PAGES,
                progress=lambda _, left, total: progress(total - left, total) if progress else None,
            )
            # One file without side files, whatever the source was.
            target.execute("PRAGMA journal_mode = DELETE").fetchone()
    finally:
        source.execute("ROLLBACK")


def _begin_history(path: Path, clock: Clock) -> None:
    with closing(open_plain(path, WRITER, mode="rw")) as connection:
        for migration in missing_migrations(connection):
            apply_migration(connection, migration, now_us=clock.now_us())
        connection.execute("BEGIN IMMEDIATE")
        append_history(connection, "restore", secrets.token_bytes, now_us=clock.now_us())
        connection.execute(_END_SESSIONS)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _put_in_place(fresh: Path, files: StoreFiles) -> None:
    """Replace the database. A WAL of the old one beside the new one would destroy it, so that goes first.

    The old database is brought up to date before, so that a crash in between leaves it whole.
    """
    if files.database.exists():
        with suppress(sqlite3.Error, StoreRefused):
            open_plain(files.database, WRITER, mode="rw").close()
    _sync_file(fresh)
    for side_file in files.side_files:
        side_file.unlink(missing_ok=True)
    if files.staging.is_dir():
        for staged in files.staging.iterdir():
            staged.unlink()
    fresh.replace(files.database)
    sync_directory(files.database.parent)


def _sync_file(path: Path) -> None:
    """Make a file durable that SQLite does not have open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
