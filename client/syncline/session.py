"""Sessions: writes that belong together.

Calls of a session are numbered. The server applies them in that order and knows a number that it has seen, so a
call whose answer was lost is simply sent again, also to a server that was restarted in between. What cannot be
settled that way (a refusal in the middle of a streamed upsert, an answer that never came) breaks the session: it
can then only be rolled back, because nobody knows any more what it holds.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from syncline import _wire, errors
from syncline._call import (
    LOG,
    LONG,
    LONG_TIMEOUT_SECONDS,
    PATIENT,
    PATIENT_TIMEOUT_SECONDS,
    complete_violations,
)
from syncline._convert import Codec
from syncline._load import encoded_batches
from syncline.errors import Rejected, SessionBroken
from syncline.models import ConflictPolicy, PushResult, Results, SessionInfo, SessionMode, SessionResult
from syncline.v1 import session_service_pb2 as wire

if TYPE_CHECKING:
    from syncline.client import Connection

T = TypeVar("T")

CALL_RECORDS: Final = 1_000
"""Records in one call of a session."""
CALLS_IN_FLIGHT: Final = 4
ROLLBACK_SECONDS: Final = 5.0
"""How long leaving a block waits for the rollback; the server's time-out does it otherwise."""

_Answer = tuple[list[str], list[int], int]
"""Record ids, statuses, revision."""


