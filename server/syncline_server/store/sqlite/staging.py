"""Staged sessions: what accrue and replace sessions hold until they commit, each in a database file of its own.

A file has its own connection and thread, so uploading holds up no other writer, and throwing it away leaves
nothing in the store. It is attached to the writer, read-only, for the commit alone. Its connection is closed
while nobody uses it. Format of a file: ``_SCHEMA``.
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

from syncline_server import failpoints
from syncline_server.clock import Clock
from syncline_server.model import Deletes, RequestIdentity, Session, SessionMode, Upserts
from syncline_server.store.abc import StagedCall
from syncline_server.store.plan import (
    check_content,
    check_fingerprint,
    content_of,
    sequence_gap,
    session_invalid,
)
from syncline_server.store.sqlite.columns import BulkInsert
from syncline_server.store.sqlite.connection import STAGING, connect, open_plain, run_on
from syncline_server.store.sqlite.files import PRIVATE_FILE, sync_directory
from syncline_server.store.sqlite.trouble import translate

T = TypeVar("T")

MAX_OPEN_FILES: Final = 8
"""Connections, and so threads, kept while idle."""
IDLE_SECONDS: Final = 5.0
SUFFIX: Final = ".staged"

_FILE_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SCHEMA: Final = (
    """
CREATE TABLE IF NOT EXISTS state (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    calls           INTEGER NOT NULL,
    records         INTEGER NOT NULL,
    active_time_us  INTEGER NOT NULL,
    prepared_calls  INTEGER NOT NULL,  -- calls that are in the table "final"
    puts            INTEGER NOT NULL   -- records in it that are not deletions
) STRICT
""",
    """
CREATE TABLE IF NOT EXISTS call (
    number       INTEGER PRIMARY KEY,
    request_id   TEXT UNIQUE,
    fingerprint  BLOB,
    content      BLOB NOT NULL,
    records      INTEGER NOT NULL  -- of all calls up to this one
) STRICT
""",
    """
CREATE TABLE IF NOT EXISTS action (
    number     INTEGER PRIMARY KEY,
    record_id  TEXT NOT NULL,
    hash       BLOB,               -- NULL: delete
    data       BLOB
) STRICT
""",
    # The last action for each record id.
    """
CREATE TABLE IF NOT EXISTS final (
    record_id  TEXT PRIMARY KEY,
    action     INTEGER NOT NULL,
    hash       BLOB
) STRICT, WITHOUT ROWID
""",
    "INSERT OR IGNORE INTO state VALUES (1, 0, 0, 0, -1, 0)",
)
_STATE: Final = "SELECT calls, records, active_time_us, prepared_calls FROM state"
_UPDATE_STATE: Final = "UPDATE state SET calls = ?, records = ?, active_time_us = ?"
_CALL_BY_REQUEST: Final = "SELECT number, records, fingerprint FROM call WHERE request_id = ?"
_CALL_BY_NUMBER: Final = "SELECT records, content FROM call WHERE number = ?"
_INSERT_CALL: Final = (
    "INSERT INTO call (number, request_id, fingerprint, content, records) VALUES (?, ?, ?, ?, ?)"
)
_INSERT_UPSERTS: Final = BulkInsert(
    "INSERT INTO action (record_id, hash, data) "
    "SELECT column1, column2, column3 FROM (VALUES {values}) WHERE column1 IS NOT NULL",
    width=3,
    shared=0,
)
_INSERT_DELETES: Final = BulkInsert(
    "INSERT INTO action (record_id) SELECT column1 FROM (VALUES {values}) WHERE column1 IS NOT NULL",
    width=1,
    shared=0,
)
_CLEAR_FINAL: Final = "DELETE FROM final"
# SQLite takes the bare column from the row that has the maximum.
_FILL_FINAL: Final = """
INSERT INTO final (record_id, action, hash)
SELECT record_id, max(number), hash FROM action GROUP BY record_id ORDER BY record_id
"""
_PREPARED: Final = "UPDATE state SET prepared_calls = calls, puts = (SELECT count(hash) FROM final)"


@dataclass(slots=True, kw_only=True)
class _Staged:
    """An open session that stages, and its file's connection while it is in use."""

    session: Session
    path: Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connection: aiosqlite.Connection | None = None
    used_seconds: float = 0.0
    ended: bool = False


