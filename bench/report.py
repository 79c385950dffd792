"""The table for people and the JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.measure import Figure, Outcome, Requirement

PEERS = ("etcd", "nats", "sqlite", "postgres", "grpc")
"""Columns beside Syncline's. ``grpc``: a bare grpc.aio server, ``postgres``: asyncpg, whatever each does."""


def figures_table(figures: Sequence[Figure]) -> Table:
    """A row for each figure, a column for each system."""
    table = Table(box=box.SIMPLE_HEAD, title="Figures (medians)", title_justify="left")
    table.add_column("figure", style="bold", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name in ("syncline", *PEERS):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    for figure in figures:
        columns = {_column(name): value for name, value in figure.values.items()}
        others = [
            f"{name} {_number(value)}" for name, value in columns.items() if name not in ("syncline", *PEERS)
        ]
        cells = [_number(columns[name]) if name in columns else "" for name in ("syncline", *PEERS)]
        table.add_row(figure.name, figure.unit, *cells, "; ".join([figure.what, *others]))
    return table


def _column(name: str) -> str:
    """Where the value of a system stands."""
    return {"grpc": "grpc", "pg": "postgres"}.get(name.partition("_")[0], name)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def requirements_table(requirements: Sequence[Requirement]) -> Table:
    """What has to be reached, and whether it is."""
    table = Table(box=box.SIMPLE_HEAD, title="Has to be reached", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("limit", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("reached")
    for needed in requirements:
        reached = "[green]yes[/]" if needed.reached else "[red]no[/]"
        table.add_row(needed.what, _number(needed.limit), _number(needed.measured), reached)
    return table


def show(
    console: Console, outcome: Outcome, machine: Mapping[str, Any], systems: Mapping[str, Mapping[str, str]]
) -> None:
    """Print everything."""
    console.print(figures_table(outcome.figures))
    if outcome.requirements:
        console.print(requirements_table(outcome.requirements))
    for name, facts in systems.items():
        console.print(f"{name:10} {facts.get('version', '')}  {facts['durability']}", highlight=False)
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    console.print(f"machine    {described}", highlight=False)


def as_json(
    outcome: Outcome, machine: Mapping[str, Any], systems: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The same as a JSON value."""
    return {
        "machine": dict(machine),
        "systems": {name: dict(facts) for name, facts in systems.items()},
        "figures": {
            figure.name: {
                "what": figure.what,
                "unit": figure.unit,
                "better": figure.better,
                **{name: _rounded(value) for name, value in figure.values.items()},
                "samples": {name: [_rounded(v) for v in values] for name, values in figure.samples.items()},
            }
            for figure in outcome.figures
        },
        "requirements": [
            {
                "what": needed.what,
                "limit": needed.limit,
                "measured": _rounded(needed.measured),
                "reached": needed.reached,
            }
            for needed in outcome.requirements
        ],
    }


def _rounded(value: float) -> float:
    return round(value) if value >= 1000 else round(value, 4)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write it in place of the last one."""
    path.write_text(json.dumps(value, indent=2) + "\n")
