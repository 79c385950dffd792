"""The log of everything that is committed, kept by triggers inside the store of the servers under test.

A subscriber cannot tell what was committed, because versions between two checkpoints may be skipped; the store
itself keeps only the newest. So the test adds tables and triggers to the database: they write in the transaction of
each commit, survive whatever the commit survives, and are passed over by purge. Nothing of the product knows of them.
"""

import sqlite3
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from examples.local_postgres import run_apart
from robustness.history import History, Logged, Purged
from support.server_process import ServerProcess
from syncline_server.feed import tokens

SLOT_BITS = 40


@dataclass(slots=True, kw_only=True)
class Recorded:
    """What a store has recorded, in the words of neither database."""

    names: dict[int, str]
    """Datasets by number."""
    changes: Iterable[tuple[int, int, str, bytes | None]]
    """Dataset, revision, record id and data of each, in the order in which they were written."""
    revisions: Iterable[tuple[int, int, bytes, int]]
    """Dataset, revision, commit id, and what all revisions of one transaction have in common and no others."""
    purges: Iterable[tuple[int, int, float, int, str]]
    """Dataset, revision, Unix time, number among purges and leases, and node."""
    leases: Iterable[tuple[int, str]]
    """Number among purges and leases, and the node that was given it."""
    requests: dict[str, int]
    store_id: bytes
    token_secret: bytes


class Recorder(ABC):
    """Records the commits of one store."""

    @abstractmethod
    def install(self) -> None:
        """Begin to record, before the first write, while servers run or not."""

    @abstractmethod
    def read(self) -> Recorded:
        """What was recorded so far."""

    def collect(self, history: History) -> None:
        """Add to the datasets of the history what was recorded of them."""
        recorded = self.read()
        offset = time.time() - time.monotonic()
        logs = {
            number: history.datasets[name]
            for number, name in recorded.names.items()
            if name in history.datasets
        }
        changes: dict[tuple[int, int], dict[str, bytes | None]] = defaultdict(dict)
        for number, revision, record_id, data in recorded.changes:
            changes[number, revision][record_id] = data
        for log in history.datasets.values():
            log.commits, log.purges = [], []
        for number, revision, commit_id, group in recorded.revisions:
            if number in logs:
                logged = Logged(
                    revision=revision, commit_id=commit_id, changes=changes[number, revision], group=group
                )
                logs[number].commits.append(logged)
        for number, revision, at, order, node in recorded.purges:
            if number in logs:
                purged = Purged(at=at - offset, revision=revision, order=order, node=node)
                logs[number].purges.append(purged)
        history.leases = list(recorded.leases)
        history.requests = recorded.requests
        for token in {token for view in history.views for token in view.tokens}:
            position = tokens.decode(token, store_id=recorded.store_id, secret=recorded.token_secret)
            history.covered[token] = position.covered_revision
            history.seen[token] = position.seen_revision


def recorder_of(server: ServerProcess) -> Recorder:
    """The one for the store that a server is on."""
    return PostgresRecorder(server.store) if server.store else SqliteRecorder(server.data)


# -- SQLite -------------------------------------------------------------------------------------------------

_SQLITE = """
CREATE TABLE audit_change (
    number INTEGER PRIMARY KEY, slot INTEGER, revision INTEGER, record_id TEXT, data BLOB);
CREATE TABLE audit_revision (
    number INTEGER PRIMARY KEY, dataset_number INTEGER, revision INTEGER, commit_id BLOB, time_us INTEGER);
CREATE TABLE audit_purge (
    number INTEGER PRIMARY KEY, dataset_number INTEGER, revision INTEGER, at REAL);
CREATE TRIGGER audit_record AFTER INSERT ON record BEGIN
    INSERT INTO audit_change (slot, revision, record_id, data)
    VALUES (new.slot, new.revision, new.record_id, new.data);
END;
CREATE TRIGGER audit_commit AFTER INSERT ON revision BEGIN
    INSERT INTO audit_revision (dataset_number, revision, commit_id, time_us)
    VALUES (new.dataset_number, new.revision, new.commit_id, new.commit_time_us);
END;
CREATE TRIGGER audit_watermark AFTER UPDATE OF purge_revision ON head
WHEN new.purge_revision <> old.purge_revision BEGIN
    INSERT INTO audit_purge (dataset_number, revision, at)
    VALUES (new.dataset_number, new.purge_revision, (julianday('now') - 2440587.5) * 86400.0);
END;
"""
_NAMES = "SELECT number, dataset_id FROM dataset"
_REQUESTS = "SELECT request_id, revision FROM request WHERE revision > 0 AND changed"
_STORE = "SELECT store_id, token_secret FROM store"


