"""What a group of commits does, worked out in memory before anything is written.

The group's rows of the database are looked up once (``Known``), the commits are judged in order against them
and against each other, and what remains at the end is written in a few statements. A commit that is refused
has touched nothing, so it needs no savepoint, and fifty small commits cost little more than one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final, NamedTuple

from syncline_server.digests import digest_sum
from syncline_server.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    SynclineError,
)
from syncline_server.model import (
    DIGEST_MODULUS,
    Commit,
    CommitResult,
    Condition,
    Deletes,
    Head,
    IdentityKind,
    ProducerWrite,
    RecordScope,
    RequestIdentity,
    SessionCommit,
    SessionMode,
    Status,
    Upserts,
    Violation,
)

Entry = tuple[int, int, bytes, int]
"""Position, revision, hash (empty: tombstone) and owning source of a record id."""
Change = tuple[int, int, int, bytes | None]
"""Position, revision, reason and data (None: deleted) of a change that is to be written."""

_COUNTED: Final = tuple(int(s) for s in (Status.CREATED, Status.UPDATED, Status.UNCHANGED, Status.DELETED))
"""Plain integers: ``bytes.count`` is slow with members of an enumeration."""


@dataclass(slots=True, kw_only=True)
class DatasetState:
    """A dataset inside the transaction: as it was read, moved on by each commit."""

    number: int
    generation: int
    incarnation: bytes
    scope: RecordScope
    identity_kind: IdentityKind
    head: Head
    first_head: Head
    entries: dict[str, Entry] = field(default_factory=dict)
    """Of every record id that the group names and that exists or has a tombstone."""
    changes: dict[str, Change] = field(default_factory=dict)
    """The last change of each record, in the order of positions."""
    kept: dict[str, int] = field(default_factory=dict)
    """Stored position of each record that changes and was there before: it keeps its time of creation."""
    replaced: list[int] = field(default_factory=list)
    """Positions of stored rows that are no longer the newest."""
    taken_over: dict[str, int] = field(default_factory=dict)
    """Unchanged records that went to another source."""


@dataclass(slots=True, kw_only=True)
class SourceState:
    """A source inside the transaction."""

    number: int
    dataset_number: int
    source_id: str
    disabled: bool


@dataclass(slots=True, kw_only=True)
class SessionState:
    """An open session inside the transaction."""

    session_id: str
    source_number: int
    mode: SessionMode
    calls: int
    records: int
    changed: bool = False


@dataclass(slots=True, kw_only=True)
class ProducerRow:
    """A producer inside the transaction."""

    number: int
    source_number: int
    producer_id: str
    epoch: int
    last_sequence: int
    changed: bool = False


class Revision(NamedTuple):
    """A row of the table of revisions, in the order of its columns."""

    dataset_number: int
    revision: int
    commit_id: bytes
    commit_time_us: int
    key_id: str
    source_number: int
    reason: int
    puts: int
    deletes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the database says about everything that a group names."""

    datasets: dict[int, DatasetState]
    sources: dict[int, SourceState]
    sessions: dict[str, SessionState]
    producers: dict[int, ProducerRow]
    answers: dict[str, tuple[bytes, CommitResult]]
    """Fingerprint and first answer by request id."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """Judges commits one by one, and gathers what has to be written."""

    known: Known
    now_us: int
    random_bytes: Callable[[int], bytes]
    revisions: list[Revision] = field(default_factory=list)
    requests: list[tuple[RequestIdentity, CommitResult]] = field(default_factory=list)
    received: set[int] = field(default_factory=set)
    """Numbers of the sources that something was received from."""

    def judge(self, commit: Commit) -> CommitResult | SynclineError:
        """Apply one commit to the plan, or say why not."""
        try:
            return self._judge(commit)
        except SynclineError as error:
            return error

    def _judge(self, commit: Commit) -> CommitResult:
        identity = None if commit.dry_run else commit.identity
        if identity is not None and (answer := self.first_answer(identity)) is not None:
            return answer
        producer = self._check_producer(commit, commit.producer) if commit.producer else None
        if producer and commit.producer and commit.producer.last_sequence <= producer.last_sequence:
            return self._repeated_readings(commit)
        dataset, source = self.check_target(commit)
        session = self._check_session(commit) if commit.session_id else None
        if session is not None and 0 < commit.sequence <= session.calls:
            return self._repeated_call(commit, dataset, session)
        verdict = _verdict(commit, dataset)
        if commit.dry_run:
            return verdict.result(revision=dataset.head.revision)
        self.received.add(source.number)
        if producer is not None and commit.producer is not None:
            producer.last_sequence = commit.producer.last_sequence
            producer.changed = True
        if verdict.changed:
            self._change(commit, dataset, verdict)
        _take_over(commit, dataset, verdict)
        result = verdict.result(revision=dataset.head.revision)
        if session is not None:
            session.calls += 1
            session.records += len(verdict.statuses)
            session.changed = True
            result = replace(result, calls=session.calls)
        for known_as in (identity, call_identity(commit)):
            if known_as is not None:
                self.remember(known_as, self._answer(commit, dataset, result))
        return result

    def _check_producer(self, commit: Commit, write: ProducerWrite) -> ProducerRow:
        """The producer, if this is its newest epoch. Raises PRODUCER_FENCED, SEQUENCE_GAP."""
        producer = self.known.producers.get(write.producer_number)
        if producer is None or producer.source_number != commit.source_number:
            self._find_target(commit)  # it may be gone because its source is
            raise producer_fenced("", 0)
        if producer.epoch != write.epoch:
            raise producer_fenced(producer.producer_id, producer.epoch)
        expected = producer.last_sequence + 1
        if write.first_sequence != expected and write.last_sequence >= expected:
            raise readings_gap(write.first_sequence, expected)
        return producer

    def _repeated_readings(self, commit: Commit) -> CommitResult:
        """The answer to readings that were durable before: what became of each is not remembered."""
        dataset = self.known.datasets.get(commit.dataset_number)
        revision = 0 if dataset is None else dataset.head.revision
        return CommitResult(revision=revision, changed=False, statuses=b"", replayed=True)

    def _repeated_call(self, commit: Commit, dataset: DatasetState, session: SessionState) -> CommitResult:
        """The answer to a call of a session that was accepted before, under whatever request id."""
        seen = self.known.answers.get(call_request_id(commit))
        if seen is not None:
            assert isinstance(commit.write, Upserts | Deletes)
            check_content(commit.sequence, seen[0], commit.write)
            return replace(seen[1], replayed=True)
        head = dataset.head
        return CommitResult(
            revision=head.revision, changed=False, statuses=b"", replayed=True, calls=session.calls
        )

    def first_answer(self, identity: RequestIdentity) -> CommitResult | None:
        """The answer to an earlier request with this identity. Raises REQUEST_ID_REUSED."""
        seen = self.known.answers.get(identity.request_id)
        if seen is None:
            return None
        check_fingerprint(identity, seen[0])
        return replace(seen[1], replayed=True)

    def remember(self, identity: RequestIdentity, answer: CommitResult) -> None:
        """Keep an answer, also for later commits of this group."""
        self.known.answers[identity.request_id] = (identity.fingerprint, answer)
        self.requests.append((identity, answer))

    def check_target(self, commit: Commit) -> tuple[DatasetState, SourceState]:
        """Find dataset and source, as the commit expects them."""
        dataset, source = self._find_target(commit)
        if dataset.generation != commit.generation:
            raise Aborted("DATASET_CHANGED", "the dataset's settings changed meanwhile; try again")
        if source.disabled:
            raise source_disabled(source.source_id)
        return dataset, source

    def _find_target(self, commit: Commit) -> tuple[DatasetState, SourceState]:
        dataset = self.known.datasets.get(commit.dataset_number)
        if dataset is None:
            raise NotFound("DATASET_NOT_FOUND", "the dataset was deleted")
        source = self.known.sources.get(commit.source_number)
        if source is None or source.dataset_number != dataset.number:
            raise NotFound("SOURCE_NOT_FOUND", "the source was deleted")
        return dataset, source

    def next_revision(
        self, commit: Commit, dataset: DatasetState, *, puts: int, deletes: int
    ) -> tuple[int, bytes]:
        """Number and id of the commit, and its row in the table of revisions."""
        revision, commit_id = dataset.head.revision + 1, self.random_bytes(8)
        self.revisions.append(
            Revision(
                dataset_number=dataset.number,
                revision=revision,
                commit_id=commit_id,
                commit_time_us=self.commit_time_us(dataset),
                key_id=commit.key_id,
                source_number=commit.source_number,
                reason=commit.reason,
                puts=puts,
                deletes=deletes,
            )
        )
        return revision, commit_id

    def commit_time_us(self, dataset: DatasetState) -> int:
        """Time of a commit of this group: the clock's, but never before the commit before it."""
        return max(self.now_us, dataset.first_head.commit_time_us)

    def _check_session(self, commit: Commit) -> SessionState:
        session = self.known.sessions.get(commit.session_id)
        if (
            session is None
            or session.source_number != commit.source_number
            or session.mode is not SessionMode.STREAM
        ):
            raise session_invalid()
        if commit.sequence > session.calls + 1:
            raise sequence_gap(commit.sequence, session.calls + 1)
        return session

    def _change(self, commit: Commit, dataset: DatasetState, verdict: "_Verdict") -> None:
        write = commit.write
        assert isinstance(write, Upserts | Deletes)
        upserts = write if isinstance(write, Upserts) else None
        puts = len(verdict.changed) if upserts else 0
        revision, commit_id = self.next_revision(
            commit, dataset, puts=puts, deletes=len(verdict.changed) - puts
        )
        entries, changes = dataset.entries, dataset.changes
        position, stored = dataset.head.last_position, dataset.first_head.last_position
        source, reason = commit.source_number, int(commit.reason)
        gone: list[tuple[str, int, bytes]] = []
        come: list[tuple[str, int, bytes]] = []
        ids = write.record_ids
        for index in verdict.changed:
            record_id = ids[index]
            position += 1
            old = entries.get(record_id)
            if old is not None:
                if old[2]:
                    gone.append((record_id, old[1], old[2]))
                if old[0] <= stored:
                    dataset.replaced.append(old[0])
                else:
                    del changes[record_id]
            if upserts is not None:
                value_hash = upserts.hashes[index]
                if old is not None and old[2] and old[0] <= stored:
                    dataset.kept[record_id] = old[0]
                come.append((record_id, revision, value_hash))
                entries[record_id] = (position, revision, value_hash, source)
                changes[record_id] = (position, revision, reason, upserts.data[index])
            else:
                dataset.kept.pop(record_id, None)
                entries[record_id] = (position, revision, b"", source)
                changes[record_id] = (position, revision, reason, None)
            dataset.taken_over.pop(record_id, None)
        head = dataset.head
        dataset.head = replace(
            head,
            revision=revision,
            commit_id=commit_id,
            record_count=head.record_count + len(come) - len(gone),
            digest=(head.digest + digest_sum(come) - digest_sum(gone)) % DIGEST_MODULUS,
            commit_time_us=self.commit_time_us(dataset),
            last_position=position,
        )

    def _answer(self, commit: Commit, dataset: DatasetState, result: CommitResult) -> CommitResult:
        """Enough to answer again: under APPEND a retry makes other ids, so the first ones are kept."""
        if dataset.identity_kind is IdentityKind.APPEND and isinstance(commit.write, Upserts):
            return replace(result, record_ids=tuple(commit.write.record_ids))
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What each record of a write would become."""

    statuses: bytes
    changed: Sequence[int]
    """Indexes of the records that change."""
    taken_over: Sequence[int] = ()
    """Indexes of unchanged records of another source."""

    def result(self, *, revision: int) -> CommitResult:
        count = self.statuses.count
        created, updated, unchanged, deleted = (count(status) for status in _COUNTED)
        return CommitResult(
            revision=revision,
            changed=bool(self.changed),
            statuses=self.statuses,
            created=created,
            updated=updated,
            unchanged=unchanged,
            deleted=deleted,
        )


def _take_over(commit: Commit, dataset: DatasetState, verdict: _Verdict) -> None:
    """Unchanged records of other sources go over to the one that wrote them."""
    for index in verdict.taken_over:
        record_id = commit.write.record_ids[index]  # type: ignore[union-attr]
        position, revision, value_hash, _ = dataset.entries[record_id]
        dataset.entries[record_id] = (position, revision, value_hash, commit.source_number)
        dataset.taken_over[record_id] = commit.source_number


def _verdict(commit: Commit, dataset: DatasetState) -> _Verdict:
    write = commit.write
    if isinstance(write, Upserts):
        return _verdict_upserts(commit, write, dataset)
    assert isinstance(write, Deletes), "session commits are applied by SQL"
    return _verdict_deletes(commit, write, dataset)


def _verdict_upserts(commit: Commit, write: Upserts, dataset: DatasetState) -> _Verdict:
    conflicts = _conflicts(write, dataset) if write.conditions else {}
    if conflicts and not commit.partial:
        raise Aborted(
            "CONDITION_FAILED",
            f"{len(conflicts)} of the conditions do not hold; nothing was done",
            violations=tuple(conflicts.values()),
            failed=len(conflicts),
        )
    entries = dataset.entries
    shared = dataset.scope is RecordScope.SHARED
    created, updated, unchanged = int(Status.CREATED), int(Status.UPDATED), int(Status.UNCHANGED)
    statuses = bytearray()
    changed: list[int] = []
    taken_over: list[int] = []
    for index, (record_id, value_hash) in enumerate(zip(write.record_ids, write.hashes, strict=True)):
        old = entries.get(record_id)
        if index in conflicts:
            statuses.append(Status.CONFLICT)
        elif old is None or not old[2]:
            statuses.append(created)
            changed.append(index)
        elif old[2] != value_hash:
            statuses.append(updated)
            changed.append(index)
        else:
            statuses.append(unchanged)
            if shared and old[3] != commit.source_number:
                taken_over.append(index)
    return _Verdict(statuses=bytes(statuses), changed=changed, taken_over=taken_over)


def _verdict_deletes(commit: Commit, write: Deletes, dataset: DatasetState) -> _Verdict:
    shared = dataset.scope is RecordScope.SHARED
    statuses = bytearray()
    changed: list[int] = []
    for index, record_id in enumerate(write.record_ids):
        old = dataset.entries.get(record_id)
        if old is not None and old[2] and (shared or old[3] == commit.source_number):
            statuses.append(Status.DELETED)
            changed.append(index)
        else:
            statuses.append(Status.NOT_FOUND)
    return _Verdict(statuses=bytes(statuses), changed=changed)


def _conflicts(write: Upserts, dataset: DatasetState) -> dict[int, Violation]:
    conflicts = {}
    for index, condition in sorted(write.conditions.items()):
        old = dataset.entries.get(write.record_ids[index])
        live = old is not None and bool(old[2])
        revision = old[1] if old is not None and live else None
        if not _holds(condition, revision):
            keyword = "if_absent" if condition.if_absent else "if_revision"
            found = "it does not exist" if revision is None else f"it is at revision {revision}"
            conflicts[index] = Violation(index=index, pointer="", keyword=keyword, message=found)
    return conflicts


def _holds(condition: Condition, revision: int | None) -> bool:
    return revision is None if condition.if_absent else revision == condition.if_revision


def call_request_id(commit: Commit) -> str:
    """Name of a numbered call of a stream session among the requests; empty for other commits."""
    return f"{commit.session_id}/{commit.sequence}" if commit.session_id and commit.sequence else ""


def call_identity(commit: Commit) -> RequestIdentity | None:
    """The identity that a numbered call has by its number."""
    name = call_request_id(commit)
    return RequestIdentity(request_id=name, fingerprint=content_of(commit.write), time_us=0) if name else None


def content_of(write: Upserts | Deletes | SessionCommit) -> bytes:
    """16 bytes over what a numbered call writes, so that a number used for something else is noticed."""
    assert isinstance(write, Upserts | Deletes), "only these are calls of a session"
    content = blake2b(digest_size=16)
    if isinstance(write, Upserts):  # the data, not the ids: under APPEND a repeated call has new ones
        content.update(b"upsert" + b"".join(write.hashes))
    else:
        content.update(b"delete" + "\n".join(write.record_ids).encode())
    return content.digest()


def check_content(sequence: int, kept: bytes, write: Upserts | Deletes) -> None:
    """Raise REQUEST_ID_REUSED when an accepted call with this number had other content."""
    if kept != content_of(write):
        raise InvalidArgument(
            "REQUEST_ID_REUSED",
            f"call {sequence} of the session was accepted before, with other content; number each call once",
            sequence=sequence,
        )


def check_fingerprint(identity: RequestIdentity, fingerprint: bytes) -> None:
    """Raise REQUEST_ID_REUSED when the identity was that of another request."""
    if fingerprint != identity.fingerprint:
        raise InvalidArgument(
            "REQUEST_ID_REUSED",
            f"request id {identity.request_id} was used for another request",
            request_id=identity.request_id,
        )


def session_invalid() -> PermissionDenied:
    """The same answer for a session that is unknown, closed, expired, superseded or another source's."""
    return PermissionDenied("SESSION_INVALID", "the session is not open, or not one of this source")


