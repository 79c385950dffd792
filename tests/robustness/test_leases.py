"""T85 with real processes: the node that does what is done once stands still, another takes over, the first goes on."""

import json
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

import syncline
from support.postgres_cluster import store_address
from support.server_process import server_process
from support.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only_store("postgres", reason="several servers have one store"),
]

EAGER = {
    "SYNCLINE_PURGE_SECONDS": "0.1",
    "SYNCLINE_RETENTION_SECONDS": "0",
    "SYNCLINE_RETENTION_REVISIONS": "0",
    "SYNCLINE_LOG_FORMAT": "json",
}
INSIDE_PURGE = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'
AND query LIKE 'UPDATE head SET purge_revision%'
"""


def events(server, name):
    """What it logged under this name."""
    told = map(json.loads, server.log.splitlines())
    return [event for event in told if event["event"] == name]


def fences(server, name):
    return [event["fence"] for event in events(server, name)]


@asynccontextmanager
async def two_nodes(store_name, directory, **env_of_first):
    """Node a, which has the lease, node b, and a client of b."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(store_address(store_name))
        nodes = []
        for name, more in (("a", env_of_first), ("b", {})):
            node = await stack.enter_async_context(
                server_process(
                    directory / name,
                    store=store,
                    data=directory / "data",
                    env=EAGER | {"SYNCLINE_NODE": name} | more,
                )
            )
            nodes.append(node)
            await until(lambda: fences(nodes[0], "lease.taken") == [1])
        client = await stack.enter_async_context(nodes[1].client())
        database = await asyncpg.connect(store)
        stack.push_async_callback(database.close)
        yield *nodes, client, database


@pytest.mark.parametrize("where", ["between", "inside"])
async def test_t85_a_node_that_stands_still_past_its_lease_has_no_effect(store_name, tmp_path, where):
    """T85: stopped between two transactions, or inside one that it will never finish; it serves again afterwards."""
    failpoints = {"SYNCLINE_FAILPOINTS": "purge=sleep:3000@1"} if where == "inside" else {}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with two_nodes(store_name, tmp_path, **failpoints) as (a, b, client, database):
        await client.create_dataset("things", identity=syncline.by_key("id"))
        things = client.dataset("things")
        await things.push([{"id": "kept"}, {"id": "gone"}])
        if where == "inside":
            await until(lambda: database.fetchval(INSIDE_PURGE))
        a.send(signal.SIGSTOP)
        try:
            await until(lambda: fences(b, "lease.taken") == [2], seconds=40)
            deleted = await things.delete([{"id": "gone"}])
            nodes = {node.name: node for node in await client.nodes()}
            assert (nodes["a"].silent, nodes["b"].silent) == (True, False)
        finally:
            a.send(signal.SIGCONT)
        await until(lambda: fences(a, "lease.lost") == [1])

        async def purged():
            return (await client.get_dataset("things")).purge_revision >= deleted.revision

        await until(purged)
        async with a.client() as through_a:
            await through_a.dataset("things").push([{"id": "after"}])

            async def all_report():
                return not any(node.silent for node in await through_a.nodes())

            await until(all_report)
        assert fences(a, "lease.taken") == [1]
        assert fences(b, "lease.lost") == []
        assert await a.terminate() == 0
        assert [node.name for node in await client.nodes()] == ["b"]


async def test_a_node_that_is_stopped_or_killed_is_replaced(store_name, tmp_path):
    """SIGTERM gives the lease back at once; after SIGKILL it has to run out."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with two_nodes(store_name, tmp_path) as (a, b, *_):
        assert await a.terminate() == 0
        await until(lambda: fences(b, "lease.taken") == [2], seconds=10)
        await a.start()
        await b.kill()
        await until(lambda: fences(a, "lease.taken") == [1, 3], seconds=40)
