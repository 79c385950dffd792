"""Figures of the last `make bench`, from the file that it writes."""

import json
from pathlib import Path
from typing import Any

from blocks.markdown import table as markdown_table

PEERS = ("syncline", "etcd", "nats", "sqlite", "postgres", "grpc")
BARE = {"grpc": "grpc", "pg": "postgres"}
"""Columns of what is measured under several names, by how these begin."""


def table(root: Path) -> str | None:
    """The table, or None when there are no results to show.

    ``grpc`` is a bare grpc.aio server, ``postgres`` asyncpg without a server of ours.
    """
    results = root / "bench" / "results.json"
    if not results.is_file():
        return None
    figures = {
        name: {BARE.get(key.partition("_")[0], key): value for key, value in figure.items()}
        for name, figure in json.loads(results.read_text())["figures"].items()
    }
    peers = [peer for peer in PEERS if any(peer in figure for figure in figures.values())]
    rows = [
        (f"`{name}`", figure["unit"], figure["better"], *(_number(figure.get(peer)) for peer in peers))
        for name, figure in figures.items()
    ]
    return markdown_table(("figure", "unit", "better", *(f"`{peer}`" for peer in peers)), rows)


def requirements(root: Path) -> str | None:
    """What has to be reached, and whether it was in the last run. None when there are no results to show."""
    results = root / "bench" / "results.json"
    if not results.is_file():
        return None
    rows = [
        (needed["what"], _number(needed["limit"]), _number(needed["measured"]), _yes(needed["reached"]))
        for needed in json.loads(results.read_text())["requirements"]
    ]
    return markdown_table(("required", "limit", "measured", "reached"), rows)


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
