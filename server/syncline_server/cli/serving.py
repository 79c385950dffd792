"""``syncline-server serve``."""

import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from syncline_server.cli.shell import EXIT_CANNOT, Config, Data, Store, fail, settings_of
from syncline_server.logs import configure_logs
from syncline_server.settings import Settings
from syncline_server.store.abc import StoreRefused
from syncline_server.versions import WrongVersion, check_versions

if TYPE_CHECKING:
    from syncline_server.app import Running

_log = structlog.get_logger()


def serve(
    *,
    data: Data = None,
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
    config: Config = None,
    store: Store = None,
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
    settings = settings_of(
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
        fail(str(error), EXIT_CANNOT)
    raise typer.Exit(code)


def _run(settings: Settings) -> int:
    # Only now, because gRPC reads this when it is imported: its core writes lines of its own form into the
    # log, one for each handshake that somebody botches.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from syncline_server.app import EXIT_FAILED
    from syncline_server.app import serve as serve_until_stopped
    from syncline_server.rpc.interceptors import unwrap

    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(serve_until_stopped(settings, _tell_ready))
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
