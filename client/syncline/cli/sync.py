"""`syncline sync`: what changed since last time, once; to standard output or into an exact copy."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncline.cli.changes import checkpoint_line, json_lines, records_at, reset_line
from syncline.cli.complete import complete_dataset
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import count
from syncline.cli.selection import FieldsOption, FilterOption, names_of
from syncline.cli.state import Position, held, read_position, write_position

if TYPE_CHECKING:
    from syncline import Checkpoint, SyncPage

_Read = Callable[[bytes | None], Awaitable["SyncPage[Any]"]]
"""One page of what changed since a token."""


@command
async def sync(
    call: Invocation,
    dataset: Annotated[str, typer.Argument(help="Dataset to read.", autocompletion=complete_dataset)],
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Where this command remembers how far it came. Default: nothing is remembered; with --into, "
            "FILE.token beside the copy.",
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE", help="Keep an exact copy in this file (JSON Lines) instead."),
    ] = None,
    filter_text: FilterOption = None,
    fields: FieldsOption = None,
) -> None:
    """Print what changed since last time as JSON lines, or bring a copy up to date.

    Each line has `kind` (put, delete, remove, reset, checkpoint). The token is stored after the lines are written, so
    that a crash repeats lines and never loses one. After `reset` comes a complete new copy.

    With --into the copy is proven by count and digest before it takes the place of the old one; each line of
    it has record_id, revision and data.

    With --filter a record that ceases to match comes as `remove`. Another filter, or other fields, than last time
    give a complete new copy.
    """
    token_path = token_file or (into and into.with_name(into.name + ".token"))
    with contextlib.ExitStack() as stack:
        if token_path is not None:
            stack.enter_context(held(token_path))
        async with call.connect() as client:
            read = partial(client.dataset(dataset).sync, filter=filter_text, fields=names_of(fields))
            if into is None:
                await _print(call, read, dataset, token_path)
            else:
                assert token_path is not None
                await _keep(call, read, dataset, into, token_path)


async def _print(call: Invocation, read: _Read, dataset: str, token_path: Path | None) -> None:
    output = call.output
    start = read_position(token_path, dataset) if token_path is not None else None
    token = start.token if start else None
    changes = 0
    while True:
        page = await read(token)
        if page.reset is not None:
            output.value(reset_line(page.reset))
        for line in json_lines(page.changes):
            output.json_line(line)
        if page.checkpoint is not None:
            output.value(checkpoint_line(page.checkpoint))
        output.out.flush()
        changes += len(page.changes)
        token = page.token
        if token_path is not None:
            write_position(token_path, _position(dataset, token, page.checkpoint))
        if page.checkpoint is not None:
            break
    if output.err_is_terminal and not output.json:
        output.note(_summary(dataset, changes, page.checkpoint))


async def _keep(call: Invocation, read: _Read, dataset: str, into: Path, token_path: Path) -> None:
    from syncline.cli.copyfile import DivergedError

    start = read_position(token_path, dataset)
    token = start.token if start else None
    try:
        changes, checkpoint = await _bring_up_to_date(call, read, dataset, into, token, token_path)
    except DivergedError as error:
        if token is None:
            raise
        call.output.note(f"{error.message}; starting over with a complete copy")
        changes, checkpoint = await _bring_up_to_date(call, read, dataset, into, None, token_path)
    if call.output.json:
        call.output.value({"dataset": dataset, "changes": changes, "checkpoint": checkpoint_line(checkpoint)})
    else:
        proof = "proven by digest" if checkpoint.digest else "not proven,"
        call.output.line(f"{_summary(dataset, changes, checkpoint)}, {proof} in {into}")


async def _bring_up_to_date(
    call: Invocation, read: _Read, dataset: str, into: Path, token: bytes | None, token_path: Path
) -> "tuple[int, Checkpoint]":
    """Read up to the next checkpoint and write the copy. Returns the number of changes and the checkpoint."""
    from syncline.cli.copyfile import CopyFile

    changes = 0
    with CopyFile(into) as copy:
        if token is None or copy.is_new:
            token = None
            copy.start_over()
        while True:
            page = await read(token)
            if page.reset is not None:
                call.output.note(f"a complete new copy is needed: {page.reset.message}")
                copy.start_over()
                changes = 0
            copy.add(page.changes)
            changes += len(page.changes)
            token = page.token
            if page.checkpoint is not None:
                await asyncio.to_thread(copy.commit, page.checkpoint)
                write_position(token_path, _position(dataset, token, page.checkpoint))
                return changes, page.checkpoint


def _position(dataset: str, token: bytes, checkpoint: "Checkpoint | None") -> Position:
    if checkpoint is None:
        return Position(dataset=dataset, token=token)
    return Position(
        dataset=dataset,
        token=token,
        revision=checkpoint.revision,
        record_count=checkpoint.record_count,
        digest=checkpoint.digest,
    )


def _summary(dataset: str, changes: int, checkpoint: "Checkpoint") -> str:
    return (
        f"{dataset}: {count(changes, 'change')} up to revision {checkpoint.revision:,}; "
        f"{records_at(checkpoint)}"
    )
