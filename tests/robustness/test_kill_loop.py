"""T01, T02: kill -9 under load, again and again; nothing acknowledged is lost, nothing is doubled, no repair."""

import asyncio
import os
import random
import signal

import pytest

import syncline
from robustness.history import History, check
from robustness.traffic import subscriber, writer
from syncline_server.store.sqlite.fsck import fsck

CYCLES = 20


async def run_cycles(server, cycles, seed, *, down):
    """Traffic of four writers and one subscriber through ``cycles`` kills; then everything is checked."""
    rng = random.Random(seed)
    history, copy, stop = History(), syncline.Copy(), asyncio.Event()
    async with syncline.connect(server.address, key=server.key) as client:
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things = client.dataset("things")
        following = asyncio.create_task(subscriber(things, history, copy))
        writers = [
            asyncio.create_task(writer(things, history, random.Random(seed + n), stop)) for n in range(4)
        ]
        for _ in range(cycles):
            await asyncio.sleep(rng.uniform(0.005, 0.3))
            await down()
            await server.start()
        await asyncio.sleep(0.2)
        stop.set()
        await asyncio.gather(*writers)
        head = (
            await things.push([{"id": "last", "op": history.invoke(("last",), delete=False, now=0.0).number}])
        ).revision
        while copy.revision < head:
            assert not following.done(), following.result()
            await asyncio.sleep(0.02)
        final = {record.record_id: (record.revision, record.data["op"]) async for record in things.records()}
        info = await client.get_dataset("things")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await server.stop()
    assert fsck(server.data / "syncline.db").problems == ()
    assert check(history, final, info.revision) == []
    assert {key: copy.event(key).revision for key in copy} == {
        key: revision for key, (revision, _) in final.items()
    }
    assert copy.digest == info.digest
    assert history.resets == []
    assert len(history.acknowledged) > cycles
    return history


def seed_of_this_run():
    return int(os.environ.get("SYNCLINE_TEST_SEED", random.randrange(1 << 32)))


async def test_t01_g02_kill_loop(server, record_property):
    seed = seed_of_this_run()
    record_property("seed", seed)
    print(f"SYNCLINE_TEST_SEED={seed}")
    await run_cycles(server, CYCLES, seed, down=lambda: server.stop(signal.SIGKILL))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_t01_g02_kill_loop_long(server):
    seed = seed_of_this_run()
    print(f"SYNCLINE_TEST_SEED={seed}")
    await run_cycles(server, 200, seed, down=lambda: server.stop(signal.SIGKILL))


async def test_t110_g20_sigterm_loop(server):
    """T110: SIGTERM under load keeps what was acknowledged and ends with 0 within the grace."""
    codes = []

    async def down():
        codes.append(await server.stop())

    seed = seed_of_this_run()
    print(f"SYNCLINE_TEST_SEED={seed}")
    await run_cycles(server, 5, seed, down=down)
    assert codes == [0] * 5
