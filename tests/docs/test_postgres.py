"""docs/how-to/postgres.md: its roles are enough, its queries run, its figures are those of the code."""

import re
import secrets
from pathlib import Path

import asyncpg
import pytest

from support.store_values import Bench, HeldClock, upserts
from syncline_server.notify import postgres as notify
from syncline_server.store.postgres import admin, open_store
from syncline_server.store.postgres.connection import SETTINGS
from syncline_server.store.postgres.opening import READER_CONNECTIONS, WRITER_CONNECTIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "postgres.md").read_text()
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
STATEMENTS = [statement.strip() for block in SQL for statement in block.split(";") if statement.strip()]


def statements(*beginnings: str) -> list[str]:
    return [one for one in STATEMENTS if re.sub(r"--.*\n", "", one).startswith(beginnings)]


@pytest.fixture
def renamed(postgres_cluster):
    """Its statements about roles and databases, with names of this test's own."""
    suffix = secrets.token_hex(4)

    def rename(statement: str) -> str:
        named = re.sub(r"\b(syncline|syncnode)\b(?!')", rf"\1_{suffix}", statement)
        return named.replace(f"SCHEMA syncline_{suffix}", "SCHEMA syncline")

    return rename


async def test_the_roles_of_the_page_are_enough(postgres_cluster, renamed):
    """One that owns and migrates, one that serves; and settings of the role, as pgbouncer needs them."""
    database = renamed("syncline")
    own, serve = (
        statements("CREATE ROLE syncline LOGIN", "CREATE DATABASE", "REVOKE"),
        statements("CREATE ROLE syncnode", "GRANT", "ALTER DEFAULT", "ALTER ROLE"),
    )
    assert (len(own), len(serve)) == (3, 5 + 1 + 10)
    for statement in own:
        postgres_cluster.execute(renamed(statement))
    owner = postgres_cluster.dsn(database).replace("//postgres@", f"//{database}@")
    node = postgres_cluster.dsn(database).replace("//postgres@", f"//{renamed('syncnode')}@")
    assert await admin.migrate(owner)
    for statement in serve:
        postgres_cluster.execute(renamed(statement), database)

    assert await admin.migrate(node, dry_run=True) == []
    async with open_store(node) as store:
        bench = await Bench.make(store, HeldClock())
        await bench.put(["a", "b"])
        session = await bench.open()
        await bench.stage(session, upserts(["a"]))
        assert (await bench.close(session, 1)).deleted == 1
        await store.maintain()
        await store.delete_dataset(bench.dataset.number, expected_generation=None)
    assert await admin.restored(node) == []
    postgres_cluster.execute(f"DROP DATABASE {database}")


async def test_the_queries_of_the_page_run(postgres_cluster):
    queries = statements("SELECT")
    connection = await asyncpg.connect(postgres_cluster.dsn())
    try:
        for query in queries:
            await connection.fetch(query)
    finally:
        await connection.close()

    assert len(queries) == 5


def test_connections_are_counted():
    listening_and_telling = 2
    assert f"at most {WRITER_CONNECTIONS + READER_CONNECTIONS + listening_and_telling} for each node" in PAGE


def test_pgbouncer_is_told_of_every_setting():
    """And the role has those that count for the one who writes."""
    ignored = set(re.findall(r"ignore_startup_parameters = (.*)", PAGE)[0].split(","))
    by_role = dict(re.findall(r"ALTER ROLE syncnode .* SET (\w+) = '(.*)'", PAGE))

    # extra_float_digits is sent by many drivers; pgbouncer's own documentation has it in its example.
    asked = {*SETTINGS, *notify._SETTINGS, "default_transaction_read_only"} - {"application_name"}
    assert ignored - {"extra_float_digits"} == asked
    kept = {name: value for name, value in SETTINGS.items() if not name.startswith(("tcp_", "application"))}
    assert by_role == kept


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("lock_timeout", "| `lock_timeout` | 5 s |"),
        ("statement_timeout", "| `statement_timeout` | 60 s |"),
        ("idle_in_transaction_session_timeout", "| `idle_in_transaction_session_timeout` | 10 s |"),
    ],
)
def test_time_outs_are_those_of_the_code(setting, told):
    assert told in PAGE
    assert int(SETTINGS[setting]) == 1_000 * int(re.findall(r"(\d+) s", told)[0])
