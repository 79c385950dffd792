"""An SDK client that does what a test of the command says."""

import contextlib
import json
from datetime import UTC, datetime
from types import SimpleNamespace

import syncline
from syncline.models import Results

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = syncline.Limits(
    records_per_call=10, bytes_per_call=1000, bytes_per_record=500, depth=64, bytes_per_record_id=512
)
INFO = syncline.DatasetInfo(
    dataset="books",
    uid="u",
    identity=syncline.by_key("isbn"),
    scope="shared",
    schema={"properties": {"year": {"type": "integer"}}},
    display_name="B\x1b[31mooks",
    description="",
    retention=syncline.Retention(),
    annotations={},
    revision=7,
    record_count=1234,
    digest=b"\xab" * 16,
    purge_revision=0,
    create_time=NOW,
    update_time=NOW,
    commit_time=NOW,
    etag="e",
)


class FakeDataset:
    """Holds what was pushed; a record with ``"bad"`` in it is refused."""

    def __init__(self) -> None:
        self.pushed: list[list[dict]] = []
        self.checked: list[list[dict]] = []
        self.sessions: list[str] = []
        self.committed: bool | None = None

    def _result(self, rows, status):
        violations = tuple(
            syncline.Violation(index=i, pointer="/bad", keyword="type", message=f"{row['bad']} is bad")
            for i, row in enumerate(rows)
            if "bad" in row
        )
        statuses = [8 if "bad" in row else status for row in rows]
        return syncline.PushResult(
            revision=7,
            results=Results(["x"] * len(rows), statuses, violations),
            records=len(rows),
            violations=violations,
        )

    async def push(self, records, *, source="default", partial=False, validate_only=False, **_):
        rows = [json.loads(record) for record in records]
        result = self._result(rows, 1)
        if validate_only:
            self.checked.append(rows)
            return result
        if result.violations and not partial:
            raise syncline.InvalidRecords("refused", violations=result.violations[:1], total_violations=9)
        self.pushed.append([row for row in rows if "bad" not in row])
        return result

    async def upsert(self, records):
        return await self.push(records)

    async def close(self, *, commit):
        self.committed = commit
        return syncline.SessionResult(
            revision=8, created=2 * commit, updated=0, unchanged=0, deleted=5 * commit, kept=3 * commit
        )

    @contextlib.asynccontextmanager
    async def session(self, mode, *, source, allow_mass_delete, on_conflict):
        self.sessions.append(f"{mode} {source} {allow_mass_delete} {on_conflict}")
        yield self

    async def get_many(self, ids):
        return {
            i: SimpleNamespace(
                record_id=i,
                revision=1,
                source="default",
                create_time=NOW,
                update_time=NOW,
                json=b'{"a":"\xc2\x9b"}',
            )
            for i in ids
            if i != "nope"
        }


class FakeClient:
    """Has one dataset, and raises ``error`` if there is one."""

    address = "127.0.0.1:7420"

    def __init__(self) -> None:
        self.books = FakeDataset()
        self.error: Exception | None = None
        self.calls: list[tuple] = []
        self.arguments: dict[str, object] | None = None
        """What it was connected with."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        return None

    def dataset(self, dataset):
        return self.books

    async def server_info(self):
        if self.error:
            raise self.error
        return syncline.ServerInfo(
            version="9.9",
            store="sqlite",
            server_time=NOW,
            start_time=NOW,
            limits=LIMITS,
            role="admin",
            writable=True,
        )

    async def nodes(self):
        return []

    async def get_dataset(self, dataset):
        return INFO

    async def list_datasets(self):
        if self.error:
            raise self.error
        return [INFO]

    async def create_dataset(self, dataset, **settings):
        self.calls.append((dataset, settings))
        return INFO

    async def delete_dataset(self, dataset, **settings):
        self.calls.append((dataset, settings))
