"""Sessions against a server that loses answers and connections (G5, G15, G16)."""

import asyncio
from typing import Any

import anyio
import pytest

import syncline
from support.scripted_server import Refuse, ScriptedServer, a_session
from syncline import session as session_module
from syncline._load import BATCH_BYTES
from syncline.v1 import session_service_pb2 as wire
from syncline.v1.record_pb2 import RecordViolation


class FakeSessions:
    """What a good server does with numbered calls, and faults that a test asks for."""

    def __init__(self, scripted: ScriptedServer, mode: int = 3) -> None:
        self.mode = mode
        self.applied: list[bytes | str] = []
        self.calls = 0
        self.open = True
        self.lose_answers_of: set[int] = set()
        self.refuse_before: set[int] = set()
        self.invalid: set[bytes] = set()
        self.hang = False
        self.in_flight = self.most_in_flight = 0
        self.closes: list[wire.CloseSessionRequest] = []
        self.close_refusal: Exception | None = None
        self._turn = asyncio.Condition()
        scripted.on["OpenSession"] = self.open_session
        scripted.on["WriteSession"] = self.write
        scripted.on["CloseSession"] = self.close
        scripted.on["GetSession"] = self.get

    async def open_session(self, request: wire.OpenSessionRequest) -> wire.OpenSessionResponse:
        self.open = True
        return wire.OpenSessionResponse(session=a_session(request.mode))

    async def get(self, request: wire.GetSessionRequest) -> wire.GetSessionResponse:
        return wire.GetSessionResponse(session=a_session(self.mode, calls=self.calls))

    async def write(self, request: wire.WriteSessionRequest) -> wire.WriteSessionResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0.002)  # as long as a disk takes: calls overlap
            return await self._write(request)
        finally:
            self.in_flight -= 1

    async def _write(self, request: wire.WriteSessionRequest) -> wire.WriteSessionResponse:
        if not self.open:
            raise Refuse("PERMISSION_DENIED", "SESSION_INVALID")
        number = request.sequence
        posted = self._posted(request.action)
        bad = [index for index, row in enumerate(posted) if row in self.invalid]
        if request.validate_only:
            violations = [RecordViolation(index=i, pointer="/x", keyword="type", message="no") for i in bad]
            return wire.WriteSessionResponse(violations=violations)
        if self.hang:
            await asyncio.Event().wait()
        if number in self.refuse_before:
            self.refuse_before.discard(number)
            raise Refuse("UNAVAILABLE")
        if bad:
            raise Refuse(
                "INVALID_ARGUMENT",
                "RECORD_INVALID",
                fields=[(f"records[{bad[0]}]/x", "no", "type")],
                total_violations=len(bad),
            )
        async with self._turn:
            try:
                await asyncio.wait_for(self._turn.wait_for(lambda: number <= self.calls + 1), 0.2)
            except TimeoutError:
                raise Refuse("OUT_OF_RANGE", "SEQUENCE_GAP", expected=self.calls + 1) from None
            if number == self.calls + 1:
                self.applied += posted
                self.calls = number
                self._turn.notify_all()
        if number in self.lose_answers_of:
            self.lose_answers_of.discard(number)
            raise Refuse("UNAVAILABLE")
        ids = [f"id-{number}-{index}" for index in range(len(posted))]
        return wire.WriteSessionResponse(record_ids=ids, statuses=[6] * len(posted), calls=self.calls)

    async def close(self, request: wire.CloseSessionRequest) -> wire.CloseSessionResponse:
        self.closes.append(request)
        if request.commit and self.close_refusal is not None:
            raise self.close_refusal
        if not request.validate_only:
            self.open = False
        return wire.CloseSessionResponse(revision=5, created=len(self.applied))

    def _posted(self, action: wire.SessionAction) -> list[Any]:
        kind = action.WhichOneof("action")
        return list(action.delete_ids.record_ids if kind == "delete_ids" else getattr(action, kind).records)


@pytest.fixture
def fake(scripted: ScriptedServer) -> FakeSessions:
    return FakeSessions(scripted)


@pytest.fixture
def books(client: syncline.Client) -> syncline.Dataset[Any]:
    return client.dataset("books")


def rows(number: int, start: int = 0) -> list[dict[str, int]]:
    return [{"n": n} for n in range(start, start + number)]


def posted(number: int) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(number)]


