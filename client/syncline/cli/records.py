"""`syncline get` and `syncline ls`: records by id, and all of them."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from syncline.cli.complete import complete_dataset
from syncline.cli.exits import ExitCode
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import Output, count, escape, indented_json, local_time, plain, shorten, width
from syncline.cli.selection import FieldsOption, FilterOption, names_of

if TYPE_CHECKING:
    from syncline import Record

DatasetArgument = Annotated[str, typer.Argument(help="The dataset.", autocompletion=complete_dataset)]

_SHOWN_ON_TERMINAL: Final = 100
_ID_COLUMNS: Final = 24


@command
async def get(
    call: Invocation,
    dataset: DatasetArgument,
    record_id: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of records.")],
) -> ExitCode:
    """Show records by id; JSON lines when the output is piped, or with --json."""
    async with call.connect() as client:
        found = await client.dataset(dataset).get_many(record_id)
    missing = 0
    for wanted in record_id:
        record = found.get(wanted)
        if record is None:
            missing += 1
            call.output.note(f"{escape(dataset)} has no record {escape(wanted)}")
        elif call.json_lines:
            call.output.value(record_fields(record))
        else:
            _show(call.output, record)
    return ExitCode.NOT_FOUND if missing else ExitCode.OK


@command
async def ls(
    call: Invocation,
    dataset: DatasetArgument,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            min=0,
            help=f"At most so many; 0: all. Default: {_SHOWN_ON_TERMINAL} on a terminal.",
        ),
    ] = None,
    filter_text: FilterOption = None,
    fields: FieldsOption = None,
) -> None:
    """List records in the order of their ids; JSON lines when the output is piped, or with --json."""
    if limit is None:
        limit = 0 if call.json_lines else _SHOWN_ON_TERMINAL
    shown, are_all = 0, True
    async with call.connect() as client:
        records = client.dataset(dataset).records(
            filter=filter_text, fields=names_of(fields), page_size=min(limit + 1, 1_000) if limit else 1_000
        )
        async for record in records:
            if limit and shown == limit:
                are_all = False
                break
            if call.json_lines:
                call.output.value(record_fields(record))
            else:
                call.output.line(_line(call.output, record))
            shown += 1
        if not (call.json_lines or are_all):
            if filter_text:
                told = f"the first {shown:,} that match"
            else:
                total = (await client.get_dataset(dataset)).record_count
                told = f"{shown:,} of {count(total, 'record')}"
            call.output.note(f"{told}; --limit 0 shows all")


def record_fields(record: "Record[Any]") -> dict[str, object]:
    """A record for JSON output."""
    return {
        "record_id": record.record_id,
        "revision": record.revision,
        "source": record.source,
        "create_time": plain(record.create_time),
        "update_time": plain(record.update_time),
        "data": msgspec.Raw(record.json),
    }


def _show(output: Output, record: "Record[Any]") -> None:
    facts = f"revision {record.revision:,}, source {record.source}, updated {local_time(record.update_time)}"
    output.line(f"{output.paint(escape(record.record_id), 'bold')}  {output.paint(facts, 'dim')}")
    for line in indented_json(record.json).splitlines():
        output.line(escape(line))


def _line(output: Output, record: "Record[Any]") -> str:
    shown_id = escape(record.record_id)
    shown_id += " " * (_ID_COLUMNS - width(shown_id))
    data = escape(record.json.decode(errors="replace"))
    return f"{output.paint(shown_id, 'bold')} {shorten(data, max(8, output.columns - width(shown_id) - 1))}"
