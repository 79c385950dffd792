"""replace_diff, sync_resume and digest_repair: what a small change of a large dataset costs."""

import contextlib
import random
from collections.abc import Iterator

from bench.figures.replica import measure_repair
from bench.machine import peak_resident_bytes
from bench.measure import Figure, Outcome, Requirement, Room, Stopwatch, at_most, interleaved, medians
from bench.records import Item, decode_item, make_item
from bench.systems.syncline import Resumed, Syncline, SynclineClient

CHANGED_PART = 0.001
RESUME_CHANGES = 1_000
SMALL_RECORDS = 10_000
PEAK_LIMIT_BYTES = 300 << 20


def second_edition(count: int) -> tuple[Iterator[Item], dict[str, Item | None]]:
    """The set of ``count`` items with 0.1 % changes, and these: mostly updates, some items gone, some new."""
    touched = random.Random(count).sample(range(count), int(count * CHANGED_PART))
    gone = set(touched[: len(touched) // 20])
    new = [make_item(count + number) for number in range(len(touched) // 20)]
    updated = set(touched[len(gone) : len(touched) - len(new)])
    changes: dict[str, Item | None] = {make_item(number)["sku"]: None for number in gone}
    changes |= {make_item(number)["sku"]: make_item(number, edition=1) for number in updated}
    changes |= {item["sku"]: item for item in new}

    def items() -> Iterator[Item]:
        for number in range(count):
            if number not in gone:
                yield make_item(number, edition=number in updated)
        yield from new

    return items(), changes


def found_changes(resumed: Resumed) -> dict[str, Item | None]:
    """What a copy was told, in the same form."""
    changes = resumed.changes
    return {
        record_id: decode_item(text) if text else None
        for record_id, text in zip(changes.record_ids, changes.json, strict=True)
    }


async def measure(room: Room) -> Outcome:
    """A replace session over the whole set, then resumed copies of a large and a small dataset."""
    count = room.pick(1_000_000, 100_000)
    async with contextlib.AsyncExitStack() as stack:
        system = Syncline()
        running = await stack.enter_async_context(system.serve(room.directory))
        client = await stack.enter_async_context(system.connect_sdk(running.address))
        await client.create("large")
        room.say(f"replace: the first {count:,} records")
        watch = Stopwatch()
        await client.replace("large", (make_item(number) for number in range(count)))
        load_rate = count / watch.seconds
        replaced = await _replace(room, client, count, running.pid)
        resumed = await _resume(room, client, count)
        repaired = await measure_repair(room, client, "large", count)
    load = Figure(
        name="replace_load",
        what=f"a first replace session of {count:,} records",
        unit="records/s",
        better="higher",
        values={"syncline": load_rate},
    )
    return Outcome(
        figures=[load, *replaced.figures, *resumed.figures, *repaired.figures],
        requirements=[*replaced.requirements, *resumed.requirements, *repaired.requirements],
    )


async def _replace(room: Room, client: SynclineClient, count: int, pid: int) -> Outcome:
    room.say("replace: a copy to start from")
    token = await client.head_token("large")
    items, expected = second_edition(count)
    room.say(f"replace: {count:,} records, {len(expected):,} of them changed")
    watch = Stopwatch()
    await client.replace("large", items)
    rate = count / watch.seconds
    peak = peak_resident_bytes(pid)
    resumed = await client.resume("large", token)
    events = len(resumed.changes)
    exact = events == len(expected) and found_changes(resumed) == expected

    def figure(name: str, what: str, unit: str, better: str, value: float) -> Figure:
        return Figure(name=name, what=what, unit=unit, better=better, values={"syncline": value})  # type: ignore[arg-type]

    return Outcome(
        figures=[
            figure("replace_diff", f"{count:,} records, 0.1 % changed", "records/s", "higher", rate),
            figure("replace_diff_events", f"events of {len(expected):,} changes", "events", "lower", events),
            figure("replace_diff_rss", "peak memory of the server", "bytes", "lower", peak),
        ],
        requirements=[
            Requirement(
                what="replace_diff emits exactly the changed records",
                limit=len(expected),
                measured=events,
                reached=exact,
            ),
            at_most("replace_diff: server's peak RSS, MiB", peak / (1 << 20), PEAK_LIMIT_BYTES / (1 << 20)),
        ],
    )


async def _resume(room: Room, client: SynclineClient, count: int) -> Outcome:
    room.say(f"resume: {RESUME_CHANGES:,} changes of {count:,} and of {SMALL_RECORDS:,}")
    await client.create("small")
    small = [make_item(number) for number in range(SMALL_RECORDS)]
    await client.push_bulk("small", small)
    tokens = {}
    for collection, size in (("large", count), ("small", SMALL_RECORDS)):
        tokens[collection] = await client.head_token(collection)
        await client.push_bulk(collection, [make_item(number, edition=2) for number in _spread(size)])
    rounds = {name: _ResumeRound(client, name, token) for name, token in tokens.items()}
    samples = await interleaved(room.pick(21, 11), rounds)
    times = medians(samples)
    sizes = {name: await client.resume_bytes(name, token) for name, token in tokens.items()}
    return Outcome(
        figures=[
            Figure(
                name="sync_resume",
                what=f"{RESUME_CHANGES:,} changed of {count:,} (beside: of {SMALL_RECORDS:,})",
                unit="ms",
                better="lower",
                values={"syncline": times["large"], f"of_{SMALL_RECORDS}": times["small"]},
                samples={"syncline": samples["large"], f"of_{SMALL_RECORDS}": samples["small"]},
            ),
            Figure(
                name="sync_resume_bytes",
                what="the same: bytes of the answers",
                unit="bytes",
                better="lower",
                values={"syncline": sizes["large"], f"of_{SMALL_RECORDS}": sizes["small"]},
            ),
        ],
        requirements=[
            at_most(
                f"sync_resume: time, of {count:,} ÷ of {SMALL_RECORDS:,}",
                times["large"] / times["small"],
                2.0,
            ),
            at_most(
                f"sync_resume: bytes, of {count:,} ÷ of {SMALL_RECORDS:,}",
                sizes["large"] / sizes["small"],
                2.0,
            ),
        ],
    )


def _spread(size: int) -> list[int]:
    """Numbers of items all over the first ``size``; none of them is gone in the second edition."""
    gone = set(random.Random(size).sample(range(size), int(size * CHANGED_PART)))
    kept = [number for number in range(size) if number not in gone]
    return random.Random(size + 1).sample(kept, RESUME_CHANGES)


class _ResumeRound:
    """The same token again and again: a token can be used any number of times."""

    def __init__(self, client: SynclineClient, collection: str, token: bytes) -> None:
        self._client = client
        self._collection = collection
        self._token = token

    async def __call__(self, _number: int) -> float:
        watch = Stopwatch()
        resumed = await self._client.resume(self._collection, self._token)
        milliseconds = watch.seconds * 1e3
        assert len(resumed.changes) == RESUME_CHANGES, f"{len(resumed.changes)} changes"
        return milliseconds
