"""T85 in the store of many nodes: work under a lease, against the moments at which the lease changes hands."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.postgres_strangers import stranger, waiting_for_a_lock
from support.store_values import Bench, PostgresBackend
from syncline_server.errors import Aborted, Unavailable
from syncline_server.model import Lease
from syncline_server.store.abc import PurgeResult, Store
from syncline_server.store.postgres import upkeep
from syncline_server.store.postgres.connection import SETTINGS

pytestmark = pytest.mark.only_store("postgres", reason="only nodes that share a database can lose a lease")

LATER = 1 << 60
TAKE = "UPDATE lease SET holder = 'b', fence = fence + 1"


@pytest.fixture
def postgres(durable: PostgresBackend) -> PostgresBackend:
    return durable


@pytest.fixture
async def bench(postgres: PostgresBackend) -> AsyncIterator[Bench]:
    """A dataset with a tombstone."""
    async with postgres.open() as store:
        bench = await Bench.make(store, postgres.clock)
        await bench.put(["a", "b"])
        await bench.remove("a")
        yield bench


async def take(store: Store, holder: str) -> Lease:
    lease = await store.acquire_lease("upkeep", holder=holder, seconds=15)
    assert lease is not None
    return lease


async def purge(bench: Bench, lease: Lease) -> PurgeResult:
    number = bench.dataset.number
    return await bench.store.purge(number, before_us=LATER, min_revisions=0, max_tombstones=9, lease=lease)


async def test_t85_who_comes_while_the_lease_goes_to_another_waits_for_that(
    postgres: PostgresBackend, bench: Bench
) -> None:
    """T85: another node is taking it over and has not committed that yet."""
    lease = await take(bench.store, "a")
    async with stranger(postgres) as taking, stranger(postgres) as watching:
        for commits in (False, True):
            transaction = taking.transaction()
            await transaction.start()
            await taking.execute(TAKE)
            working = asyncio.create_task(purge(bench, lease))
            await waiting_for_a_lock(watching, 1)
            await (transaction.commit() if commits else transaction.rollback())
            if commits:
                with pytest.raises(Aborted) as raised:
                    await working
                assert raised.value.reason == "LEASE_LOST"
            else:
                assert (await working).tombstones == 1
                await bench.remove("b")  # something to do for the next turn
        assert (await bench.head()).purge_revision == 2


async def test_t85_a_lease_changes_hands_between_transactions_never_inside(
    postgres: PostgresBackend, bench: Bench
) -> None:
    """T85: what was begun under the lease is finished before another node has it, however long it takes."""
    lease = await take(bench.store, "a")
    async with postgres.open() as other, stranger(postgres) as holding, stranger(postgres) as watching:
        async with holding.transaction():
            await holding.execute("SELECT 1 FROM head FOR UPDATE")
            working = asyncio.create_task(purge(bench, lease))
            await waiting_for_a_lock(watching, 1)
            postgres.clock.pass_seconds(15)
            taking = asyncio.create_task(take(other, "b"))
            await waiting_for_a_lock(watching, 2)
            assert not working.done()
        assert (await working).tombstones == 1
        assert (await taking).fence == 2
    with pytest.raises(Aborted):
        await purge(bench, lease)


async def test_t85_one_that_is_suspended_inside_a_transaction_loses_it(
    postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T85, F49: it holds the lease's row, so the others wait until the server ends its transaction, and no longer."""
    begun, resumed = asyncio.Event(), asyncio.Event()
    real = upkeep.purge

    async def suspended(*args: Any) -> PurgeResult:
        result = await real(*args)
        begun.set()
        await resumed.wait()
        return result

    async with postgres.open() as other:
        monkeypatch.setitem(SETTINGS, "idle_in_transaction_session_timeout", "300")  # type: ignore[arg-type]
        async with postgres.open() as store:
            bench = await Bench.make(store, postgres.clock)
            await bench.put(["a", "b"])
            await bench.remove("a")
            lease = await take(store, "a")
            monkeypatch.setattr(upkeep, "purge", suspended)
            working = asyncio.create_task(purge(bench, lease))
            await begun.wait()
            postgres.clock.pass_seconds(15)
            assert (await take(other, "b")).fence == 2
            resumed.set()
            with pytest.raises(Unavailable):
                await working
            assert (await bench.head()).purge_revision == 0
            with pytest.raises(Aborted):
                await purge(bench, lease)


async def test_looking_for_something_to_do_takes_no_lock(postgres: PostgresBackend, bench: Bench) -> None:
    """Expiry looks every second. A lock of a row is a write: an idle server must not cost the database one a second."""
    lease = await take(bench.store, "a")
    await purge(bench, lease)
    async with stranger(postgres) as other, other.transaction():
        await other.execute("SELECT 1 FROM lease FOR UPDATE")
        await other.execute("SELECT 1 FROM head FOR UPDATE")
        async with asyncio.timeout(4):
            assert await bench.store.expire_sessions(now_us=LATER, lease=lease) == 0
            assert (await purge(bench, lease)).tombstones == 0
