"""A client of several servers of one store: it goes from one to the next and loses nothing."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest

import syncline
from support.postgres_cluster import store_address
from support.server_process import server_process
from support.waiting import until

pytestmark = pytest.mark.only_store("postgres", reason="several servers have one store")


@pytest.fixture
async def nodes(store_name, tmp_path):
    """Two of them, which share the file of the admin key."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(store_address(store_name))
        made = []
        for name in "ab":
            process = server_process(tmp_path / name, store=store, data=tmp_path / "data")
            made.append(await stack.enter_async_context(process))
        yield made


def in_use(client, nodes):
    """The one whose turn it is, and the other one."""
    turn = client._endpoint.route.turn
    return nodes[turn], nodes[1 - turn]


async def are_two(client):
    """What one that was killed left behind goes when it is back under its name."""
    return len(await client.nodes()) == 2


async def test_g05_g11_a_client_goes_on_at_the_other_node(nodes):
    """One is killed, comes back, then the other is stopped: calls, a feed, a replica and a producer go on."""
    first, second = nodes
    by_name = f"localhost:{first.address.rpartition(':')[2]}"
    async with syncline.connect([by_name, second.address], key=first.key) as client:
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things = client.dataset("things")
        seen = []

        async def follow():
            async for event in things.changes():
                assert not isinstance(event, syncline.Reset)
                if isinstance(event, syncline.Put):
                    seen.append(event.record_id)

        following = asyncio.create_task(follow())
        async with (
            things.replica() as replica,
            things.producer("sensor", source="default") as sensor,
        ):
            await replica.ready()
            for number, end in enumerate([signal.SIGKILL, signal.SIGTERM]):
                used, other = in_use(client, nodes)
                result = await things.push([{"id": f"{number} before"}])
                await replica.wait_for(result.revision)
                await used.stop(end)
                sensor.send({"id": f"{number} reading"})
                result = await things.push([{"id": f"{number} after"}])
                assert in_use(client, nodes) == (other, used)
                await sensor.flush()
                await replica.wait_for(result.revision)
                await used.start()
            await until(lambda: are_two(client))
            expected = {f"{number} {when}" for number in range(2) for when in ("before", "reading", "after")}
            await until(lambda: set(seen) == expected == {key for key, _ in replica.items()})
        assert len(seen) == len(expected)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_the_command_takes_several_servers(nodes):
    """Whichever is away."""
    first, second = nodes
    await first.kill()
    environment = os.environ | {"SYNCLINE_KEY": second.key}
    for servers in (f"{first.address},{second.address}", f"{second.address}, {first.address}"):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "syncline.cli", "status", "--json", "--server", servers],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert second.address in done.stdout