class SqliteRecorder(Recorder):
    """In the file of a data directory."""

    def __init__(self, data: Path) -> None:
        self._data = data

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        file = self._data / "syncline.db"
        with closing(sqlite3.connect(file, isolation_level=None, timeout=10)) as connection:
            yield connection

    def install(self) -> None:
        """See Recorder."""
        with self._database() as connection:
            connection.executescript(f"BEGIN IMMEDIATE;{_SQLITE}COMMIT;")

    def read(self) -> Recorded:
        """See Recorder."""
        with self._database() as connection:

            def all_of(statement: str) -> Sequence[Any]:
                return connection.execute(statement).fetchall()

            changes = all_of("SELECT slot, revision, record_id, data FROM audit_change ORDER BY number")
            store_id, token_secret = all_of(_STORE)[0]
            return Recorded(
                names=dict(all_of(_NAMES)),
                changes=[(slot >> SLOT_BITS, *rest) for slot, *rest in changes],
                # A group is committed at one time.
                revisions=all_of(
                    "SELECT dataset_number, revision, commit_id, time_us FROM audit_revision ORDER BY number"
                ),
                purges=all_of(
                    "SELECT dataset_number, revision, at, number, '' FROM audit_purge ORDER BY number"
                ),
                leases=(),
                requests=dict(all_of(_REQUESTS)),
                store_id=store_id,
                token_secret=token_secret,
            )


# -- PostgreSQL ---------------------------------------------------------------------------------------------

_POSTGRES = """
DROP SCHEMA IF EXISTS audit CASCADE;  -- of a test that had the database before
CREATE SCHEMA audit;
CREATE TABLE audit.change (
    number bigserial, dataset_number bigint, revision bigint, record_id text, data bytea);
CREATE TABLE audit.revision (
    number bigserial, dataset_number bigint, revision bigint, commit_id bytea, transaction bigint);
CREATE TABLE audit.purge (
    number bigserial, dataset_number bigint, revision bigint, at double precision, node name DEFAULT session_user);
CREATE TABLE audit.lease (number bigint DEFAULT nextval('audit.purge_number_seq'), node name DEFAULT session_user);
CREATE FUNCTION audit.note_changes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.change (dataset_number, revision, record_id, data)
    SELECT dataset_number, revision, record_id, data FROM fresh ORDER BY position;
    RETURN NULL;
END $$;
CREATE FUNCTION audit.note_revisions() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.revision (dataset_number, revision, commit_id, transaction)
    SELECT dataset_number, revision, commit_id, pg_current_xact_id()::text::bigint FROM fresh ORDER BY revision;
    RETURN NULL;
END $$;
CREATE FUNCTION audit.note_purge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.purge (dataset_number, revision, at)
    VALUES (new.dataset_number, new.purge_revision, extract(epoch FROM clock_timestamp()));
    RETURN NULL;
END $$;
CREATE FUNCTION audit.note_lease() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.lease DEFAULT VALUES;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_change AFTER INSERT ON syncline.record
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION audit.note_changes();
CREATE TRIGGER audit_revision AFTER INSERT ON syncline.revision
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION audit.note_revisions();
CREATE TRIGGER audit_purge AFTER UPDATE OF purge_revision ON syncline.head
    FOR EACH ROW WHEN (new.purge_revision <> old.purge_revision) EXECUTE FUNCTION audit.note_purge();
CREATE TRIGGER audit_lease AFTER UPDATE ON syncline.lease
    FOR EACH ROW WHEN (new.fence <> old.fence) EXECUTE FUNCTION audit.note_lease();
CREATE TRIGGER audit_first_lease AFTER INSERT ON syncline.lease
    FOR EACH ROW EXECUTE FUNCTION audit.note_lease();
"""


class PostgresRecorder(Recorder):
    """In a database. The numbers of two transactions may cross; those of one dataset follow its lock."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def install(self) -> None:
        """See Recorder."""

        async def install() -> None:
            connection = await asyncpg.connect(self._dsn)
            try:
                await connection.execute(_POSTGRES)
            finally:
                await connection.close()

        run_apart(install())

    def read(self) -> Recorded:
        """See Recorder."""
        return run_apart(self._read())

    async def _read(self) -> Recorded:
        connection = await asyncpg.connect(self._dsn, server_settings={"search_path": "syncline"})
        try:

            async def all_of(statement: str) -> Sequence[Any]:
                return [tuple(row) for row in await connection.fetch(statement)]

            store_id, token_secret = (await all_of(_STORE))[0]
            return Recorded(
                names=dict(await all_of(_NAMES)),
                changes=await all_of(
                    "SELECT dataset_number, revision, record_id, data FROM audit.change ORDER BY number"
                ),
                revisions=await all_of(
                    "SELECT dataset_number, revision, commit_id, transaction FROM audit.revision ORDER BY number"
                ),
                purges=await all_of(
                    "SELECT dataset_number, revision, at, number, node FROM audit.purge ORDER BY number"
                ),
                leases=await all_of("SELECT number, node FROM audit.lease ORDER BY number"),
                requests=dict(await all_of(_REQUESTS)),
                store_id=store_id,
                token_secret=token_secret,
            )
        finally:
            await connection.close()
