"""``syncline-server``: serve, and look after a data directory.

Exit codes: 0 done; 1 the server failed while serving, or fsck found damage; 2 wrong usage or a wrong setting;
3 it cannot start or the work cannot be done as things are (address in use, store locked, newer schema);
130 and 143 a second signal ended it at once.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import Progress

from syncline_server.logs import configure_logs
from syncline_server.settings import Settings, SettingsError, load_settings
from syncline_server.store.abc import StoreRefused
from syncline_server.store.sqlite import admin
from syncline_server.store.sqlite import fsck as checking
from syncline_server.versions import WrongVersion, check_versions

if TYPE_CHECKING:
    from syncline_server.app import Running

P = ParamSpec("P")
T = TypeVar("T")

EXIT_DAMAGED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CANNOT: Final = 3

app = typer.Typer(
    name="syncline-server",
    help="Keeps data up to date: takes pushed records, streams the changes.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_log = structlog.get_logger()


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"syncline-server {version('syncline')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _print_version(wanted=wanted),
            is_eager=True,
            help="Print the version and leave.",
        ),
    ] = False,
) -> None:
    """Keeps data up to date: takes pushed records, streams the changes."""


_Data = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the store and of the admin key; made on first start.",
        show_default="./syncline-data",
    ),
]
_Config = Annotated[Path | None, typer.Option(help="TOML file with settings.")]


@app.command("serve")
def serve_command(
    *,
    data: _Data = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT or unix:PATH; may be given several times.", show_default="127.0.0.1:7420"
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of /metrics and /healthz; '' for none.", show_default="127.0.0.1:7421"),
    ] = None,
    config: _Config = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="postgresql://USER@HOST/DATABASE: a store for any number of nodes. "
            "A password shows in the list of processes: give it by PGPASSWORD or ~/.pgpass.",
            show_default="an SQLite file in the data directory",
        ),
    ] = None,
    node: Annotated[
        str | None, typer.Option(help="Name of this node, for people.", show_default="host and port")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow plain text on addresses reachable from outside.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities of required client certificates.")
    ] = None,
    reflection: Annotated[
        bool | None, typer.Option("--reflection", help="Offer gRPC server reflection.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one ends at once, which is safe.

    Every setting can also come from the environment (SYNCLINE_…) or from the --config file.
    """
    settings = _settings(
        config,
        data=data,
        listen=tuple(listen) if listen else None,
        http=http,
        store=store,
        node=node,
        insecure=insecure,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        reflection=reflection,
    )
    configure_logs(settings.log_level, settings.log_format)
    try:
        check_versions()
        code = _run(settings)
    except (WrongVersion, StoreRefused, OSError) as error:
        _fail(str(error), EXIT_CANNOT)
    raise typer.Exit(code)


@app.command()
def fsck(*, data: _Data = None, config: _Config = None) -> None:
    """Check the store, also while a server runs: structure, revisions, counts, digests.

    Exit code 1 when there is damage; each problem is a line that begins with `problem:`.
    """
    _check(_database(config, data), advice="restore a backup (syncline-server restore)")
    typer.echo("no problem found")


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(help="File to make; it must not exist.", show_default=False)],
    *,
    data: _Data = None,
    config: _Config = None,
) -> None:
    """Copy the store to a file, also while a server runs, and check the copy.

    It is one snapshot, with everything that was acknowledged before.
    """
    database = _database(config, data)
    with _progress("backup") as progress:
        _tool(admin.backup, database, to, progress=progress)
    _check(to, advice="check the store itself (syncline-server fsck)")
    typer.echo(f"backup in {to}")


@app.command()
def restore(
    copy: Annotated[Path, typer.Argument(help="File made by `backup`.", show_default=False)],
    *,
    data: _Data = None,
    config: _Config = None,
) -> None:
    """Replace the store by a backup. The server must be stopped.

    The backup is checked first. A new history begins: followers that know of later data start again.
    """
    database = _database(config, data)
    with _progress("restore") as progress:
        datasets = _tool(admin.restore, copy, database, progress=progress)
    typer.echo(f"restored {len(datasets)} datasets; start the server")


