"""What the commands share: options, settings, how they end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from syncline_server.settings import Settings, SettingsError, load_settings
from syncline_server.store.abc import StoreRefused

P = ParamSpec("P")
T = TypeVar("T")

EXIT_DAMAGED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CANNOT: Final = 3
EXIT_INTERRUPTED: Final = 130

Data = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the store and of the admin key; made on first start.",
        show_default="./syncline-data",
    ),
]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings.")]
Store = Annotated[
    str | None,
    typer.Option(
        help="postgresql://USER@HOST/DATABASE: a store for any number of nodes. "
        "A password shows in the list of processes: give it by PGPASSWORD or ~/.pgpass.",
        show_default="an SQLite file in the data directory",
    ),
]


def settings_of(config: Path | None, **given: Any) -> Settings:
    """The settings; leave with exit code 2 when one is wrong."""
    try:
        return load_settings(config, **given)
    except SettingsError as error:
        fail(str(error), EXIT_USAGE)


def fail(message: str, code: int) -> NoReturn:
    """Say why, and leave with this exit code."""
    typer.echo(f"syncline-server: {message}", err=True)
    raise typer.Exit(code)


def carry_out(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it; leave with exit code 3 when that is refused."""
    try:
        return work(*args, **kwargs)
    except (StoreRefused, OSError) as error:
        fail(str(error), EXIT_CANNOT)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, silence elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
