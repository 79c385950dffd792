"""The spool: what a crash leaves is sent exactly once (G5; faults T20, T22)."""

import asyncio
import random
import shutil
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import syncline
from support.scripted_producers import ScriptedProducers
from support.scripted_server import Refuse, ScriptedServer
from support.waiting import until
from syncline import FeedOptions, SpoolUnusable
from syncline._call import RetryPolicy
from syncline.producer import _keep
from syncline.producer._keep import Spooled
from syncline.producer._outbox import Reading
from syncline.producer._spool import Spool

QUICK = FeedOptions(reconnect=RetryPolicy(attempts=None, first_seconds=0.001, max_seconds=0.005))
OFFLINE = Refuse("UNAVAILABLE")
OWNER = "datasets/books/sources/roof/producers/p1"


@pytest.fixture
def server(scripted: ScriptedServer) -> ScriptedProducers:
    return ScriptedProducers(scripted)


def producer_of(client: syncline.Client, spool: Path, **given: Any) -> syncline.Producer[Any]:
    given = {"options": QUICK, "source": "roof", "linger_seconds": 5.0} | given
    return client.dataset("books").producer("p1", spool=spool, **given)


def readings(*numbers: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in numbers]


def refuse(opening: object) -> None:
    raise OFFLINE


class Lost(Exception):
    """The process is gone."""


async def crash(sensor: syncline.Producer[Any], target: Path) -> None:
    """Copy what a loss of power would leave of the spool at this moment."""
    keep = sensor._keep
    assert isinstance(keep, Spooled)
    assert sensor._spool is not None
    async with keep._turn:
        for suffix in ("", "-wal"):
            shutil.copy(f"{sensor._spool}{suffix}", f"{target}{suffix}")


# -- producers with a spool -------------------------------------------------------------------------------------


async def test_what_was_not_sent_is_sent_at_the_next_start(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path
) -> None:
    spool = tmp_path / "p1.db"
    server.before_open = refuse
    async with producer_of(client, spool, linger_seconds=0.01) as sensor:
        for number in range(3):
            sensor.send({"n": number})
        await sensor.saved()
    assert sensor.stats.waiting == 3

    server.before_open = lambda opening: None
    async with producer_of(client, spool) as sensor:
        assert sensor.stats.waiting == 3
        sensor.send({"n": 3})
        await sensor.flush()

    assert server.book.readings == readings(*range(4))


@pytest.mark.parametrize("seed", range(20))
async def test_g05_crashes_and_cuts_have_exactly_one_effect(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path, seed: int
) -> None:
    """G5, T22: power lost at any moment, with messages and acknowledgements lost besides."""
    choose = random.Random(seed)
    spool = tmp_path / "run-0.db"
    kept: list[bytes] = []
    number = 0

    def cut(first: int, records: list[bytes]) -> None:
        if choose.random() < 0.3:
            raise OFFLINE

    server.before_apply = server.before_ack = cut
    for run in range(1, 6):
        following = tmp_path / f"run-{run}.db"
        server.before_open = (lambda opening: None) if choose.random() < 0.5 else refuse
        server.is_silent, server.credit_bytes = False, choose.choice((40, 100, 1 << 20))
        with pytest.raises(Lost):
            async with producer_of(client, spool) as sensor:
                for _ in range(choose.randrange(30)):
                    sensor.send({"n": number})
                    kept += readings(number)
                    number += 1
                    if choose.random() < 0.3:
                        await asyncio.sleep(choose.choice((0, 0.001, 0.003)))
                    if choose.random() < 0.1:
                        server.before_open = lambda opening: None
                    if choose.random() < 0.1:
                        server.is_silent = not server.is_silent
                    if choose.random() < 0.1 and server.streams:
                        server.last.close(OFFLINE)
                await sensor.saved()
                server.before_open = refuse
                if server.streams:
                    server.last.close(OFFLINE)
                await until(lambda sensor=sensor: not sensor.stats.connected)
                await crash(sensor, following)
                raise Lost
        spool = following
    server.before_open, server.is_silent = (lambda opening: None), False
    server.before_apply = server.before_ack = lambda first, records: None
    async with producer_of(client, spool) as sensor:
        await sensor.flush()

    assert server.book.readings == kept


