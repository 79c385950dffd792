"""The reference model of a store: commits, sessions and producers. See store_model."""

from copy import copy
from dataclasses import replace

from support.store_model_base import ModelBase
from support.store_model_values import (
    Staged,
    State,
    check_content,
    result_of,
    session_invalid,
)
from syncline_server.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    SynclineError,
)
from syncline_server.model import (
    Commit,
    CommitResult,
    ConflictPolicy,
    IdentityKind,
    Producer,
    Reason,
    RecordScope,
    RequestIdentity,
    SessionCommit,
    SessionMode,
    Source,
    Status,
    Upserts,
    Violation,
)
from syncline_server.store.abc import GroupResult, StagedCall


class ModelWriting(ModelBase):
    """The part of the model that gives revisions."""

    async def commit(self, commits, *, carry_changes=10_000, sent=None):
        before = {number: state.dataset.head for number, state in self._states.items()}
        results = []
        for commit in commits:
            try:
                results.append(self._commit(commit))
            except SynclineError as error:
                results.append(error)
        appended = [self._appended(s, before[n], carry_changes) for n, s in self._states.items()]
        return GroupResult(
            results=results,
            appended=[one for one in appended if one is not None],
            transaction_seconds=0.0,
            sync_seconds=0.0,
        )

    def _commit(self, commit: Commit) -> CommitResult:
        identity = None if commit.dry_run else commit.identity
        if seen := self._seen(identity):
            return replace(seen.answer, replayed=True)
        state = self._state(commit.dataset_number)
        numbered = self._numbered(commit)
        if numbered and commit.producer.last_sequence <= numbered[1].last_sequence:
            revision = state.dataset.head.revision
            return CommitResult(revision=revision, changed=False, statuses=b"", replayed=True)
        source = self._source(commit.source_number)
        if source.dataset_number != state.dataset.number:
            raise NotFound("SOURCE_NOT_FOUND", "no such source")
        if state.dataset.generation != commit.generation:
            raise Aborted("DATASET_CHANGED", "changed")
        if source.disabled:
            raise FailedPrecondition("SOURCE_DISABLED", "disabled")
        if isinstance(commit.write, SessionCommit):
            return self._commit_session(commit, state, source)
        call = f"{commit.session_id}/{commit.sequence}" if commit.session_id and commit.sequence else None
        staged = None
        if commit.session_id:
            staged = self._open(commit.session_id, source.number)
            if staged.session.mode is not SessionMode.STREAM:
                raise session_invalid()
            if 0 < commit.sequence <= staged.session.calls:
                check_content(staged.stream_calls[commit.sequence - 1], commit.write)
                return replace(self._requests[call].answer, replayed=True)
            if commit.sequence > staged.session.calls + 1:
                raise OutOfRange("SEQUENCE_GAP", "gap", expected=staged.session.calls + 1)
        work = copy(state)
        work.rows, work.revisions = dict(state.rows), dict(state.revisions)
        result = self._apply(commit, work, source)
        if commit.dry_run:
            return replace(result, revision=state.dataset.head.revision)
        state.dataset, state.rows, state.revisions = work.dataset, work.rows, work.revisions
        self._received(source)
        if numbered:
            self._producers[numbered[0]] = replace(
                numbered[1],
                last_sequence=commit.producer.last_sequence,
                last_received_us=self._clock.now_us(),
            )
        if staged is not None:
            staged.stream_calls.append(commit.write)
            staged.session = replace(
                staged.session,
                calls=staged.session.calls + 1,
                records=staged.session.records + len(result.statuses),
                active_time_us=self._clock.now_us(),
            )
            result = replace(result, calls=staged.session.calls)
        answer = result
        if state.dataset.identity.kind is IdentityKind.APPEND and isinstance(commit.write, Upserts):
            answer = replace(result, record_ids=tuple(commit.write.record_ids))
        self._remember(identity, answer)
        if call is not None:
            self._remember(RequestIdentity(request_id=call, fingerprint=b"", time_us=0), answer)
        return result

    def _received(self, source: Source) -> None:
        self._sources[source.number] = replace(source, last_received_us=self._clock.now_us())

    def _apply(self, commit: Commit, state: State, source: Source) -> CommitResult:
        if isinstance(commit.write, Upserts):
            conflicts = self._conflicts(commit.write, state)
            if conflicts and not commit.partial:
                raise Aborted("CONDITION_FAILED", "failed", violations=conflicts)
            refused = {violation.index for violation in conflicts}
            actions = [
                (record_id, data, index in refused)
                for index, (record_id, data) in enumerate(
                    zip(commit.write.record_ids, commit.write.data, strict=True)
                )
            ]
        else:
            actions = [(record_id, None, False) for record_id in commit.write.record_ids]
        statuses = bytes(
            Status.CONFLICT if conflict else self._act(state, source, record_id, data, commit.reason, False)
            for record_id, data, conflict in actions
        )
        changed = any(s in (Status.CREATED, Status.UPDATED, Status.DELETED) for s in statuses)
        revision = self._next_revision(state) if changed else state.dataset.head.revision
        for record_id, data, conflict in actions:
            if not conflict:
                self._act(state, source, record_id, data, commit.reason, True, revision)
        return result_of(revision, changed, statuses)

    def _act(self, state, source, record_id, data, reason, really, revision=0) -> Status:
        shared = state.dataset.record_scope is RecordScope.SHARED
        row = state.rows.get(record_id)
        live = row is not None and row.data is not None
        if data is None:
            if not live or (not shared and row.source_number != source.number):
                return Status.NOT_FOUND
            if really:
                self._put(state, record_id, None, source.number, reason, revision, 0)
            return Status.DELETED
        if live and row.data == data:
            if really and shared:
                state.rows[record_id] = replace(row, source_number=source.number)
            return Status.UNCHANGED
        if really:
            created = row.create_time_us if live else state.revisions[revision][1]
            self._put(state, record_id, data, source.number, reason, revision, created)
        return Status.UPDATED if live else Status.CREATED

    def _conflicts(self, write: Upserts, state: State) -> list[Violation]:
        conflicts = []
        for index, condition in sorted(write.conditions.items()):
            row = state.rows.get(write.record_ids[index])
            revision = row.revision if row is not None and row.data is not None else None
            if condition.if_absent:
                if revision is not None:
                    conflicts.append(Violation(index=index, pointer="", keyword="if_absent", message=""))
            elif revision != condition.if_revision:
                conflicts.append(Violation(index=index, pointer="", keyword="if_revision", message=""))
        return conflicts

    def _commit_session(self, commit: Commit, state: State, source: Source) -> CommitResult:
        write = commit.write
        staged = self._open(write.session_id, source.number)
        if write.calls != staged.session.calls:
            raise FailedPrecondition("SESSION_INCOMPLETE", "incomplete", calls=staged.session.calls)
        final: dict[str, bytes | None] = {}
        for _, _, action, _ in staged.calls:
            for index, record_id in enumerate(action.record_ids):
                final.pop(record_id, None)
                final[record_id] = action.data[index] if isinstance(action, Upserts) else None
        reasons = dict.fromkeys(final, commit.reason)
        mine = {r: row for r, row in state.live().items() if row.source_number == source.number}
        if staged.session.mode is SessionMode.REPLACE:
            for record_id in sorted(mine, key=lambda r: mine[r].position):
                if record_id not in final:
                    final[record_id] = None
                    reasons[record_id] = Reason.REPLACE
        statuses = {r: self._act(state, source, r, data, 0, False) for r, data in final.items()}
        newer = [
            r
            for r, status in statuses.items()
            if status in (Status.CREATED, Status.UPDATED, Status.DELETED)
            and r in state.rows
            and state.rows[r].revision > staged.session.base_revision
        ]
        kept = 0
        if newer and staged.session.conflict_policy is ConflictPolicy.ABORT:
            raise Aborted("SESSION_CONFLICT", "conflicts", conflicts=len(newer))
        if staged.session.conflict_policy is ConflictPolicy.KEEP_NEWER:
            kept = len(newer)
            for r in newer:
                del final[r], statuses[r]
        if staged.session.mode is SessionMode.REPLACE and write.guard is not None:
            deleted = sum(statuses[r] is Status.DELETED for r in mine if r in statuses)
            if write.guard.refuses(deleted=deleted, before=len(mine)):
                raise FailedPrecondition("MASS_DELETE", "too many", deleted=deleted, records=len(mine))
        changed = any(s in (Status.CREATED, Status.UPDATED, Status.DELETED) for s in statuses.values())
        counts = result_of(state.dataset.head.revision, changed, bytes(statuses.values()))
        result = replace(counts, statuses=b"", calls=staged.session.calls, kept=kept)
        if commit.dry_run:
            return result
        revision = self._next_revision(state) if changed else state.dataset.head.revision
        for record_id, data in final.items():
            self._act(state, source, record_id, data, reasons[record_id], True, revision)
        self._received(source)
        del self._sessions[write.session_id]
        result = replace(result, revision=revision)
        self._remember(commit.identity, result)
        return result

    async def find_answer(self, identity):
        seen = self._seen(identity)
        if seen is None:
            return None
        return replace(seen.answer or CommitResult(revision=0, changed=False, statuses=b""), replayed=True)

    async def forget_requests(self, *, before_us, limit, lease=None):
        self.check_lease(lease)
        old = sorted((r.until_us, name) for name, r in self._requests.items() if r.until_us < before_us)
        for _, name in old[:limit]:
            del self._requests[name]
        return len(old[:limit])

    # -- sessions -------------------------------------------------------------------------------------------

    def _open(self, session_id: str, source_number: int) -> Staged:
        staged = self._sessions.get(session_id)
        if staged is None or staged.session.source_number != source_number:
            raise session_invalid()
        return staged

    async def open_session(self, session, *, identity=None):
        if seen := self._seen(identity):
            if seen.resource not in self._sessions:
                raise session_invalid()
            return self._sessions[seen.resource].session
        head = self._state(session.dataset_number).head()
        source = self._source(session.source_number)
        if source.disabled:
            raise FailedPrecondition("SOURCE_DISABLED", "disabled")
        for key in [k for k, s in self._sessions.items() if s.session.source_number == source.number]:
            del self._sessions[key]
        made = replace(session, calls=0, records=0, base_revision=head.revision)
        self._sessions[session.session_id] = Staged(session=made)
        self._remember(identity, resource=session.session_id)
        return made

    async def get_session(self, session_id, *, source_number):
        return self._open(session_id, source_number).session

    async def stage(self, session_id, write, *, source_number, sequence=0, identity=None):
        staged = self._open(session_id, source_number)
        if staged.session.mode is SessionMode.STREAM:
            raise session_invalid()
        if identity is not None:
            for number, (request_id, fingerprint, _, records) in enumerate(staged.calls, 1):
                if request_id == identity.request_id:
                    if fingerprint != identity.fingerprint:
                        raise InvalidArgument("REQUEST_ID_REUSED", "reused")
                    return StagedCall(calls=number, records=records, replayed=True)
        calls = staged.session.calls
        if 0 < sequence <= calls:
            check_content(staged.calls[sequence - 1][2], write)
            return StagedCall(calls=sequence, records=staged.calls[sequence - 1][3], replayed=True)
        if sequence > calls + 1:
            raise OutOfRange("SEQUENCE_GAP", "gap", expected=calls + 1)
        records = staged.session.records + len(write.record_ids)
        name, fingerprint = (identity.request_id, identity.fingerprint) if identity else (None, b"")
        staged.calls.append((name, fingerprint, write, records))
        staged.session = replace(
            staged.session, calls=calls + 1, records=records, active_time_us=self._clock.now_us()
        )
        return StagedCall(calls=calls + 1, records=records, replayed=False)

    async def prepare_session(self, session_id):
        return

    async def discard_session(self, session_id, *, source_number, identity=None):
        if seen := self._seen(identity):
            return seen.answer.revision
        self._open(session_id, source_number)
        staged = self._sessions.pop(session_id)
        revision = self._state(staged.session.dataset_number).head().revision
        self._remember(identity, CommitResult(revision=revision, changed=False, statuses=b""))
        return revision

    async def expire_sessions(self, *, now_us, lease=None):
        self.check_lease(lease)
        over = [
            key
            for key, staged in self._sessions.items()
            if staged.session.expire_time_us is not None and staged.session.expire_time_us <= now_us
        ]
        for key in over:
            del self._sessions[key]
        return len(over)

    async def count_sessions(self):
        return len(self._sessions)

    # -- producers ------------------------------------------------------------------------------------------

    async def open_producer(
        self, source_number, producer_id, *, epoch, previous_epoch=0, dry_run=False, identity=None
    ) -> tuple[Producer, int]:
        if not epoch and not dry_run and (seen := self._seen(identity)):
            epoch = seen.resource
        source = self._source(source_number)
        if source.disabled:
            raise FailedPrecondition("SOURCE_DISABLED", "disabled")
        now_us, key = self._clock.now_us(), (source_number, producer_id)
        present = self._producers.get(key)
        if epoch and (present is None or present.epoch != epoch):
            raise FailedPrecondition("PRODUCER_FENCED", "fenced")
        producer = present or Producer(
            number=self._last_producer + 1,
            source_number=source_number,
            dataset_id=source.dataset_id,
            source_id=source.source_id,
            producer_id=producer_id,
            epoch=0,
            last_sequence=0,
            create_time_us=now_us,
            open_time_us=now_us,
        )
        epochs = dict(self._epochs.get(producer.number, {}))
        if not epoch:
            next_epoch = max(now_us // 1_000, self._used_epochs.get(key, 0) + 1)
            producer = replace(producer, epoch=next_epoch, open_time_us=now_us)
            epochs[next_epoch] = producer.last_sequence
        came_to = 0
        if previous_epoch in epochs:
            later = [base for begun, base in sorted(epochs.items()) if begun > previous_epoch]
            came_to = later[0] if later else producer.last_sequence
        if not dry_run:
            self._last_producer = max(self._last_producer, producer.number)
            self._producers[key], self._epochs[producer.number] = producer, epochs
            self._used_epochs[key] = producer.epoch
            if not epoch:
                self._remember(identity, resource=producer.epoch)
        return producer, came_to

    async def get_producer(self, source_number, producer_id):
        if (source_number, producer_id) not in self._producers:
            raise NotFound("PRODUCER_NOT_FOUND", "no such producer")
        return self._producers[source_number, producer_id]

    async def list_producers(self, source_number, *, after="", limit):
        mine = [p for p in self._producers.values() if p.source_number == source_number]
        mine = [p for p in mine if p.producer_id.encode() > after.encode()]
        return sorted(mine, key=lambda p: p.producer_id.encode())[:limit]

    async def delete_producer(self, source_number, producer_id, *, identity=None):
        if self._seen(identity):
            return
        await self.get_producer(source_number, producer_id)
        del self._producers[source_number, producer_id]
        self._remember(identity, resource=producer_id)

    def _numbered(self, commit: Commit) -> tuple[tuple[int, str], Producer] | None:
        """The producer of a commit. Raises PRODUCER_FENCED, SEQUENCE_GAP."""
        write = commit.producer
        if write is None:
            return None
        for key, producer in self._producers.items():
            if producer.number == write.producer_number and producer.epoch == write.epoch:
                expected = producer.last_sequence + 1
                if write.first_sequence != expected and write.last_sequence >= expected:
                    raise OutOfRange("SEQUENCE_GAP", "gap", expected=expected)
                return key, producer
        if commit.source_number not in self._sources:
            raise NotFound("SOURCE_NOT_FOUND", "no such source")
        raise FailedPrecondition("PRODUCER_FENCED", "fenced")
