"""`syncline status`: the server and what it holds, at a glance."""

from datetime import UTC, datetime

from syncline.cli.datasets import dataset_table
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import age, count, plain_fields


@command
async def status(call: Invocation) -> None:
    """Show the server, the role of the key, and the datasets with their newest commits."""
    from syncline import PermissionDenied

    output = call.output
    async with call.connect() as client:
        info = await client.server_info()
        try:
            datasets = await client.list_datasets()
        except PermissionDenied:  # a push key sees its own source only
            datasets = None
        address = client.address
    if output.json:
        listed = None if datasets is None else [plain_fields(entry) for entry in datasets]
        output.value({"address": address, "server": plain_fields(info), "datasets": listed})
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
    if datasets:
        output.line()
        output.table(*dataset_table(datasets))
        output.line(f"{count(len(datasets), 'dataset')}")
    elif datasets is not None:
        output.line()
        output.line("no dataset yet: `syncline dataset create NAME` makes one")
