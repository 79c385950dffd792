"""The rules of a replica, its places for records and its crashes, against a dict (G7; F61; T66, T68)."""

import sqlite3
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import syncline
from support.digest_ranges import batch_get, digest_ranges
from support.scripted_server import changes, checkpoint, reset
from syncline._digest import Tally, entry_digest
from syncline._events import Order
from syncline._selection import EVERYTHING
from syncline._wire import to_record
from syncline.replica._apply import MENDS, RENEWALS, Course, Verdict
from syncline.replica._copy import Range
from syncline.replica._file import FileCopy
from syncline.replica._file_write import Writer
from syncline.replica._memory import MemoryCopy
from syncline.replica._repair import PARTS, _compare, _Found, _put
from syncline.v1.sync_service_pb2 import DigestRangesRequest, RecordIdRange

A = ("a", b'{"v":1}', 1)
B = ("b", b'{"v":2}', 2)


def part(*wire: Any) -> Any:
    order = Order(b"", bytes)
    return [order.accept(event) for event in wire][-1]


# -- rules --------------------------------------------------------------------------------------------------


def tally_of(*rows: tuple[str, bytes, int]) -> Tally:
    tally = Tally()
    tally.add([entry_digest(record_id, revision, data) for record_id, data, revision in rows])
    return tally


def test_entry_digest_is_that_of_the_public_digest() -> None:
    digest = syncline.Digest()
    digest.put("é", 7, b"{}")
    assert entry_digest("é", 7, b"{}") == digest.value == tally_of(("é", b"{}", 7)).digest


def test_a_proven_checkpoint_is_shown() -> None:
    course = Course(is_complete=False)
    assert course.is_new_copy
    assert course.judge(part(checkpoint(0)), Tally()) is Verdict.SHOW
    assert not course.is_new_copy
    assert course.judge(part(changes(0, 1, [A]), checkpoint(1, [A])), tally_of(A)) is Verdict.SHOW


def test_what_differs_is_mended_and_proven_later_and_in_the_end_fetched_anew() -> None:
    course = Course(is_complete=True)
    one = part(changes(0, 1, [A]), checkpoint(1, [A]))
    two = part(changes(0, 2, [A, B]), checkpoint(2, [A, B]))

    assert course.judge(one, Tally()) is Verdict.MEND
    course.mended(2)
    assert course.judge(one, Tally()) is Verdict.WAIT
    assert course.judge(two, tally_of(A)) is Verdict.MEND
    course.mended(2)
    assert MENDS == 2
    assert course.judge(two, tally_of(A)) is Verdict.RENEW
    course.renew(two, tally_of(A))
    assert course.is_new_copy
    for _ in range(RENEWALS - 1):
        course.renew(two, tally_of(A))
    with pytest.raises(syncline.CopyDiverged, match="made anew 3 times has 1 records"):
        course.renew(two, tally_of(A))


def test_a_refused_token_is_never_stored() -> None:
    order = Order(b"old", bytes)
    order.accept(reset())
    batch: Any = order.accept(changes(0, 1, [A], token=b""))
    assert batch.token == b""
    batch = order.accept(changes(1, 2, [B], token=b"new"))
    assert (batch.token, batch.previous_token) == (b"new", b"")


# -- a model ------------------------------------------------------------------------------------------------

IDS: Final = ["a", "b", "c", "d", "é", "zz"]

batches = st.lists(
    st.tuples(st.sampled_from(IDS), st.one_of(st.none(), st.binary(max_size=2).map(bytes.hex))), max_size=6
)
steps = st.lists(
    st.one_of(
        batches.map(lambda rows: ("changes", rows)),
        st.sampled_from(["checkpoint", "checkpoint", "reset", "crash", "flush"]).map(lambda name: (name, [])),
    ),
    max_size=25,
)


