"""The order of commits, as producers see it (G3)."""

import asyncio
import time
from dataclasses import dataclass
from itertools import combinations

import syncline

PRODUCERS = 8
PUSHES = 10


@dataclass(frozen=True)
class Acknowledged:
    begun: float
    ended: float
    revision: int


async def test_g03_revisions_have_no_gaps_and_agree_with_real_time(server, client):
    """Producers on connections of their own; an unchanged push takes no revision."""
    await client.create_dataset("order", identity=syncline.by_key("id"))
    acknowledged: list[Acknowledged] = []

    async def produce(number):
        async with syncline.connect(server.address, key=server.key) as producer:
            order = producer.dataset("order")
            for push in range(PUSHES):
                begun = time.monotonic()
                result = await order.push([{"id": f"{number}-{push}"}])
                acknowledged.append(Acknowledged(begun, time.monotonic(), result.revision))
                unchanged = await order.push([{"id": f"{number}-{push}"}])
                assert unchanged.revision >= result.revision

    await asyncio.gather(*map(produce, range(PRODUCERS)))

    assert sorted(a.revision for a in acknowledged) == list(range(1, PRODUCERS * PUSHES + 1))
    for one, other in combinations(acknowledged, 2):
        if one.ended < other.begun:
            assert one.revision < other.revision
        elif other.ended < one.begun:
            assert other.revision < one.revision
