"""Clients that stand still, restarts under many subscribers, and tokens that are ahead of what a server has heard."""

import asyncio
import signal
import sys
from dataclasses import replace

import pytest

import syncline
from robustness.planted import command
from robustness.traffic import PLAIN, Traffic
from support.server_process import server_process
from support.waiting import until

SESSION = """
import asyncio, sys
from datetime import timedelta
import syncline

async def main():
    address, key, mode = sys.argv[1:]
    async with syncline.connect(address, key=key) as client:
        session = await client.dataset("things").open_session(mode, idle_timeout=timedelta(seconds=1))
        await session.upsert([{"id": f"{n}"} for n in range(100)])
        print("staged", flush=True)
        sys.stdin.readline()
        try:
            print("committed", (await session.close()).revision, flush=True)
        except syncline.SynclineError as error:
            print(type(error).__name__, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["accrue", "replace"])
async def test_t46_g16_a_client_that_stands_still_past_its_time_commits_nothing(server, client, mode):
    """T46, G16: its session was rolled back meanwhile; when it goes on it is told, and another one is unharmed."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    await client.dataset("things").push([{"id": "kept"}])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SESSION,
        server.address,
        server.key,
        mode,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await process.stdout.readline() == b"staged\n"
        process.send_signal(signal.SIGSTOP)
        await until(lambda: not list((server.data / "staging").glob("*.staged")))
        other = await client.dataset("things").open_session(mode)
        await other.upsert([{"id": "kept"}, {"id": "other"}])
        process.send_signal(signal.SIGCONT)
        process.stdin.write(b"close\n")
        assert await process.stdout.readline() == b"SessionInvalid\n"
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()
    assert [record.record_id async for record in client.dataset("things").records()] == ["kept"]
    assert (await other.close()).created == 1
    assert server.fsck() == []


async def test_t56_g12_a_token_ahead_of_what_the_server_has_heard(tmp_path):
    """T56, G12, in one process: a feed that did not hear of a commit goes on from its token, without a reset."""
    async with server_process(tmp_path, prefix=command("announcements_are_lost")) as server:
        async with server.client() as client:
            await client.create_dataset("things", identity=syncline.by_key("id"))
            things = client.dataset("things")
            for n in range(12):
                pushed = await things.push([{"id": "a", "n": n}])
                page = await things.sync(all=True)
                assert page.checkpoint.revision == pushed.revision
                async with things.changes(page.token) as feed:
                    event = await anext(feed)
                assert isinstance(event, syncline.Checkpoint)
                assert event.revision == pushed.revision
            with pytest.raises(syncline.OutcomeUnknown):
                await things.sync(page.token, min_revision=pushed.revision + 1, timeout_seconds=0.3)
            later = await things.push([{"id": "a", "n": n + 1}])
            assert (await things.sync(page.token, min_revision=later.revision)).reset is None


async def restarted_under_subscribers(server, seed, *, streams, restarts):
    """Each stream has twenty subscriptions; no copy begins anew, and all of them reach the head."""
    kinds = [(selection, mode) for selection in ("all", "red") for mode in ("latest", "on_checkpoint")]
    places = tuple(("things", *kinds[n % len(kinds)]) for n in range(20))
    crowd = replace(PLAIN, writers=2, streams=(places,) * streams, subscribers=(), copies=())
    async with Traffic.on(server, seed=seed, crowd=crowd, checkpoint_seconds=10.0) as traffic:
        traffic.catch_up_seconds = 30.0
        for _ in range(restarts):
            await traffic.acknowledged(20)
            assert await server.terminate() == 0
            await server.start()
        await traffic.acknowledged(20)
        await traffic.finish()
        assert traffic.resets == []
    await server.stop()
    assert server.fsck() == []


async def test_t113_g11_g20_restarts_under_sixty_subscribers(server, seed):
    """T113 with one node."""
    await restarted_under_subscribers(server, seed, streams=3, restarts=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_t113_g11_g20_restarts_under_a_thousand_subscribers(server, seed):
    await restarted_under_subscribers(server, seed, streams=50, restarts=10)
