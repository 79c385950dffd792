"""``syncline-server``: serve, and look after a data directory.

Exit codes: 0 done; 1 the server failed while serving, or fsck found damage; 2 wrong usage or a wrong setting;
3 it cannot start or the work cannot be done as things are (address in use, store locked, newer schema);
130 and 143 a second signal ended it at once.
"""

import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from syncline_server.app import EXIT_FAILED, Running, serve
from syncline_server.logs import configure_logs
from syncline_server.monitoring import MonitoringError
from syncline_server.rpc.server import ListenError
from syncline_server.settings import Settings, SettingsError, load_settings
from syncline_server.store.abc import StoreRefused
from syncline_server.versions import WrongVersion, check_versions

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
    except (WrongVersion, StoreRefused) as error:
        _fail(str(error), EXIT_CANNOT)
    except ListenError as error:
        _fail(f"{error}; stop what is using it, or choose another with --listen", EXIT_CANNOT)
    except MonitoringError as error:
        _fail(f"{error}; choose another address with --http, or none with --http ''", EXIT_CANNOT)
    except OSError as error:
        _fail(f"cannot start: {error}", EXIT_CANNOT)
    raise typer.Exit(code)


def _run(settings: Settings) -> int:
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(serve(settings, lambda running: _tell_ready(running, settings)))
    except ExceptionGroup as group:
        known = (WrongVersion, StoreRefused, ListenError, MonitoringError, OSError)
        if len(group.exceptions) == 1 and isinstance(group.exceptions[0], known):
            raise group.exceptions[0] from None
        _log.critical("server.failed", exc_info=group)
        return EXIT_FAILED


def _tell_ready(running: Running, settings: Settings) -> None:
    """Say where the server listens and what to do next."""
    out = Console(soft_wrap=True, highlight=False)
    if out.is_terminal:
        out.print(_welcome(running, settings))
    elif running.admin_key_is_new:
        typer.echo(f"admin key in {running.admin_key}")
    for address in running.addresses:
        typer.echo(f"listening on {address}")
    sys.stdout.flush()


def _welcome(running: Running, settings: Settings) -> Panel:
    here = running.addresses[0]
    lines = [
        f"[bold]gRPC[/]      {escape(', '.join(running.addresses))}",
        f"[bold]metrics[/]   {escape('http://' + running.http + '/metrics') if running.http else 'off'}",
        f"[bold]data[/]      {escape(str(settings.data.resolve()))}  ({escape(running.store_engine)})",
        f"[bold]admin key[/] {escape(str(running.admin_key.resolve()))}",
        "",
        "Next, in another terminal of this directory:"
        if running.admin_key_is_new
        else "In another terminal:",
        "  [cyan]syncline dataset create books --key isbn[/]",
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