async def test_g05_readings_saved_offline_whose_acknowledgement_is_lost(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path
) -> None:
    """They were marked as sent before they were, so the next start takes them for what they are: durable."""

    def lose(first: int, records: list[bytes]) -> None:
        server.before_open = refuse
        raise OFFLINE

    server.before_open, server.before_ack = refuse, lose
    with pytest.raises(Lost):
        async with producer_of(client, tmp_path / "a.db") as sensor:
            for number in range(5):
                sensor.send({"n": number})
            await sensor.saved()
            server.before_open = lambda opening: None
            await until(lambda: server.book.readings)
            await until(lambda: not sensor.stats.connected)
            await crash(sensor, tmp_path / "b.db")
            raise Lost
    server.before_open, server.before_ack = (lambda opening: None), lambda first, records: None
    async with producer_of(client, tmp_path / "b.db") as sensor:
        await sensor.flush()

        assert sensor.stats.durable == 5
    assert server.book.readings == readings(*range(5))


async def test_g05_a_stream_that_settles_half_of_what_was_under_way(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path
) -> None:
    """What the second stream did not name stays in the file."""

    def lose(first: int, records: list[bytes]) -> None:
        server.is_silent = True
        raise OFFLINE

    server.before_ack = lose
    with pytest.raises(Lost):
        async with producer_of(client, tmp_path / "a.db") as sensor:
            await sensor.ready()
            for number in range(1_005):  # two messages
                sensor.send({"n": number})
            await server.until(lambda: len(server.streams) == 2 and server.last.messages)
            await crash(sensor, tmp_path / "b.db")
            raise Lost
    assert server.last.messages[0][0] == 1_001
    server.is_silent, server.before_ack = False, lambda first, records: None
    async with producer_of(client, tmp_path / "b.db") as sensor:
        await sensor.flush()

    assert server.book.readings == readings(*range(1_005))


