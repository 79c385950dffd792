"""`syncline watch`: changes as they happen."""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from syncline.cli.changes import checkpoint_line, json_lines, records_at, reset_line, text_lines
from syncline.cli.complete import complete_dataset
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import Output, age, escape, shorten
from syncline.cli.selection import FieldsOption, FilterOption, names_of
from syncline.cli.state import Position, held, read_position, write_position

if TYPE_CHECKING:
    from syncline import ChangeBatch, Checkpoint, Reset

_TICK_SECONDS: Final = 1.0
_RECONNECT: Final = re.compile(r"connecting again in [0-9.]+ s: (?P<why>[^;]*)")
"""What the SDK logs before it connects again; advice after the first clause is for the first connection."""

_CLEAR_LINE: Final = "\r\x1b[2K"


@command
async def watch(
    call: Invocation,
    dataset: Annotated[str, typer.Argument(help="Dataset to follow.", autocompletion=complete_dataset)],
    from_now: Annotated[
        bool, typer.Option("--from-now", help="Begin with what happens next, not with what is there.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Where to remember how far this came, and to go on from. Goes before --from-now.",
        ),
    ] = None,
    filter_text: FilterOption = None,
    fields: FieldsOption = None,
) -> None:
    """Follow a dataset live until Ctrl-C: first what is there, then every change.

    On a terminal one readable line for each change; JSON lines as in `sync` when the output is piped, or with
    --json. Restarts of the server are survived, with a notice on standard error. After a reconnect some lines
    may come again; none is lost.

    With --filter a record that ceases to match comes as `remove`.
    """
    with contextlib.ExitStack() as stack:
        start = None
        if token_file is not None:
            stack.enter_context(held(token_file))
            start = read_position(token_file, dataset)
        view = _View(call, dataset)
        tokens = stack.enter_context(_Tokens(token_file, dataset))
        async with call.connect() as client:
            await (
                client.server_info()
            )  # a server that is down, or a wrong key, ends this now rather than later
            feed = client.dataset(dataset).changes(
                token=start.token if start else None,
                from_now=from_now and start is None,
                filter=filter_text,
                fields=names_of(fields),
            )
            async with feed, _ticking(view, tokens):
                with view.notices():
                    async for part in feed.batches():
                        view.show(part)
                        tokens.keep(part)


class _View:
    """What is on the screen: lines, and under them while nothing happens one line of state."""

    def __init__(self, call: Invocation, dataset: str) -> None:
        self._output: Output = call.output
        self._json = call.json_lines
        self._dataset = dataset
        self._state_line = not self._json and os.environ.get("TERM") != "dumb"
        self._state_shown = False
        self._checkpoint: Checkpoint | None = None
        self._away = False

    def show(self, part: "ChangeBatch[Any] | Checkpoint | Reset") -> None:
        """Show one part of the feed and flush."""
        from syncline import ChangeBatch, Checkpoint, Reset

        self._back()
        match part:
            case ChangeBatch():
                self._clear()
                if self._json:
                    for line in json_lines(part):
                        self._output.json_line(line)
                else:
                    for text in text_lines(part, self._output):
                        self._output.line(text)
            case Checkpoint():
                if self._json and self._checkpoint_is_news(part):
                    self._output.value(checkpoint_line(part))
                self._checkpoint = part
                self.tick()
            case Reset():
                self._clear()
                self._checkpoint = None
                if self._json:
                    self._output.value(reset_line(part))
                else:
                    text = f"reset ({part.reason.name.lower()}): {escape(part.message)}; a complete new copy follows"
                    self._output.line(self._output.paint(text, "yellow"))
        self._output.out.flush()

    def _checkpoint_is_news(self, checkpoint: "Checkpoint") -> bool:
        """Whether it says more than the last one; the ones that come while nothing happens do not."""
        return self._checkpoint is None or self._checkpoint.revision != checkpoint.revision

    def tick(self) -> None:
        """Renew the line of state."""
        if not self._state_line or self._checkpoint is None:
            return
        newest = self._checkpoint.commit_time
        text = (
            f"{self._dataset} at revision {self._checkpoint.revision:,}, "
            f"{records_at(self._checkpoint)}"
            + (f", newest commit {age(newest, datetime.now(UTC))} ago" if newest else "")
            + (" - not connected" if self._away else " - waiting for changes, Ctrl-C ends")
        )
        shown = self._output.paint(shorten(text, self._output.columns - 1), "dim")
        self._output.out.write(_CLEAR_LINE + shown)
        self._output.out.flush()
        self._state_shown = True

    def _clear(self) -> None:
        if self._state_shown:
            self._output.out.write(_CLEAR_LINE)
            self._output.out.flush()
            self._state_shown = False

    def _note(self, text: str) -> None:
        self._clear()
        self._output.note(self._output.paint(escape(text), "dim", stream=self._output.err))

    def _back(self) -> None:
        if self._away:
            self._away = False
            self._note("connected again")

    def connection_lost(self, why: str) -> None:
        """Told by the SDK each time it is about to connect again; shown once for each outage."""
        if not self._away:
            self._away = True
            self._note(f"connection lost, trying again: {why}")

    @contextlib.contextmanager
    def notices(self) -> Iterator[None]:
        """Hear what the SDK logs about the connection; clear the line of state in the end."""
        log = logging.getLogger("syncline")
        handler = _Notices(self)
        level, propagate = log.level, log.propagate
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate
            with contextlib.suppress(BrokenPipeError):
                self._clear()


class _Notices(logging.Handler):
    def __init__(self, view: _View) -> None:
        super().__init__(logging.INFO)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        told = _RECONNECT.search(record.getMessage())
        if told:
            self._view.connection_lost(told["why"])


class _Tokens:
    """Stores the newest token, at most once a tick and once more in the end."""

    def __init__(self, path: Path | None, dataset: str) -> None:
        self._path = path
        self._dataset = dataset
        self._newest: Position | None = None

    def __enter__(self) -> "_Tokens":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.store()

    def keep(self, part: "ChangeBatch[Any] | Checkpoint | Reset") -> None:
        """Take the token of a part that has been shown."""
        from syncline import Checkpoint

        if isinstance(part, Checkpoint):
            self._newest = Position(
                dataset=self._dataset,
                token=part.token,
                revision=part.revision,
                record_count=part.record_count,
                digest=part.digest,
            )

    def store(self) -> None:
        """Write the newest token, if there is one that is not stored."""
        if self._path is not None and self._newest is not None:
            write_position(self._path, self._newest)
            self._newest = None


@contextlib.asynccontextmanager
async def _ticking(view: _View, tokens: _Tokens) -> AsyncIterator[None]:
    """Renew the line of state and store tokens every second; when that fails, the block ends with its error."""
    block = asyncio.current_task()
    assert block is not None

    async def tick() -> None:
        try:
            while True:
                await asyncio.sleep(_TICK_SECONDS)
                view.tick()
                tokens.store()
        except Exception:
            block.cancel()
            raise

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
