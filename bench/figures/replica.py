"""replica_file_cold and digest_repair: copies in SQLite files, as the SDK keeps them."""

import contextlib
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from bench.figures.push import connected
from bench.measure import Figure, Outcome, Room, Stopwatch, at_most, interleaved, medians
from bench.records import Item, encode_item, make_item, shuffled_items
from bench.systems.syncline import Syncline, SynclineClient
from syncline import Repair

STALE = 100
REPAIR_LIMIT_BYTES = 1 << 20
_COLLECTION = "replicated"
_STALE_TEXT = '{"stale":true}'


async def measure_cold(room: Room) -> Outcome:
    """Everything into an empty file replica, proven by count and digest; beside it the bare inserts."""
    items = shuffled_items(room.pick(100_000, 30_000))
    async with contextlib.AsyncExitStack() as stack:
        client = await connected(stack, Syncline(page_cache=False), room)
        assert isinstance(client, SynclineClient)
        await client.create(_COLLECTION)
        await client.push_bulk(_COLLECTION, items)

        async def copy(number: int) -> float:
            watch = Stopwatch()
            async with client.replica(_COLLECTION, room.directory / f"replica-{number}.db") as replica:
                await replica.ready()
                seconds = watch.seconds
                assert replica.is_verified
                assert len(replica) == len(items)
            return len(items) / seconds

        async def insert(number: int) -> float:
            watch = Stopwatch()
            _insert(room.directory / f"inserted-{number}.db", items)
            return len(items) / watch.seconds

        samples = await interleaved(room.pick(5, 3), {"syncline": copy, "sqlite": insert})
    figure = Figure(
        name="replica_file_cold",
        what=f"{len(items):,} records into a new file replica; sqlite: encoded and inserted, id indexed, no proof",
        unit="records/s",
        better="higher",
        values=medians(samples),
        samples=samples,
    )
    return Outcome(figures=[figure])


def _insert(path: Path, items: Sequence[Item]) -> None:
    """The least that a file with these records takes: rows in the order in which they come, then the index."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            "CREATE TABLE record (place INTEGER PRIMARY KEY, record_id TEXT, revision INTEGER, data BLOB); BEGIN"
        )
        connection.executemany(
            "INSERT INTO record (record_id, revision, data) VALUES (?, ?, ?)",
            ((item["sku"], number, encode_item(item)) for number, item in enumerate(items)),
        )
        connection.execute("CREATE UNIQUE INDEX record_by_id ON record (record_id)")
        connection.execute("COMMIT")


async def measure_repair(room: Room, client: SynclineClient, collection: str, count: int) -> Outcome:
    """Damage 100 records in the file of a replica, open it again, and let it find and mend them."""
    path = room.directory / "repaired.db"
    room.say(f"repair: a file replica of {count:,} records")
    watch = Stopwatch()
    async with client.replica(collection, path) as replica:
        await replica.ready()
        copy_rate = len(replica) / watch.seconds
        record_ids = random.Random(count).sample(list(replica), STALE)
    _damage(path, record_ids)
    room.say(f"repair: {STALE} damaged records of {count:,}")
    async with client.replica(collection, path) as replica:
        await replica.ready()
        watch = Stopwatch()
        if not replica.repairs:  # only small files are looked through when they are opened
            assert not await replica.verify(), "the damage was not seen"
        recount_ms = watch.seconds * 1e3
        # Mending waits for a checkpoint.
        await replica.wait_for(await client.push_revision(collection, make_item(0, edition=9)))
        assert replica.is_verified
        (repair,) = replica.repairs
    # The record that made the checkpoint may be among them: the server may be ahead of the copy that is mended.
    assert repair.records in (STALE, STALE + 1), repair
    return _repair_outcome(repair, count, copy_rate, recount_ms)


def _damage(path: Path, record_ids: Sequence[str]) -> None:
    """Other content, with everything that the replica keeps beside it as it was."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        changed = connection.executemany(
            "UPDATE record SET json = ? WHERE record_id = ?", [(_STALE_TEXT, id_) for id_ in record_ids]
        )
        assert changed.rowcount == STALE


def _repair_outcome(repair: Repair, count: int, copy_rate: float, recount_ms: float) -> Outcome:
    of = f"{STALE} damaged records of {count:,} in a file replica"
    figures = [
        Figure(
            name="replica_file_load",
            what=f"{count:,} records into a new file replica",
            unit="records/s",
            better="higher",
            values={"syncline": copy_rate},
        ),
        Figure(
            name="digest_repair",
            what=f"{of} found by range digests and mended, {repair.calls} calls; seen before, by recounting",
            unit="ms",
            better="lower",
            values={"syncline": repair.seconds * 1e3, "recount": recount_ms},
        ),
        Figure(
            name="digest_repair_bytes",
            what="the same: bytes of all messages, both directions",
            unit="bytes",
            better="lower",
            values={"syncline": repair.bytes},
        ),
    ]
    limit = at_most("digest_repair: KiB", repair.bytes / 1024, REPAIR_LIMIT_BYTES / 1024)
    return Outcome(figures=figures, requirements=[limit])
