"""What both demos load: airports in three editions, and the proof that somebody has them all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import airportsdata
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import syncline
from examples.demo_parts import Follower, console, tell

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

Edition = dict[str, dict[str, object]]

canonical_json = msgspec.json.Encoder(order="deterministic").encode


def editions() -> tuple[Edition, Edition, Edition]:
    """The airports as they are; three renamed, one closed, one opened; then all with metres in place of feet."""
    first: Edition = airportsdata.load("ICAO")
    second = {icao: airport for icao, airport in first.items() if icao != CLOSED}
    for icao, edit in EDITS.items():
        second[icao] = {**second[icao], **edit}
    second["VNPR"] = POKHARA
    third = {
        icao: {**airport, "elevation": round(float(str(airport.get("elevation", 0))) * 0.3048, 1)}
        for icao, airport in second.items()
    }
    return first, second, third


async def load(airports: syncline.Dataset, follower: Follower, first: Edition) -> None:
    """Scene 1: everything, as one."""
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


async def edit(airports: syncline.Dataset, follower: Follower, second: Edition) -> None:
    """Scene 2: everything is sent again, and only what is different arrives."""
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


async def replace(airports: syncline.Dataset, edition: Edition, title: str) -> syncline.SessionResult:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A load in whose middle something was killed."""

    result: syncline.SessionResult
    down_seconds: float
    """What the kill and what followed it took."""
    answered_seconds: float
    """From the kill until the call that was under way had its answer."""


async def killed_load(
    airports: syncline.Dataset, edition: Edition, kill: Callable[[], Awaitable[None]]
) -> Interrupted:
    """Load an edition; ``kill`` in the middle of a call, and go on in the same session."""
    rows = list(edition.values())
    session = await airports.open_session("replace")
    down = answered = 0.0
    for number, start in enumerate(range(0, len(rows), CALL)):
        if number == CALLS_BEFORE_KILL:
            upload = asyncio.create_task(session.upsert(rows[start : start + CALL]))
            await asyncio.sleep(0.002)  # let the call get on its way
            began = time.perf_counter()
            await kill()
            down = time.perf_counter() - began
            await upload  # sent again by the SDK, applied once
            answered = time.perf_counter() - began
        else:
            await session.upsert(rows[start : start + CALL])
    result = await session.close(commit=True)
    return Interrupted(result=result, down_seconds=down, answered_seconds=answered)


async def digest_of(airports: syncline.Dataset, edition: Edition) -> str:
    """Digest of what the producer holds, computed from scratch; what the server holds must be the same records."""
    held = {record.record_id: record async for record in airports.records()}
    assert {icao: record.data for icao, record in held.items()} == edition
    digest = syncline.Digest()
    for record_id, record in held.items():
        digest.put(record_id, record.revision, canonical_json(edition[record_id]))
    return digest.value.hex()
