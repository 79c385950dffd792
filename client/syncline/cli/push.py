"""`syncline push`: records of a file or pipe into a dataset."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from syncline.cli.batches import Batch, batches
from syncline.cli.complete import complete_dataset
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.files import Format
from syncline.cli.input import Input, limits_for, opened, schema_for
from syncline.cli.invocation import Invocation, command
from syncline.cli.progress import Advance, progress
from syncline.cli.refusals import SHOWN_BY_DEFAULT, Refusals
from syncline.cli.render import Output, count, duration

if TYPE_CHECKING:
    from syncline import Client, PushResult, SessionResult

Write = Callable[[list[bytes]], Awaitable["PushResult"]]

_BATCH: Final = 1_000
_SESSION_BATCH: Final = 4_000
"""Several calls, which the SDK keeps in flight together; a session knows their order."""

_RATE_FROM_RECORDS: Final = 1_000
"""Of fewer records the rate says more about the connection."""

_PATIENCE_SECONDS: Final = 120.0
"""How long one call waits for a server that restarts."""


class SessionMode(StrEnum):
    """How the records become visible."""

    REPLACE = "replace"
    ACCRUE = "accrue"
    STREAM = "stream"


class ConflictPolicy(StrEnum):
    """What the commit of a session does to records that were changed since it was opened."""

    OVERWRITE = "overwrite"
    KEEP_NEWER = "keep_newer"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for."""

    dataset: str
    source: str
    session: SessionMode | None
    allow_mass_delete: bool
    on_conflict: ConflictPolicy
    partial: bool
    batch: int
    dry_run: bool


@dataclass(slots=True)
class Totals:
    """What a push did so far."""

    records: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    kept: int = 0
    superseded: int = 0
    written: int = 0
    """Records in the calls that were accepted."""
    revision: int = 0

    def add(self, result: "PushResult") -> None:
        """Count the results of one call."""
        from syncline import RecordStatus

        self.created += result.created
        self.updated += result.updated
        self.unchanged += result.unchanged
        self.superseded += result.count(RecordStatus.SUPERSEDED)
        self.revision = max(self.revision, result.revision)

    def close(self, result: "SessionResult") -> None:
        """Take what the commit of a session did."""
        self.created += result.created
        self.updated += result.updated
        self.unchanged += result.unchanged
        self.deleted += result.deleted
        self.kept += result.kept
        self.revision = max(self.revision, result.revision)


