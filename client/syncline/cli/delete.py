"""`syncline delete`: records out of a dataset, by their values or by id."""

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncline.cli.batches import Batch, batches
from syncline.cli.complete import complete_dataset
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.files import Format
from syncline.cli.input import limits_for, opened, schema_for
from syncline.cli.invocation import Invocation, command
from syncline.cli.progress import progress
from syncline.cli.refusals import SHOWN_BY_DEFAULT, Refusals
from syncline.cli.render import count

if TYPE_CHECKING:
    from syncline import Client, Dataset, PushResult


@dataclass(slots=True)
class Deleted:
    """What a delete did so far."""

    records: int = 0
    deleted: int = 0
    not_found: int = 0
    revision: int = 0

    def add(self, result: "PushResult") -> None:
        """Count the results of one call."""
        from syncline import RecordStatus

        self.deleted += result.deleted
        self.not_found += result.count(RecordStatus.NOT_FOUND)
        self.revision = max(self.revision, result.revision)


@command
async def delete(
    call: Invocation,
    dataset: Annotated[str, typer.Argument(help="Dataset to delete from.", autocompletion=complete_dataset)],
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE|-]", help="File with records, or - for standard input.")
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="ID", help="Id of a record; may be given several times."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Form of the input. Default: by the extension; JSON Lines for -."),
    ] = None,
    source: Annotated[str, typer.Option("--source", help="Source to delete from.")] = "default",
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Most records in one call, which is one commit.")
    ] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be deleted and change nothing.")
    ] = False,
    max_errors: Annotated[
        int, typer.Option("--max-errors", min=0, help="Show at most so many errors; all are counted.")
    ] = SHOWN_BY_DEFAULT,
) -> ExitCode:
    """Delete records: those that a push of FILE would write (the key fields suffice), or by --id.

    Deleting what is not there is no error. FILE may be in any form that `push` reads.
    """
    if (file is None) == (not ids):
        raise CommandError("name what to delete: a FILE (or -), or --id ID", code=ExitCode.USAGE)
    async with call.connect() as client:
        if ids:
            total = await _delete_ids(client, dataset, ids, source=source, batch=batch, dry_run=dry_run)
            refused = 0
        else:
            assert file is not None
            with opened(file, form) as entry:
                refusals = Refusals(entry.name, call.output, max_errors)
                rows = entry.rows(await schema_for(client, dataset, entry))
                most_records, most_bytes = await limits_for(client, batch)
                incoming = batches(rows, most_records=most_records, most_bytes=most_bytes)
                deletion = _Deletion(client.dataset(dataset), source, refusals, dry_run=dry_run)
                with progress(entry, call.output) as advance:
                    async with contextlib.aclosing(incoming):
                        async for part in incoming:
                            await deletion.take(part)
                            advance(deletion.total.records)
            refusals.close()
            total, refused = deletion.total, refusals.records
    return _report(call, dataset, total, refused, dry_run=dry_run)


async def _delete_ids(
    client: "Client", dataset: str, ids: list[str], *, source: str, batch: int, dry_run: bool
) -> Deleted:
    total = Deleted()
    most_records, _ = await limits_for(client, batch)
    for start in range(0, len(ids), most_records):
        part = ids[start : start + most_records]
        total.add(await client.dataset(dataset).delete_ids(part, source=source, validate_only=dry_run))
        total.records += len(part)
    return total


class _Deletion:
    """Batches of records to delete, in order; from the first refused one on they are only checked."""

    def __init__(self, dataset: "Dataset[Any]", source: str, refusals: Refusals, *, dry_run: bool) -> None:
        self._dataset = dataset
        self._source = source
        self._refusals = refusals
        self._dry_run = dry_run
        self.total = Deleted()

    async def take(self, batch: Batch) -> None:
        """Delete one batch, or tell what is wrong with it."""
        from syncline import InvalidRecords

        self._refusals.unreadable(batch.bad)
        if batch.records:
            try:
                await self._call(batch, check=self._dry_run or self._refusals.records > 0)
            except InvalidRecords:
                await self._call(batch, check=True)
        self.total.records += len(batch)

    async def _call(self, batch: Batch, *, check: bool) -> None:
        result = await self._dataset.delete(batch.data, source=self._source, validate_only=check)
        self._refusals.refused(result.violations, batch.records)
        if not check or self._dry_run:
            self.total.add(result)


def _report(call: Invocation, dataset: str, total: Deleted, refused: int, *, dry_run: bool) -> ExitCode:
    output = call.output
    if output.json:
        output.value({"dataset": dataset, "dry_run": dry_run, **asdict(total), "refused": refused})
    else:
        missing = f", {total.not_found:,} not there" if total.not_found else ""
        done = "would be deleted" if dry_run else "deleted"
        at = f"; revision {total.revision:,}" if total.revision and not dry_run else ""
        output.line(f"{dataset}: {count(total.deleted, 'record')} {done}{missing}{at}")
        if refused:
            output.note(
                output.paint("error:", "red", "bold", stream=output.err)
                + f" {count(refused, 'record')} refused; nothing after the first of them was deleted."
            )
    return ExitCode.REFUSED if refused else ExitCode.OK
