"""Trouble of the store, seen by clients: a full disk, a stranger with the lock, a second server."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess

import pytest

import syncline
from support.server_process import ServerProcess, server_process
from support.waiting import until

pytestmark = pytest.mark.only_store("sqlite", reason="faults of its file; robustness/test_postgres_faults.py")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def rows(turn):
    return [{"id": f"{turn}-{n}", "pad": "x" * 900} for n in range(300)]


async def follow(things, copy):
    async with things.changes() as stream:
        async for event in stream:
            copy.apply(event)


@pytest.mark.root
async def test_t05_g18_a_full_disk(small_disk):
    """T05, G2, G18: writes are refused and say why, reads and feeds live on, it heals without a restart."""
    copy = syncline.Copy()
    async with (
        server_process(small_disk, env={"SYNCLINE_PROBE_SECONDS": "0.1"}) as server,
        server.client() as client,
    ):
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things = client.dataset("things")
        following = asyncio.create_task(follow(things, copy))
        await things.push(rows("before"))
        fill(small_disk / "filler")
        acknowledged = {"before"}
        refusals = []
        for turn in range(30):
            try:
                await things.push(rows(turn), timeout_seconds=1.0)
                acknowledged.add(f"{turn}")
            except syncline.Overloaded as error:
                refusals.append(error)
        assert {error.reason for error in refusals} == {"STORE_FULL"}
        assert all(error.retry_after_seconds for error in refusals)
        await until(lambda: tells(client, writable=False))
        assert (await things.get("before-0")).record_id == "before-0"
        head = (await client.get_dataset("things")).revision
        assert head == len(acknowledged)
        await until(lambda: copy.revision == head)
        assert not following.done()
        assert server.is_running

        (small_disk / "filler").unlink()
        await until(lambda: tells(client, writable=True))
        after = await things.push(rows("after"))
        assert after.revision == head + 1
        await until(lambda: copy.revision == after.revision)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        groups = {record.record_id.split("-")[0] async for record in things.records()}
        assert groups == acknowledged | {"after"}
        assert len(copy) == 300 * len(groups)
        await server.stop()
        assert server.fsck() == []


def fill(file):
    """Take all the room that there is."""
    with file.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4_096)


async def tells(client, *, writable):
    return (await client.server_info()).writable is writable


async def test_t11_g18_a_stranger_holds_the_lock(make_server):
    """T11, G4, G18: writes wait, then say that the store cannot answer; reads and feeds go on; it passes."""
    async with make_server(SYNCLINE_PROBE_SECONDS="0.1") as server, server.client() as client:
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things, copy = client.dataset("things"), syncline.Copy()
        following = asyncio.create_task(follow(things, copy))
        await things.push([{"id": "a"}])
        with contextlib.closing(
            sqlite3.connect(server.data / "syncline.db", isolation_level=None)
        ) as stranger:
            stranger.execute("BEGIN EXCLUSIVE")
            patient = asyncio.create_task(things.push([{"id": "b"}], timeout_seconds=50.0))
            with pytest.raises((syncline.Unavailable, syncline.DeadlineExceeded)):
                await things.push([{"id": "c"}], timeout_seconds=1.5)
            await until(lambda: tells(client, writable=False))
            assert (await things.get("a")).revision == 1
            assert copy.revision == 1
            stranger.execute("ROLLBACK")
        assert (await patient).revision in {2, 3}
        await until(lambda: tells(client, writable=True))
        head = (await things.push([{"id": "d"}])).revision
        await until(lambda: copy.revision == head)
        assert {"a", "b", "d"} <= set(copy) <= {"a", "b", "c", "d"}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await server.stop()
        assert server.fsck() == []


async def test_t11_a_second_server_on_the_same_data_is_refused(server, client, tmp_path):
    """T11: it ends with words that say what is wrong, and the first one does not notice."""
    second = ServerProcess(server.data.parent)
    with pytest.raises(RuntimeError, match="in use"):
        await second.start()
    await client.create_dataset("things")
    assert (await client.dataset("things").push([{"n": 1}])).revision == 1
    await server.stop()
    assert server.fsck() == []
