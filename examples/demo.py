"""The whole of Syncline on real data, in about half a minute: `make demo`.

28,000 airports are loaded by a replace session while a second process follows; a second edition with a few real
edits goes in and only those arrive; the server is killed in the middle of a third load and started again; at
the end the follower's copy, the producer's set and the server are proven equal by digest. Then the live half, in
`demo_live.py`: a replica in a file, a filtered copy, a sensor over a link that is cut ten times, a mirror.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import airportsdata
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import syncline
from examples.demo_live import live_scenes

SCHEMA = {
    "type": "object",
    "properties": {
        "icao": {"type": "string", "pattern": "^[A-Z0-9_][A-Z0-9]{3}$"},
        "iata": {"type": "string"},
        "name": {"type": "string"},
        "country": {"type": "string"},
        "elevation": {"type": "number"},
        "lat": {"type": "number", "minimum": -90, "maximum": 90},
        "lon": {"type": "number", "minimum": -180, "maximum": 180},
    },
    "required": ["icao", "name", "country", "lat", "lon"],
}
POKHARA = {
    "icao": "VNPR",
    "name": "Pokhara International Airport",
    "city": "Pokhara",
    "country": "NP",
    "lat": 28.184,
    "lon": 84.014,
}
EDITS = {
    "EDDB": {"name": "Berlin Brandenburg Airport Willy Brandt"},
    "KXNA": {"name": "Northwest Arkansas National Airport"},
    "OPGD": {"name": "New Gwadar International Airport"},
}
CLOSED = "EDDT"  # Berlin-Tegel
CALL = 1_000
CALLS_BEFORE_KILL = 12

console = Console()
canonical_json = msgspec.json.Encoder(order="deterministic").encode


def tell(what: str, figure: str) -> None:
    """Print one figure."""
    console.print(f"   {what:<40} {figure}", highlight=False, soft_wrap=True)


def second_edition(first: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Three airports renamed, one closed, one opened."""
    second = {icao: airport for icao, airport in first.items() if icao != CLOSED}
    for icao, edit in EDITS.items():
        second[icao] = {**second[icao], **edit}
    second["VNPR"] = POKHARA
    return second


