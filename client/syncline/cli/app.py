"""The commands put together, and how the process ends."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from syncline.cli import (
    datasets,
    delete,
    exits,
    keys,
    mirror,
    push,
    records,
    sources,
    status,
    sync,
    verify,
    watch,
)
from syncline.cli.exits import ExitCode
from syncline.cli.invocation import shared_callback, silence_stdout
from syncline.cli.options import with_options

_EPILOG = "Exit codes:\n\n" + "\n".join(f"* {code}: {meaning}" for code, meaning in exits.MEANINGS.items())


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"syncline {version('syncline')}")
        raise typer.Exit


def _root_parameters(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def _root(context: typer.Context, **values: object) -> None:
    """Push records, follow changes, hold exact copies.

    Ask a command itself for its options: `syncline push --help`.
    """
    del values["version"]
    shared_callback(context, **values)


with_options(_root_parameters, _root)

app = typer.Typer(
    name="syncline",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.callback(epilog=_EPILOG)(_root)
app.command("push")(push.push)
app.command("delete")(delete.delete)
app.command("get")(records.get)
app.command("ls")(records.ls)
app.command("sync")(sync.sync)
app.command("watch")(watch.watch)
app.command("mirror")(mirror.mirror)
app.command("verify")(verify.verify)
app.command("status")(status.status)
app.add_typer(datasets.app, name="dataset")
app.add_typer(sources.app, name="source")
app.add_typer(keys.app, name="key")


def run(arguments: Sequence[str]) -> int:
    """Run with these arguments; returns the exit code."""
    _prepare_streams()
    try:
        app(args=list(arguments), prog_name="syncline")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.ERROR if ended.code else ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return ExitCode.BROKEN_PIPE
    return ExitCode.OK


def _prepare_streams() -> None:
    """Output to files and pipes is UTF-8 whatever the locale; what a terminal cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