class Session(Generic[T]):
    """An open session; ``Dataset.session``, ``open_session`` and ``attach_session`` make it.

    Several tasks may write into it: their calls take turns, each whole. Every method raises SessionInvalid when the session was closed, has expired, or another one was opened for
    its source; SessionBroken when an earlier call left it in doubt.
    """

    def __init__(
        self,
        connection: "Connection",
        codec: Codec[T],
        source: str,
        session_id: str,
        *,
        mode: SessionMode | None = None,
        calls: int | None = None,
    ) -> None:
        self._connection = connection
        self._codec = codec
        self._source = source
        self._turn = asyncio.Lock()
        self._calls = calls
        self.session_id = session_id
        """Id of the session, for logs and for ``Dataset.attach_session``."""
        self.mode = mode
        """How it shows what is written in it; None while an attached session has not asked."""
        self._broken: str = ""
        self.result: SessionResult | None = None
        """What closing it did; None while it is open."""

    @classmethod
    async def open(
        cls,
        connection: "Connection",
        codec: Codec[T],
        source: str,
        *,
        mode: SessionMode,
        allow_mass_delete: bool,
        idle_timeout: timedelta | None,
        on_conflict: ConflictPolicy,
    ) -> Self:
        """Open a session. Raises as Dataset.push, and Overloaded(TOO_MANY_SESSIONS)."""
        request = wire.OpenSessionRequest(
            source=source,
            mode=_wire.mode_number(mode),
            allow_mass_delete=allow_mass_delete,
            idle_timeout=None if idle_timeout is None else _wire.to_duration(idle_timeout),
            conflict_policy=_wire.conflict_policy_number(on_conflict),
        )
        response = await connection.caller.write(connection.sessions.OpenSession, request)
        return cls(connection, codec, source, response.session.session_id, mode=mode, calls=0)

    @property
    def calls(self) -> int:
        """Calls that the server has accepted, as far as is known here."""
        return self._calls or 0

    def __repr__(self) -> str:
        return f"<session {self.session_id} of {self._source}>"

    async def upsert(self, rows: Iterable[T | bytes] | AsyncIterable[T | bytes]) -> PushResult:
        """Upsert records, after everything posted before.

        A list may be of any length; the report has a result for each. Any other iterable, plain or async, is
        streamed in bounded memory, and its report has only the number of records. A list of up to 1,000 records
        and 1 MiB is one call, refused whole if a record is invalid; anything larger is split, and a refusal
        breaks the session. Raises InvalidRecords, and as Dataset.push.
        """
        return await self._write(
            rows, lambda records: wire.SessionAction(upsert=wire.UpsertAction(records=records))
        )

    async def delete(
        self,
        rows: Iterable[T | bytes | Mapping[str, Any]] | AsyncIterable[T | bytes | Mapping[str, Any]],
    ) -> PushResult:
        """Delete records by their values, after everything posted before. Reports and splits as upsert."""
        return await self._write(
            rows, lambda records: wire.SessionAction(delete=wire.DeleteAction(records=records))
        )

    async def delete_ids(self, record_ids: Iterable[str]) -> PushResult:
        """Delete records by id, after everything posted before. Reports and splits as upsert."""
        if isinstance(record_ids, str):
            raise TypeError("delete_ids() takes a list of ids; put the one you have in a list")
        ids = list(record_ids)

        async def batches() -> AsyncGenerator[list[str], None]:
            for start in range(0, len(ids), CALL_RECORDS):
                yield ids[start : start + CALL_RECORDS]

        return await self._send(
            batches(),
            lambda chunk: wire.SessionAction(delete_ids=wire.DeleteIdsAction(record_ids=chunk)),
            keep=True,
        )

    async def info(self) -> SessionInfo:
        """The session as the server knows it."""
        request = wire.GetSessionRequest(source=self._source, session_id=self.session_id)
        response = await self._connection.caller.read(self._connection.sessions.GetSession, request)
        return _wire.to_session(response.session)

    async def preview(self) -> SessionResult:
        """What a commit would do now, without doing it.

        Raises MassDeleteRefused and SessionConflict where the commit would.
        """
        async with self._turn:
            calls = (await self.info()).calls if self._calls is None else self._calls
            return await self._end(commit=True, calls=calls, validate_only=True)

    async def close(self, *, commit: bool = True, calls: int | None = None) -> SessionResult:
        """Commit or roll back, and end the session; without effect on the data of stream sessions.

        ``calls`` is how many calls must have been accepted for a commit: those made here, unless the session is
        attached; then it must be given, so that the rest of a broken attempt is not committed by mistake.
        Raises MassDeleteRefused, SessionConflict and FailedPrecondition(SESSION_INCOMPLETE): the session is then
        still open and can be rolled back.
        """
        if not commit:
            self.result = await self._end(commit=False)
            return self.result
        async with self._turn:
            if self._broken and self.mode != "stream":
                raise SessionBroken(f"the session cannot be committed: {self._broken}; roll it back")
            if calls is None and self._calls is None:
                raise ValueError("to commit an attached session, say with calls= how many calls it must have")
            self.result = await self._end(commit=True, calls=calls)
        return self.result

    # -- calls ----------------------------------------------------------------------------------------------

    async def _end(
        self,
        *,
        commit: bool,
        calls: int | None = None,
        validate_only: bool = False,
        timeout_seconds: float = LONG_TIMEOUT_SECONDS,
    ) -> SessionResult:
        request = wire.CloseSessionRequest(
            source=self._source,
            session_id=self.session_id,
            commit=commit,
            calls=self._calls if calls is None else calls,
            validate_only=validate_only,
        )
        response = await self._connection.caller.write(
            self._connection.sessions.CloseSession, request, policy=LONG, timeout_seconds=timeout_seconds
        )
        return SessionResult(
            revision=response.revision,
            created=response.created,
            updated=response.updated,
            unchanged=response.unchanged,
            deleted=response.deleted,
            kept=response.kept,
        )

    async def _write(
        self,
        rows: Iterable[Any] | AsyncIterable[Any],
        action: Callable[[list[bytes]], wire.SessionAction],
    ) -> PushResult:
        if isinstance(rows, (str, bytes, Mapping)):
            raise TypeError("a session takes a list of records; put the one that you have in a list")
        batches = encoded_batches(rows, self._codec, batch=CALL_RECORDS)
        return await self._send(batches, action, keep=isinstance(rows, (list, tuple)))

    async def _send(
        self,
        batches: AsyncGenerator[list[Any], None],
        action: Callable[[list[Any]], wire.SessionAction],
        *,
        keep: bool,
    ) -> PushResult:
        """Send batches as numbered calls, several in flight, and collect their answers in order."""
        async with self._turn, aclosing(batches):
            self._check_usable()
            await self._find_place()
            window = _Window(self, keep=keep)
            try:
                async for batch in batches:
                    await window.add(action(batch), len(batch))
                await window.finish()
            except BaseException as error:
                await window.abandon()
                self._judge(error, calls_made=window.calls_made)
                raise
            return window.report()

    async def _find_place(self) -> None:
        """Ask where an attached session stands."""
        if self._calls is None:
            info = await self.info()
            self.mode, self._calls = info.mode, info.calls

    def _check_usable(self) -> None:
        if self.result is not None:
            raise errors.SessionInvalid("the session is closed", reason="SESSION_INVALID")
        if self._broken:
            raise SessionBroken(f"the session cannot be used any more: {self._broken}; roll it back")

    def _judge(self, error: BaseException, *, calls_made: int) -> None:
        """Decide whether the session's content is still known after ``error``."""
        if not calls_made:
            return  # found before anything was sent
        if not (isinstance(error, Rejected) and calls_made == 1):
            self._broken = f"a write failed halfway ({error or type(error).__name__})"

    async def call(
        self, action: wire.SessionAction, sequence: int, *, offset: int
    ) -> wire.WriteSessionResponse:
        """Make the call with this number, again and again until it is answered.

        ``offset`` is the position of its first record in what the user posted.
        """
        request = wire.WriteSessionRequest(
            source=self._source, session_id=self.session_id, action=action, sequence=sequence
        )
        caller = self._connection.caller
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENT_TIMEOUT_SECONDS
        failures = 0
        while True:
            try:
                response: wire.WriteSessionResponse = await caller.write_identified(
                    self._connection.sessions.WriteSession,
                    request,
                    policy=PATIENT,
                    timeout_seconds=max(deadline - loop.time(), 0.001),
                )
            except errors.OutOfRange as error:
                # After a restart a call can arrive long before its predecessor, which is being repeated too.
                failures += 1
                if error.reason != "SEQUENCE_GAP" or sequence <= self.calls + 1 or loop.time() >= deadline:
                    raise
                await asyncio.sleep(PATIENT.pause_seconds(failures))
            except errors.InvalidRecords as error:
                await complete_violations(error, lambda: self._check(action), offset=offset)
                raise
            else:
                return response

    async def _check(self, action: wire.SessionAction) -> Any:
        request = wire.WriteSessionRequest(
            source=self._source, session_id=self.session_id, action=action, validate_only=True
        )
        return await self._connection.caller.write(self._connection.sessions.WriteSession, request)

    def accepted(self, sequence: int) -> None:
        """Note that the call with this number, and so all before it, was accepted."""
        self._calls = sequence


