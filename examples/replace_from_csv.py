"""Let a source hold exactly what a CSV file holds; only real changes become events.

.venv/bin/python examples/replace_from_csv.py
"""

import asyncio
import csv
import io
from collections.abc import Iterator
from itertools import islice

import syncline

MONDAY = """code,name,elevation
EGLL,London Heathrow,25
EDDT,Berlin-Tegel,37
VNPR,Pokhara,827
"""
TUESDAY = """code,name,elevation
EGLL,London Heathrow,25
EDDB,Berlin Brandenburg,48
VNPR,Pokhara,822
"""


def rows(text: str) -> Iterator[dict[str, object]]:
    """Rows with their types; a file would be read line by line in the same way."""
    for row in csv.DictReader(io.StringIO(text)):
        yield {"code": row["code"], "name": row["name"], "elevation": int(row["elevation"])}


async def replace(dataset: syncline.Dataset, text: str) -> None:
    """Send the file in calls of 1,000 rows. An exception in the block would leave everything as it was."""
    source = rows(text)
    async with dataset.session("replace", source="export") as session:
        while batch := list(islice(source, 1_000)):
            await session.upsert(batch)


async def main() -> None:
    async with syncline.connect("127.0.0.1:7420") as client:
        await client.create_dataset("from-csv", identity=syncline.by_key("code"))
        await client.create_source("from-csv", "export")
        airports = client.dataset("from-csv")

        await replace(airports, MONDAY)
        copy = await airports.sync()
        print(len(copy.changes), "records")

        await replace(airports, TUESDAY)
        page = await airports.sync(token=copy.token)
        for change in sorted(page.changes, key=lambda change: change.record_id):
            print(type(change).__name__, change.record_id)

        await client.delete_dataset("from-csv")


asyncio.run(main())

# Prints:
# 3 records
# Put EDDB
# Delete EDDT
# Put VNPR
