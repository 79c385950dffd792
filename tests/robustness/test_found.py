"""What the checker found, each in the smallest form that shows it."""

import asyncio

import pytest

import syncline
from robustness.simulation import simulate
from support.waiting import until
from syncline_server.model import Head, Reason
from syncline_server.store.carried import Carried


def test_g08_a_commit_whose_last_rows_were_purged_is_ended_by_an_empty_batch():
    """Found by the simulation: the SDK took that batch for a contradiction, again and again."""
    simulate(699)


async def test_g08_g11_a_page_ends_a_commit_whose_last_rows_were_purged(make_server):
    """The same against a server: a copy that stopped inside a commit goes on after the purge of its deletes."""
    settings = {"RETENTION_SECONDS": "0", "RETENTION_REVISIONS": "0", "PURGE_SECONDS": "0.1"}
    async with make_server(**{f"SYNCLINE_{name}": value for name, value in settings.items()}) as server:
        async with server.client() as client:
            await client.create_dataset("things", identity=syncline.by_key("id"))
            things = client.dataset("things")
            await things.push([{"id": "b"}])
            async with things.session("accrue") as session:
                await session.upsert([{"id": "a"}])
                await session.delete([{"id": "b"}])
            copy = syncline.Copy()
            half = await things.sync(page_size=1)
            assert half.changes.partial
            copy.apply(half.changes)

            async def purged():
                page = await things.sync(half.token)
                return None if page.changes else page

            pages = []

            async def rest():
                pages.append(await purged())
                return pages[-1]

            await until(rest)
            copy.apply(pages[-1].checkpoint)
            assert list(copy) == ["a"]


def test_g07_what_another_node_commits_inside_a_group_is_not_taken_for_carried():
    """Found by the run of two nodes, seed 15: revisions 1 to 4 were sent without 2 and 3.

    A group with a session in it is several transactions, and another node may commit between them.
    """
    one, two, four = ({key: (n, n, Reason.API, b"1")} for key, n in (("a", 1), ("b", 2), ("b", 4)))
    heads = [Head(revision=revision, commit_id=bytes(8)) for revision in range(5)]
    whole = Carried(10)
    whole.add(7, heads[0], heads[1], one)
    whole.add(7, heads[1], heads[2], two)
    assert whole.appended()[0].changes.record_ids == ["a", "b"]
    torn = Carried(10)
    torn.add(7, heads[0], heads[1], one)
    torn.add(7, heads[3], heads[4], four)
    (appended,) = torn.appended()
    assert (appended.from_revision, appended.head, appended.changes) == (0, heads[4], None)


async def test_a_replica_that_is_cancelled_while_it_closes_lets_go_of_its_file(client, tmp_path):
    """Found by the randomised run, seed 120: its thread and the lock of its file were left behind."""
    await client.create_dataset("things", identity=syncline.by_key("id"))
    things = client.dataset("things")
    path = tmp_path / "things.db"
    is_open = asyncio.Event()

    async def hold():
        async with things.replica(path) as replica:
            await replica.ready()
            is_open.set()
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    await is_open.wait()
    holding.cancel()
    await asyncio.sleep(0)  # it is on its way out now
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    async with things.replica(path) as replica:
        assert not replica.is_read_only
