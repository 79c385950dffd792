"""``syncline.testing``: the SDK against a real server, as a user's own tests would run it."""

import asyncio
from typing import Any

import pytest

import syncline
import syncline.testing


async def test_a_users_own_test() -> None:
    async with syncline.testing.server(checkpoint_seconds=0.5) as target, target.connect() as client:
        await client.create_dataset("books", identity=syncline.by_key("isbn"))
        books = client.dataset("books")
        result = await books.push([{"isbn": "1", "title": "Emma"}])
        assert [(r.key, r.status) for r in result.results] == [("1", syncline.RecordStatus.CREATED)]

        copy: syncline.Copy[Any] = syncline.Copy()
        async with asyncio.timeout(30), books.changes() as feed:
            async for event in feed:
                copy.apply(event)
                if copy.revision == 1:
                    await target.kill()
                    await target.start()
                    await books.push([{"isbn": "2", "title": "Persuasion"}])
                if copy.revision == 2:
                    break

        info = await books.info()
        assert sorted(copy) == ["1", "2"]
        assert copy["2"] == {"isbn": "2", "title": "Persuasion"}
        assert (info.revision, info.record_count, info.digest) == (2, 2, copy.digest)


async def test_sessions_and_loads_survive_a_kill() -> None:
    async with syncline.testing.server() as target, target.connect() as client:
        await client.create_dataset("numbers", identity=syncline.by_key("n"))
        numbers = client.dataset("numbers")

        async def rows(start: int) -> Any:
            for n in range(start, start + 6_000):
                if n % 6_000 == 2_500:
                    await target.kill()
                    await target.start()
                yield {"n": n}

        loaded = await numbers.load(rows(0), batch=500)
        async with asyncio.timeout(40), numbers.session("replace", allow_mass_delete=True) as session:
            await session.upsert(rows(6_000))

        page = await numbers.sync(all=True)
        assert loaded.records == 6_000
        assert session.result is not None
        assert (session.result.created, session.result.deleted) == (6_000, 6_000)
        assert sorted(event.data["n"] for event in page.changes if isinstance(event, syncline.Put)) == list(
            range(6_000, 12_000)
        )


async def test_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="depth"):
        async with syncline.testing.server(depth=-1):
            pass
