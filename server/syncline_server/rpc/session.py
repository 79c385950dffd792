"""SessionService: writes that belong together."""

# ruff: noqa: N802 - methods are named by the proto

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final

from syncline.names import source_name
from syncline.v1 import session_pb2
from syncline.v1 import session_service_pb2 as pb
from syncline.v1.session_service_pb2_grpc import SessionServiceServicer
from syncline_server.ingest.sessions import Sessions
from syncline_server.ingest.write_path import Action, DeleteIds, DeleteValues, Upsert
from syncline_server.model import ConflictPolicy, Principal, Session, SessionMode, Violation
from syncline_server.rpc.calls import allow_while, caller
from syncline_server.rpc.convert import (
    Problems,
    RequestIds,
    begin,
    duration_us,
    enum_of,
    source_of,
    timestamp,
    violations_out,
)
from syncline_server.rpc.push import MAX_VIOLATIONS

MIN_IDLE_US: Final = 1_000_000
MAX_IDLE_US: Final = 7 * 86_400_000_000


class SessionService(SessionServiceServicer):
    """See the proto."""

    def __init__(self, sessions: Sessions, request_ids: RequestIds) -> None:
        self._sessions = sessions
        self._request_ids = request_ids

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        """Open a session; an earlier one of the same source is rolled back."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        mode = enum_of(SessionMode, request.mode, problems, "mode")
        idle_timeout_us = None
        if request.HasField("idle_timeout"):
            idle_timeout_us = duration_us(request.idle_timeout)
            if not MIN_IDLE_US <= idle_timeout_us <= MAX_IDLE_US:
                problems.add("idle_timeout", "must be from 1 s to 7 days")
        conflict_policy = enum_of(ConflictPolicy, request.conflict_policy, problems, "conflict_policy")
        conflict_policy = conflict_policy or ConflictPolicy.OVERWRITE
        if mode is SessionMode.STREAM and conflict_policy is not ConflictPolicy.OVERWRITE:
            problems.add(
                "conflict_policy", "is for accrue and replace sessions; use conditions in stream ones"
            )
        identity = self._request_ids.identity("OpenSession", request, problems)
        problems.raise_any()
        session = await self._sessions.open(
            caller(),
            dataset_id,
            source_id,
            mode=mode or SessionMode.STREAM,
            allow_mass_delete=request.allow_mass_delete,
            idle_timeout_us=idle_timeout_us,
            conflict_policy=conflict_policy,
            identity=identity,
            validate_only=request.validate_only,
        )
        return pb.OpenSessionResponse(session=_session_out(session, request.source))

    async def WriteSession(self, request: pb.WriteSessionRequest, context: Any) -> pb.WriteSessionResponse:
        """Carry out one action."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        action = _action_of(request, problems)
        if request.sequence < 0:
            problems.add("sequence", "must not be negative")
        identity = self._request_ids.identity("WriteSession", request, problems)
        problems.raise_any()
        report = await self._sessions.write(
            caller(),
            dataset_id,
            source_id,
            request.session_id,
            action,
            sequence=request.sequence,
            identity=identity,
            validate_only=request.validate_only,
        )
        return pb.WriteSessionResponse(
            revision=report.revision,
            record_ids=report.record_ids,
            statuses=report.statuses,  # type: ignore[arg-type]  # the numbers are ours
            calls=report.calls,
            violations=violations_out(report.violations[:MAX_VIOLATIONS]),
        )

    async def StreamSession(
        self, request_iterator: AsyncIterator[pb.StreamSessionRequest], context: Any
    ) -> pb.StreamSessionResponse:
        """Carry out many actions, each a call of its own, as they arrive."""
        del context
        dataset_id = source_id = session_id = ""
        calls = revision = place = 0
        invalid = _InvalidMessages()
        async for request in request_iterator:
            problems = begin(request)
            if not session_id:
                for field in ("source", "session_id"):
                    if not getattr(request, field):
                        problems.add(field, "is required in the first message")
                dataset_id, source_id = source_of(request.source, problems)
                session_id = request.session_id
            action = _action_of(request, problems)
            if request.sequence < 1:
                problems.add("sequence", "is required, and counts from 1")
            identity = None
            if request.request_id:
                call = _as_call(request, source_name(dataset_id, source_id), session_id)
                identity = self._request_ids.identity("WriteSession", call, problems)
            problems.raise_any()
            allow_while(partial(Principal.may_push, dataset_id=dataset_id, source_id=source_id))
            report = await self._sessions.write(
                caller(),
                dataset_id,
                source_id,
                session_id,
                action,
                sequence=request.sequence,
                identity=identity,
                validate_only=request.validate_only,
            )
            invalid.add(place, request.sequence, report.violations)
            calls = max(calls, report.calls)
            revision = max(revision, report.revision)
            place += 1
        if not session_id:
            return pb.StreamSessionResponse(violations_complete=True)
        session = await self._sessions.get(caller(), dataset_id, source_id, session_id)
        return pb.StreamSessionResponse(
            calls=max(calls, session.calls),
            records=session.records,
            revision=revision,
            invalid_messages=invalid.messages,
            violations_complete=invalid.complete,
        )

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        """Commit or discard the session and end it."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        identity = self._request_ids.identity("CloseSession", request, problems)
        problems.raise_any()
        result = await self._sessions.close(
            caller(),
            dataset_id,
            source_id,
            request.session_id,
            commit=request.commit,
            calls=request.calls if request.HasField("calls") else None,
            identity=identity,
            validate_only=request.validate_only,
        )
        return pb.CloseSessionResponse(
            revision=result.revision,
            created=result.created,
            updated=result.updated,
            unchanged=result.unchanged,
            deleted=result.deleted,
            kept=result.kept,
        )

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        """Read an open session."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        problems.raise_any()
        session = await self._sessions.get(caller(), dataset_id, source_id, request.session_id)
        return pb.GetSessionResponse(session=_session_out(session, source_name(dataset_id, source_id)))


