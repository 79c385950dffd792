"""The PostgreSQL server of the tests: one for each process that runs tests.

Each test gets databases of its own in it, copied from one that has the schema.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from examples.local_postgres import LocalPostgres, run_apart

TEMPLATE = "syncline_template"

END_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
SHAPE = """
SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_namespace)
"""
"""Of a database to which nobody has added anything."""
WIPE = """
DO $$
DECLARE
    one record;
BEGIN
    SET LOCAL session_replication_role = replica;  -- no triggers, so no foreign keys
    FOR one IN SELECT relname, relkind FROM pg_class WHERE relnamespace = 'syncline'::regnamespace LOOP
        IF one.relkind = 'r' AND one.relname <> 'schema_migration' THEN
            EXECUTE format('DELETE FROM syncline.%I', one.relname);
        ELSIF one.relkind = 'S' THEN
            EXECUTE format('ALTER SEQUENCE syncline.%I RESTART', one.relname);
        END IF;
    END LOOP;
END
$$
"""


class PostgresCluster(LocalPostgres):
    """A cluster that hands out databases."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._numbers = count(1)
        self._wiped: list[str] = []
        self.shape: Any = None

    def new_database(self) -> str:
        """A database with an empty schema, that nobody else uses. Give it back, or have it dropped with the cluster."""
        if self._wiped:
            return self._wiped.pop()
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    def take_back(self, name: str) -> None:
        """Check that the database is what a store promises to be (T16), and empty it.

        It serves another test then: making one and dropping it would take longer than most tests.
        """
        if run_apart(self._take_back(name)):
            self._wiped.append(name)
        else:
            self.execute(f"DROP DATABASE {name}")

    async def _take_back(self, name: str) -> bool:
        """Whether it can serve another test: some add tables and triggers."""
        from syncline_server.store.postgres.connection import single_connection
        from syncline_server.store.postgres.fsck import check_store

        async with single_connection(self.dsn(name)) as connection:
            await connection.execute(END_OTHERS)  # those of a server that was killed may still be busy
            report = await check_store(connection, None)
            assert report.ok, report.problems
            await connection.execute(WIPE)
            return bool(await connection.fetchrow(SHAPE) == self.shape)

    def dump(self, dsn: str, name: str) -> None:
        """Back up a database while it is used."""
        self.run("pg_dump", "--format=custom", f"--file={self.directory / name}", f"--dbname={dsn}")

    def put_back(self, dsn: str, name: str) -> None:
        """Replace the contents of a database by those of such a backup."""
        self.run(
            "pg_restore",
            "--clean",
            "--if-exists",
            "--exit-on-error",
            f"--dbname={dsn}",
            str(self.directory / name),
        )


_running: list[PostgresCluster] = []


def shared_cluster() -> PostgresCluster:
    """The one that this process runs, inside ``running_cluster``."""
    assert _running, "a fixture must run the cluster: it outlives the test"
    return _running[-1]


@contextmanager
def running_cluster() -> Iterator[PostgresCluster]:
    """A cluster whose template database has the schema of this program."""
    from syncline_server.store.postgres.connection import single_connection
    from syncline_server.store.postgres.schema import migrate

    async def migrated() -> None:
        async with single_connection(cluster.dsn(TEMPLATE)) as connection:
            await migrate(connection)
            cluster.shape = await connection.fetchrow(SHAPE)

    directory = Path(tempfile.mkdtemp(prefix="syncline-pg-"))
    cluster = PostgresCluster(directory)
    try:
        cluster.make()
        cluster.start()
        try:
            cluster.execute(f"CREATE DATABASE {TEMPLATE}")
            run_apart(migrated())
            _running.append(cluster)
            yield cluster
        finally:
            _running.clear()
            cluster.stop()
    finally:
        shutil.rmtree(directory)


@contextmanager
def store_address(store_name: str, *, is_sound: bool = True) -> Iterator[str]:
    """Where a server is to keep its data: empty for its own directory, else the address of an empty database.

    T16: the database is checked at the end, unless it is not expected to be sound. The file of SQLite is for the tests
    that stop their server to check.
    """
    if store_name == "sqlite":
        yield ""
        return
    cluster = shared_cluster()
    database = cluster.new_database()
    yield cluster.dsn(database)
    if is_sound:
        cluster.take_back(database)
    else:
        cluster.execute(f"DROP DATABASE {database} WITH (FORCE)")