class House:
    """A writer, the feed that it hears, and what the dataset holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, tuple[bytes, int]] = {}
        self.shown: dict[str, tuple[bytes, int]] = {}
        self.shown_token = b""
        self.revision = 0
        self.sent = 0
        self.waiting: list[Any] = []
        self.heard: dict[str, tuple[bytes, int]] = {}
        self.writer: Writer[Any]
        self.open()

    def open(self) -> None:
        self.writer = Writer(self.path, "books", "", is_filtered=False)
        self.waiting = []
        if self.writer.new_token:
            self.sent = int(self.writer.new_token[1:])
        elif self.writer.point.is_complete:
            self.sent = self.writer.point.revision
        else:
            self.begin()

    def begin(self) -> None:
        self.writer.begin()
        self.waiting = []
        self.sent = 0
        self.send()

    def send(self) -> None:
        """What the server sends after ``sent``: the newest version of what changed since."""
        rows = [
            (record_id, data if data != b"gone" else None, made)
            for record_id, (data, made) in self.content.items()
            if made > self.sent and (self.sent or data != b"gone")
        ]
        rows.sort(key=lambda row: row[2])
        if self.revision > self.sent:
            token = b"n%d" % self.revision
            order = Order(b"", bytes)
            order._revision = self.sent
            self.waiting.append(order.accept(changes(self.sent, self.revision, rows, token=token)))
            self.sent = self.revision

    def change(self, rows: Sequence[tuple[str, str | None]]) -> None:
        self.revision += 1
        for record_id, text in rows:
            self.content[record_id] = (b"gone" if text is None else b'"%s"' % text.encode(), self.revision)
        self.send()

    def live(self) -> dict[str, tuple[bytes, int]]:
        return {record_id: row for record_id, row in self.content.items() if row[0] != b"gone"}

    def settle(self) -> list[Any]:
        self.send()
        rows = [(record_id, data, made) for record_id, (data, made) in self.live().items()]
        token = b"c%d" % self.revision
        mark = (
            part(changes(0, self.revision, rows), checkpoint(self.revision, rows, token=token))
            if rows
            else (
                part(checkpoint(0))
                if not self.revision
                else part(changes(0, self.revision), checkpoint(self.revision, token=token))
            )
        )
        tally = self.writer.settle(self.waiting, mark, want_changes=True)
        self.waiting = []
        assert tally.agrees(mark)
        told: list[Any] = []
        while some := self.writer.take_changes(bytes):
            told += some
        return told

    def crash(self) -> None:
        """SQLite undoes an open transaction whether the connection or the process ends."""
        self.writer._connection.close()
        self.open()

    def on_disk(self) -> dict[str, tuple[bytes, int]]:
        with sqlite3.connect(self.path) as connection:
            rows = connection.execute("SELECT record_id, CAST(json AS BLOB), revision FROM record").fetchall()
        connection.close()
        return {record_id: (data, revision) for record_id, data, revision in rows}


A_PUT, A_GONE, B_PUT = ("changes", [("a", "1")]), ("changes", [("a", None)]), ("changes", [("b", "2")])
FLUSH, SHOW, RESET, CRASH = (("flush", []), ("checkpoint", []), ("reset", []), ("crash", []))


@given(steps=steps)
@example(steps=[A_PUT, FLUSH, A_GONE, FLUSH, B_PUT, SHOW])  # came and went within a new copy
@example(steps=[A_PUT, SHOW, RESET, FLUSH, A_GONE, FLUSH, SHOW])
@example(steps=[A_PUT, FLUSH, SHOW, CRASH, B_PUT, SHOW])  # the new copy's token is void once it is shown
@example(steps=[B_PUT, SHOW, A_PUT, FLUSH, A_GONE, SHOW])  # nobody saw it, so nobody is told
@example(steps=[A_PUT, SHOW, A_GONE, FLUSH, A_PUT, FLUSH, CRASH, SHOW])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_t66_file_is_always_a_state_with_its_token(
    steps: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever comes and wherever it crashes: data and token agree, and callbacks tell exactly the difference."""
    house = House(tmp_path_factory.mktemp("model") / "books.db")
    try:
        for name, rows in steps:
            if name == "changes":
                house.change(rows)
            elif name == "flush":
                house.writer.take(house.waiting, b"n%d" % house.sent)
                house.waiting = []
            elif name == "reset":
                house.begin()
            elif name == "crash":
                house.crash()
            else:
                before = house.shown
                told = house.settle()
                house.shown, house.shown_token = house.live(), house.writer.point.token
                assert_told(told, before, house.shown)
            assert house.on_disk() == house.shown
            assert house.writer.point.token == house.shown_token
            assert house.writer.point.record_count == len(house.shown)
    finally:
        house.writer.close()