class _InvalidMessages:
    """Messages that were checked only and found wanting, with MAX_VIOLATIONS in all of them."""

    __slots__ = ("complete", "messages", "room")

    def __init__(self) -> None:
        self.messages: list[pb.InvalidMessage] = []
        self.room = MAX_VIOLATIONS
        self.complete = True

    def add(self, place: int, sequence: int, violations: Sequence[Violation]) -> None:
        """Take what is wrong with the message at this place, as far as there is room."""
        told = violations_out(violations[: self.room])
        if told:
            self.messages.append(pb.InvalidMessage(index=place, sequence=sequence, violations=told))
        self.room -= len(told)
        self.complete = self.complete and len(told) == len(violations)


def _as_call(request: pb.StreamSessionRequest, source: str, session_id: str) -> pb.WriteSessionRequest:
    """The call that a message stands for: what its request id is remembered with.

    Only the first message of a stream has the source and the session in it, and on a second try another
    message may be the first.
    """
    return pb.WriteSessionRequest(
        source=source,
        session_id=session_id,
        action=request.action,
        sequence=request.sequence,
        request_id=request.request_id,
        validate_only=request.validate_only,
    )


def _action_of(request: pb.WriteSessionRequest | pb.StreamSessionRequest, problems: Problems) -> Action:
    action = request.action
    kind = action.WhichOneof("action")
    if kind == "upsert":
        return Upsert(records=list(action.upsert.records), conditions={})
    if kind == "delete":
        return DeleteValues(records=list(action.delete.records))
    if kind is None and request.HasField("action"):
        problems.add("action", "needs upsert, delete or delete_ids")
    return DeleteIds(record_ids=list(action.delete_ids.record_ids))


def _session_out(session: Session, source: str) -> session_pb2.Session:
    return session_pb2.Session(
        session_id=session.session_id,
        source=source,
        mode=session_pb2.SessionMode.ValueType(session.mode),
        calls=session.calls,
        records=session.records,
        allow_mass_delete=session.allow_mass_delete,
        create_time=timestamp(session.create_time_us),
        expire_time=timestamp(session.expire_time_us),
        conflict_policy=session_pb2.ConflictPolicy.ValueType(session.conflict_policy),
        base_revision=session.base_revision,
    )
