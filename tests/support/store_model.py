"""The reference model of a store: dictionaries and plain loops, no performance, no durability.

It is the oracle of the contract suite and passes that suite itself. Every method follows the prose of
``store/abc.py`` as literally as possible; where SQL works on sets, this goes record by record.
"""

import secrets
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b

from support.store_model_nodes import ModelNodes
from syncline_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    SynclineError,
)
from syncline_server.model import (
    DIGEST_MODULUS,
    Appended,
    ChangeKind,
    Changes,
    Commit,
    CommitResult,
    ConflictPolicy,
    Dataset,
    Deletes,
    EntryPage,
    Head,
    IdentityKind,
    Key,
    Page,
    Producer,
    Reason,
    Record,
    RecordScope,
    Replica,
    RequestIdentity,
    Role,
    Session,
    SessionCommit,
    SessionMode,
    Source,
    Status,
    Upserts,
    Violation,
)
from syncline_server.store.abc import GroupResult, PurgeResult, StagedCall, StoreInfo

REMEMBER_US = 25 * 3_600 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The newest version of a record, or its tombstone (data None)."""

    position: int
    revision: int
    time_us: int
    reason: int
    source_number: int
    create_time_us: int
    data: bytes | None


@lru_cache(maxsize=1 << 16)
def _term(record_id: str, revision: int, data: bytes) -> int:
    """What a record adds to the digest."""
    value_hash = blake2b(data, digest_size=16).digest()
    term = blake2b(record_id.encode() + b"\0" + revision.to_bytes(8, "big") + value_hash, digest_size=16)
    return int.from_bytes(term.digest(), "big")


@dataclass(slots=True, kw_only=True)
class State:
    """A dataset with everything in it."""

    dataset: Dataset
    rows: dict[str, Row] = field(default_factory=dict)
    revisions: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    """Commit id and time."""

    def live(self) -> dict[str, Row]:
        return {record_id: row for record_id, row in self.rows.items() if row.data is not None}

    def head(self) -> Head:
        live = self.live()
        digest = sum(_term(record_id, row.revision, row.data) for record_id, row in live.items())
        return replace(self.dataset.head, record_count=len(live), digest=digest % DIGEST_MODULUS)


@dataclass(slots=True, kw_only=True)
class Staged:
    """An open session and its accepted calls."""

    session: Session
    calls: list[tuple[str | None, bytes, Upserts | Deletes | None, int]] = field(default_factory=list)
    """Request id, fingerprint, action, records of all calls up to it."""
    stream_calls: list[Upserts | Deletes] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Remembered:
    """A request that had an effect."""

    fingerprint: bytes
    until_us: int
    answer: CommitResult | None = None
    resource: object = None


class ModelStore(ModelNodes):
    """All of a store, in memory."""

    def __init__(self, clock, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        history_id = random_bytes(8)
        self.info = StoreInfo(
            kind="model",
            store_id=random_bytes(8),
            token_secret=random_bytes(32),
            history_id=history_id,
            histories=frozenset({history_id}),
            engine_version="dict",
        )
        super().__init__(clock)
        self._random_bytes = random_bytes
        self._states: dict[int, State] = {}
        self._sources: dict[int, Source] = {}
        self._keys: dict[str, Key] = {}
        self._sessions: dict[str, Staged] = {}
        self._requests: dict[str, Remembered] = {}
        self._replicas: dict[tuple[int, str], Replica] = {}
        self._producers: dict[tuple[int, str], Producer] = {}
        self._epochs: dict[int, dict[int, int]] = {}
        """By producer number: where the numbers stood when each epoch began."""
        self._used_epochs: dict[tuple[int, str], int] = {}
        self._last_producer = 0
        self._last_dataset = 0
        self._last_source = 0

    # -- identities ---------------------------------------------------------------------------------------

    def _seen(self, identity: RequestIdentity | None) -> Remembered | None:
        if identity is None or identity.request_id not in self._requests:
            return None
        seen = self._requests[identity.request_id]
        if seen.fingerprint != identity.fingerprint:
            raise InvalidArgument("REQUEST_ID_REUSED", "reused")
        return seen

    def _remember(
        self, identity: RequestIdentity | None, answer: CommitResult | None = None, resource: object = None
    ) -> None:
        if identity is not None:
            self._requests[identity.request_id] = Remembered(
                fingerprint=identity.fingerprint,
                until_us=max(identity.time_us, self._clock.now_us()) + REMEMBER_US,
                answer=answer,
                resource=resource,
            )

    # -- catalog ------------------------------------------------------------------------------------------

    def _state(self, number: int) -> State:
        if number not in self._states:
            raise NotFound("DATASET_NOT_FOUND", "no such dataset")
        return self._states[number]

    def _dataset(self, number: int) -> Dataset:
        state = self._state(number)
        return replace(state.dataset, head=state.head())

    def _find(self, dataset_id: str) -> int:
        for number, state in self._states.items():
            if state.dataset.dataset_id == dataset_id:
                return number
        raise NotFound("DATASET_NOT_FOUND", "no such dataset")

    async def create_dataset(self, dataset, *, identity=None):
        if seen := self._seen(identity):
            return self._dataset(seen.resource)
        if any(s.dataset.dataset_id == dataset.dataset_id for s in self._states.values()):
            raise AlreadyExists("DATASET_EXISTS", "exists")
        self._last_dataset += 1
        head = Head(commit_id=dataset.incarnation[:8])
        made = replace(dataset, number=self._last_dataset, generation=1, head=head)
        self._states[made.number] = State(dataset=made)
        self._add_source(
            Source(
                number=0,
                dataset_number=made.number,
                dataset_id=made.dataset_id,
                source_id="default",
                generation=1,
                create_time_us=made.create_time_us,
                update_time_us=made.create_time_us,
            )
        )
        self._remember(identity, resource=made.number)
        return self._dataset(made.number)

    async def get_dataset(self, dataset_id):
        return self._dataset(self._find(dataset_id))

    async def list_datasets(self, *, after="", limit):
        ordered = sorted(self._states.values(), key=lambda s: s.dataset.dataset_id.encode())
        following = [s.dataset.number for s in ordered if s.dataset.dataset_id.encode() > after.encode()]
        return [self._dataset(number) for number in following[:limit]]

    def _expect(self, present, expected_generation):
        if expected_generation not in (None, present.generation):
            raise Aborted("ETAG_MISMATCH", "changed")

    async def update_dataset(self, dataset, *, expected_generation, identity=None):
        if self._seen(identity):
            return self._dataset(dataset.number)
        state = self._state(dataset.number)
        self._expect(state.dataset, expected_generation)
        if dataset.identity != state.dataset.identity and state.rows:
            raise FailedPrecondition("IDENTITY_IN_USE", "in use")
        self._store_settings(state, dataset)
        self._remember(identity, resource=dataset.number)
        return self._dataset(dataset.number)

    def _store_settings(self, state: State, dataset: Dataset) -> None:
        present = state.dataset
        state.dataset = replace(
            dataset,
            dataset_id=present.dataset_id,
            incarnation=present.incarnation,
            record_scope=present.record_scope,
            create_time_us=present.create_time_us,
            generation=present.generation + 1,
            head=present.head,
        )

    async def rekey(self, dataset, make_record_id, *, expected_generation, identity=None):
        if self._seen(identity):
            return self._dataset(dataset.number), None
        state = self._state(dataset.number)
        self._expect(state.dataset, expected_generation)
        live = sorted(state.live().items(), key=lambda item: item[1].position)
        new_ids = {
            record_id: make_record_id(row.data, self._sources[row.source_number].source_id)
            for record_id, row in live
        }
        newest = {new_ids[record_id]: (record_id, row) for record_id, row in live}
        puts = []
        for new_id, (record_id, row) in sorted(newest.items(), key=lambda item: item[1][1].position):
            there = state.rows.get(new_id)
            if new_id != record_id and (there is None or there.data != row.data):
                puts.append((new_id, row))
        deletes = [record_id for record_id, _ in live if record_id not in newest]
        for key in [k for k, s in self._sessions.items() if s.session.dataset_number == dataset.number]:
            del self._sessions[key]
        before = state.dataset.head
        if puts or deletes:
            revision = self._next_revision(state)
            old_rows = dict(state.rows)
            for new_id, row in puts:
                there = old_rows.get(new_id)
                created = row.create_time_us
                if there is not None and there.data is not None:
                    created = there.create_time_us
                self._put(state, new_id, row.data, row.source_number, Reason.SOURCE, revision, created)
            for record_id in deletes:
                self._tombstone(state, record_id, Reason.SOURCE, revision)
        self._store_settings(state, dataset)
        self._remember(identity, resource=dataset.number)
        return self._dataset(dataset.number), self._appended(state, before, 10_000)

    async def delete_dataset(self, dataset_number, *, expected_generation, identity=None):
        if self._seen(identity):
            return
        state = self._state(dataset_number)
        self._expect(state.dataset, expected_generation)
        del self._states[dataset_number]
        self._replicas = {k: r for k, r in self._replicas.items() if r.dataset_number != dataset_number}
        for number in [n for n, s in self._sources.items() if s.dataset_number == dataset_number]:
            self._drop_source(number)
        self._remember(identity, resource=dataset_number)

    def _add_source(self, source: Source) -> Source:
        self._last_source += 1
        made = replace(source, number=self._last_source, generation=1)
        self._sources[made.number] = made
        return made

    def _drop_source(self, number: int) -> None:
        del self._sources[number]
        for key_id in [k for k, key in self._keys.items() if key.source_number == number]:
            del self._keys[key_id]
        for key in [k for k, s in self._sessions.items() if s.session.source_number == number]:
            del self._sessions[key]
        self._producers = {k: p for k, p in self._producers.items() if p.source_number != number}

    def _source(self, number: int) -> Source:
        if number not in self._sources:
            raise NotFound("SOURCE_NOT_FOUND", "no such source")
        return self._sources[number]

    async def create_source(self, source, *, identity=None):
        if seen := self._seen(identity):
            return self._source(seen.resource)
        dataset = self._state(source.dataset_number).dataset
        if any(
            (s.dataset_number, s.source_id) == (dataset.number, source.source_id)
            for s in self._sources.values()
        ):
            raise AlreadyExists("SOURCE_EXISTS", "exists")
        made = self._add_source(replace(source, dataset_id=dataset.dataset_id))
        self._remember(identity, resource=made.number)
        return made

    async def get_source(self, dataset_id, source_id):
        number = self._find(dataset_id)
        for source in self._sources.values():
            if (source.dataset_number, source.source_id) == (number, source_id):
                return source
        raise NotFound("SOURCE_NOT_FOUND", "no such source")

    async def list_sources(self, dataset_id, *, after="", limit):
        number = self._find(dataset_id)
        mine = [
            s
            for s in self._sources.values()
            if s.dataset_number == number and s.source_id.encode() > after.encode()
        ]
        return sorted(mine, key=lambda s: s.source_id.encode())[:limit]

    async def update_source(self, source, *, expected_generation, identity=None):
        if not self._seen(identity):
            present = self._source(source.number)
            self._expect(present, expected_generation)
            self._sources[source.number] = replace(
                present,
                display_name=source.display_name,
                disabled=source.disabled,
                expect_every_us=source.expect_every_us,
                update_time_us=source.update_time_us,
                generation=present.generation + 1,
            )
            self._remember(identity, resource=source.number)
        return self._source(source.number)

    async def delete_source(self, source, *, expected_generation, identity=None):
        if self._seen(identity):
            return None
        present = self._source(source.number)
        self._expect(present, expected_generation)
        state = self._state(present.dataset_number)
        before = state.dataset.head
        mine = [(r, row) for r, row in state.live().items() if row.source_number == present.number]
        if mine:
            revision = self._next_revision(state)
            for record_id, _ in sorted(mine, key=lambda item: item[1].position):
                self._tombstone(state, record_id, Reason.SOURCE, revision)
        self._drop_source(present.number)
        self._remember(identity, resource=present.number)
        return self._appended(state, before, 10_000)

    async def create_key(self, key, *, identity=None):
        if seen := self._seen(identity):
            return await self.get_key(seen.resource)
        dataset_id = source_id = ""
        number = 0
        if key.role is Role.PUSH:
            source = self._source(key.source_number)
            dataset_id, source_id, number = source.dataset_id, source.source_id, source.number
        made = replace(key, dataset_id=dataset_id, source_id=source_id, source_number=number, generation=1)
        self._keys[key.key_id] = made
        self._remember(identity, resource=key.key_id)
        return made

    async def get_key(self, key_id):
        if key_id not in self._keys:
            raise NotFound("KEY_NOT_FOUND", "no such key")
        return self._keys[key_id]

    async def list_keys(self, *, after="", limit):
        return [self._keys[k] for k in sorted(self._keys, key=str.encode) if k.encode() > after.encode()][
            :limit
        ]

    async def update_key(self, key, *, expected_generation, identity=None):
        if not self._seen(identity):
            present = await self.get_key(key.key_id)
            self._expect(present, expected_generation)
            self._keys[key.key_id] = replace(
                present,
                display_name=key.display_name,
                patterns=key.patterns,
                expire_time_us=key.expire_time_us,
                generation=present.generation + 1,
            )
            self._remember(identity, resource=key.key_id)
        return await self.get_key(key.key_id)

    async def delete_key(self, key_id, *, expected_generation, identity=None):
        if self._seen(identity):
            return
        self._expect(await self.get_key(key_id), expected_generation)
        del self._keys[key_id]
        self._remember(identity, resource=key_id)

    async def touch_keys(self, last_used_us):
        for key_id, used_us in last_used_us.items():
            if key_id in self._keys:
                present = self._keys[key_id]
                self._keys[key_id] = replace(present, last_used_us=max(present.last_used_us or 0, used_us))

    # -- writing ------------------------------------------------------------------------------------------

    def _next_revision(self, state: State) -> int:
        head = state.dataset.head
        time_us = max(self._clock.now_us(), head.commit_time_us)
        head = replace(
            head, revision=head.revision + 1, commit_id=self._random_bytes(8), commit_time_us=time_us
        )
        state.dataset = replace(state.dataset, head=head)
        state.revisions[head.revision] = (head.commit_id, time_us)
        return head.revision

    def _position(self, state: State) -> int:
        head = replace(state.dataset.head, last_position=state.dataset.head.last_position + 1)
        state.dataset = replace(state.dataset, head=head)
        return head.last_position

    def _put(self, state, record_id, data, source_number, reason, revision, create_time_us) -> None:
        state.rows[record_id] = Row(
            position=self._position(state),
            revision=revision,
            time_us=state.revisions[revision][1],
            reason=int(reason),
            source_number=source_number,
            create_time_us=create_time_us,
            data=data,
        )

    def _tombstone(self, state, record_id, reason, revision) -> None:
        self._put(state, record_id, None, state.rows[record_id].source_number, reason, revision, 0)

    def _appended(self, state: State, before: Head, carry_changes: int) -> Appended | None:
        head = state.head()
        if head.revision == before.revision:
            return None
        rows = sorted(
            ((r, row) for r, row in state.rows.items() if row.position > before.last_position),
            key=lambda item: item[1].position,
        )
        return Appended(
            dataset_number=state.dataset.number,
            from_revision=before.revision,
            head=head,
            changes=_changes(rows) if len(rows) <= carry_changes else None,
        )

    async def commit(self, commits, *, carry_changes=10_000):
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
                raise _session_invalid()
            if 0 < commit.sequence <= staged.session.calls:
                _check_content(staged.stream_calls[commit.sequence - 1], commit.write)
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
        return _result(revision, changed, statuses)

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
        counts = _result(state.dataset.head.revision, changed, bytes(statuses.values()))
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

    # -- sessions -----------------------------------------------------------------------------------------

    def _open(self, session_id: str, source_number: int) -> Staged:
        staged = self._sessions.get(session_id)
        if staged is None or staged.session.source_number != source_number:
            raise _session_invalid()
        return staged

    async def open_session(self, session, *, identity=None):
        if seen := self._seen(identity):
            if seen.resource not in self._sessions:
                raise _session_invalid()
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
            raise _session_invalid()
        if identity is not None:
            for number, (request_id, fingerprint, _, records) in enumerate(staged.calls, 1):
                if request_id == identity.request_id:
                    if fingerprint != identity.fingerprint:
                        raise InvalidArgument("REQUEST_ID_REUSED", "reused")
                    return StagedCall(calls=number, records=records, replayed=True)
        calls = staged.session.calls
        if 0 < sequence <= calls:
            _check_content(staged.calls[sequence - 1][2], write)
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

    # -- reading ------------------------------------------------------------------------------------------

    async def read_changes(self, dataset_number, *, after, max_changes, max_bytes, seen_revision=0):
        state = self._state(dataset_number)
        following = sorted(
            ((r, row) for r, row in state.rows.items() if row.position > after),
            key=lambda item: item[1].position,
        )
        return self._page(state, following, following[:max_changes], after, max_bytes, seen_revision)

    async def read_named_changes(
        self, dataset_number, record_ids, *, after, through_revision, max_bytes, seen_revision=0
    ):
        state = self._state(dataset_number)
        following = sorted(
            (
                (record_id, row)
                for record_id, row in state.live().items()
                if record_id in record_ids and row.position > after and row.revision <= through_revision
            ),
            key=lambda item: item[1].position,
        )
        return self._page(state, following, following, after, max_bytes, seen_revision)

    def _page(self, state, following, allowed, after, max_bytes, seen_revision):
        page, size = [], 0
        for record_id, row in allowed:
            size += len(record_id.encode()) + len(row.data or b"")
            if page and size > max_bytes:
                break
            page.append((record_id, row))
        if seen_revision == 0:
            seen = state.dataset.incarnation[:8]
        else:
            seen = state.revisions.get(seen_revision, (None, 0))[0]
        return Page(
            changes=_changes(page),
            last_position=page[-1][1].position if page else after,
            last_revision=page[-1][1].revision if page else 0,
            complete=len(page) == len(following),
            head=state.head(),
            seen_commit_id=seen,
        )

    async def read_head(self, dataset_number):
        return self._state(dataset_number).head()

    def _record(self, record_id: str, row: Row) -> Record:
        return Record(
            record_id=record_id,
            data=row.data,
            revision=row.revision,
            source_id=self._sources[row.source_number].source_id,
            create_time_us=row.create_time_us,
            update_time_us=row.time_us,
        )

    async def get_records(self, dataset_number, record_ids, *, max_bytes):
        state = self._state(dataset_number)
        live = state.live()
        found, left, size = [], [], 0
        for record_id in record_ids:
            if record_id in live:
                size += len(record_id.encode()) + len(live[record_id].data)
                if found and size > max_bytes:
                    left.append(record_id)
                else:
                    found.append(self._record(record_id, live[record_id]))
        return found, left, state.dataset.head.revision

    async def list_records(self, dataset_number, *, after, limit, max_bytes):
        state = self._state(dataset_number)
        live = state.live()
        following = sorted((r for r in live if r.encode() > after.encode()), key=str.encode)
        found, size = [], 0
        for record_id in following[:limit]:
            size += len(record_id.encode()) + len(live[record_id].data)
            if found and size > max_bytes:
                break
            found.append(self._record(record_id, live[record_id]))
        return found, len(found) < len(following), state.dataset.head.revision

    async def list_entries(self, dataset_number, *, after, through="", limit):
        state = self._state(dataset_number)
        following = self._range(state, after, through)
        found = following[:limit]
        return EntryPage(
            record_ids=found,
            revisions=[state.rows[r].revision for r in found],
            hashes=[blake2b(state.rows[r].data, digest_size=16).digest() for r in found],
            more=len(found) < len(following),
            revision=state.dataset.head.revision,
        )

    async def count_entries(self, dataset_number, *, after, through=""):
        return len(self._range(self._state(dataset_number), after, through))

    def _range(self, state: State, after: str, through: str) -> list[str]:
        return sorted(
            (
                r
                for r in state.live()
                if r.encode() > after.encode() and (not through or r.encode() <= through.encode())
            ),
            key=str.encode,
        )

    async def list_heads(self, *, after="", limit):
        found = sorted(
            (state.dataset for state in self._states.values() if state.dataset.dataset_id > after),
            key=lambda dataset: dataset.dataset_id,
        )
        return [(d.dataset_id, d.incarnation, d.number, self._states[d.number].head()) for d in found[:limit]]

    async def revision_times(self, dataset_number, revisions):
        state = self._state(dataset_number)
        return [
            min(
                ((r, time_us) for r, (_, time_us) in state.revisions.items() if r >= revision),
                default=(0, state.dataset.head.commit_time_us),
            )[1]
            for revision in revisions
        ]

    # -- producers ----------------------------------------------------------------------------------------

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

    # -- replicas -----------------------------------------------------------------------------------------

    async def report_replicas(self, reports):
        for sent in reports:
            if sent.dataset_number not in self._states:
                continue
            key = (sent.dataset_number, sent.replica_id)
            report, known = sent, self._replicas.get(key)
            if known is not None:
                report = replace(
                    report,
                    revision=report.revision and max(known.revision, report.revision),
                    report_time_us=max(known.report_time_us, report.report_time_us),
                )
            self._replicas[key] = report

    async def list_replicas(self, dataset_number, *, reported_since_us=0):
        return sorted(
            (
                r
                for r in self._replicas.values()
                if r.dataset_number == dataset_number and r.report_time_us >= reported_since_us
            ),
            key=lambda r: (r.revision, r.replica_id),
        )

    async def delete_replica(self, dataset_number, replica_id, *, identity=None):
        if self._seen(identity):
            return
        if self._replicas.pop((dataset_number, replica_id), None) is None:
            raise NotFound("REPLICA_NOT_FOUND", "no such replica")
        self._remember(identity, resource=replica_id)

    async def forget_replicas(self, *, before_us, limit, lease=None):
        self.check_lease(lease)
        old = [key for key, r in self._replicas.items() if r.report_time_us < before_us][:limit]
        for key in old:
            del self._replicas[key]
        return len(old)

    # -- upkeep -------------------------------------------------------------------------------------------

    async def purge(
        self, dataset_number, *, before_us, min_revisions, max_tombstones, not_beyond=None, lease=None
    ):
        state = self._state(dataset_number)
        self.check_lease(lease)
        head = state.dataset.head
        wanted = max(
            (
                r
                for r, (_, t) in state.revisions.items()
                if t < before_us and r <= head.revision - min_revisions
            ),
            default=0,
        )
        if not_beyond is not None:
            wanted = min(wanted, not_beyond)
        tombstones = sorted(row.revision for row in state.rows.values() if row.data is None)
        watermark = wanted
        while sum(r <= watermark for r in tombstones) > max_tombstones:
            watermark -= 1
        if wanted > watermark and not any(r <= watermark for r in tombstones):
            watermark = tombstones[
                0
            ]  # one revision has more than that: all of it, or purge would stop forever
        if watermark <= head.purge_revision:
            return PurgeResult(purge_revision=head.purge_revision, tombstones=0, more=False)
        gone = [r for r, row in state.rows.items() if row.data is None and row.revision <= watermark]
        for record_id in gone:
            del state.rows[record_id]
        state.revisions = {r: v for r, v in state.revisions.items() if r >= watermark}
        state.dataset = replace(state.dataset, head=replace(head, purge_revision=watermark))
        return PurgeResult(purge_revision=watermark, tombstones=len(gone), more=watermark < wanted)

    async def maintain(self):
        return

    async def probe(self):
        return


def _check_content(first: Upserts | Deletes, write: Upserts | Deletes) -> None:
    """A number stands for its content; under APPEND the ids of a repeated call are others."""
    if isinstance(first, Upserts) and isinstance(write, Upserts):
        same = list(first.data) == list(write.data)
    else:
        same = type(first) is type(write) and list(first.record_ids) == list(write.record_ids)
    if not same:
        raise InvalidArgument("REQUEST_ID_REUSED", "the number was used for something else")


def _session_invalid() -> PermissionDenied:
    return PermissionDenied("SESSION_INVALID", "not open")


def _result(revision: int, changed: bool, statuses: bytes) -> CommitResult:
    return CommitResult(
        revision=revision,
        changed=changed,
        statuses=statuses,
        created=statuses.count(Status.CREATED),
        updated=statuses.count(Status.UPDATED),
        unchanged=statuses.count(Status.UNCHANGED),
        deleted=statuses.count(Status.DELETED),
    )


def _changes(rows: Sequence[tuple[str, Row]]) -> Changes:
    deleted = any(row.data is None for _, row in rows)
    other = any(row.reason != Reason.API for _, row in rows)
    return Changes(
        record_ids=[record_id for record_id, _ in rows],
        data=[row.data or b"" for _, row in rows],
        revisions=[row.revision for _, row in rows],
        commit_times_us=[row.time_us for _, row in rows],
        kinds=[ChangeKind.PUT if row.data else ChangeKind.DELETE for _, row in rows] if deleted else (),
        reasons=[row.reason for _, row in rows] if other else (),
    )
