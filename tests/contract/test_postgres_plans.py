"""Statements over many rows must not depend on statistics, which are those of some time ago (F55).

Of a dataset or a session that is younger than its table's statistics the planner believes that it is one row. A join
with it is then as good one way as the other, and one of the ways reads all of it for each row of the other side.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from support.store_values import PostgresBackend
from syncline_server.store.postgres import copy_source, copy_target, difference, fsck, group, rebuild, upkeep
from syncline_server.store.postgres.connection import SETTINGS

pytestmark = pytest.mark.only_store("postgres", reason="plans of PostgreSQL")

OLD, YOUNG = 1, 2
"""Dataset, source and session alike."""
ROWS = 2_000

FILL = """
INSERT INTO record SELECT $1, n, 1, 1, 1, 'k' || n, CASE WHEN n % 5 > 0 THEN '1'::bytea END FROM generate_series(1, $2) n;
INSERT INTO entry SELECT $1, 'k' || n, n, 1, $1, 1, CASE WHEN n % 5 > 0 THEN '1'::bytea END FROM generate_series(1, $2) n;
INSERT INTO staged SELECT $1, 'k' || n, n, '2'::bytea, '2'::bytea FROM generate_series(1, $2) n
"""
FILL_TEMPORARY = """
INSERT INTO pg_temp.difference SELECT n, 'k' || n, '2', n, $1, 1, 1, n, 1, '1', $1 FROM generate_series(1, $2) n;
INSERT INTO pg_temp.rekeyed SELECT n, 'k' || n, 'new' || (n + $1) FROM generate_series(1, $2) n
"""

BASE = (YOUNG, ROWS, 2, 2)
PAGE = (YOUNG, 0, 1_000, 1 << 20)
STATEMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "what a session changes": (difference._FROM_STAGED, (YOUNG, YOUNG, 1, True, None, YOUNG)),
    "what a replace removes": (difference._NOT_STAGED, (YOUNG, YOUNG, 1, None, YOUNG)),
    "what another key moves": (difference._MOVED, (YOUNG, 1)),
    "what another key leaves behind": (difference._LEFT_BEHIND, (YOUNG, 1)),
    "rows of a session": (difference._INSERT_STAGED, (*BASE, YOUNG)),
    "rows that move": (difference._INSERT_MOVED, BASE),
    "rows that are replaced": (difference._DELETE_REPLACED, (YOUNG,)),
    "entries that change": (difference._UPDATE_ENTRIES, BASE),
    "tombstones that go": (upkeep._PURGE_TOMBSTONES, (YOUNG, 1)),
    "records to be keyed anew": (rebuild._LIVE_RECORDS, PAGE),
    "records to be checked": (fsck._CHUNK, PAGE),
    "entries to be checked": (fsck._MISMATCHED, (YOUNG,)),
    "records to be copied": (copy_source._CHANGES, PAGE),
    "owners to be copied": (copy_source._OWNED, (YOUNG, 0)),
    "entries that were copied": (copy_target._IN_BUCKET, (YOUNG, 0)),
    "owners that were copied": (copy_target._OWN, (YOUNG, ["k1"], [OLD])),
    "tombstones that go in a copy": (copy_target._PURGE[0], (YOUNG, 1)),
    **{f"reclaim {n}": (statement, (YOUNG, ROWS)) for n, statement in enumerate(upkeep._RECLAIM)},
    **{f"unstage {n}": (statement, (YOUNG, ROWS)) for n, statement in enumerate(upkeep._UNSTAGE)},
}


@pytest.fixture
async def stale(durable: PostgresBackend) -> AsyncIterator[Any]:
    """A connection in a transaction: a young dataset in tables whose statistics know an old one."""
    async with durable.open():
        connection = await asyncpg.connect(durable.dsn, server_settings=dict(SETTINGS))
        try:
            async with asyncio.timeout(50):
                transaction = connection.transaction()
                await transaction.start()
                for dataset in (OLD, YOUNG):
                    for statement in FILL.split(";"):
                        await connection.execute(statement, dataset, ROWS)
                    if dataset == OLD:
                        await connection.execute("ANALYZE record; ANALYZE entry; ANALYZE staged")
                await difference.begin(connection)
                for statement in FILL_TEMPORARY.split(";"):
                    await connection.execute(statement, YOUNG, ROWS)
                yield connection
                await transaction.rollback()
        finally:
            await connection.close()


async def test_f55_no_join_reads_everything_for_every_row(stale: Any) -> None:
    """A condition of a nested loop that is no key of its inner side is a Join Filter, for every pair of rows."""
    believed = await stale.fetchval(
        "SELECT count(*) FROM pg_stats WHERE tablename = 'entry' AND attname = 'dataset_number'"
    )
    assert believed == 1
    wrong = {}
    for analyzed in (False, True):
        if analyzed:
            await stale.execute(difference._ANALYZE)
        for name, (statement, arguments) in STATEMENTS.items():
            plan = "\n".join(row[0] for row in await stale.fetch(f"EXPLAIN {statement}", *arguments))
            if "Join Filter" in plan or "Materialize" in plan:
                wrong[name] = plan
    assert not wrong, "\n\n".join(f"{name}:\n{plan}" for name, plan in wrong.items())


async def test_f55_what_a_group_names_is_looked_up_by_both_parts_of_the_key(stale: Any) -> None:
    """Whatever the planner knows of the table, and whether it plans for these values or for all."""
    version = await stale.fetchval("SELECT current_setting('server_version_num')::integer")
    is_old = version < group._TOGETHER_SINCE * 10_000
    statement = group._LOOK_ONE_BY_ONE if is_old else group._LOOK_TOGETHER
    asked = (None, [YOUNG], [YOUNG], [], [], [])
    ids = "\n".join(f"k{n}" for n in range(1, 1_000))
    for analyzed in (False, True):
        if analyzed:
            await stale.execute("ANALYZE entry")
        for mode in ("force_generic_plan", "force_custom_plan"):
            await stale.execute(f"SET LOCAL plan_cache_mode = {mode}")
            number = YOUNG if statement is group._LOOK_TOGETHER else [YOUNG]
            plan = "\n".join(row[0] for row in await stale.fetch(f"EXPLAIN {statement}", *asked, number, ids))
            condition = next(
                line for line in plan.splitlines() if "Index Cond" in line and "record_id" in line
            )
            assert "dataset_number" in condition, plan
