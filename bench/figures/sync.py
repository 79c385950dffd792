"""sync_cold."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from bench.figures.push import connected
from bench.measure import Figure, Outcome, Room, Stopwatch, at_least, interleaved, medians, quiet_collector
from bench.records import shuffled_items
from bench.systems.sqlite import Sqlite
from bench.systems.syncline import Syncline

_COLLECTION = "cold"


async def measure_cold(room: Room) -> Outcome:
    """Everything into an empty dict, key → JSON text."""
    items = shuffled_items(room.pick(100_000, 30_000))
    async with contextlib.AsyncExitStack() as stack:
        contenders: dict[str, Callable[[int], Awaitable[float]]] = {}
        for system in (Syncline(page_cache=False), *room.peers.values()):
            client = await connected(stack, system, room)
            await client.create(_COLLECTION)
            await client.push_bulk(_COLLECTION, items)
            contenders[system.name] = copier(client, _COLLECTION, len(items))
        sqlite = stack.enter_context(contextlib.closing(Sqlite(room.directory / "sqlite.db")))
        sqlite.push_bulk(_COLLECTION, items)
        contenders["sqlite"] = _scanner(sqlite, len(items))
        with quiet_collector():
            samples = await interleaved(room.pick(7, 3), contenders)
    values = medians(samples)
    figure = Figure(
        name="sync_cold",
        what=f"{len(items):,} records into a dict",
        unit="records/s",
        better="higher",
        values=values,
        samples=samples,
    )
    needed = [
        *at_least("sync_cold: at least 1 times etcd", values["syncline"], values.get("etcd"), 1.0),
        *at_least("sync_cold: at least 5 times nats", values["syncline"], values.get("nats"), 5.0),
    ]
    return Outcome(figures=[figure], requirements=needed)


class _Copies(Protocol):
    async def copy(self, collection: str) -> dict[str, bytes]: ...


def copier(client: _Copies, collection: str, count: int) -> Callable[[int], Awaitable[float]]:
    """Measures a copy of so many records."""

    async def copy(_number: int) -> float:
        watch = Stopwatch()
        found = await client.copy(collection)
        seconds = watch.seconds
        assert len(found) == count, f"{len(found)} of {count} records"
        return count / seconds

    return copy


def _scanner(sqlite: Sqlite, count: int) -> Callable[[int], Awaitable[float]]:
    async def scan(_number: int) -> float:
        watch = Stopwatch()
        found = sqlite.copy(_COLLECTION)
        seconds = watch.seconds
        assert len(found) == count, f"{len(found)} of {count} records"
        return count / seconds

    return scan