async def test_a_small_window_and_little_memory_change_nothing(
    server: ScriptedProducers,
    client: syncline.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backlog that is larger than what is read ahead."""
    monkeypatch.setattr(_keep, "AHEAD_BYTES", 100)
    monkeypatch.setattr(_keep, "AHEAD_RECORDS", 7)
    server.before_open = refuse
    server.credit_bytes = 200
    async with producer_of(client, tmp_path / "p1.db") as sensor:
        for number in range(500):
            sensor.send({"n": number})
            if number % 50 == 0:
                await sensor.saved()
        server.before_open = lambda opening: None
        for number in range(500, 600):
            await sensor.send({"n": number})
        await sensor.flush()

        assert sensor.stats.waiting_bytes == 0
    assert server.book.readings == readings(*range(600))


async def test_drop_oldest_drops_from_the_file_what_was_never_sent(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_keep, "AHEAD_BYTES", 50)
    spool = tmp_path / "p1.db"
    server.is_silent, server.credit_bytes = True, 40
    with pytest.raises(Lost):
        async with producer_of(client, spool, on_full="drop_oldest", max_records=20) as sensor:
            await sensor.ready()
            for number in range(10):
                sensor.send({"n": number})
            await server.until(lambda: server.last.messages)
            for number in range(10, 100):
                sensor.send({"n": number})
                if number % 7 == 0:
                    await sensor.saved()
            await sensor.saved()
            await until(lambda: sensor.stats.waiting <= 20)
            assert sensor.stats.dropped == 80
            sent = len(server.last.messages[0][1])
            raise Lost
    server.is_silent = False
    async with producer_of(client, spool) as sensor:
        await sensor.flush()

    assert server.book.readings == readings(*range(sent), *range(80 + sent, 100))


async def test_arrivals_are_bounded_while_the_disk_is_slow(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path
) -> None:
    async with producer_of(client, tmp_path / "p1.db", on_full="drop_oldest", max_records=5) as sensor:
        keep = sensor._keep
        assert isinstance(keep, Spooled)
        async with keep._turn:  # as if the disk took its time
            for number in range(100):
                sensor.send({"n": number})
            assert len(keep.arrived) == 5
        await sensor.flush()

    assert server.book.readings == readings(*range(95, 100))


async def test_f_full_disk_holds_readings_in_memory_until_there_is_room(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_keep, "FULL_SECONDS", 0.01)
    async with producer_of(client, tmp_path / "p1.db", on_full="raise", max_records=50) as sensor:
        keep = sensor._keep
        assert isinstance(keep, Spooled)
        await sensor.ready()
        database = keep._spool._database
        (pages,) = await keep._do(lambda: database.execute("PRAGMA page_count").fetchone())
        await keep._do(lambda: database.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(syncline.OutboxFull):
            for _ in range(51):
                sensor.send({"n": "x" * 1_000})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await sensor.saved()
        assert sensor.stats.durable == 0

        await keep._do(lambda: database.execute("PRAGMA max_page_count = 100000").fetchone())
        await sensor.flush()

    assert len(server.book.readings) == 50


async def test_g05_ending_in_the_middle_of_a_write_to_the_file(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is not written again when the producer is closed."""
    append, writing = Spool.append, threading.Event()

    def slowly(self: Spool, *args: Any, **given: Any) -> None:
        writing.set()
        append(self, *args, **given)

    monkeypatch.setattr(Spool, "append", slowly)
    with pytest.raises(Lost):
        async with producer_of(client, tmp_path / "p1.db") as sensor:
            await sensor.ready()
            for number in range(3):
                sensor.send({"n": number})
            await until(writing.is_set)
            sensor.send({"n": 3})
            raise Lost
    async with producer_of(client, tmp_path / "p1.db") as sensor:
        await sensor.flush()

    assert server.book.readings == readings(*range(4))


async def test_the_file_shrinks_again(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path
) -> None:
    spool = tmp_path / "p1.db"
    async with producer_of(client, spool) as sensor:
        for _ in range(300):
            sensor.send({"n": "x" * 10_000})
        await sensor.flush()

    assert spool.stat().st_size < 100_000


async def test_a_second_process_is_refused(
    server: ScriptedProducers, client: syncline.Client, tmp_path: Path
) -> None:
    async with producer_of(client, tmp_path / "p1.db") as sensor:
        script = (
            "import sys, pathlib, syncline\n"
            "from syncline.producer._spool import Spool\n"
            f"try: Spool.open(pathlib.Path(sys.argv[1]), {OWNER!r})\n"
            "except syncline.SpoolUnusable as error: print(error)\n"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, str(tmp_path / "p1.db")),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert b"in use by another process" in output
        with pytest.raises(SpoolUnusable, match="in use"):
            async with producer_of(client, tmp_path / "p1.db"):
                pass
        sensor.send({"n": 1})
        await sensor.flush()


# -- the file ---------------------------------------------------------------------------------------------------


def opened(path: Path) -> Spool:
    return Spool.open(path, OWNER)


def numbered(*positions: int) -> list[Reading]:
    return [Reading(position, b"r%d" % position) for position in positions]


def test_an_epoch_settles_the_one_before_exactly(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    assert spool.adopt(7, 101, 0) == (0, 0)  # nothing was ever numbered
    spool.append(numbered(*range(1, 11)), sent=True)
    spool.settle(3, 104)
    spool.close()

    spool = opened(tmp_path / "s.db")
    holdings = spool.holdings
    assert (holdings.epoch, holdings.records, holdings.first_position, holdings.next_position) == (
        7,
        7,
        4,
        11,
    )
    assert spool.adopt(8, 201, 105) == (2, 4)  # 104 and 105 had arrived
    assert [one.position for one in spool.read(0, records=100, size_bytes=1_000)] == [6, 7, 8, 9, 10]
    spool.close()

    spool = opened(tmp_path / "s.db")
    assert spool.adopt(9, 300, 300)[0] == 5  # never more than there are
    spool.close()


def test_what_was_never_sent_is_never_taken_for_durable(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.adopt(1, 1, 0)
    spool.append(numbered(1, 2), sent=True)
    spool.append(numbered(3, 4), sent=False)
    assert spool.adopt(2, 10, 9) == (2, 4)
    spool.mark_sent(3)
    assert spool.adopt(3, 20, 19) == (1, 2)
    spool.close()


def test_reading_ahead_is_bounded_and_exact(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    data = [b"", b'{"a":"\\n\n"}', '{"ü":1}'.encode(), b"\x00\xff", b"x" * 500]
    spool.append([Reading(3 * number + 1, one) for number, one in enumerate(data)], sent=False)

    assert [one.data for one in spool.read(0, records=100, size_bytes=10_000)] == data
    assert [one.position for one in spool.read(1, records=2, size_bytes=10_000)] == [4, 7]
    assert [one.position for one in spool.read(10, records=5, size_bytes=1)] == [13]
    assert spool.read(13, records=5, size_bytes=100) == []
    spool.close()


def test_dropping_takes_the_oldest_by_number_and_by_size(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.append([Reading(position, b"x" * 10) for position in range(1, 21)], sent=False)

    assert spool.drop(5, records=2, size_bytes=0) == (2, 20, 7)
    assert spool.drop(5, records=0, size_bytes=25) == (3, 30, 10)
    assert spool.drop(20, records=5, size_bytes=5) == (0, 0, 20)
    assert [one.position for one in spool.read(4, records=3, size_bytes=1_000)] == [5, 11, 12]
    spool.close()


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    opened(tmp_path / "mine.db").close()
    with pytest.raises(SpoolUnusable, match="is that of"):
        Spool.open(tmp_path / "mine.db", OWNER + "2")
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 100)
    with pytest.raises(SpoolUnusable, match="cannot be used"):
        opened(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(SpoolUnusable, match="not the spool"):
        opened(tmp_path / "other.db")
    with pytest.raises(SpoolUnusable, match="cannot be opened"):
        opened(tmp_path / "no" / "directory.db")