async def test_commit_on_leaving_names_the_accepted_calls(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    async with books.session("replace", source="feed", allow_mass_delete=True) as session:
        first = await session.upsert(rows(2))
        await session.delete([{"n": 1}])
        await session.delete_ids(["x", "y"])

    assert [(result.record_id, result.status) for result in first.results] == [
        ("id-1-0", syncline.RecordStatus.STAGED),
        ("id-1-1", syncline.RecordStatus.STAGED),
    ]
    assert fake.applied == [b'{"n":0}', b'{"n":1}', b'{"n":1}', "x", "y"]
    (close,) = fake.closes
    assert (close.commit, close.calls, close.session_id) == (True, 3, "s-1")
    assert close.request_id
    assert session.result == syncline.SessionResult(revision=5, created=5, updated=0, unchanged=0, deleted=0)


async def test_rollback_on_error(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    with pytest.raises(KeyError):
        async with books.session("accrue") as session:
            await session.upsert(rows(1))
            raise KeyError

    assert [close.commit for close in fake.closes] == [False]


async def test_rollback_on_cancellation(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    """Also when the task is cancelled a second time while it rolls back."""
    fake.hang = True

    async def work() -> None:
        async with books.session("replace") as session:
            await session.upsert(rows(1))

    task = asyncio.create_task(work())
    while not fake.in_flight:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while not fake.closes:
            await asyncio.sleep(0.001)

    assert [close.commit for close in fake.closes] == [False]


async def test_rollback_inside_a_cancelled_anyio_scope(
    fake: FakeSessions, client: syncline.Client, books: syncline.Dataset[Any]
) -> None:
    """anyio cancels every await of a cancelled scope anew; the rollback goes on beside it."""
    fake.hang = True
    with anyio.move_on_after(0.1):
        async with books.session("replace") as session:
            await session.upsert(rows(1))
    async with asyncio.timeout(5):
        while not fake.closes:
            await asyncio.sleep(0.001)

    assert [close.commit for close in fake.closes] == [False]


async def test_rollback_of_a_server_that_is_away_hides_no_error(
    scripted: ScriptedServer,
    fake: FakeSessions,
    books: syncline.Dataset[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "ROLLBACK_SECONDS", 0.2)
    scripted.script("CloseSession", Refuse("UNAVAILABLE"))

    with pytest.raises(KeyError):
        async with books.session("replace"):
            raise KeyError


async def test_g16_refused_commit_is_rolled_back(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    fake.close_refusal = Refuse("FAILED_PRECONDITION", "MASS_DELETE", "would delete 7 of 7")

    with pytest.raises(syncline.MassDeleteRefused, match="allow_mass_delete=True"):
        async with books.session("replace"):
            pass

    assert [close.commit for close in fake.closes] == [True, False]


async def test_close_inside_the_block_is_the_end(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    async with books.session("replace") as session:
        preview = await session.preview()
        await session.close(commit=False)
        with pytest.raises(syncline.SessionInvalid):
            await session.upsert(rows(1))

    assert preview.revision == 5
    assert [(close.commit, close.validate_only) for close in fake.closes] == [(True, True), (False, False)]


async def test_iterators_are_streamed_with_several_calls_in_flight(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    produced = 0

    async def source() -> Any:
        nonlocal produced
        for row in rows(20_000):
            produced += 1
            yield row
            # bounded memory: what is ahead of the server fits the window
            assert produced - len(fake.applied) <= 7_000

    async with books.session("replace") as session:
        report = await session.upsert(source())
        await session.upsert(iter(rows(1_500, 20_000)))

    assert fake.applied == posted(21_500)
    assert (report.records, len(report.results)) == (20_000, 0)
    assert 2 <= fake.most_in_flight <= 4
    assert fake.closes[0].calls == 22


async def test_calls_are_bounded_in_bytes(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    large = [{"text": "x" * 300_000} for _ in range(10)]

    async with books.session("accrue") as session:
        report = await session.upsert(large)

    assert session.calls == 4
    assert BATCH_BYTES == 1 << 20
    assert len(report.results) == 10


async def test_g5_lost_answers_and_restarts_in_the_middle_change_nothing(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    """G5: calls are repeated under their number, whether they had been applied or not, and keep their order."""
    fake.lose_answers_of = {1, 4, 7}
    fake.refuse_before = {2, 3, 5, 9}

    async with books.session("replace") as session:
        report = await session.upsert(rows(12_000))

    assert fake.applied == posted(12_000)
    assert fake.closes[0].calls == 12
    assert [result.record_id for result in report.results[999:1001]] == ["id-1-999", "id-2-0"]


async def test_invalid_single_call_leaves_the_session_usable(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    """All violations are told, those too that the error had no room for."""
    fake.invalid = {b'{"n":1}', b'{"n":3}'}

    async with books.session("replace") as session:
        with pytest.raises(syncline.InvalidRecords) as caught:
            await session.upsert(rows(5))
        await session.upsert(rows(1))

    assert [violation.index for violation in caught.value.violations] == [1, 3]
    assert fake.applied == [b'{"n":0}']
    assert fake.closes[0].commit


async def test_refusal_in_the_middle_of_a_stream_breaks_the_session(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    """Nobody knows any more what it holds, so it must not be committed: not even by whoever swallows the error."""
    fake.invalid = {b'{"n":2500}'}

    with pytest.raises(syncline.SessionBroken):
        async with books.session("replace") as session:
            with pytest.raises(syncline.InvalidRecords) as caught:
                await session.upsert(rows(9_000))
            with pytest.raises(syncline.SessionBroken):
                await session.upsert(rows(1))

    assert caught.value.violations[0].index == 2500
    assert [close.commit for close in fake.closes] == [False]


async def test_error_of_the_iterator_breaks_the_session(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    def source() -> Any:
        yield from rows(3_000)
        raise KeyError("source")

    session = await books.open_session("replace")
    with pytest.raises(KeyError):
        await session.upsert(source())
    with pytest.raises(syncline.SessionBroken):
        await session.close()
    await session.close(commit=False)

    assert [close.commit for close in fake.closes] == [False]


async def test_row_that_cannot_be_encoded_sends_nothing(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    async with books.session("replace") as session:
        with pytest.raises(syncline.EncodeError, match=r"rows\[1\]"):
            await session.upsert([{"n": 0}, {"n": float("nan")}])
        await session.upsert(rows(1))

    assert fake.applied == posted(1)


async def test_superseded_session(
    scripted: ScriptedServer, fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    session = await books.open_session("accrue")
    fake.open = False

    with pytest.raises(syncline.SessionInvalid):
        await session.upsert(rows(1))


@pytest.mark.parametrize("method", ["upsert", "delete"])
async def test_one_record_is_not_a_list(
    fake: FakeSessions, books: syncline.Dataset[Any], method: str
) -> None:
    async with books.session("replace") as session:
        with pytest.raises(TypeError, match="in a list"):
            await getattr(session, method)({"n": 1})
        with pytest.raises(TypeError, match="in a list"):
            await session.delete_ids("abc")


async def test_mode_is_checked_before_anything_is_sent(
    scripted: ScriptedServer, books: syncline.Dataset[Any]
) -> None:
    with pytest.raises(ValueError, match="'stream', 'accrue', 'replace'"):
        await books.open_session("replac")  # type: ignore[arg-type]

    assert scripted.requests == {}


async def test_info(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    session = await books.open_session("replace")
    await session.upsert(rows(1))

    assert (await session.info()).calls == 1
    assert (session.session_id, session.mode, session.calls) == ("s-1", "replace", 1)


async def test_tasks_take_turns(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    """No two calls share a number, which would lose one of them."""
    async with books.session("stream") as session:
        reports = await asyncio.gather(
            *(session.upsert([{"n": n}, {"n": n}]) for n in range(30)), session.upsert(rows(2_500, 100))
        )

    assert len(fake.applied) == 2_560
    assert session.calls == 33
    assert len({result.record_id for report in reports for result in report.results}) == 2_560


async def test_attached_session_goes_on(fake: FakeSessions, books: syncline.Dataset[Any]) -> None:
    """Another process goes on where the first one stopped; it must say what it commits."""
    session = await books.open_session("accrue")
    await session.upsert(rows(1_500))
    other = books.attach_session(session.session_id)

    with pytest.raises(ValueError, match="calls="):
        await other.close()
    await other.upsert([{"n": 1_500}])
    await other.close()

    assert fake.applied == posted(1_501)
    assert (other.mode, other.calls, fake.closes[0].calls) == ("replace", 3, 3)


async def test_attached_session_is_closed_with_a_count(
    fake: FakeSessions, books: syncline.Dataset[Any]
) -> None:
    await books.attach_session("s-1").close(commit=True, calls=7)
    await books.attach_session("s-1").close(commit=False)

    assert [(close.commit, close.calls) for close in fake.closes] == [(True, 7), (False, 0)]
