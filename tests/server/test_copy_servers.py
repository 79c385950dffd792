"""The command ``syncline-server copy`` with real servers on both sides, and killed in its midst (G2, G5, G11, G16)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import syncline
from support.copies import copied, database_of, everything
from support.server_process import server_process
from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_places import copy_source
from syncline_server.store.postgres import open_store as open_postgres

pytestmark = pytest.mark.usefixtures("postgres_cluster")


def run_copy(
    source: str | Path, target: str | Path, *options: str, failpoints: str = ""
) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")}
    command = [sys.executable, "-m", "syncline_server", "copy", str(source), str(target), *options]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=env | {"SYNCLINE_FAILPOINTS": failpoints},
    )


async def test_g11_g5_g16_clients_go_on_where_they_were(
    tmp_path: Path, new_database: Callable[[], str]
) -> None:
    """From SQLite to PostgreSQL and to SQLite: token, session, key and request go on; nobody gets a RESET."""
    database = new_database()
    async with server_process(tmp_path / "a") as server, server.client() as client:
        await client.create_dataset("books", identity=syncline.by_key("isbn"))
        books = client.dataset("books")
        await books.push([{"isbn": str(n), "n": n} for n in range(50)])
        token = (await books.sync(all=True)).token
        session = await books.open_session("accrue")
        await session.upsert([{"isbn": "staged", "n": 1}])

        refused = await asyncio.to_thread(run_copy, server.data, database)
        assert refused.returncode == 3
        assert "stop the server and run this again" in refused.stderr
        await books.push([{"isbn": "50", "n": 50}])

        waiting = asyncio.create_task(asyncio.to_thread(run_copy, server.data, database, "--wait", "--json"))
        await server.stop()
        done = await waiting
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["from"], report["datasets"], report["records"]) == (str(server.data), 1, 51)
        assert 0 < report["final_seconds"] <= report["seconds"]

        (tmp_path / "c").mkdir()  # for its log
        async with server_process(tmp_path / "c", listen=server.address, store=database, data=server.data):
            page = await books.sync(token, all=True)
            assert page.reset is None
            assert [change.record_id for change in page.changes] == ["50"]
            await session.upsert([{"isbn": "staged too", "n": 2}])
            await session.close()
            assert session.result is not None
            assert session.result.created == 2
            token = (await books.sync(page.token, all=True)).token
        done = await asyncio.to_thread(run_copy, database, tmp_path / "d" / "data")
        assert done.returncode == 0, done.stderr
        assert f"start the servers with --data {tmp_path / 'd' / 'data'}" in done.stdout
        (tmp_path / "d" / "data" / "admin.key").write_text(server.key)
        async with server_process(tmp_path / "d", listen=server.address):
            await books.push([{"isbn": "51", "n": 51}])
            page = await books.sync(token, all=True)
            assert page.reset is None
            assert [change.record_id for change in page.changes] == ["51"]


@pytest.mark.slow
async def test_g2_a_writer_loses_nothing_that_was_acknowledged(
    tmp_path: Path, new_database: Callable[[], str]
) -> None:
    """PostgreSQL, its server running: writes go on until the last step, then nothing is acknowledged any more."""
    old, new = new_database(), new_database()
    acknowledged: list[str] = []
    async with server_process(tmp_path / "a", store=old) as server, server.client() as client:
        await client.create_dataset("books", identity=syncline.by_key("isbn"))
        books = client.dataset("books")
        await books.push([{"isbn": f"before {n}", "n": n} for n in range(2_000)])
        refused = asyncio.Event()

        async def write() -> None:
            number = 0
            while True:
                number += 1
                names = [f"{number}", f"before {number % 2_000}"]
                try:
                    await books.push([{"isbn": name, "n": -number} for name in names], timeout_seconds=1)
                except syncline.SynclineError:
                    refused.set()
                    return
                acknowledged.append(f"{number}")

        writing = asyncio.create_task(write())
        done = await asyncio.to_thread(run_copy, old, new)
        assert done.returncode == 0, done.stderr
        await asyncio.wait_for(refused.wait(), 20)
        await writing
        before = int(acknowledged[-1])
        with pytest.raises(syncline.Unavailable, match="this store was moved"):
            await books.push([{"isbn": "late"}], timeout_seconds=1)
        await server.stop()
        with pytest.raises(RuntimeError, match="moved away from this database"):
            await server.start()
        (tmp_path / "b").mkdir()
        async with (
            server_process(tmp_path / "b", store=new, data=server.data) as there,
            there.client() as reader,
        ):
            held = {record.record_id: record async for record in reader.dataset("books").records()}
            assert set(acknowledged) <= set(held)
            for number in range(max(1, before - 1_999), before + 1):
                assert held[f"before {number % 2_000}"].data["n"] == -number
        assert there.fsck() == []


PLACES = ("copy.batch@2", "copy.compared", "copy.equal", "copy.set_aside")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_copy_that_was_killed_goes_on(
    tmp_path: Path, filled: Path, new_database: Callable[[], str], kind: str, place: str
) -> None:
    """SIGKILL: the old store is as it was, or set aside and complete elsewhere; the same command does the rest."""
    source: str = str(filled.parent)
    if kind == "postgres":
        source = new_database()
        await copied(filled, source)
        filled = filled.with_name("syncline.db.moved")
    expected = everything(filled)
    target = new_database()
    name, _, hit = place.partition("@")
    killed = await asyncio.to_thread(
        run_copy, source, target, failpoints=f"{name}=kill" + (f"@{hit}" if hit else "")
    )
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(StoreRefused, match="unfinished copy"):
        async with open_postgres(target):
            pass
    if place != "copy.set_aside":
        async with copy_source(source) as old:
            assert await old.moved_identity() is None
            await old.identity()
    done = await asyncio.to_thread(run_copy, source, target)
    assert done.returncode == 0, done.stderr
    again = await asyncio.to_thread(run_copy, source, target)
    assert again.returncode == 3
    assert "was moved away already" in again.stderr
    await copied(target, tmp_path / "end")
    after = everything(database_of(tmp_path / "end"))
    for table, rows in expected.items():
        assert after[table] == rows, table