def source_disabled(source_id: str) -> FailedPrecondition:
    """The source refuses writes."""
    return FailedPrecondition("SOURCE_DISABLED", f"source {source_id!r} is disabled", source=source_id)


def producer_fenced(producer_id: str, epoch: int) -> FailedPrecondition:
    """A newer epoch of the producer was opened (0: it was forgotten); the process with the old one must end."""
    if not epoch:
        return FailedPrecondition("PRODUCER_FENCED", "the producer was deleted; open it with a new epoch")
    return FailedPrecondition(
        "PRODUCER_FENCED",
        f"producer {producer_id!r} was opened again since, with epoch {epoch}; only one process may write as it",
        producer=producer_id,
        epoch=epoch,
    )


def readings_gap(sequence: int, expected: int) -> OutOfRange:
    """Readings came before their predecessors."""
    return OutOfRange(
        "SEQUENCE_GAP", f"reading {sequence} cannot come next; {expected} is expected", expected=expected
    )


def sequence_gap(sequence: int, expected: int) -> OutOfRange:
    """A call of a session came before its predecessor."""
    return OutOfRange(
        "SEQUENCE_GAP", f"call {sequence} cannot come next; {expected} is expected", expected=expected
    )


def parts_of(commits: Sequence[Commit]) -> Iterator[Sequence[Commit]]:
    """Cut a group so that each SessionCommit stands alone: it has a transaction of its own."""
    part: list[Commit] = []
    for commit in commits:
        if isinstance(commit.write, SessionCommit):
            if part:
                yield part
            yield [commit]
            part = []
        else:
            part.append(commit)
    if part:
        yield part


def record_ids_by_dataset(commits: Iterable[Commit]) -> dict[int, list[str]]:
    """Every record id that the commits name, once, by dataset."""
    named: dict[int, dict[str, None]] = {}
    for commit in commits:
        if isinstance(commit.write, Upserts | Deletes):
            named.setdefault(commit.dataset_number, {}).update(dict.fromkeys(commit.write.record_ids))
    # In the order of the index: neighbours share pages.
    return {number: sorted(ids) for number, ids in named.items()}