@app.command()
def migrate(
    *,
    data: _Data = None,
    config: _Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")
    ] = False,
) -> None:
    """Bring the store's schema up to date, as starting the server does. The server must be stopped."""
    steps = _tool(admin.migrate, _database(config, data), dry_run=dry_run)
    for step in steps:
        typer.echo(("would apply " if dry_run else "applied ") + step)
    if not steps:
        typer.echo("the schema is up to date")


@app.command("admin-key")
def admin_key(*, data: _Data = None, config: _Config = None) -> None:
    """Make another admin key and write it to the data directory, for when the first is lost.

    The server must be stopped. The old key stays good: delete it with `syncline key delete`.
    """
    settings = _settings(config, data=data)
    from syncline_server.app import renew_admin_key

    if not settings.database.exists():
        _fail(f"there is no store in {settings.data}; start the server to make one", EXIT_CANNOT)
    try:
        asyncio.run(renew_admin_key(settings))
    except StoreRefused as error:
        _fail(str(error), EXIT_CANNOT)
    typer.echo(f"admin key in {settings.admin_key}")


def _database(config: Path | None, data: Path | None) -> Path:
    return _settings(config, data=data).database


def _check(store: Path, *, advice: str) -> None:
    """Print what is in a store and what is wrong with it; leave with exit code 1 when something is."""
    report = _tool(checking.fsck, store)
    for dataset in report.datasets:
        typer.echo(f"{dataset.dataset_id}: revision {dataset.revision}, {dataset.record_count} records")
    for problem in report.problems:
        typer.echo(f"problem: {problem}")
    if not report.ok:
        _fail(f"{len(report.problems)} problems in {store}; {advice}", EXIT_DAMAGED)


def _tool(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return work(*args, **kwargs)
    except (StoreRefused, OSError) as error:
        _fail(str(error), EXIT_CANNOT)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, silence elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _run(settings: Settings) -> int:
    # Only now, because gRPC reads this when it is imported: its core writes lines of its own form into the
    # log, one for each handshake that somebody botches.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from syncline_server.app import EXIT_FAILED, serve
    from syncline_server.rpc.interceptors import unwrap

    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(serve(settings, _tell_ready))
    except Exception as error:  # noqa: BLE001 - the last one who can say what happened
        cause = unwrap(error)
        if isinstance(cause, StoreRefused | OSError):
            raise cause from None
        _log.critical("server.failed", exc_info=cause)
        return EXIT_FAILED


def _tell_ready(running: "Running") -> None:
    """Say where the server listens and what to do next."""
    out = Console(soft_wrap=True, highlight=False)
    if out.is_terminal:
        out.print(_welcome(running))
    elif running.admin_key_is_new:
        typer.echo(f"admin key in {running.admin_key}")
    for address in running.addresses:
        typer.echo(f"listening on {address}")
    sys.stdout.flush()


def _welcome(running: "Running") -> Panel:
    here = running.addresses[0]
    lines = [
        f"[bold]gRPC[/]      {escape(', '.join(running.addresses))}",
        f"[bold]metrics[/]   {escape('http://' + running.http + '/metrics') if running.http else 'off'}",
        f"[bold]store[/]     {escape(running.store)}  ({escape(running.store_engine)})",
        f"[bold]admin key[/] {escape(str(running.admin_key.resolve()) if running.admin_key.exists() else 'elsewhere')}",
        "",
        "Next, in another terminal of this directory:"
        if running.admin_key_is_new
        else "In another terminal:",
        "  [cyan]syncline dataset create books --by-key isbn[/]",
        '  [cyan]echo \'{"isbn": "978-0060589462", "title": "Zen"}\' | syncline push books -[/]',
        "  [cyan]syncline watch books[/]",
    ]
    if here != "127.0.0.1:7420":
        lines.insert(6, f"  [cyan]export SYNCLINE_SERVER={escape(here)}[/]")
    return Panel("\n".join(lines), title=f"Syncline {version('syncline')}", expand=False, padding=(1, 2))


def _settings(config: Path | None, **given: Any) -> Settings:
    try:
        return load_settings(config, **given)
    except SettingsError as error:
        _fail(str(error), EXIT_USAGE)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"syncline-server: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    os.umask(0o077)  # nothing that the server writes is for other users of the machine
    app()


if __name__ == "__main__":
    main()
