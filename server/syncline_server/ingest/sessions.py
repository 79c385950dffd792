"""Stream, accrue and replace sessions.

A session's truth (open, mode, accepted calls) is the store's. Here is only the order of calls that arrive at the
same time: a call that names its ``sequence`` waits for its predecessor to be handed to the store, no longer.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from syncline_server.clock import Clock
from syncline_server.errors import InvalidArgument, ResourceExhausted, SynclineError
from syncline_server.ingest.committer import Committer
from syncline_server.ingest.write_path import (
    Action,
    PreparedWrite,
    Target,
    WritePath,
    WriteReport,
    check_may_push,
)
from syncline_server.model import (
    Commit,
    CommitResult,
    ConflictPolicy,
    Lease,
    MassDeleteGuard,
    Principal,
    Reason,
    RequestIdentity,
    Session,
    SessionCommit,
    SessionMode,
    Status,
)
from syncline_server.store.abc import Store

T = TypeVar("T")

PREDECESSOR_WAIT_SECONDS: Final = 5.0
"""How long a call waits for the one before it; calls sent together arrive within milliseconds."""
PREDECESSOR_LOOK_SECONDS: Final = (0.005, 0.1)
"""How soon it looks whether that one came to another node, and how often in the end; doubled in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What an operator may set."""

    idle_timeout_us: int = 3_600_000_000
    max_open: int = 1_000
    guard: MassDeleteGuard = field(default_factory=MassDeleteGuard)


@dataclass(slots=True)
class _Line:
    """Calls of one session that queue for their turn."""

    session: Session
    next: int
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)


class Sessions:
    """Opens, writes, closes sessions."""

    def __init__(
        self,
        write_path: WritePath,
        store: Store,
        committer: Committer,
        clock: Clock,
        settings: SessionSettings,
    ) -> None:
        self._write_path = write_path
        self._store = store
        self._committer = committer
        self._clock = clock
        self._settings = settings
        self._lines: dict[str, _Line] = {}

    async def open(
        self,
        principal: Principal,
        dataset_id: str,
        source_id: str,
        *,
        mode: SessionMode,
        allow_mass_delete: bool = False,
        idle_timeout_us: int | None = None,
        conflict_policy: ConflictPolicy = ConflictPolicy.OVERWRITE,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Session:
        """Open a session; the one that the source has open is rolled back.

        Raises PermissionDenied, NotFound, FailedPrecondition(SOURCE_DISABLED),
        ResourceExhausted(TOO_MANY_SESSIONS).
        """
        check_may_push(principal, dataset_id, source_id)
        target = await self._write_path.target(principal, dataset_id, source_id, afresh=True)
        if await self._store.count_sessions() >= self._settings.max_open:
            raise ResourceExhausted(
                "TOO_MANY_SESSIONS",
                f"{self._settings.max_open} sessions are open already; close some or wait until they expire",
                retry_after_seconds=60,
                maximum=self._settings.max_open,
            )
        if idle_timeout_us is None and mode is not SessionMode.STREAM:
            idle_timeout_us = self._settings.idle_timeout_us
        now_us = self._clock.now_us()
        session = Session(
            session_id=str(uuid.uuid4()),
            dataset_number=target.opened.dataset.number,
            source_number=target.source.number,
            mode=mode,
            allow_mass_delete=allow_mass_delete,
            idle_timeout_us=idle_timeout_us,
            create_time_us=now_us,
            active_time_us=now_us,
            conflict_policy=conflict_policy,
        )
        if validate_only:
            head = await self._store.read_head(session.dataset_number)
            return replace(session, base_revision=head.revision)
        for superseded in [
            key for key, line in self._lines.items() if line.session.source_number == session.source_number
        ]:
            del self._lines[superseded]
        return await self._store.open_session(session, identity=identity)

    async def get(self, principal: Principal, dataset_id: str, source_id: str, session_id: str) -> Session:
        """Read an open session. Raises PermissionDenied(SESSION_INVALID) for anything else."""
        check_may_push(principal, dataset_id, source_id)
        target = await self._write_path.target(principal, dataset_id, source_id, afresh=True)
        return await self._store.get_session(session_id, source_number=target.source.number)

    async def write(
        self,
        principal: Principal,
        dataset_id: str,
        source_id: str,
        session_id: str,
        action: Action,
        *,
        sequence: int = 0,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> WriteReport:
        """Carry out one action of a session. Raises as WritePath.write does, SESSION_INVALID, SEQUENCE_GAP."""
        check_may_push(principal, dataset_id, source_id)

        async def write() -> WriteReport:
            return await self._write(
                principal, dataset_id, source_id, session_id, action, sequence, identity, dry=validate_only
            )

        return await self._twice(dataset_id, write)

    async def _write(
        self,
        principal: Principal,
        dataset_id: str,
        source_id: str,
        session_id: str,
        action: Action,
        sequence: int,
        identity: RequestIdentity | None,
        *,
        dry: bool,
    ) -> WriteReport:
        target = await self._write_path.target(principal, dataset_id, source_id)
        line = await self._line(session_id, target)
        prepared = await self._write_path.prepare(target, action, report_violations=dry)
        if dry:
            return _staged(prepared, calls=line.session.calls)
        try:
            async with self._turn(line, sequence):
                pending = self._hand_over(principal, target, line.session, prepared, sequence, identity)
            return await pending
        except SynclineError as error:
            if error.reason == "SESSION_INVALID":
                self._lines.pop(session_id, None)
            raise

    async def close(
        self,
        principal: Principal,
        dataset_id: str,
        source_id: str,
        session_id: str,
        *,
        commit: bool,
        calls: int | None,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> CommitResult:
        """Commit or discard a session and end it.

        Raises SESSION_INVALID; FailedPrecondition(SESSION_INCOMPLETE, MASS_DELETE) and
        Aborted(SESSION_CONFLICT), after which the session is still open.
        """
        check_may_push(principal, dataset_id, source_id)

        async def close() -> CommitResult:
            return await self._close(
                principal, dataset_id, source_id, session_id, commit, calls, identity, dry=validate_only
            )

        return await self._twice(dataset_id, close)

    async def _twice(self, dataset_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do it again when it was refused because what was cached of the dataset is old."""
        try:
            return await work()
        except SynclineError as error:
            if not self._write_path.forget_stale(error, dataset_id):
                raise
        return await work()

    async def _close(
        self,
        principal: Principal,
        dataset_id: str,
        source_id: str,
        session_id: str,
        commit: bool,
        calls: int | None,
        identity: RequestIdentity | None,
        *,
        dry: bool,
    ) -> CommitResult:
        target = await self._write_path.target(principal, dataset_id, source_id)
        if identity is not None and (answer := await self._store.find_answer(identity)) is not None:
            return answer
        session = (await self._line(session_id, target)).session
        if not commit or session.mode is SessionMode.STREAM:
            return await self._end(target, session_id, identity, validate_only=dry)
        if calls is None:
            raise InvalidArgument(
                "INVALID_REQUEST",
                "calls: say how many calls were accepted, so that a torn set is not committed",
                fields=[("calls", "is required to commit an accrue or replace session")],
            )
        await self._store.prepare_session(session_id)
        dataset = target.opened.dataset
        result = await self._committer.commit(
            Commit(
                dataset_number=dataset.number,
                generation=dataset.generation,
                source_number=target.source.number,
                write=SessionCommit(
                    session_id=session_id,
                    calls=calls,
                    guard=None if session.allow_mass_delete else self._settings.guard,
                ),
                reason=Reason.SESSION,
                dry_run=dry,
                identity=None if dry else identity,
                key_id=principal.key_id,
            )
        )
        if not dry:
            self._lines.pop(session_id, None)
        return result

    async def expire(self, lease: Lease) -> int:
        """Roll back the sessions whose time is over; return how many. Raises Aborted(LEASE_LOST)."""
        expired = await self._store.expire_sessions(now_us=self._clock.now_us(), lease=lease)
        if expired:
            self._lines.clear()  # filled again from the store on use
        return expired

    async def _end(
        self, target: Target, session_id: str, identity: RequestIdentity | None, *, validate_only: bool
    ) -> CommitResult:
        if validate_only:
            revision = (await self._store.read_head(target.opened.dataset.number)).revision
        else:
            revision = await self._store.discard_session(
                session_id, source_number=target.source.number, identity=identity
            )
            self._lines.pop(session_id, None)
        return CommitResult(revision=revision, changed=False, statuses=b"")

    async def _line(self, session_id: str, target: Target) -> _Line:
        line = self._lines.get(session_id)
        if line is None or line.session.source_number != target.source.number:
            session = await self._store.get_session(session_id, source_number=target.source.number)
            line = self._lines.setdefault(session_id, _Line(session=session, next=session.calls + 1))
        return line

    @asynccontextmanager
    async def _turn(self, line: _Line, sequence: int) -> AsyncIterator[None]:
        """Hold the line's order while a call is handed over.

        A predecessor that was refused never comes; the store then tells which one it expects.
        """
        async with line.moved:
            until = self._clock.monotonic() + PREDECESSOR_WAIT_SECONDS
            pause, longest_pause = PREDECESSOR_LOOK_SECONDS
            while sequence > line.next and self._clock.monotonic() < until:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, PREDECESSOR_WAIT_SECONDS)):
                        await line.moved.wait_for(lambda: sequence <= line.next)
                pause = min(2 * pause, longest_pause)
                if sequence > line.next:
                    session = line.session
                    found = await self._store.get_session(
                        session.session_id, source_number=session.source_number
                    )
                    line.next = max(line.next, found.calls + 1)
            yield
            line.next = max(line.next, sequence + 1) if sequence else line.next + 1
            line.moved.notify_all()

    def _hand_over(
        self,
        principal: Principal,
        target: Target,
        session: Session,
        prepared: PreparedWrite,
        sequence: int,
        identity: RequestIdentity | None,
    ) -> "asyncio.Task[WriteReport]":
        """Start the call, which queues it with the store in the order of starting; await it outside the turn."""
        if session.mode is SessionMode.STREAM:
            work = self._commit_call(principal, target, session, prepared, sequence, identity)
        else:
            work = self._stage_call(session, prepared, sequence, identity)
        return asyncio.create_task(work, name="session call")

    async def _commit_call(
        self,
        principal: Principal,
        target: Target,
        session: Session,
        prepared: PreparedWrite,
        sequence: int,
        identity: RequestIdentity | None,
    ) -> WriteReport:
        dataset = target.opened.dataset
        result = await self._committer.commit(
            Commit(
                dataset_number=dataset.number,
                generation=dataset.generation,
                source_number=target.source.number,
                write=prepared.write,
                session_id=session.session_id,
                sequence=sequence,
                identity=identity,
                key_id=principal.key_id,
                size_bytes=prepared.size_bytes,
            )
        )
        return prepared.report(result)

    async def _stage_call(
        self, session: Session, prepared: PreparedWrite, sequence: int, identity: RequestIdentity | None
    ) -> WriteReport:
        staged = await self._store.stage(
            session.session_id,
            prepared.write,
            source_number=session.source_number,
            sequence=sequence,
            identity=identity,
        )
        return _staged(prepared, calls=staged.calls)


def _staged(prepared: PreparedWrite, *, calls: int) -> WriteReport:
    statuses = bytes([Status.STAGED]) * len(prepared.places)
    return prepared.report(CommitResult(revision=0, changed=False, statuses=statuses, calls=calls))