class _Window:
    """Calls in flight, in their order."""

    def __init__(self, session: Session[Any], *, keep: bool) -> None:
        self._session = session
        self._keep = keep
        self._running: list[tuple[int, asyncio.Task[wire.WriteSessionResponse]]] = []
        self._next = session.calls + 1
        self._records = 0
        self._record_ids: list[str] = []
        self._statuses: list[int] = []
        self._revision = 0
        self.calls_made = 0

    async def add(self, action: wire.SessionAction, records: int) -> None:
        """Start a call, once there is room."""
        while len(self._running) >= CALLS_IN_FLIGHT:
            await self._take_first()
        sequence = self._next
        self._next += 1
        self.calls_made += 1
        task = asyncio.create_task(
            self._session.call(action, sequence, offset=self._records), name=f"session call {sequence}"
        )
        self._records += records
        self._running.append((sequence, task))

    async def finish(self) -> None:
        """Wait for all calls."""
        while self._running:
            await self._take_first()

    async def _take_first(self) -> None:
        """Take the oldest call's answer. Raises what any of the calls raised, the oldest first."""
        sequence, task = self._running[0]
        response = await task
        del self._running[0]
        self._session.accepted(sequence)
        self._revision = max(self._revision, response.revision)
        if self._keep:
            self._record_ids += response.record_ids
            self._statuses += response.statuses

    async def abandon(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        tasks = [task for _, task in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def report(self) -> PushResult:
        """The report on all calls."""
        return PushResult(
            revision=self._revision,
            results=Results(self._record_ids, self._statuses),
            records=self._records,
        )


class SessionBlock(Generic[T]):
    """``async with`` around a session: commit on leaving, rollback on error or cancellation."""

    def __init__(self, open_session: Callable[[], Awaitable[Session[T]]]) -> None:
        self._open = open_session
        self._session: Session[T] | None = None

    async def __aenter__(self) -> Session[T]:
        self._session = await self._open()
        return self._session

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        session = self._session
        assert session is not None
        if session.result is not None:  # closed inside the block
            return
        if kind is None:
            try:
                await session.close(commit=True)
            except BaseException:
                await _roll_back(session)
                raise
        else:
            await _roll_back(session)


async def _roll_back(session: Session[Any]) -> None:
    """Roll back, also when the task that asks for it is cancelled again. Raises nothing but that."""
    background = session._connection.background  # noqa: SLF001
    task = asyncio.create_task(_try_roll_back(session), name="session rollback")
    background.add(task)
    task.add_done_callback(background.discard)
    await asyncio.shield(task)


async def _try_roll_back(session: Session[Any]) -> None:
    try:
        session.result = await session._end(commit=False, timeout_seconds=ROLLBACK_SECONDS)  # noqa: SLF001
    except Exception as error:  # noqa: BLE001 - nobody waits for this task who could handle it
        # Closed already, or out of reach: it holds no data that shows, and the server lets it expire.
        LOG.debug("rollback of %r: %s", session, error)
