"""`syncline mirror`: an exact copy in a SQLite file, kept up to date."""

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from syncline.cli.complete import complete_dataset
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import Output, age, count, escape, shorten
from syncline.cli.selection import FieldsOption, FilterOption, names_of

if TYPE_CHECKING:
    from syncline import Replica

_TICK_SECONDS: Final = 1.0

_CLEAR_LINE: Final = "\r\x1b[2K"


class MirrorLine(msgspec.Struct):
    """One line of `mirror` with --json: what the file equals now."""

    state: str
    revision: int
    record_count: int
    digest: str
    is_verified: bool
    stale_seconds: float | None


@command
async def mirror(
    call: Invocation,
    dataset: Annotated[str, typer.Argument(help="Dataset to copy.", autocompletion=complete_dataset)],
    file: Annotated[Path, typer.Argument(help="SQLite file for the copy; made when it is not there.")],
    filter_text: FilterOption = None,
    fields: FieldsOption = None,
    replica_id: Annotated[
        str | None,
        typer.Option("--replica-id", metavar="ID", help="Have the server know how far this copy has come."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when the copy is up to date, for cron.")] = False,
) -> None:
    """Keep an exact copy of a dataset in a SQLite file until Ctrl-C.

    The file always holds a state that the dataset had, proven by count and digest: table `record`, with `record_id`,
    `revision`, `commit_time_us` and `json`. It can be read at any time, also while this runs and after a crash, and is
    brought up to date from where it is. A file that was changed is mended by fetching what differs.

    On a terminal one line shows where it is; elsewhere each revision is a line, with --json a JSON value.
    """
    from syncline import ReplicaStopped, ReplicaUnusable

    if not file.parent.is_dir():
        raise CommandError(f"{file}: {file.parent} is not a directory", code=ExitCode.USAGE)
    async with call.connect() as client:
        await client.server_info()  # a server that is down, or a wrong key, ends this now rather than later
        replica = client.dataset(dataset).replica(
            file, filter=filter_text, fields=names_of(fields), replica_id=replica_id
        )
        try:
            async with replica:
                await _keep(replica, _View(call, dataset, file), file, once=once)
        except ReplicaUnusable as error:
            raise CommandError(error.message, code=ExitCode.USAGE) from None
        except ReplicaStopped as stopped:
            raise stopped.__cause__ or stopped from None


async def _keep(replica: "Replica[Any]", view: "_View", file: Path, *, once: bool) -> None:
    from syncline import StaleData

    if replica.is_read_only:
        raise CommandError(
            f"{file} is kept by another process",
            code=ExitCode.CONFLICT,
            hint="read it as it is, or use a file of its own.",
        )
    with _notices(view):
        if once:
            await replica.ready()
            view.finish(replica)
            return
        while True:
            view.show(replica)
            try:
                await replica.wait_for(replica.revision + 1, timeout_seconds=_TICK_SECONDS)
            except StaleData:
                continue  # nothing new: the line of state is renewed


@contextlib.contextmanager
def _notices(view: "_View") -> Iterator[None]:
    """Show what the SDK warns of: a copy that had to be mended."""
    log = logging.getLogger("syncline.replica")
    handler = _Notices(view)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(BrokenPipeError):
            view.clear()


class _Notices(logging.Handler):
    def __init__(self, view: "_View") -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is None:  # what stopped it is told in the end
            self._view.note(record.getMessage())


class _View:
    """What is on the screen."""

    def __init__(self, call: Invocation, dataset: str, file: Path) -> None:
        self._output: Output = call.output
        self._dataset = dataset
        self._file = file
        self._json = call.output.json
        self._line_by_line = not call.output.out_is_terminal or os.environ.get("TERM") == "dumb"
        self._shown: tuple[int, str] | None = None  # revision and state of the last line

    def show(self, replica: "Replica[Any]") -> None:
        """Show where the copy is; elsewhere than on a terminal only what is new."""
        if not (self._json or self._line_by_line):
            text = shorten(self._text(replica), self._output.columns - 1)
            self._output.out.write(_CLEAR_LINE + self._output.paint(text, "dim"))
            self._output.out.flush()
            return
        from syncline import ReplicaState

        news = (replica.revision, replica.state.value)
        is_connecting = self._shown is None and replica.state is ReplicaState.DISCONNECTED
        if replica.is_complete and news != self._shown and not is_connecting:
            self._shown = news
            self.finish(replica)

    def finish(self, replica: "Replica[Any]") -> None:
        """One whole line."""
        if self._json:
            self._output.value(_line(replica))
        else:
            self._output.line(self._text(replica))
        self._output.out.flush()

    def _text(self, replica: "Replica[Any]") -> str:
        if not replica.is_complete:
            return f"{self._dataset} -> {self._file}: {replica.state.value}"
        stale = replica.staleness
        now = datetime.now(UTC)
        return (
            f"{self._dataset} -> {self._file}: {replica.state.value} at revision {replica.revision:,}, "
            f"{count(len(replica), 'record')}"
            + (", proven" if replica.is_verified else ", not proven")
            + (f", as of {age(now - stale, now)} ago" if stale is not None else "")
        )

    def clear(self) -> None:
        """Take the line of state away."""
        if not (self._json or self._line_by_line):
            self._output.out.write(_CLEAR_LINE)
            self._output.out.flush()

    def note(self, text: str) -> None:
        """Tell something beside it."""
        self.clear()
        self._output.note(self._output.paint(escape(text), "dim", stream=self._output.err))


def _line(replica: "Replica[Any]") -> MirrorLine:
    stale = replica.staleness
    return MirrorLine(
        state=replica.state.value,
        revision=replica.revision,
        record_count=len(replica),
        digest=replica.digest.hex(),
        is_verified=replica.is_verified,
        stale_seconds=None if stale is None else round(stale.total_seconds(), 3),
    )