class Staging:
    """The files of all staged sessions."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._open: dict[str, _Staged] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directory: Path, sessions: Iterable[Session], clock: Clock
    ) -> AsyncIterator["Staging"]:
        """Take over the files of these sessions, remove all others, and close what is open at the end."""
        staging = cls(directory, clock)
        staging._open = await _in_background(_take_over, directory, list(sessions))
        try:
            yield staging
        finally:
            for staged in tuple(staging._open.values()):
                async with staged.lock:
                    await _close(staged)

    def add(self, session: Session) -> None:
        """A session was opened."""
        if session.mode is not SessionMode.STREAM:
            self._open[session.session_id] = _Staged(
                session=session, path=_path(self._directory, session.session_id)
            )

    def counted(self, session: Session) -> Session:
        """The session with the counts of its file."""
        staged = self._open.get(session.session_id)
        return session if staged is None else staged.session

    def sessions(self) -> list[Session]:
        """All open sessions that stage."""
        return [staged.session for staged in self._open.values()]

    async def keep(
        self,
        session_id: str,
        write: Upserts | Deletes,
        *,
        source_number: int,
        sequence: int,
        identity: RequestIdentity | None,
    ) -> StagedCall:
        """Keep one action durably. Raises SESSION_INVALID, SEQUENCE_GAP, REQUEST_ID_REUSED, STORE_FULL."""
        async with self._held(session_id, source_number) as staged:
            now_us = self._clock.now_us()
            call: StagedCall = await self._run(staged, _keep, write, sequence, identity, now_us)
            if not call.replayed:
                staged.session = replace(
                    staged.session, calls=call.calls, records=call.records, active_time_us=now_us
                )
            return call

    async def prepare(self, session_id: str) -> None:
        """Sort and reduce the actions to the last one of each record id. Raises SESSION_INVALID."""
        async with self._held(session_id) as staged:
            await self._run(staged, _prepare)

    def holds(self, session_id: str) -> bool:
        """Whether this session stages and is open."""
        return session_id in self._open

    @asynccontextmanager
    async def frozen(self, session_id: str) -> AsyncIterator[str | None]:
        """Hold a session still, prepared and closed; gives the URI to attach it by, None when it does not stage."""
        staged = self._open.get(session_id)
        if staged is None:
            yield None
            return
        async with staged.lock:
            if staged.ended:
                yield None
                return
            await self._run(staged, _prepare)
            await _close(staged)  # the last connection: it brings the WAL into the file and removes it
            yield f"{staged.path.absolute().as_uri()}?mode=ro&immutable=1"

    async def discard(self, session_ids: Iterable[str]) -> None:
        """Throw away what these sessions hold."""
        for session_id in session_ids:
            staged = self._open.pop(session_id, None)
            if staged is not None:
                staged.ended = True
                async with staged.lock:
                    await _close(staged)
                    await _in_background(_remove, staged.path)

    async def forget(self, session_id: str) -> None:
        """Throw away a session that the caller holds ``frozen``."""
        staged = self._open.pop(session_id, None)
        if staged is not None:
            staged.ended = True
            await _in_background(_remove, staged.path)

    async def close_idle(self) -> None:
        """Close the connections that nobody has used for a while."""
        now = self._clock.monotonic()
        for staged in tuple(self._open.values()):
            idle = staged.connection is not None and now - staged.used_seconds >= IDLE_SECONDS
            if idle and not staged.lock.locked():
                async with staged.lock:
                    await _close(staged)

    @asynccontextmanager
    async def _held(self, session_id: str, source_number: int | None = None) -> AsyncIterator[_Staged]:
        staged = self._open.get(session_id)
        if staged is None or source_number not in (None, staged.session.source_number):
            raise session_invalid()
        async with staged.lock:
            if staged.ended:
                raise session_invalid()
            yield staged

    async def _run(self, staged: _Staged, work: Any, *args: Any) -> Any:
        try:
            if staged.connection is None:
                await self._make_room()
                _create_file(staged.path)
                staged.connection = await connect(staged.path, STAGING, mode="rw")
                await run_on(staged.connection, _create_schema)
            staged.used_seconds = self._clock.monotonic()
            return await run_on(staged.connection, _in_transaction, work, *args)
        except sqlite3.Error as error:
            ours = translate(error)
            if ours is None:
                raise
            raise ours from error

    async def _make_room(self) -> None:
        used = [staged for staged in self._open.values() if staged.connection is not None]
        used.sort(key=lambda staged: staged.used_seconds)
        for staged in used[: max(0, len(used) - MAX_OPEN_FILES + 1)]:
            if not staged.lock.locked():
                async with staged.lock:
                    await _close(staged)


async def _close(staged: _Staged) -> None:
    connection, staged.connection = staged.connection, None
    if connection is not None:
        await connection.close()


def open_staged(directory: Path, session_id: str) -> sqlite3.Connection:
    """The file of a session, made when it is not there, for tools; no server may have the store open."""
    path = _path(directory, session_id)
    _create_file(path)
    connection = open_plain(path, STAGING, mode="rw")
    _create_schema(connection)
    return connection


def remove_staged(directory: Path, session_id: str) -> None:
    """Throw away what a session holds, for tools."""
    _remove(_path(directory, session_id))


def with_counts(directory: Path, session: Session) -> Session:
    """The session with the counts of its file, for tools."""
    return _with_counts(session, _path(directory, session.session_id))


def _path(directory: Path, session_id: str) -> Path:
    if not _FILE_ID.fullmatch(session_id):
        raise ValueError(f"session id {session_id!r} cannot name a file")
    return directory / (session_id + SUFFIX)


def _create_file(path: Path) -> None:
    if not path.exists():
        path.touch(PRIVATE_FILE)
        sync_directory(path.parent)


async def _in_background(work: Callable[..., T], *args: Any) -> T:
    """Files can be large, and removing one takes as long as the file system likes."""
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


def _remove(path: Path) -> None:
    for suffix in ("-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _take_over(directory: Path, sessions: list[Session]) -> dict[str, _Staged]:
    """Read the counts of the sessions that are open, and remove the files of all others."""
    taken: dict[str, _Staged] = {}
    for session in sessions:
        if session.mode is SessionMode.STREAM:
            continue
        path = _path(directory, session.session_id)
        taken[session.session_id] = _Staged(session=_with_counts(session, path), path=path)
    kept = {staged.path.name for staged in taken.values()}
    for file in directory.iterdir():
        if file.name.removesuffix("-wal").removesuffix("-shm") not in kept:
            file.unlink(missing_ok=True)
    return taken


def _with_counts(session: Session, path: Path) -> Session:
    if not path.exists():
        return session
    connection = open_plain(path, STAGING, mode="rw")
    try:
        _create_schema(connection)
        calls, records, active_time_us, _ = connection.execute(_STATE).fetchone()
    finally:
        connection.close()
    active_time_us = max(active_time_us, session.active_time_us)
    return replace(session, calls=calls, records=records, active_time_us=active_time_us)


def _create_schema(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute("COMMIT")


def _in_transaction(connection: sqlite3.Connection, work: Any, *args: Any) -> Any:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection, *args)
        failpoints.hit("stage.rows")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    failpoints.hit("stage.after")
    return result


def _keep(
    connection: sqlite3.Connection,
    write: Upserts | Deletes,
    sequence: int,
    identity: RequestIdentity | None,
    now_us: int,
) -> StagedCall:
    if identity is not None:
        seen = connection.execute(_CALL_BY_REQUEST, (identity.request_id,)).fetchone()
        if seen is not None:
            check_fingerprint(identity, seen[2])
            return StagedCall(calls=seen[0], records=seen[1], replayed=True)
    calls, records, _, _ = connection.execute(_STATE).fetchone()
    if 0 < sequence <= calls:
        known, content = connection.execute(_CALL_BY_NUMBER, (sequence,)).fetchone()
        check_content(sequence, content, write)
        return StagedCall(calls=sequence, records=known, replayed=True)
    if sequence > calls + 1:
        raise sequence_gap(sequence, calls + 1)
    if isinstance(write, Upserts):
        flat: list[Any] = []
        for row in zip(write.record_ids, write.hashes, write.data, strict=True):
            flat += row
        _INSERT_UPSERTS.run(connection, (), flat)
    else:
        _INSERT_DELETES.run(connection, (), list(write.record_ids))
    calls, records = calls + 1, records + len(write.record_ids)
    name, fingerprint = (identity.request_id, identity.fingerprint) if identity else (None, None)
    connection.execute(_INSERT_CALL, (calls, name, fingerprint, content_of(write), records))
    connection.execute(_UPDATE_STATE, (calls, records, now_us))
    return StagedCall(calls=calls, records=records, replayed=False)


def _prepare(connection: sqlite3.Connection) -> None:
    calls, _, _, prepared_calls = connection.execute(_STATE).fetchone()
    if prepared_calls == calls:
        return
    failpoints.hit("prepare")
    connection.execute(_CLEAR_FINAL)
    connection.execute(_FILL_FINAL)
    connection.execute(_PREPARED)