@command
async def push(
    call: Invocation,
    dataset: Annotated[str, typer.Argument(help="Dataset to push into.", autocompletion=complete_dataset)],
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="File with the records, or - for standard input.")
    ],
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Form of the input. Default: by the extension; JSON Lines for -."),
    ] = None,
    source: Annotated[str, typer.Option("--source", help="Source to push into.")] = "default",
    session: Annotated[
        SessionMode | None,
        typer.Option(
            "--session",
            help="replace: afterwards the source holds exactly this input. accrue: all of the input becomes "
            "visible at once or not at all. stream: as without, and one loader at a time.",
        ),
    ] = None,
    allow_mass_delete: Annotated[
        bool,
        typer.Option("--allow-mass-delete", help="Let a replace delete more than the server's guard allows."),
    ] = False,
    on_conflict: Annotated[
        ConflictPolicy,
        typer.Option(
            "--on-conflict",
            help="What a replace or accrue session does to records that somebody changed since it was opened. "
            "keep_newer: leave them as they are. abort: change nothing.",
        ),
    ] = ConflictPolicy.OVERWRITE,
    partial: Annotated[
        bool, typer.Option("--partial", help="Push the good records and report the others.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help=f"Most records in one call, which is one commit. Default: {_BATCH}; {_SESSION_BATCH} in sessions.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every record on the server and change nothing.")
    ] = False,
    max_errors: Annotated[
        int, typer.Option("--max-errors", min=0, help="Show at most so many errors; all are counted.")
    ] = SHOWN_BY_DEFAULT,
) -> ExitCode:
    """Push records from JSON, JSON Lines, CSV or TSV.

    Without --session the input goes in calls of --batch records, in order; each call is applied whole or not
    at all. After a refused call nothing more is written, and the rest of the input is checked, so that one
    run shows every error with its line.

    CSV: the first row names the members. Types come from the dataset's JSON Schema (integer, number, boolean,
    string, and JSON text for array and object); without one all values are strings. A cell that does not fit
    its type is sent as a string for the server to judge. An empty cell is null where the schema allows it,
    otherwise the member is left out. A name with dots (`station.id`) is a member of an object.
    """
    if partial and session is not None:
        raise CommandError(
            "--partial does not go with --session: a session takes a call whole or not at all",
            code=ExitCode.USAGE,
        )
    if on_conflict is not ConflictPolicy.OVERWRITE and session in (None, SessionMode.STREAM):
        raise CommandError("--on-conflict needs --session replace or accrue", code=ExitCode.USAGE)
    settings = Settings(
        dataset=dataset,
        source=source,
        session=session,
        allow_mass_delete=allow_mass_delete,
        on_conflict=on_conflict,
        partial=partial,
        batch=batch or (_BATCH if session is None else _SESSION_BATCH),
        dry_run=dry_run,
    )
    with opened(file, form) as entry:
        refusals = Refusals(entry.name, call.output, max_errors)
        started = time.monotonic()
        async with call.connect() as client:
            with progress(entry, call.output) as advance:
                totals = await _Push(client, settings, entry, refusals, advance).run()
        refusals.close()
        return _report(call.output, settings, totals, refusals, time.monotonic() - started)


class _Push:
    """One push: batches of the input to the server, in order, one call at a time.

    One at a time, because two calls on their way at once may arrive in either order, and of two records with
    the same id the later one of the file has to win. The next batch is read meanwhile.
    """

    def __init__(
        self, client: "Client", settings: Settings, entry: Input, refusals: Refusals, advance: Advance
    ) -> None:
        self._client = client
        self._settings = settings
        self._entry = entry
        self._refusals = refusals
        self._advance = advance
        self._dataset = client.dataset(settings.dataset)
        self._totals = Totals()

    async def run(self) -> Totals:
        """Push everything. Bad records raise nothing, they are in the refusals."""
        settings = self._settings
        schema = await schema_for(self._client, settings.dataset, self._entry)
        most_records, most_bytes = await limits_for(self._client, settings.batch)
        incoming = batches(self._entry.rows(schema), most_records=most_records, most_bytes=most_bytes)
        async with contextlib.aclosing(incoming):
            if settings.dry_run:
                await self._send(incoming, None)
            elif settings.session is None:
                await self._send(incoming, self._push)
            else:
                await self._send_in_session(incoming, settings.session)
        return self._totals

    async def _push(self, data: list[bytes]) -> "PushResult":
        from syncline import RetryPolicy

        return await self._dataset.push(
            data,
            source=self._settings.source,
            partial=self._settings.partial,
            timeout_seconds=_PATIENCE_SECONDS,
            policy=RetryPolicy(attempts=None),
        )

    async def _check(self, data: list[bytes]) -> "PushResult":
        return await self._dataset.push(data, source=self._settings.source, validate_only=True)

    async def _send_in_session(self, incoming: AsyncIterator[Batch], mode: SessionMode) -> None:
        """Write all batches and commit; roll back when a record was refused, or on any error."""
        block = self._dataset.session(
            mode.value,
            source=self._settings.source,
            allow_mass_delete=self._settings.allow_mass_delete,
            on_conflict=self._settings.on_conflict.value,
        )
        async with block as session:
            await self._send(incoming, session.upsert)
            commit = not self._refusals.records
            result = await session.close(commit=commit)
            if commit:
                self._totals.close(result)

    async def _send(self, incoming: AsyncIterator[Batch], write: Write | None) -> None:
        """Write the batches; from the first refused one on, and without ``write``, only check them."""
        async for batch in incoming:
            self._refusals.unreadable(batch.bad)
            if batch.bad and not self._settings.partial:
                write = None  # a call is taken whole or not at all
            if write is None:
                await self._check_batch(batch)
            elif not await self._write_batch(batch, write):
                write = None
            self._totals.records += len(batch)
            self._advance(self._totals.records)

    async def _write_batch(self, batch: Batch, write: Write) -> bool:
        """Write a batch; False when it was refused for its records, which are then told."""
        from syncline import InvalidRecords

        if not batch.records:
            return True
        try:
            result = await write(batch.data)
        except InvalidRecords as error:
            if not await self._check_batch(batch):  # of several calls, the error knows one
                self._refusals.refused(error.violations, batch.records, error.total_violations)
            return False
        self._refusals.refused(result.violations, batch.records)
        self._totals.add(result)
        self._totals.written += len(batch.records) - len({violation.index for violation in result.violations})
        return True

    async def _check_batch(self, batch: Batch) -> bool:
        """Check a batch and tell what is wrong; False when nothing is."""
        if not batch.records:
            return False
        result = await self._check(batch.data)
        self._refusals.refused(result.violations, batch.records)
        if self._settings.dry_run:
            self._totals.add(result)
        return bool(result.violations)


