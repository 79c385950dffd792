"""Push, read, sync: the whole round with a server on this machine (`make serve` in another terminal).

.venv/bin/python examples/quickstart.py
"""

import asyncio
from dataclasses import dataclass

import syncline


@dataclass
class Airport:
    icao: str
    name: str
    elevation: int


async def main() -> None:
    async with syncline.connect("127.0.0.1:7420") as client:
        await client.create_dataset("quickstart", identity=syncline.by_key("icao"))
        airports = client.dataset("quickstart", model=Airport)

        result = await airports.push(
            [Airport("EGLL", "London Heathrow", 25), Airport("EDDT", "Berlin-Tegel", 37)]
        )
        print("revision", result.revision, [entry.status.name for entry in result.results])

        record = await airports.get("EGLL")
        print(record.data)

        first = await airports.sync()
        await airports.delete_ids(["EDDT"])
        await airports.push([Airport("EGLL", "London Heathrow", 25)])  # as it is already: no event

        second = await airports.sync(token=first.token)
        print([(type(change).__name__, change.record_id) for change in second.changes])

        await client.delete_dataset("quickstart")


asyncio.run(main())

# Prints:
# revision 1 ['CREATED', 'CREATED']
# Airport(icao='EGLL', name='London Heathrow', elevation=25)
# [('Delete', 'EDDT')]
