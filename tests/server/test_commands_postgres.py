"""The commands of ``syncline-server`` on a store in PostgreSQL: what they do, how they refuse, and that passwords stay hidden."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from support.postgres_cluster import PostgresCluster
from support.store_values import Bench, HeldClock
from syncline_server.catalog.keys import hash_secret
from syncline_server.cli import app
from syncline_server.model import Node, Role
from syncline_server.store.postgres import open_store

pytestmark = pytest.mark.usefixtures("postgres_cluster")


def run(*arguments: str | Path, **env: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def execute(dsn: str, statement: str) -> None:
    async def work() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(work())


@pytest.fixture
def store(new_database: Callable[[], str]) -> str:
    """Address of a store with two records in a dataset."""
    dsn = new_database()

    async def fill() -> None:
        async with open_store(dsn) as opened:
            bench = await Bench.make(opened, HeldClock())
            await bench.put(["a", "b"])
            await bench.open()

    asyncio.run(fill())
    return dsn


def test_fsck_tells_what_is_there_and_finds_damage(store: str) -> None:
    """T16: also by the setting; exit code 1 and a line for each problem."""
    found = run("fsck", SYNCLINE_STORE=store)
    assert found.stdout == "books: revision 1, 2 records\nno problem found\n"
    execute(store, "UPDATE syncline.record SET data = '{}' WHERE record_id = 'a'")
    found = run("fsck", "--store", store)
    assert found.exit_code == 1
    assert "problem: dataset books: the data of 1 records does not match their hashes\n" in found.stdout
    assert "restore a backup of the database" in found.stderr


def test_migrate_makes_the_schema_ahead_of_the_servers(new_database: Callable[[], str]) -> None:
    dsn = new_database()
    planned = run("migrate", "--dry-run", "--store", dsn)
    assert planned.stdout.startswith("would apply 0001 initial\n")
    done = run("migrate", "--store", dsn)
    assert done.stdout == planned.stdout.replace("would apply", "applied")
    assert run("migrate", "--store", dsn).stdout == "the schema is up to date\n"
    execute(dsn, "INSERT INTO syncline.schema_migration VALUES (999, 'future', 'x', 0)")
    refused = run("migrate", "--store", dsn)
    assert refused.exit_code == 3
    assert "opened by a newer Syncline" in refused.stderr


def test_g13_restore_begins_a_new_history(store: str, tmp_path: Path) -> None:
    """What was put back by PostgreSQL's own means becomes a store again; a file is not for it."""

    async def histories() -> tuple[frozenset[bytes], int]:
        async with open_store(store) as opened:
            return opened.info.histories, await opened.count_sessions()

    async def report() -> None:
        node = Node(node_id="1", name="berlin", addresses=(), version="1", start_time_us=1)
        async with open_store(store) as opened:
            await opened.report_node(node)

    before, sessions = asyncio.run(histories())
    assert sessions == 1
    done = run("restore", "--store", store)
    assert done.stdout == "a new history has begun, with 1 dataset; start the servers\n"
    assert not done.stderr
    asyncio.run(report())
    assert "heard within 15 s of berlin" in run("restore", "--store", store).stderr
    after, sessions = asyncio.run(histories())
    assert len(after - before) == 2
    assert sessions == 0
    wrong = run("restore", tmp_path / "file", "--store", store)
    assert (wrong.exit_code, "pg_basebackup" in wrong.stderr) == (2, True)
    assert run("restore", "--data", tmp_path).exit_code == 2


def test_backup_says_whose_business_it_is(store: str, tmp_path: Path) -> None:
    refused = run("backup", tmp_path / "b", "--store", store)
    assert refused.exit_code == 3
    assert "backups of PostgreSQL are its own: pg_basebackup with archived WAL, or pg_dump" in refused.stderr
    assert not (tmp_path / "b").exists()


def test_admin_key_works_while_servers_run(store: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = run("admin-key", "--store", store, "--data", data)
    assert done.exit_code == 0, done.stderr
    secret = (data / "admin.key").read_text().strip()

    async def keys() -> list[tuple[Role, bytes]]:
        async with open_store(store) as opened:
            return [(key.role, key.secret_hash) for key in await opened.list_keys(limit=10)]

    assert asyncio.run(keys()) == [(Role.ADMIN, hash_secret(secret))]


@pytest.mark.parametrize("command", [["fsck"], ["restore"], ["admin-key"]])
def test_where_no_store_is_none_is_made(
    new_database: Callable[[], str], tmp_path: Path, command: list[str]
) -> None:
    dsn = new_database()
    refused = run(*command, "--store", dsn, "--data", tmp_path)
    assert refused.exit_code == 3
    assert "no store in this database" in refused.stderr
    assert run("migrate", "--dry-run", "--store", dsn).stdout.startswith("would apply 0001")


def test_a_store_that_was_moved_is_named(store: str, new_database: Callable[[], str], tmp_path: Path) -> None:
    target = new_database()
    done = run("copy", store, target)
    assert done.exit_code == 0, done.stderr
    assert "moved 1 datasets, 2 records" in done.stdout
    assert f"start the servers with --store {target}" in done.stdout
    for command in (["fsck"], ["migrate"], ["restore"], ["admin-key", "--data", str(tmp_path)]):
        refused = run(*command, "--store", store)
        assert refused.exit_code == 3
        assert "the store was moved away from this database (schema syncline_moved_" in refused.stderr
        assert "moved to postgresql://" in refused.stderr
    assert run("fsck", "--store", target).exit_code == 0


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://someone:hidden-word@/nothing_there?host={directory}",
        "postgresql://someone:hidden-word@127.0.0.1:1/d",
        "postgresql://someone:hidden/word@{directory}/d",
        "postgresql://someone@/d?password=hidden-word&host={directory}",
        "postgresql://someone:hidden-word@[::1/d",
    ],
)
def test_t_secrets_an_address_that_fails_does_not_show_the_password(
    address: str, postgres_cluster: PostgresCluster, tmp_path: Path
) -> None:
    address = address.format(directory=postgres_cluster.directory)
    for command in (
        ["fsck", "--store", address],
        ["migrate", "--store", address],
        ["restore", "--store", address],
        ["admin-key", "--store", address, "--data", str(tmp_path / "data")],
        ["copy", address, str(tmp_path / "to")],
        ["copy", str(tmp_path / "from"), address],
    ):
        refused = run(*command)
        assert refused.exit_code in (2, 3), (command, refused.output)
        assert "hidden" not in refused.output + refused.stderr
        assert refused.stderr.startswith("syncline-server: ")
