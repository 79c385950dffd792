"""``syncline-server``: serve, and look after a store.

Exit codes: 0 done; 1 the server failed while serving, or fsck found damage; 2 wrong usage or a wrong setting;
3 it cannot start or the work cannot be done as things are (address in use, store locked, newer schema);
130 and 143 a second signal ended it at once, 130 also Ctrl-C in the midst of a copy.
"""

import os
from importlib.metadata import version
from typing import Annotated

import typer

from syncline_server.cli import copying, serving, upkeep

app = typer.Typer(
    name="syncline-server",
    help="Keeps data up to date: takes pushed records, streams the changes.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command("serve")(serving.serve)
app.command("fsck")(upkeep.fsck)
app.command("backup")(upkeep.backup)
app.command("restore")(upkeep.restore)
app.command("migrate")(upkeep.migrate)
app.command("admin-key")(upkeep.admin_key)
app.command("copy")(copying.copy)


def main() -> None:
    """Entry point."""
    os.umask(0o077)  # nothing that the server writes is for other users of the machine
    app()


if __name__ == "__main__":
    main()
