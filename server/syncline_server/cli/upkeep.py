"""What an operator does with a store: check, back up, restore, migrate, make an admin key."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from syncline_server.cli.shell import (
    EXIT_CANNOT,
    EXIT_DAMAGED,
    EXIT_USAGE,
    Config,
    Data,
    Store,
    carry_out,
    fail,
    progress_bar,
    settings_of,
)
from syncline_server.model import SILENT_SECONDS
from syncline_server.store.opening import import_postgres, shown
from syncline_server.store.report import FsckReport
from syncline_server.store.sqlite import admin
from syncline_server.store.sqlite import fsck as checking

_BACKUPS: Final = (
    "backups of PostgreSQL are its own: pg_basebackup with archived WAL, or pg_dump. "
    "After putting one back: syncline-server restore --store"
)


def fsck(*, data: Data = None, config: Config = None, store: Store = None) -> None:
    """Check the store, also while servers run: structure, revisions, counts, digests.

    Exit code 1 when there is damage; each problem is a line that begins with `problem:`. PostgreSQL's own structure
    is the business of pg_amcheck.
    """
    settings = settings_of(config, data=data, store=store)
    if settings.store_address:
        report = _postgres("fsck", settings.store_address)
        _tell(report, shown(settings.store_address), advice="restore a backup of the database")
    else:
        report = carry_out(checking.fsck, settings.database)
        _tell(report, str(settings.database), advice="restore a backup (syncline-server restore)")
    typer.echo("no problem found")


def backup(
    to: Annotated[Path, typer.Argument(help="File to make; it must not exist.", show_default=False)],
    *,
    data: Data = None,
    config: Config = None,
    store: Store = None,
) -> None:
    """Copy the store to a file, also while a server runs, and check the copy.

    It is one snapshot, with everything that was acknowledged before. This is for SQLite: backups of PostgreSQL are
    its own (pg_basebackup with archived WAL, or pg_dump).
    """
    settings = settings_of(config, data=data, store=store)
    if settings.store_address:
        fail(_BACKUPS, EXIT_CANNOT)
    with progress_bar("backup") as progress:
        carry_out(admin.backup, settings.database, to, progress=progress)
    report = carry_out(checking.fsck, to)
    _tell(report, str(to), advice="check the store itself (syncline-server fsck)")
    typer.echo(f"backup in {to}")


def restore(
    copy: Annotated[
        Path | None, typer.Argument(help="File made by `backup`; none with PostgreSQL.", show_default=False)
    ] = None,
    *,
    data: Data = None,
    config: Config = None,
    store: Store = None,
) -> None:
    """Replace the store by a backup. The server must be stopped.

    The backup is checked first. A new history begins: followers that know of later data start again.

    With PostgreSQL, put the database back by its own means (pg_basebackup with archived WAL, pg_restore) while all
    servers are stopped, and then run this without a file: it checks what is there and begins the new history.
    """
    settings = settings_of(config, data=data, store=store)
    datasets: Sequence[str]
    if settings.store_address:
        if copy is not None:
            fail(f"{copy} cannot be put into PostgreSQL: {_BACKUPS}", EXIT_USAGE)
        datasets = _postgres("restored", settings.store_address)
        typer.echo(f"a new history has begun, with {_counted(len(datasets), 'dataset')}; start the servers")
        if heard := _postgres("nodes_heard", settings.store_address, within_seconds=SILENT_SECONDS):
            typer.echo(
                f"note: heard within {SILENT_SECONDS:.0f} s of {', '.join(heard)}; what still runs is in the old "
                "history and has to be restarted",
                err=True,
            )
        return
    if copy is None:
        fail("name the file that `backup` made", EXIT_USAGE)
    with progress_bar("restore") as progress:
        datasets = carry_out(admin.restore, copy, settings.database, progress=progress)
    typer.echo(f"restored {_counted(len(datasets), 'dataset')}; start the server")


def migrate(
    *,
    data: Data = None,
    config: Config = None,
    store: Store = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")
    ] = False,
) -> None:
    """Bring the store's schema up to date, as starting a server does.

    With SQLite the server must be stopped. With PostgreSQL servers of the version before may go on.
    """
    settings = settings_of(config, data=data, store=store)
    steps: Sequence[str]
    if settings.store_address:
        steps = _postgres("migrate", settings.store_address, dry_run=dry_run)
    else:
        steps = carry_out(admin.migrate, settings.database, dry_run=dry_run)
    for step in steps:
        typer.echo(("would apply " if dry_run else "applied ") + step)
    if not steps:
        typer.echo("the schema is up to date")


def admin_key(*, data: Data = None, config: Config = None, store: Store = None) -> None:
    """Make another admin key and write it to the data directory, for when the first is lost.

    With SQLite the server must be stopped. The old key stays good: delete it with `syncline key delete`.
    """
    settings = settings_of(config, data=data, store=store)
    from syncline_server.app import renew_admin_key

    if settings.store_address:
        _postgres("expect_store", settings.store_address)
    elif not settings.database.exists():
        fail(f"there is no store in {settings.data}; start the server to make one", EXIT_CANNOT)
    carry_out(lambda: asyncio.run(renew_admin_key(settings)))
    typer.echo(f"admin key in {settings.admin_key}")


def _tell(report: FsckReport, store: str, *, advice: str) -> None:
    """Print what is in a store and what is wrong with it; leave with exit code 1 when something is."""
    for dataset in report.datasets:
        typer.echo(
            f"{dataset.dataset_id}: revision {dataset.revision}, {_counted(dataset.record_count, 'record')}"
        )
    for problem in report.problems:
        typer.echo(f"problem: {problem}")
    if not report.ok:
        fail(f"{_counted(len(report.problems), 'problem')} in {store}; {advice}", EXIT_DAMAGED)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _postgres(name: str, address: str, **options: Any) -> Any:
    """Run one of the tools for PostgreSQL, which needs its driver."""

    def run() -> Any:
        return asyncio.run(getattr(import_postgres("admin"), name)(address, **options))

    return carry_out(run)
