"""The log of everything that a server commits, kept by triggers inside its store.

A subscriber cannot tell what was committed, because versions between two checkpoints may be skipped; the store
itself keeps only the newest. So the test adds tables and triggers to the database of the server under test: they write
in the transaction of each commit, survive whatever the commit survives, and are passed over by purge. Nothing of the
product knows of them.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from robustness.history import History, Logged, Purged
from syncline_server.feed import tokens

SLOT_BITS = 40
_TRIGGERS = """
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


@contextmanager
def _database(data: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(data / "syncline.db", isolation_level=None, timeout=10)) as connection:
        yield connection


def install(data: Path) -> None:
    """Begin to record, in the store in this data directory; before the first write, while a server runs or not."""
    with _database(data) as connection:
        connection.executescript(f"BEGIN IMMEDIATE;{_TRIGGERS}COMMIT;")


def collect(history: History, data: Path) -> None:
    """Add to the datasets of the history what was recorded of them."""
    offset = time.time() - time.monotonic()
    with _database(data) as connection:
        names = dict(connection.execute("SELECT number, dataset_id FROM dataset"))
        names = {number: name for number, name in names.items() if name in history.datasets}
        changes: dict[tuple[int, int], dict[str, bytes | None]] = defaultdict(dict)
        for slot, revision, record_id, data_bytes in connection.execute(
            "SELECT slot, revision, record_id, data FROM audit_change ORDER BY number"
        ):
            changes[slot >> SLOT_BITS, revision][record_id] = data_bytes
        for log in history.datasets.values():
            log.commits, log.purges = [], []
        for number, revision, commit_id, time_us in connection.execute(
            "SELECT dataset_number, revision, commit_id, time_us FROM audit_revision ORDER BY number"
        ):
            if number in names:
                logged = Logged(
                    revision=revision,
                    commit_id=commit_id,
                    changes=changes[number, revision],
                    group=time_us,  # a group is committed at one time
                )
                history.datasets[names[number]].commits.append(logged)
        for number, revision, at in connection.execute(
            "SELECT dataset_number, revision, at FROM audit_purge ORDER BY number"
        ):
            if number in names:
                history.datasets[names[number]].purges.append(Purged(at=at - offset, revision=revision))
        history.requests = dict(
            connection.execute("SELECT request_id, revision FROM request WHERE revision > 0 AND changed")
        )
        store_id, secret = connection.execute("SELECT store_id, token_secret FROM store").fetchone()
    used = {token for view in history.views for token in view.tokens}
    for token in used:
        position = tokens.decode(token, store_id=store_id, secret=secret)
        history.covered[token] = position.covered_revision
