"""``syncline-server copy``."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from syncline_server.cli.shell import EXIT_INTERRUPTED, carry_out, fail
from syncline_server.store.copy_places import (
    copy_source,
    copy_target,
    is_postgres,
    refuse_same_place,
    store_file,
)
from syncline_server.store.copying import CopyReport
from syncline_server.store.copying import copy as copy_store
from syncline_server.store.opening import shown

LINE_SECONDS: Final = 5.0
"""Between lines about progress where there is no terminal."""


def copy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FROM", help="Data directory or postgresql://USER@HOST/DATABASE.", show_default=False
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="The same; it must be empty.", show_default=False)
    ],
    *,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Keep up with the old store until its server is stopped, then finish."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as a line of JSON.")] = False,
) -> None:
    """Move a store, with everything in it, to another place: SQLite to PostgreSQL, back, or to another of its kind.

    Servers may go on using FROM meanwhile. Tokens, sessions, producers, keys and request ids stay valid: clients go on
    at the servers of TO as if nothing had happened. In the end TO is compared with FROM, and FROM is set aside, so that
    nothing can be written to it any more: its schema is renamed to syncline_moved_TIME, its file to syncline.db.moved.

    For that last step writers wait, for moments. FROM in PostgreSQL: its servers may run, and then refuse everything;
    stop them. FROM in SQLite: its server has to be stopped first; the command says so when all but the newest changes
    are copied, and run again, or with --wait, does the rest.

    A copy that was interrupted goes on when the command is run again. Until it is complete FROM is as it was, and
    servers refuse to open TO. Passwords: PGPASSWORD or ~/.pgpass.
    """
    with _Reporter.shown() as reporter:
        try:
            report = carry_out(lambda: asyncio.run(_copy(source, target, reporter, wait=wait)))
        except KeyboardInterrupt:
            fail("interrupted; run it again to go on", EXIT_INTERRUPTED)
    if as_json:
        facts = {"from": _shown(source), "to": _shown(target), **asdict(report)}
        typer.echo(msgspec.json.encode(facts).decode())
        return
    typer.echo(
        f"moved {report.datasets} datasets, {report.records:,} records, in {report.seconds:.1f} s; "
        f"nobody could write for {report.final_seconds:.2f} s"
    )
    typer.echo(f"start the servers with {'--store' if is_postgres(target) else '--data'} {_shown(target)}")
    if not is_postgres(target) and not store_file(target).with_name("admin.key").exists():
        typer.echo("all keys stay valid; take the file admin.key along from the old data directory")


async def _copy(source: str, target: str, reporter: "_Reporter", *, wait: bool) -> CopyReport:
    refuse_same_place(source, target)
    async with copy_source(source) as old, copy_target(target) as new:
        return await copy_store(old, new, reporter, wait=wait)


def _shown(address: str) -> str:
    return shown(address) if is_postgres(address) else address


class _Reporter:
    """A bar on a terminal, now and then a line elsewhere; both on standard error."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("copying", total=None)
        self._said_seconds = time.monotonic()

    @classmethod
    @contextmanager
    def shown(cls) -> Iterator["_Reporter"]:
        """Show it while the block lasts."""
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,} of {task.total:,} changes"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            yield cls(console, bar)

    def say(self, line: str) -> None:
        """See ``Reporter``."""
        self._console.print(line, markup=False)

    def progress(self, done: int, total: int) -> None:
        """See ``Reporter``."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said_seconds >= LINE_SECONDS:
            self._said_seconds = now
            self.say(f"copied {done:,} of {total:,} changes ({done / max(total, 1):.0%})")
