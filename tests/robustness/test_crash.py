"""The server dies at a chosen place; what it acknowledged is there, what it did not is there whole or not at all."""

import asyncio
import random
import signal
from dataclasses import replace

import pytest

import syncline
from examples.local_postgres import run_apart
from robustness.faults import PLACES_OF_SQLITE
from robustness.traffic import PLAIN, Traffic
from support.frail_postgres import connection_to
from support.waiting import until

CROWD = replace(PLAIN, sessions=2, swaps=1)
VARIABLE = "SYNCLINE_FAILPOINTS"
PLACES = {
    "commit.before": 7,
    "commit.rows": 7,
    "commit.after": 7,
    "checkpoint.before": 1,
    "checkpoint.after": 1,
    "purge": 2,
    "reclaim": 1,
    "stage.rows": 5,
    "stage.after": 5,
    "prepare": 2,
    "session.applied": 2,
}
"""Named places of the server, and at which visit it dies."""
EVERY_COMMIT = {"commit.before", "commit.rows", "commit.after", "purge", "session.applied"}
"""Places that are tried at every commit; the others in `make test-all`, for they cost seconds each."""
NOT_THERE = pytest.mark.only_store("sqlite", reason="this place is not there beside PostgreSQL")


def parameter(place):
    slow = [] if place in EVERY_COMMIT else [pytest.mark.slow]
    return pytest.param(place, marks=[*slow, NOT_THERE] if place in PLACES_OF_SQLITE else slow)


@pytest.mark.parametrize("place", [*map(parameter, PLACES)])
async def test_t02_g02_killed_at_a_named_place(make_server, seed, place):
    """T02, G1, G2, G3, G5, G7: pushes, deletes, sessions and a subscriber live through it and go on."""
    settings = {
        "SYNCLINE_PURGE_SECONDS": "0.1",
        "SYNCLINE_RETENTION_SECONDS": "0",
        "SYNCLINE_RETENTION_REVISIONS": "1" if place == "purge" else "100000",
    }
    async with make_server(**settings) as server, server.client() as client:
        await client.create_dataset("doomed")
        await client.dataset("doomed").push([{"n": n} for n in range(100)])
        async with Traffic.on(server, seed=seed, crowd=CROWD) as traffic:
            await traffic.acknowledged(20)
            await server.stop()
            await server.start(env={VARIABLE: f"{place}=kill@{PLACES[place]}"})
            deleting = asyncio.create_task(client.delete_dataset("doomed"))
            assert await server.wait() == -signal.SIGKILL
            await server.start()
            await deleting
            await traffic.acknowledged(20)
            await traffic.finish()
            if place != "purge":
                assert traffic.resets == []
        await server.stop()
        assert server.fsck() == []
        assert staged_sessions(server) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_t02_g02_killed_at_named_places_again_and_again(make_server, store_name, seed):
    """T02: any place, any of its first visits, forty times over the same data."""
    rng = random.Random(seed)
    places = sorted(
        PLACES.keys() - {"purge", "reclaim"} - (PLACES_OF_SQLITE if store_name == "postgres" else set())
    )
    async with make_server() as server:
        async with Traffic.on(server, seed=seed, crowd=CROWD) as traffic:
            for _ in range(40):
                await server.stop()
                place = rng.choice(places)
                visit = rng.randint(1, 3) if place.startswith("checkpoint") else rng.randint(2, 20)
                await server.start(env={VARIABLE: f"{place}=kill@{visit}"})
                assert await server.wait(60.0) == -signal.SIGKILL
                await server.start()
                await traffic.acknowledged(20)
            await traffic.finish()
            assert traffic.resets == []
        await server.stop()
        assert server.fsck() == []
        assert staged_sessions(server) == 0


def staged_sessions(server):
    """How many sessions have left something on the disk."""
    if server.store:
        return run_apart(count_staged(server.store))
    return len(list((server.data / "staging").glob("*.staged")))


async def count_staged(dsn):
    async with connection_to(dsn) as connection:
        return await connection.fetchval(
            "SELECT count(DISTINCT number) FROM syncline.session JOIN syncline.staged ON session_number = number"
        )


def staged_bytes(server):
    """What sessions have uploaded, as it lies on the disk."""
    if server.store:
        return run_apart(count_staged_bytes(server.store))
    return sum(file.stat().st_size for file in (server.data / "staging").iterdir())


async def count_staged_bytes(dsn):
    async with connection_to(dsn) as connection:
        return await connection.fetchval("SELECT coalesce(sum(length(data)), 0) FROM syncline.staged")


STEPS = {
    "stage.rows": 1,
    "stage.after": 1,
    "prepare": 1,
    "commit.before": 2,
    "session.applied": 1,
    "commit.rows": 2,
    "commit.after": 2,
}
"""What a session goes through, in this order, and which visit is its own: starting commits once."""
OF_SESSIONS = {"stage.after", "session.applied"}
"""Places that nothing else passes, so that the visit is known beside PostgreSQL too, where there are leases and probes."""
WITH_OTHERS = pytest.mark.only_store(
    "sqlite", reason="this place is not there beside PostgreSQL, or others pass it too"
)
EVERY_STEP = [step if step in OF_SESSIONS else pytest.param(step, marks=WITH_OTHERS) for step in STEPS]
OLD = {"old": 0, "same": 1}
WHOLE = {"same": 1} | {f"{n}": n for n in range(20)}


