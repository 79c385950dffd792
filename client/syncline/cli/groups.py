"""What the groups of commands have in common."""

import contextlib
import signal
import sys
from collections.abc import Iterator

import typer

from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.invocation import shared_callback


def group(text: str) -> typer.Typer:
    """A group of commands that takes the shared options before its command's name too."""
    app = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode="markdown")
    app.callback()(shared_callback)
    return app


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises CommandError when the answer is no or nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            f"{question} Nobody is there to answer.", code=ExitCode.USAGE, hint="say --yes to go ahead."
        )
    with _signals_at_once():  # before the question shows, for whoever answers it with Ctrl-C at once
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was done")


@contextlib.contextmanager
def _signals_at_once() -> Iterator[None]:
    """Let signals end what blocks: the loop hears of them only between its steps."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