def assert_told(told: list[Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    assert {change.record_id for change in told if isinstance(change, syncline.Put)} == {
        record_id for record_id, row in after.items() if before.get(record_id) != row
    }
    assert {change.record_id for change in told if isinstance(change, syncline.Delete)} == set(before) - set(
        after
    )
    assert len({change.record_id for change in told}) == len(told)


# -- digests of ranges --------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield MemoryCopy[bytes](is_filtered=False)
    else:
        async with FileCopy.open(tmp_path / "books.db", "books", EVERYTHING, bytes) as copy:
            yield copy


async def fill(store: Any, rows: Sequence[tuple[str, bytes, int]]) -> None:
    await store.begin()
    revision = max((row[2] for row in rows), default=0)
    for place in range(0, len(rows), 1_000):
        await store.add(part(changes(0, revision, rows[place : place + 1_000])), b"")
    await store.settle(part(changes(0, revision, rows), checkpoint(revision, rows)), want_changes=False)


async def test_sums_of_ranges(store: Any) -> None:
    rows = [(f"k{i:04}", b"%d" % i, 1) for i in range(1_500)]
    await fill(store, rows)
    bounds = ["", "k0000", "k0100", "k0255", "k0256", "k0700x", "k1499", ""]
    ranges = [Range(a, b) for a, b in pairwise(bounds)]

    found = await store.summarise(ranges)

    for asked, tally in zip(ranges, found, strict=True):
        inside = [
            row for row in rows if row[0] > asked.after and (not asked.through or row[0] <= asked.through)
        ]
        assert tally == tally_of(*inside), asked
    assert await store.entries(Range("k0100", "k0102")) == {
        "k0101": entry_digest("k0101", 1, b"101"),
        "k0102": entry_digest("k0102", 1, b"102"),
    }


async def test_only_what_differs_is_found(store: Any) -> None:
    """T68: stale, missing and surplus records, at the ends too, in few calls."""
    rows = [(f"k{i:04}", b"%d" % i, 1) for i in range(3_000)]
    content = {record_id: (data, revision) for record_id, data, revision in rows}
    content["k0000"] = (b"other", 1)
    content["k1777"] = (b"1777", 2)
    content |= {"a": (b"1", 1), "k1000x": (b"1", 1), "z": (b"1", 1)}
    for gone in ("k0500", "k0501", "k2999"):
        del content[gone]
    await fill(store, rows)

    found = _Found([], [])
    ranges, calls = [Range()], 0
    while ranges:
        request = DigestRangesRequest(
            ranges=[RecordIdRange(after=one.after, through=one.through) for one in ranges], parts=PARTS
        )
        ranges = await _compare(store, ranges, digest_ranges(content, request, 2), found)
        calls += 1

    assert sorted(found.stale) == ["a", "k0000", "k1000x", "k1777", "z"]
    assert sorted(found.gone) == ["k0500", "k0501", "k2999"]
    assert calls <= 5
    answer = batch_get(content, record_ids(found.stale), 2)
    puts = [_put(to_record(message, bytes), bytes) for message in answer.records]
    await store.mend(puts, found.gone)
    target = [(record_id, data, revision) for record_id, (data, revision) in content.items()]
    mark = part(changes(0, 2, [(i, d, 2) for i, d, _ in target]), checkpoint(2, target))
    assert (await store.settle(mark, want_changes=True)).agrees(mark)
    told = await store.take_changes()
    assert sorted(change.record_id for change in told) == sorted([*found.stale, *found.gone])
    assert store.count() == len(content)


def record_ids(ids: list[str]) -> Any:
    from syncline.v1.record_service_pb2 import BatchGetRecordsRequest

    return BatchGetRecordsRequest(record_ids=ids)
