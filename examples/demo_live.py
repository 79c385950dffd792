"""The live half of the demo: a file replica, a filtered copy, a mirror, and a sensor over a link that is cut.

Run by `demo.py`, against its server and on its data.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

import syncline

CUTS = 10
READINGS = 2_000
READINGS_BETWEEN_CUTS = READINGS // (CUTS + 1)

Tell = Callable[[str, str], None]

console = Console()


class Link:
    """A TCP link to a server that can be cut: both ends lose their connection in the middle of whatever goes on."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""
        self.cuts = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Link"]:
        """Carry connections while the block lasts."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self._drop()

    def cut(self) -> None:
        """Cut every connection that is open."""
        self.cuts += 1
        self._drop()

    def _drop(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


async def live_scenes(client: syncline.Client, address: str, key: str, directory: Path, tell: Tell) -> None:
    """The story goes on, scene by scene."""
    await replicas(client, directory, tell)
    await sensor(client, address, key, directory, tell)
    await mirror(client, directory, tell)


async def replicas(client: syncline.Client, directory: Path, tell: Tell) -> None:
    """A file replica that resumes, and a filtered copy of it."""
    airports = client.dataset("airports")
    file = directory / "airports-copy.db"
    console.print("5. a replica in a file, and a copy of Iceland alone")
    began = time.perf_counter()
    async with airports.replica(file) as replica:
        await replica.ready()
        took = time.perf_counter() - began
        count = len(replica)
    tell("file replica", f"{count:,} records in {took:.2f} s ({count / took:,.0f}/s), proven by digest")
    changed = await airports.push([POKHARA_REGIONAL])
    began = time.perf_counter()
    async with airports.replica(file) as replica, airports.replica(filter='country = "IS"') as iceland:
        await replica.wait_for(changed.revision)
        tell("opened again", f"1 record travelled, exact after {(time.perf_counter() - began) * 1000:.0f} ms")
        await iceland.ready()
        in_iceland = {icao: airport for icao, airport in replica.items() if airport["country"] == "IS"}
        assert dict(iceland.items()) == in_iceland
        await airports.push([{**in_iceland["BIKF"], "country": "XX"}])
        left = await airports.push([{**in_iceland["BIKF"], "name": "Keflavik"}])
        await iceland.wait_for(left.revision)
        assert iceland["BIKF"]["name"] == "Keflavik"
        tell(
            "filtered copy",
            f"{len(iceland)} airports of Iceland, also after one left the filter and came back",
        )


POKHARA_REGIONAL = {
    "icao": "VNPK",
    "name": "Pokhara Airport (domestic)",
    "country": "NP",
    "lat": 28.2,
    "lon": 83.98,
}


async def sensor(client: syncline.Client, address: str, key: str, directory: Path, tell: Tell) -> None:
    """A sensor whose link is cut again and again: each reading has one effect."""
    console.print(f"6. a sensor sends {READINGS:,} readings over a link that is cut {CUTS} times")
    await client.create_dataset("readings", identity=syncline.append())
    async with Link(address).open() as link, syncline.connect(link.address, key=key) as far:
        readings = far.dataset("readings")
        began = time.perf_counter()
        async with readings.producer("sensor-17", spool=directory / "sensor-17.db") as producer:
            for number in range(READINGS):
                await producer.send({"sensor": 17, "number": number, "celsius": 21.5})
                if number % READINGS_BETWEEN_CUTS == READINGS_BETWEEN_CUTS - 1 and link.cuts < CUTS:
                    await asyncio.sleep(0.05)  # some are on their way, some have arrived and nobody knows
                    link.cut()
            await producer.flush()
        took = time.perf_counter() - began
    numbers = sorted([record.data["number"] async for record in client.dataset("readings").records()])
    assert link.cuts == CUTS
    assert numbers == list(range(READINGS))
    tell("link", f"cut {link.cuts} times in {took:.1f} s")
    tell("readings in the dataset", f"{len(numbers):,}: nothing lost, nothing twice")


async def mirror(client: syncline.Client, directory: Path, tell: Tell) -> None:
    """All datasets on one stream, each a file."""
    console.print("7. a mirror of all datasets on one stream")
    began = time.perf_counter()
    async with client.mirror("*", directory / "mirror") as mirrored:
        await mirrored.ready()
        took = time.perf_counter() - began
        for dataset in ("airports", "readings"):
            info = await client.get_dataset(dataset)
            assert mirrored[dataset].digest == info.digest
        records = sum(len(replica) for replica in mirrored.values())
    tell("mirror", f"{records:,} records of 2 datasets in {took:.2f} s, digests equal the server's")
