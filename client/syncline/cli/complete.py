"""Completion of dataset names, asked from the server; silent and quick when there is none."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import typer

from syncline.cli.options import Options

if TYPE_CHECKING:
    from syncline import Client

_PATIENCE_SECONDS: Final = 1.0


def complete_dataset(context: typer.Context, incomplete: str) -> list[str]:
    """Names of datasets that begin with what was typed."""

    async def ask(client: "Client") -> list[str]:
        return [entry.dataset for entry in await client.list_datasets()]

    return _answer(context, incomplete, ask)


def complete_source(context: typer.Context, incomplete: str) -> list[str]:
    """Names of sources of the dataset typed before."""
    dataset = context.params.get("dataset")
    if not isinstance(dataset, str):
        return []

    async def ask(client: "Client") -> list[str]:
        return [entry.source for entry in await client.list_sources(dataset)]

    return _answer(context, incomplete, ask)


def _answer(
    context: typer.Context, incomplete: str, ask: "Callable[[Client], Awaitable[list[str]]]"
) -> list[str]:
    async def names() -> list[str]:
        from syncline.cli.connection import connect

        async with asyncio.timeout(_PATIENCE_SECONDS), connect(_options(context)) as client:
            return await ask(client)

    try:
        found = asyncio.run(names())
    except Exception:  # noqa: BLE001 - there is no place for a message in the middle of a command line
        return []
    return [name for name in found if name.startswith(incomplete)]


def _options(context: typer.Context) -> Options:
    """The shared options typed so far: the server may be another one."""
    known = {entry.name for entry in fields(Options)}
    typed: dict[str, Any] = {}
    at: Any = context
    while at is not None:
        given = {name: value for name, value in at.params.items() if name in known and value is not None}
        typed = given | typed
        at = at.parent
    return Options(**typed)
