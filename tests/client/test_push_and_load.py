"""Push, delete and load (G1, G4)."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

import syncline
from support.scripted_server import Refuse, ScriptedServer, created
from syncline import IfAbsent, IfRevision, RecordStatus
from syncline.v1.push_service_pb2 import (
    DeleteByIdsResponse,
    DeleteByValuesResponse,
    PushRequest,
    PushResponse,
)
from syncline.v1.record_pb2 import RecordViolation


@dataclass
class Book:
    title: str
    isbn: str


@pytest.fixture
def books(client: syncline.Client) -> syncline.Dataset[Book]:
    return client.dataset("books", Book)


def row(n: int) -> Book:
    return Book("t", str(n))


async def test_results_are_columns_looked_at_when_needed(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    scripted.script(
        "Push", PushResponse(revision=7, record_ids=["1", "a,b", "~5", ""], statuses=[1, 2, 3, 8])
    )

    result = await books.push([row(1), row(2), row(3), row(4)], source="feed", partial=True)

    request = scripted.requests["Push"][0]
    assert request.source == "datasets/books/sources/feed"
    assert request.partial
    assert request.records[0] == b'{"isbn":"1","title":"t"}'
    assert result.revision == 7
    assert [r.status for r in result.results] == [
        RecordStatus.CREATED,
        RecordStatus.UPDATED,
        RecordStatus.UNCHANGED,
        RecordStatus.INVALID,
    ]
    assert [r.key for r in result.results[:3]] == ["1", ("a", "b"), 5]
    assert (result.created, result.updated, result.unchanged, result.deleted) == (1, 1, 1, 0)
    with pytest.raises(IndexError):
        result.results[4]


async def test_status_of_a_newer_server(scripted: ScriptedServer, books: syncline.Dataset[Book]) -> None:
    """T70: a number that this version does not know is no reason to lose the report."""
    scripted.script("Push", PushResponse(record_ids=["1"], statuses=[99]))

    result = await books.push([row(1)])

    assert result.results[0].status is RecordStatus.UNSPECIFIED


async def test_conditions(scripted: ScriptedServer, books: syncline.Dataset[Book]) -> None:
    scripted.script("Push", created)

    await books.push([row(0), IfRevision(row(1), 17), IfAbsent(row(2))])

    request = scripted.requests["Push"][0]
    assert len(request.records) == 3
    assert [(c.index, c.WhichOneof("condition")) for c in request.conditions] == [
        (1, "if_revision"),
        (2, "if_absent"),
    ]
    assert request.conditions[0].if_revision == 17


async def test_t29_every_error_of_every_record_is_told(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    """T29: an error has room for 20; the others are fetched by a second look that changes nothing."""
    violations = [RecordViolation(index=i, pointer="/isbn", keyword="type", message="no") for i in range(30)]
    scripted.script(
        "Push",
        Refuse(
            "INVALID_ARGUMENT",
            "RECORD_INVALID",
            "30 of 30 records refused",
            fields=[(f"records[{i}]/isbn", "no", "type") for i in range(20)],
            total_violations=30,
        ),
        PushResponse(violations=violations, violations_complete=True),
    )

    with pytest.raises(syncline.InvalidRecords) as caught:
        await books.push([row(i) for i in range(30)])

    assert [v.index for v in caught.value.violations] == list(range(30))
    assert caught.value.violations[0] == syncline.Violation(
        index=0, pointer="/isbn", keyword="type", message="no"
    )
    assert scripted.requests["Push"][1].validate_only
    assert "… and 20 more" in str(caught.value)
    assert "records[0]/isbn: type: no" in str(caught.value)


async def test_t29_second_look_that_fails_hides_nothing(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    scripted.script(
        "Push",
        Refuse(
            "INVALID_ARGUMENT",
            "RECORD_INVALID",
            fields=[("records[4]", "no", "json")],
            total_violations=9,
        ),
        Refuse("INTERNAL", "INTERNAL"),
    )

    with pytest.raises(syncline.InvalidRecords) as caught:
        await books.push([row(1)])

    assert (len(caught.value.violations), caught.value.total_violations) == (1, 9)


@pytest.mark.parametrize(
    "refusal",
    [
        Refuse("INVALID_ARGUMENT", "LIMIT_EXCEEDED", limit="records_per_call", maximum=10_000, actual=10_001),
        Refuse("RESOURCE_EXHAUSTED", message="Received message larger than max (9000000 vs. 8388608)"),
    ],
)
async def test_too_much_for_one_commit_names_load(
    scripted: ScriptedServer, books: syncline.Dataset[Book], refusal: Refuse
) -> None:
    scripted.script("Push", refusal)

    with pytest.raises(syncline.LimitExceeded, match=r"load\(\)"):
        await books.push([row(1)])


async def test_deletes(scripted: ScriptedServer, books: syncline.Dataset[Book]) -> None:
    scripted.script(
        "DeleteByValues", DeleteByValuesResponse(revision=2, record_ids=["1", "2"], statuses=[4, 5])
    )
    scripted.script("DeleteByIds", DeleteByIdsResponse(revision=3, record_ids=["1"], statuses=[4]))

    by_values = await books.delete([row(1), {"isbn": "2"}])
    by_ids = await books.delete_ids(["1"])

    assert scripted.requests["DeleteByValues"][0].records[1] == b'{"isbn":"2"}'
    assert [r.status for r in by_values.results] == [RecordStatus.DELETED, RecordStatus.NOT_FOUND]
    assert (by_ids.deleted, by_ids.revision) == (1, 3)
    assert scripted.requests["DeleteByIds"][0].request_id


async def test_one_record_is_not_a_list(books: syncline.Dataset[Any]) -> None:
    async def rows() -> Any:
        yield row(1)

    for wrong in ({"isbn": "1"}, b"{}", "{}"):
        with pytest.raises(TypeError, match="in a list"):
            await books.push(wrong)
        with pytest.raises(TypeError, match="in a list"):
            await books.delete(wrong)
        with pytest.raises(TypeError, match="in a list"):
            await books.load(wrong)
    with pytest.raises(TypeError, match=r"load\(\)"):
        await books.push(rows())
    with pytest.raises(TypeError, match="in a list"):
        await books.delete_ids("1")


# -- load ---------------------------------------------------------------------------------------------------


class Store:
    """Applies pushes; counts how many are under way."""

    def __init__(self, scripted: ScriptedServer) -> None:
        self.rows: list[bytes] = []
        self.in_flight = self.most_in_flight = 0
        self.identities: set[str] = set()
        self.fail: dict[int, list[Exception]] = {}
        self._calls = 0
        scripted.on["Push"] = self.push

    async def push(self, request: PushRequest) -> PushResponse:
        self._calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0.002)
            if failures := self.fail.get(self._calls):
                raise failures.pop()
            if request.request_id not in self.identities:
                self.rows += request.records
                self.identities.add(request.request_id)
        finally:
            self.in_flight -= 1
        statuses = [8 if b"bad" in record else 1 for record in request.records]
        return PushResponse(
            revision=len(self.identities),
            record_ids=[""] * len(statuses),
            statuses=statuses,
            violations=[
                RecordViolation(index=i, keyword="type", message="bad")
                for i, status in enumerate(statuses)
                if status == 8
            ],
        )


async def test_load_in_bounded_memory(scripted: ScriptedServer, books: syncline.Dataset[Book]) -> None:
    store = Store(scripted)
    produced = 0
    seen: list[int] = []

    async def rows() -> Any:
        nonlocal produced
        for n in range(2_550):
            produced += 1
            assert produced - len(store.rows) <= 600
            yield row(n)

    result = await books.load(rows(), batch=100, in_flight=4, progress=seen.append)

    assert sorted(store.rows) == sorted(b'{"isbn":"%d","title":"t"}' % n for n in range(2_550))
    assert (result.records, result.calls, result.created) == (2_550, 26, 2_550)
    assert result.revision == 26
    assert 2 <= store.most_in_flight <= 4
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (26, 2_550)


async def test_load_one_at_a_time_keeps_the_order(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    store = Store(scripted)

    await books.load(map(row, range(1_000)), batch=70, in_flight=1)

    assert store.rows == [b'{"isbn":"%d","title":"t"}' % n for n in range(1_000)]
    assert store.most_in_flight == 1


async def test_load_splits_by_bytes(scripted: ScriptedServer, books: syncline.Dataset[Book]) -> None:
    Store(scripted)

    result = await books.load(Book("x" * 400_000, str(n)) for n in range(6))

    assert result.calls == 3


async def test_load_survives_a_server_that_is_away(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    """Many attempts more than a single call makes, each batch applied once."""
    store = Store(scripted)
    store.fail = {n: [Refuse("UNAVAILABLE")] for n in range(2, 14)}

    result = await books.load(map(row, range(500)), batch=100)

    assert (result.records, len(store.rows)) == (500, 500)


async def test_error_ends_a_load_and_tells_which_row(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    store = Store(scripted)
    refusal = Refuse("INVALID_ARGUMENT", "RECORD_INVALID", fields=[("records[7]/isbn", "no", "type")])
    store.fail = {3: [refusal]}

    with pytest.raises(syncline.InvalidRecords) as caught:
        await books.load(map(row, range(100_000)), batch=100, in_flight=1)

    assert caught.value.violations[0].index == 207
    assert caught.value.__notes__ == ["200 rows had been accepted by then"]
    assert len(store.rows) == 200


async def test_partial_load_reports_the_bad_rows(
    scripted: ScriptedServer, books: syncline.Dataset[Book]
) -> None:
    Store(scripted)
    rows = [Book("bad" if n % 100 == 50 else "t", str(n)) for n in range(300)]

    result = await books.load(rows, batch=100, in_flight=1, partial=True)

    assert (result.records, result.invalid) == (297, 3)
    assert [v.index for v in result.violations] == [50, 150, 250]


@pytest.mark.parametrize("broken", ["rows", "progress", "encode"])
async def test_what_the_user_raises_ends_a_load(
    scripted: ScriptedServer, books: syncline.Dataset[Any], broken: str
) -> None:
    """F62: an error of the user's own code is never swallowed."""
    store = Store(scripted)

    def rows() -> Any:
        for n in range(10_000):
            if n == 450 and broken == "rows":
                raise KeyError
            yield {"n": float("nan")} if n == 450 and broken == "encode" else {"n": n}

    def progress(_: int) -> None:
        if broken == "progress":
            raise KeyError

    with pytest.raises((KeyError, syncline.EncodeError)) as caught:
        await books.load(rows(), batch=100, in_flight=2, progress=progress)

    assert store.in_flight == 0
    if broken == "encode":
        assert "rows[450]" in str(caught.value)


async def test_cancelled_load_leaves_no_call(scripted: ScriptedServer, books: syncline.Dataset[Book]) -> None:
    store = Store(scripted)
    task = asyncio.create_task(books.load(map(row, range(1_000_000)), batch=10))
    await scripted.until(lambda s: len(s.requests.get("Push", [])) > 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while store.in_flight:
            await asyncio.sleep(0.001)

    assert len(store.rows) < 1_000_000


async def test_load_of_nothing(books: syncline.Dataset[Book]) -> None:
    assert await books.load([]) == syncline.LoadResult()


async def test_load_checks_its_arguments(books: syncline.Dataset[Book]) -> None:
    for wrong in ({"batch": 0}, {"in_flight": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            await books.load([], **wrong)