async def crashed_session(server, client, mode, step):
    """A session that dies with the server at ``step``; the tasks of its client are still trying."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = client.dataset("things")
    await things.push([{"id": key, "v": value} for key, value in OLD.items()])
    rows = [{"id": key, "v": value} for key, value in WHOLE.items()]
    session = await things.open_session(mode)
    await session.upsert(rows[:10])
    await server.stop()
    await server.start(env={VARIABLE: f"{step}=kill@{STEPS[step]}"})

    async def rest():
        await session.upsert(rows[10:])
        return await session.close()

    working = asyncio.create_task(rest())
    assert await server.wait() == -signal.SIGKILL
    return session, working


async def values(client):
    return {record.record_id: record.data["v"] async for record in client.dataset("things").records()}


def expected(mode):
    return WHOLE if mode == "replace" else OLD | WHOLE


@pytest.mark.parametrize("mode", [pytest.param("accrue", marks=pytest.mark.slow), "replace"])
@pytest.mark.parametrize("step", EVERY_STEP)
async def test_t45_g05_g16_a_session_survives_the_server_at_every_step(server, client, mode, step):
    """T45, G5, G16: its client goes on where it was, and the commit has one effect."""
    _, working = await crashed_session(server, client, mode, step)
    await server.start()
    result = await working

    assert (result.revision, result.created, result.updated) == (2, 20, 0)
    assert (result.unchanged, result.deleted) == (1, mode == "replace")
    assert await values(client) == expected(mode)
    assert (await client.get_dataset("things")).revision == 2
    await server.stop()
    assert server.fsck() == []
    assert staged_sessions(server) == 0


@pytest.mark.parametrize("mode", [pytest.param("accrue", marks=pytest.mark.slow), "replace"])
@pytest.mark.parametrize("step", EVERY_STEP)
async def test_t45_g16_a_session_whose_client_died_too(server, client, mode, step):
    """T45, G1, G16: nothing of it shows unless its commit was durable; the next session leaves nothing of it."""
    session, working = await crashed_session(server, client, mode, step)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await server.start()
    committed = step == "commit.after"

    assert await values(client) == (expected(mode) if committed else OLD)
    assert (await client.get_dataset("things")).revision == (2 if committed else 1)
    if committed:
        with pytest.raises(syncline.SessionInvalid):
            await session.info()
    else:
        assert (await session.info()).calls == 2 - (step == "stage.rows")
    assert staged_sessions(server) == (not committed)
    async with client.dataset("things").session(mode, allow_mass_delete=True) as other:
        await other.upsert([{"id": "other", "v": 1}])
        with pytest.raises(syncline.SessionInvalid):
            await session.info()
    assert "other" in await values(client)
    await server.stop()
    assert server.fsck() == []
    assert staged_sessions(server) == 0


async def test_t37_g16_a_killed_upload_is_invisible_and_gives_its_space_back(make_server):
    """T37: staged rows of a client that never comes back go when their time is over, also over restarts."""
    async with make_server(SYNCLINE_SESSION_IDLE_SECONDS="2") as server, server.client() as client:
        await client.create_dataset("things", identity=syncline.by_key("id"))
        session = await client.dataset("things").open_session("accrue")
        await session.upsert([{"id": f"{n}", "v": n, "pad": "x" * 1_000} for n in range(3_000)])
        uploading = asyncio.create_task(session.upsert([{"id": f"more-{n}", "v": n} for n in range(50_000)]))
        await until(lambda: session.calls > 5)
        await server.kill()
        uploading.cancel()
        await asyncio.gather(uploading, return_exceptions=True)
        held = staged_bytes(server)
        await server.start()
        assert held > 3_000_000
        assert await values(client) == {}
        await until(lambda: not staged_bytes(server))
        with pytest.raises(syncline.SessionInvalid):
            await session.info()
        assert await values(client) == {}
        await server.stop()
        assert server.fsck() == []


@pytest.mark.parametrize(
    "place",
    [*(pytest.param(p, marks=pytest.mark.slow) for p in ("prepare", "session.applied")), "commit.after"],
)
async def test_t112_g20_sigterm_during_a_large_commit(server, client, place):
    """T112, G1, G20: it ends cleanly, and the commit is there whole or not at all, as its client was told."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    session = await client.dataset("things").open_session("replace")
    rows = [{"id": f"{n}", "v": n} for n in range(20_000)]
    await session.upsert(rows)
    await server.stop()
    await server.start(env={VARIABLE: f"{place}=sleep:1000@1"})
    closing = asyncio.create_task(session.close())
    await client.server_info()  # behind the other on the same connection: that one is being worked on
    server.send(signal.SIGTERM)
    assert await server.wait() == 0
    await server.start()
    assert (await client.get_dataset("things")).record_count in {0, 20_000}
    result = await closing
    assert (result.revision, result.created) == (1, 20_000)
    assert (await client.get_dataset("things")).record_count == 20_000
    await server.stop()
    assert server.fsck() == []
