"""`syncline source`: the sources of a dataset."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from syncline.cli.arguments import duration_argument
from syncline.cli.complete import complete_dataset, complete_source
from syncline.cli.groups import confirm, group
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import age, duration, local_time, plain_fields

if TYPE_CHECKING:
    from syncline import SourceInfo

app = group("Sources of a dataset: make, list, show, update, enable, disable, delete; who writes into them.")

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
    expect_every: Annotated[
        str | None,
        typer.Option(
            "--expect-every",
            metavar="TIME",
            help="How often each producer should be heard from: 30s, 5min, 2h, 1d.",
        ),
    ] = None,
) -> None:
    """Make a source. Every dataset has `default` from the beginning."""
    expected = duration_argument("--expect-every", expect_every) if expect_every is not None else None
    async with call.connect() as client:
        info = await client.create_source(
            dataset, source, display_name=display_name, disabled=disabled, expect_every=expected
        )
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
        ["source", "state", ">last received", ">expected every", "title"],
        [
            [info.source, _state(info), age(info.last_received_time), _expected(info), info.display_name]
            for info in found
        ],
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
            ("expected every", _expected(info) or "not said"),
            ("created", local_time(info.create_time)),
            ("changed", local_time(info.update_time)),
        ]
    )


@app.command("update")
@command
async def update(
    call: Invocation,
    dataset: DatasetArgument,
    source: SourceArgument,
    display_name: Annotated[
        str | None, typer.Option("--display-name", metavar="TEXT", help="Title for people.")
    ] = None,
    expect_every: Annotated[
        str | None,
        typer.Option(
            "--expect-every",
            metavar="TIME",
            help="How often each producer should be heard from: 30s, 5min, 2h, 1d; `never` expects nothing.",
        ),
    ] = None,
) -> None:
    """Change the settings that are given."""
    expected = None
    if expect_every is not None:
        never = expect_every == "never"
        expected = timedelta(0) if never else duration_argument("--expect-every", expect_every)
    async with call.connect() as client:
        info = await client.update_source(dataset, source, display_name=display_name, expect_every=expected)
    _done(call, info, f"changed source {source} of {dataset}")


@app.command("producers")
@command
async def producers(call: Invocation, dataset: DatasetArgument, source: SourceArgument) -> None:
    """List who writes into a source, and whether they are heard from."""
    async with call.connect() as client:
        found = await client.producers(dataset, source)
    if call.output.json:
        for info in found:
            call.output.value(plain_fields(info))
        return
    call.output.table(
        ["producer", "state", ">last received", ">readings"],
        [[p.producer, p.state, age(p.last_received_time), str(p.last_sequence)] for p in found],
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


def _expected(info: "SourceInfo") -> str:
    return duration(info.expect_every.total_seconds()) if info.expect_every else ""


def _done(call: Invocation, info: "SourceInfo", text: str) -> None:
    if call.output.json:
        call.output.value(plain_fields(info))
    else:
        call.output.line(text)
