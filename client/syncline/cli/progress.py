"""Progress of a long write: a bar with records per second on a terminal, nothing elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from syncline.cli.input import Input
from syncline.cli.render import Output

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int], None]
"""Told the number of records done so far."""


@contextlib.contextmanager
def progress(source: Input, output: Output) -> Iterator[Advance]:
    """Show progress on standard error while the block runs."""
    if not output.err_is_terminal or output.json:
        yield lambda _: None
        return
    bar = _bar(source.total_bytes is not None, output)
    started = time.monotonic()
    task = bar.add_task(source.name, total=source.total_bytes, records=0, rate=0.0)

    def advance(records: int) -> None:
        rate = records / max(time.monotonic() - started, 1e-6)
        done = source.done_bytes() if source.total_bytes is not None else None
        bar.update(task, completed=done, records=records, rate=rate)

    def note(text: str) -> None:
        from rich.text import Text

        bar.console.print(Text.from_ansi(text), soft_wrap=True)

    with bar:
        output.note_through = note
        try:
            yield advance
        finally:
            output.note_through = None


def _bar(has_total: bool, output: Output) -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(file=output.err, no_color=output.colour is False or None, highlight=False, markup=False)
    measure = (BarColumn(), TaskProgressColumn()) if has_total else (SpinnerColumn("line"),)
    return Progress(
        TextColumn("{task.description}", markup=False),
        *measure,
        TextColumn("{task.fields[records]:,} records", markup=False),
        TextColumn("{task.fields[rate]:,.0f}/s", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=8,
    )
