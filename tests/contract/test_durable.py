"""What survives: opening again, crashes at named places, and a caller that goes away."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.store_values import Backend, Bench, SqliteBackend, body, request, upserts
from syncline_server.errors import SynclineError
from syncline_server.model import SessionMode
from syncline_server.store.sqlite.fsck import fsck

OPEN_THE_STORE = """
import asyncio, sys
from pathlib import Path
from support.store_values import SqliteBackend

async def main():
    async with SqliteBackend(Path(sys.argv[1])).open():
        pass

asyncio.run(main())
"""


async def test_g2_everything_is_there_after_opening_again(durable: Backend) -> None:
    async with durable.open() as store:
        bench = await Bench.make(store, durable.clock)
        await bench.put(["a", "b"], identity=request("r"))
        await bench.remove("b")
        session = await bench.open(SessionMode.ACCRUE)
        await bench.stage(session, upserts(["c"]), sequence=1)
        copy, head, first = await bench.copy(), await bench.head(), store.info
    async with durable.open() as store:
        again = Bench(store, durable.clock, bench.dataset, bench.source)
        assert (await again.copy(), await again.head()) == (copy, head)
        assert (await again.put(["a", "b"], identity=request("r"))).replayed
        assert (store.info.store_id, store.info.token_secret) == (first.store_id, first.token_secret)
        assert first.history_id in store.info.histories
        began = durable.begins_history_when_opened
        assert (store.info.history_id not in first.histories) is began
        assert len(store.info.histories) == 1 + began
        found = await store.get_session(session.session_id, source_number=bench.source.number)
        assert (found.calls, found.records) == (1, 1)
        await again.stage(session, upserts(["d"]), sequence=2)
        await again.close(session, 2, identity=request("close"))
    async with durable.open() as store:
        again = Bench(store, durable.clock, bench.dataset, bench.source)
        assert set(await again.copy()) == {"a", "c", "d"}
        answer = await again.close(session, 2, identity=request("close"))
        assert (answer.replayed, answer.created, answer.revision) == (True, 2, 3), "T38"


async def test_f30_a_caller_that_goes_away_changes_nothing(durable: Backend) -> None:
    """F30, T27: cancelled at any moment a commit happens whole or not at all, and the store goes on."""
    async with durable.open() as store:
        bench = await Bench.make(store, durable.clock)
        for turn in range(60):
            names = [f"t{turn}-{i}" for i in range(20)]
            task = asyncio.create_task(bench.put(names, identity=request(f"r{turn}")))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            if turn % 3 == 0:
                await asyncio.sleep(0.0005 * (turn % 5))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await bench.put([f"after-{turn}"])
        copy = await bench.copy()
        for turn in range(60):
            there = sum(f"t{turn}-{i}" in copy for i in range(20))
            assert there in (0, 20), "half a commit"
            retried = await bench.put([f"t{turn}-{i}" for i in range(20)], identity=request(f"r{turn}"))
            assert retried.replayed is (there == 20), "a retry has one effect, and knows the first"


async def test_f30_cancelled_sessions_are_whole(durable: Backend) -> None:
    """F30 for what takes several steps: staging, closing, opening."""
    async with durable.open() as store:
        bench = await Bench.make(store, durable.clock)
        for turn in range(24):
            session = await bench.open(SessionMode.ACCRUE)
            tasks = [asyncio.create_task(bench.stage(session, upserts([f"t{turn}"])))]
            for _ in range(turn % 6):
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            calls = (await store.get_session(session.session_id, source_number=bench.source.number)).calls
            closing = asyncio.create_task(bench.close(session, calls, identity=request(f"r{turn}")))
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            if calls:
                try:
                    await bench.close(session, calls, identity=request(f"r{turn}"))
                except SynclineError as error:
                    # The cancelled stage was accepted after all, so the number given was too small.
                    assert error.reason == "SESSION_INCOMPLETE"
                    continue
                assert (f"t{turn}" in await bench.copy()) is True
        for _ in range(2):
            await bench.open(SessionMode.ACCRUE)
        assert await store.count_sessions() == 1


CHILD = """
import asyncio, sys
from pathlib import Path
from support.store_values import Bench, SqliteBackend, deletes, request, upserts
from syncline_server import failpoints
from syncline_server.model import SessionMode

