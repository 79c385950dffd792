"""`syncline source`: the sources of a dataset."""

from typing import TYPE_CHECKING, Annotated

import typer

from syncline.cli.complete import complete_dataset, complete_source
from syncline.cli.groups import confirm, group
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import age, local_time, plain_fields

if TYPE_CHECKING:
    from syncline import SourceInfo

app = group("Sources of a dataset: make, list, show, enable, disable, delete.")

DatasetArgument = Annotated[str, typer.Argument(help="The dataset.", autocompletion=complete_dataset)]
SourceArgument = Annotated[str, typer.Argument(help="The source.", autocompletion=complete_source)]


@app.command("create")
@command
async def create(
    call: Invocation,
    dataset: DatasetArgument,
    source: Annotated[str, typer.Argument(help="Its name.")],
    display_name: Annotated[
        str, typer.Option("--display-name", metavar="TEXT", help="Title for people.")
    ] = "",
    disabled: Annotated[bool, typer.Option("--disabled", help="Refuse writes until it is enabled.")] = False,
) -> None:
    """Make a source. Every dataset has `default` from the beginning."""
    async with call.connect() as client:
        info = await client.create_source(dataset, source, display_name=display_name, disabled=disabled)
    _done(call, info, f"made source {source} of {dataset}")


@app.command("list")
@command
async def list_sources(call: Invocation, dataset: DatasetArgument) -> None:
    """List the sources of a dataset."""
    async with call.connect() as client:
        found = await client.list_sources(dataset)
    if call.output.json:
        for info in found:
            call.output.value(plain_fields(info))
        return
    call.output.table(
        ["source", "state", ">last received", "title"],
        [[info.source, _state(info), age(info.last_received_time), info.display_name] for info in found],
    )


@app.command("show")
@command
async def show(call: Invocation, dataset: DatasetArgument, source: SourceArgument) -> None:
    """Show a source."""
    async with call.connect() as client:
        info = await client.get_source(dataset, source)
    if call.output.json:
        call.output.value(plain_fields(info))
        return
    call.output.facts(
        [
            ("source", info.source),
            ("dataset", info.dataset),
            ("title", info.display_name),
            ("state", _state(info)),
            ("last received", local_time(info.last_received_time) if info.last_received_time else "never"),
            ("created", local_time(info.create_time)),
            ("changed", local_time(info.update_time)),
        ]
    )


@app.command("enable")
@command
async def enable(call: Invocation, dataset: DatasetArgument, source: SourceArgument) -> None:
    """Let a source take writes again."""
    async with call.connect() as client:
        info = await client.update_source(dataset, source, disabled=False)
    _done(call, info, f"enabled source {source} of {dataset}")


@app.command("disable")
@command
async def disable(call: Invocation, dataset: DatasetArgument, source: SourceArgument) -> None:
    """Refuse writes into a source; its records stay."""
    async with call.connect() as client:
        info = await client.update_source(dataset, source, disabled=True)
    _done(call, info, f"disabled source {source} of {dataset}")


@app.command("delete")
@command
async def delete(
    call: Invocation,
    dataset: DatasetArgument,
    source: SourceArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a source and the records that it owns."""
    async with call.connect() as client:
        info = await client.get_source(dataset, source)
        confirm(f"Delete source {source} of {dataset} and all records that it owns?", yes=yes)
        await client.delete_source(dataset, source, etag=info.etag)
    if call.output.json:
        call.output.value({"dataset": dataset, "source": source, "deleted": True})
    else:
        call.output.line(f"deleted source {source} of {dataset}")


def _state(info: "SourceInfo") -> str:
    return "disabled" if info.disabled else "enabled"


def _done(call: Invocation, info: "SourceInfo", text: str) -> None:
    if call.output.json:
        call.output.value(plain_fields(info))
    else:
        call.output.line(text)
