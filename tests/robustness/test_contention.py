"""Many at once on few keys, and a replace among them."""

import asyncio
from dataclasses import replace

import pytest

import syncline
from robustness.traffic import PLAIN, Traffic

WRITES = 600


async def test_t19_g03_fifty_writers_on_five_keys(server, client, seed):
    """T19, G3, G7: revisions agree with real time, and the last writer of each key is the one that stays."""
    crowd = replace(PLAIN, writers=50, keys=tuple("abcde"))
    async with Traffic.on(server, seed=seed, crowd=crowd) as traffic:
        await traffic.acknowledged(WRITES)
        history = await traffic.finish()
        assert traffic.resets == []
        assert all(op.outcome == "ok" or op.code == "CONDITION_FAILED" for op in history.operations)
        for dataset in ("things", "items"):
            revisions = [operation.revision for operation in history.acknowledged(dataset)]
            assert revisions == list(range(1, len(revisions) + 1))
    await server.stop()
    assert server.fsck() == []


@pytest.mark.parametrize("scope", ["shared", "per_source"])
async def test_t35_g15_replace_while_others_write(server, client, scope):
    """T35, G15: at the revision of each replace the source holds the pushed set and nothing else."""
    await client.create_dataset("things", identity=syncline.by_key("id"), scope=scope)
    await client.create_source("things", "feed")
    await client.create_source("things", "other")
    things = client.dataset("things")
    stop = asyncio.Event()
    written: dict[int, int | None] = {}

    async def write(source, keys):
        """Pushes into the replaced source itself and into another one."""
        n = 0
        while not stop.is_set():
            n += 1
            key = keys[n % len(keys)]
            number = len(written) + 1
            written[number] = None
            written[number] = (await things.push([{"id": key, "op": number}], source=source)).revision

    inner = [f"i{n}" for n in range(10)]
    outer = [f"o{n}" for n in range(10)]
    checked = 0
    async with asyncio.TaskGroup() as group:
        for source, keys in (("feed", inner), ("feed", outer[:3]), ("other", outer)):
            group.create_task(write(source, keys))
        try:
            for turn in range(6):
                pushed = {f"{letter}{n + turn}": turn for letter in "ior" for n in range(6)}
                async with things.session("replace", source="feed", allow_mass_delete=True) as session:
                    await session.upsert([{"id": key, "turn": value} for key, value in pushed.items()])
                await check_replaced(things, scope, session.result.revision, pushed, written)
                checked += 1
        finally:
            stop.set()
    assert checked == 6
    await server.stop()
    assert server.fsck() == []


async def check_replaced(things, scope, revision, pushed, written):
    """Whatever is not as pushed was written by somebody else after the replace."""
    records = [record async for record in things.records()]
    later = {record.data["id"] for record in records if record.revision > revision}
    of_feed = {record.data["id"]: record for record in records if record.source == "feed"}
    before = {key for key, record in of_feed.items() if record.revision <= revision}
    assert before <= pushed.keys(), f"neither pushed nor newer than the replace: {before - pushed.keys()}"
    for key in before:
        assert of_feed[key].data == {"id": key, "turn": pushed[key]}
    missing = pushed.keys() - of_feed.keys()
    assert missing <= (later if scope == "shared" else set()), f"pushed and gone: {missing - later}"
    for record in records:
        if record.revision > revision:
            assert written[record.data["op"]] in {None, record.revision}, "None: not answered yet"