async def main(directory, points):
    backend = SqliteBackend(Path(directory))
    async with backend.open() as store:
        failpoints.configure("")
        bench = await Bench.make(store, backend.clock)
        session = await bench.open(SessionMode.ACCRUE)
        failpoints.configure(points)
        for turn in range(20):
            print("try", turn, flush=True)
            await bench.put([f"p{turn}-{i}" for i in range(5)], identity=request(f"r{turn}"))
            if turn:
                await bench.remove(f"p{turn - 1}-0")
            staged = await bench.stage(session, upserts([f"s{turn}"]), sequence=turn + 1)
            if turn % 5 == 4:
                await store.purge(bench.dataset.number, before_us=1 << 60, min_revisions=1, max_tombstones=9)
                await store.maintain()
                await store.maintain()
            print("done", turn, flush=True)
        await bench.close(session, 20, identity=request("close"))
        print("closed", flush=True)
        doomed = await Bench.make(store, backend.clock, dataset_id="doomed")
        await doomed.put(["x"])
        await store.delete_dataset(doomed.dataset.number, expected_generation=None)
        await store.maintain()
        print("end", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

PLACES = [
    "commit.before",
    "commit.rows",
    "commit.after",
    "purge",
    "reclaim",
    "checkpoint.before",
    "checkpoint.after",
    "stage.rows",
    "stage.after",
    "prepare",
    "session.applied",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hit", [1, 7])
async def test_t02_killed_at_every_named_place(tmp_path: Path, place: str, hit: int) -> None:
    """T02, T45: what was acknowledged is there, what was not is there whole or not at all."""
    once = place in (
        "prepare",
        "session.applied",
        "reclaim",
        "purge",
        "checkpoint.before",
        "checkpoint.after",
    )
    point = f"{place}=kill@{1 if once else hit}"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path),
        point,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert child.returncode == -signal.SIGKILL, f"{place} was never reached"
    lines = output.decode().split("\n")
    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        found = await store.get_dataset("books")
        source = await store.get_source("books", "default")
        bench = Bench(store, backend.clock, found, source)
        copy = await bench.copy()
        tried = sum(line.startswith("try") for line in lines)
        done = sum(line.startswith("done") for line in lines)
        for turn in range(tried):
            there = {f"p{turn}-{i}" for i in range(1, 5)} & set(copy)
            assert len(there) == 4 or (not there and turn >= done), "an acknowledged commit is missing"
            retried = await bench.put([f"p{turn}-{i}" for i in range(5)], identity=request(f"r{turn}"))
            assert retried.replayed is bool(there)
        if "closed" not in lines:
            session = "session-1-1"
            if await store.count_sessions():
                calls = (await store.get_session(session, source_number=source.number)).calls
                assert done <= calls <= tried, "an acknowledged call is missing"
                for turn in range(calls, 20):
                    await store.stage(
                        session, upserts([f"s{turn}"]), source_number=source.number, sequence=turn + 1
                    )
            else:
                assert place in ("session.applied", "commit.after")
        await store.maintain()
    backend.check()


async def test_a_failpoint_table_is_checked() -> None:
    from syncline_server import failpoints

    for wrong in ("x", "x=", "x=jump", "x=kill:3", "x=sleep", "x=exit", "x=sleep:a"):
        with pytest.raises(ValueError, match=r"SYNCLINE_FAILPOINTS|invalid literal"):
            failpoints.parse(wrong)
    assert set(failpoints.parse("a=kill@3; b=sleep:5;")) == {"a", "b"}


async def test_t11_a_second_process_is_refused(tmp_path: Path) -> None:
    """T11: also within one process; and a stranger's lock is waited for, then named."""
    from syncline_server.store.abc import StoreRefused

    backend = SqliteBackend(tmp_path)
    async with backend.open() as store:
        bench = await Bench.make(store, backend.clock)
        with pytest.raises(StoreRefused, match=f"in use by another process .id {os.getpid()}"):
            async with backend.open():
                pass
        held = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable,
                "-c",
                OPEN_THE_STORE,
                str(tmp_path),
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert held.returncode != 0
        assert "StoreRefused" in held.stderr
        assert "in use by another process" in held.stderr
        assert (await bench.put(["a"])).revision == 1


async def test_t16_fsck_finds_what_is_wrong(tmp_path: Path) -> None:
    """T16: each promise broken by hand is noticed, so that the fixture can fail."""
    import sqlite3
    from contextlib import closing

    breakages = {
        "UPDATE record SET data = CAST('{}' AS BLOB) WHERE record_id = 'a'": "does not match their hashes",
        "UPDATE entry SET revision = 9 WHERE record_id = 'a'": "does not match its row",
        "DELETE FROM record WHERE record_id = 'b'": "index entries for",
        "DELETE FROM entry WHERE record_id = 'b'": "index entries for",
        "UPDATE head SET digest = zeroblob(16)": "digest",
        "UPDATE head SET record_count = 7": "the head counts 7",
        "UPDATE head SET commit_id = randomblob(8)": "commit id",
        "DELETE FROM revision WHERE revision = 1": "revisions 2 to 3",
        "UPDATE revision SET commit_time_us = 5 WHERE revision = 2": "commit times decrease",
        "UPDATE head SET purge_revision = 3": "below the purge watermark",
        "UPDATE head SET last_position = 1": "beyond the head",
        "INSERT INTO entry VALUES (77, 'x', 1, 1, NULL, 1)": "orphans: entry",
        "INSERT INTO record VALUES (77 << 40, 1, 1, NULL, 1, 'x', NULL)": "orphans: record",
        "DELETE FROM source": "source of record",
        "DELETE FROM head": "dataset without head",
    }
    for number, (statement, expected) in enumerate(breakages.items()):
        backend = SqliteBackend(tmp_path / str(number))
        async with backend.open() as store:
            bench = await Bench.make(store, backend.clock)
            await bench.put(["a", "b"])
            await bench.put(["c", "d"])
            await bench.remove("d")
        backend.check()
        with closing(sqlite3.connect(backend.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(statement)
        problems = fsck(backend.path).problems
        assert any(expected in problem for problem in problems), (statement, problems)


async def test_bytes_come_back_as_they_went(durable: Backend) -> None:
    """T33 on store level: whatever canonical JSON can be."""
    values = [
        '"\\u0000"',
        '"\u2028"',
        "9007199254740993",
        "-0.0",
        "1e400",
        '"\U0001f600"',
        '"' + "x" * 99_999 + '"',
    ]
    async with durable.open() as store:
        bench = await Bench.make(store, durable.clock)
        await bench.put({f"k{i}": value for i, value in enumerate(values)})
        copy = await bench.copy()
        assert copy == {f"k{i}": (1, body(f"k{i}", value)) for i, value in enumerate(values)}
