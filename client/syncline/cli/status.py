"""`syncline status`: the server and what it holds, at a glance."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from syncline.cli.datasets import dataset_table
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import age, count, duration, plain_fields

if TYPE_CHECKING:
    from syncline import Client, Node


@command
async def status(call: Invocation) -> None:
    """Show the server, the role of the key, the nodes that share the store, and the datasets with their newest commits."""
    from syncline import PermissionDenied

    output = call.output
    async with call.connect() as client:
        info = await client.server_info()
        try:
            datasets = await client.list_datasets()
        except PermissionDenied:  # a push key sees its own source only
            datasets = None
        nodes = await _nodes(client) if info.role == "admin" else None
        address = client.address
    if output.json:
        listed = None if datasets is None else [plain_fields(entry) for entry in datasets]
        told = None if nodes is None else [plain_fields(node) for node in nodes]
        output.value({"address": address, "server": plain_fields(info), "nodes": told, "datasets": listed})
        return
    writable = (
        output.paint("yes", "green") if info.writable else output.paint("no: writes are refused now", "red")
    )
    skew_seconds = (datetime.now(UTC) - info.server_time).total_seconds()
    output.facts(
        [
            ("server", f"{address}, version {info.version}, up {age(info.start_time, info.server_time)}"),
            ("store", info.store),
            ("clock", f"{skew_seconds:+.0f} s from this machine's" if abs(skew_seconds) >= 2 else ""),
            ("role", info.role),
        ]
    )
    output.line(output.paint("writable:", "bold") + " " + writable)
    if nodes:
        output.line()
        output.table(*_node_table(nodes, info.server_time))
        if silent := sum(node.silent for node in nodes):
            output.line(output.paint(f"{count(silent, 'node')} no longer reporting", "yellow"))
    if datasets:
        output.line()
        output.table(*dataset_table(datasets))
        output.line(f"{count(len(datasets), 'dataset')}")
    elif datasets is not None:
        output.line()
        output.line("no dataset yet: `syncline dataset create NAME` makes one")


async def _nodes(client: "Client") -> "list[Node] | None":
    from syncline import NotOffered

    try:
        return await client.nodes()
    except NotOffered:  # a server of the version before
        return None


def _node_table(nodes: "Sequence[Node]", now: datetime) -> tuple[list[str], list[list[str]]]:
    """Nodes as a table: columns and rows. The one that answered is marked."""
    rows = [
        [
            node.name,
            "silent" if node.silent else "this one" if node.this_node else "up",
            node.version,
            age(node.start_time, now),
            age(node.report_time, now),
            duration(node.lag.total_seconds()) if node.lag else "none",
            ", ".join(node.addresses),
        ]
        for node in nodes
    ]
    return ["node", "state", "version", ">up for", ">reported", ">lag", "addresses"], rows