def _report(
    output: Output, settings: Settings, totals: Totals, refusals: Refusals, seconds: float
) -> ExitCode:
    code = ExitCode.REFUSED if refusals.records else ExitCode.OK
    if output.json:
        output.value(
            {
                "dataset": settings.dataset,
                "source": settings.source,
                "dry_run": settings.dry_run,
                **asdict(totals),
                "refused": refusals.records,
                "seconds": round(seconds, 3),
            }
        )
        return code
    output.line(_summary(settings, totals, seconds))
    if refusals.records:
        output.note(
            output.paint("error:", "red", "bold", stream=output.err)
            + f" {count(refusals.records, 'record')} refused. {_outcome(settings, totals)}"
        )
    return code


def _summary(settings: Settings, totals: Totals, seconds: float) -> str:
    counts = [
        f"{number:,} {what}"
        for number, what in (
            (totals.created, "created"),
            (totals.updated, "updated"),
            (totals.unchanged, "unchanged"),
            (totals.deleted, "deleted"),
            (totals.kept, "kept as they are, changed meanwhile"),
            (totals.superseded, "repeated in the input"),
        )
        if number
    ]
    what = ", ".join(counts)
    rate = f"in {duration(seconds)}"
    if totals.records >= _RATE_FROM_RECORDS:
        rate += f" ({totals.records / max(seconds, 1e-6):,.0f}/s)"
    if settings.dry_run:
        checked = f"{count(totals.records, 'record')} checked {rate}, nothing was changed"
        return f"{settings.dataset}: {checked}; a push would be: {what or 'nothing new'}"
    pushed = count(totals.records, "record")
    if totals.written < totals.records:
        pushed = f"{totals.written:,} of {pushed} pushed"
    at = f"; revision {totals.revision:,}" if totals.revision else ""
    return f"{settings.dataset}: {pushed} {rate}: {what or 'nothing changed'}{at}"


def _outcome(settings: Settings, totals: Totals) -> str:
    if settings.dry_run:
        return "Nothing was changed."
    if settings.partial:
        return "The others were pushed."
    if settings.session in (SessionMode.REPLACE, SessionMode.ACCRUE):
        return "The session was rolled back: nothing was changed."
    if not totals.written:
        return "Nothing was changed."
    return (
        f"The first {count(totals.written, 'record')} of the input were pushed, the others were not. Mend the input "
        "and push it again; --partial pushes the good ones, --session accrue all or nothing."
    )