def third_edition(second: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Elevations in metres instead of feet: nearly every record changes."""
    return {
        icao: {**airport, "elevation": round(float(str(airport.get("elevation", 0))) * 0.3048, 1)}
        for icao, airport in second.items()
    }


class Server:
    """A real server process that can be killed and started again on the same data and port."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        command = [
            sys.executable,
            "-m",
            "syncline_server",
            "serve",
            "--data",
            str(self.data),
            "--listen",
            self.address,
            "--http",
            "",
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if b"listening on" in line:
                return
        raise SystemExit(f"the server did not start: {' '.join(command)}")

    async def stop(self, how: signal.Signals) -> None:
        """End it, by SIGTERM or by SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            await self._process.wait()


class Follower:
    """A second process that follows the dataset and reports each checkpoint that it reached."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._key = key
        self._process: asyncio.subprocess.Process | None = None
        self.seen: list[dict[str, object]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Follower"]:
        """Run it while the block lasts."""
        environment = os.environ | {"SYNCLINE_KEY": self._key}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "examples.demo",
            "follow",
            self._address,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            yield self
        finally:
            self._process.terminate()
            await self._process.wait()

    async def reach(self, revision: int) -> dict[str, object]:
        """Wait until its copy is exact at this revision or a later one."""
        assert self._process is not None and self._process.stdout is not None
        while not self.seen or int(str(self.seen[-1]["revision"])) < revision:
            line = await self._process.stdout.readline()
            if not line:
                raise SystemExit("the follower ended")
            self.seen.append(json.loads(line))
        return self.seen[-1]


async def follow(address: str) -> None:
    """What the second process does: hold an exact copy, tell about each checkpoint."""
    puts = deletes = 0
    async with syncline.connect(address) as client:
        copy = syncline.Copy()
        async for event in client.dataset("airports").changes():
            copy.apply(event)  # verifies count and digest at every checkpoint
            if isinstance(event, syncline.Put):
                puts += 1
            elif isinstance(event, syncline.Delete):
                deletes += 1
            elif isinstance(event, syncline.Checkpoint):
                told = {
                    "revision": event.revision,
                    "records": len(copy),
                    "digest": copy.digest.hex(),
                    "puts": puts,
                    "deletes": deletes,
                }
                print(json.dumps(told), flush=True)
                puts = deletes = 0


def digest_of(rows: Iterable[tuple[str, int, bytes]]) -> str:
    """Digest of (record id, revision, canonical JSON), computed here from scratch."""
    digest = syncline.Digest()
    for record_id, revision, data in rows:
        digest.put(record_id, revision, data)
    return digest.value.hex()


async def replace(
    airports: syncline.Dataset, edition: dict[str, dict[str, object]], title: str
) -> syncline.SessionResult:
    """Load an edition by a replace session, with a bar."""
    with Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task(title, total=len(edition))

        def rows() -> Iterable[dict[str, object]]:
            for row in edition.values():
                yield row
                bars.advance(bar)

        async with airports.session("replace") as session:
            await session.upsert(rows())
    assert session.result is not None
    return session.result


async def killed_load(
    server: Server, airports: syncline.Dataset, edition: dict[str, dict[str, object]]
) -> tuple[syncline.SessionResult, float]:
    """Load an edition; kill the server in the middle, start it again, and go on in the same session."""
    rows = list(edition.values())
    session = await airports.open_session("replace")
    down = 0.0
    for number, start in enumerate(range(0, len(rows), CALL)):
        if number == CALLS_BEFORE_KILL:
            upload = asyncio.create_task(session.upsert(rows[start : start + CALL]))
            await asyncio.sleep(0.002)  # let the call get on its way
            began = time.perf_counter()
            await server.stop(signal.SIGKILL)
            await server.start()
            down = time.perf_counter() - began
            await upload  # sent again by the SDK, applied once
        else:
            await session.upsert(rows[start : start + CALL])
    return await session.close(commit=True), down


async def demo() -> None:
    """Run the demo and print the figures."""
    first = airportsdata.load("ICAO")
    second = second_edition(first)
    third = third_edition(second)
    with tempfile.TemporaryDirectory(prefix="syncline-demo-") as directory:
        server = Server(Path(directory))
        await server.start()
        key = (server.data / "admin.key").read_text().strip()
        console.print(f"server at {server.address}, embedded store in {directory}")
        try:
            async with (
                syncline.connect(server.address, key=key) as client,
                Follower(server.address, key).running() as follower,
            ):
                await scenes(client, follower, server, (first, second, third))
                await live_scenes(client, server.address, key, Path(directory), tell)
        finally:
            await server.stop(signal.SIGTERM)


async def scenes(
    client: syncline.Client,
    follower: Follower,
    server: Server,
    editions: tuple[dict[str, dict[str, object]], ...],
) -> None:
    """The story, scene by scene."""
    first, second, third = editions
    await client.create_dataset("airports", identity=syncline.by_key("icao"), schema=SCHEMA)
    airports = client.dataset("airports")

    console.print(f"1. load {len(first):,} airports by a replace session; a second process follows")
    began = time.perf_counter()
    loaded = await replace(airports, first, "first edition")
    committed = time.perf_counter()
    seen = await follower.reach(loaded.revision)
    arrived = time.perf_counter()
    assert loaded.created == len(first) == seen["records"]
    tell(
        "first edition",
        f"{loaded.created:,} records in {committed - began:.2f} s ({loaded.created / (committed - began):,.0f}/s, durable)",
    )
    tell("exact copy in the second process", f"{(arrived - committed) * 1000:.0f} ms after the commit")

    console.print(f"2. second edition: {len(EDITS)} renamed, Berlin-Tegel closed, Pokhara opened")
    edited = await replace(airports, second, "second edition")
    committed = time.perf_counter()
    seen = await follower.reach(edited.revision)
    arrived = time.perf_counter()
    assert (edited.created, edited.updated, edited.deleted) == (1, len(EDITS), 1)
    assert (seen["puts"], seen["deletes"]) == (1 + len(EDITS), 1)
    tell(
        "second edition",
        f"{len(second):,} records sent, {edited.updated} updated, {edited.created} created, {edited.deleted} deleted",
    )
    tell(
        "events at the follower",
        f"{seen['puts']} puts, {seen['deletes']} delete, {(arrived - committed) * 1000:.1f} ms after the answer to the commit",
    )

    console.print("3. third edition; SIGKILL to the server in the middle of the load, start again")
    finished, down = await killed_load(server, airports, third)
    seen = await follower.reach(finished.revision)
    tell(
        "third edition",
        f"{finished.updated:,} updated, {finished.unchanged:,} unchanged; server killed at record {CALLS_BEFORE_KILL * CALL:,}",
    )
    tell("kill -9 to serving again", f"{down:.2f} s")

    console.print("4. prove that all three are equal")
    info = await client.get_dataset("airports")
    held = {record.record_id: record async for record in airports.records()}
    assert {icao: record.data for icao, record in held.items()} == third
    recomputed = digest_of(
        (r.record_id, r.revision, canonical_json(third[r.record_id])) for r in held.values()
    )
    assert info.digest.hex() == seen["digest"] == recomputed
    tell("digest of server, follower and producer", f"{recomputed} (equal)")
    tell("records", f"{info.record_count:,} at revision {info.revision}")


def main() -> None:
    """Run as the demo, or as its second process: `demo.py follow ADDRESS`."""
    if sys.argv[1:2] == ["follow"]:
        asyncio.run(follow(sys.argv[2]))
        return
    began = time.perf_counter()
    asyncio.run(demo())
    console.print(f"all proven in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
