"""The contract of a store: what every backend promises to the rooms above it.

**Truth.** A store keeps, per dataset, the newest version of every record, plus a tombstone for each deleted
one, ordered by (revision, position). There is no log: whatever was overwritten is gone. Beside them it keeps
the head of the dataset (revision, commit id, count, digest, purge watermark), the commit ids of all revisions
from the purge watermark on, and the list of histories.

**Order.** Revisions of a dataset are 1, 2, 3, … without gaps, one for each commit that changed something,
given out inside the transaction that makes the change, while no other can change that dataset. Positions grow
with every change over the whole life of a dataset and are never used twice.

**Durable before visible.** When a method that writes returns, its effect survives a power cut. Before that,
no reader of this store sees any of it.

**Cancellation.** A caller that is cancelled while it waits only stops waiting. A transaction that was begun
is finished or rolled back as if the caller were there; what became of it is unknown to the caller.

**Errors.** Domain errors are those of ``syncline_server.errors``, and mean that this write had no effect.
Trouble of the driver or the disk comes as ``ResourceExhausted("STORE_FULL")`` when the transaction was rolled
back for lack of space, as ``Unavailable("STORE_UNAVAILABLE")`` when the outcome is not known.

**Identity.** Where a method takes a ``RequestIdentity``, the identity is recorded in the same transaction as
the effect. Seen before with the same fingerprint: nothing is done and the first answer comes back (for
catalog methods: the present state). With another fingerprint: ``InvalidArgument("REQUEST_ID_REUSED")``.
Identities of staged calls live and end with their session.

**Leases.** A method that takes a ``Lease`` makes sure, inside the transaction that makes its change, that nobody got
this lease after its holder; otherwise it does nothing and raises ``Aborted("LEASE_LOST")``. While such a transaction
runs, the lease does not change hands. Leases and nodes are about the processes that share a store: where only one can
have it open, they end when it is closed.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncline_server.clock import Clock
from syncline_server.errors import SynclineError
from syncline_server.model import (
    Appended,
    Commit,
    CommitResult,
    Dataset,
    Deletes,
    EntryPage,
    Head,
    Key,
    Lease,
    Node,
    Page,
    Producer,
    Record,
    Replica,
    RequestIdentity,
    Session,
    Source,
    Upserts,
)


class Contended(Exception):
    """Nothing was done: somebody else holds one of several datasets for long. Commit those of each dataset apart."""


class StoreRefused(Exception):
    """The store cannot be opened as it is. The message is for the operator: why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What the store is, fixed while it is open."""

    kind: str
    """``sqlite`` or ``postgres``."""
    store_id: bytes
    """8 random bytes, made with the store."""
    token_secret: bytes
    """32 random bytes, made with the store and shared by its nodes: the key of the tokens' MAC."""
    history_id: bytes
    """8 random bytes, appended when this process opened the store."""
    histories: frozenset[bytes]
    """Every history id of this store, the present one included."""
    engine_version: str
    """Of the database engine, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """What became of a group of commits."""

    results: Sequence[CommitResult | SynclineError]
    """One for each commit, in order."""
    appended: Sequence[Appended]
    """What changed, one entry for each dataset that did. Its changes are carried when there are at most
    ``carry_changes`` of them and they weigh little, in order, uncommitted or superseded ones never."""
    transaction_seconds: float
    """Time inside the transaction, the commit included."""
    sync_seconds: float
    """Time of the commit statement, which waits for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedCall:
    """What became of a call that was staged."""

    calls: int
    records: int
    replayed: bool
    """It had been accepted before; nothing was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeResult:
    """What one run of purge did."""

    purge_revision: int
    tombstones: int
    more: bool
    """The cap ended the run; there is more to do."""


class Store(ABC):
    """A store that is open. Made by its module's ``open_store``, an async context manager that owns it."""

    info: StoreInfo
    commit_lanes: int = 1
    """How many groups it commits at once, of different datasets. Those of one dataset come one after the other."""
    clock: Clock
    """The time that this store stamps. Whatever is compared with stored times is measured by it (hazard F56)."""
    failed: asyncio.Event
    """Set when the process should end and be started again: the store is not, or perhaps not, what it was."""

    # -- catalog ------------------------------------------------------------------------------------------

    @abstractmethod
    async def create_dataset(self, dataset: Dataset, *, identity: RequestIdentity | None = None) -> Dataset:
        """Store a new dataset and its source ``default``, and return it with its number.

        ``number``, ``generation`` and ``head`` of the argument are ignored; the head's commit id becomes the
        first 8 bytes of the incarnation. Raises AlreadyExists(DATASET_EXISTS).
        """

    @abstractmethod
    async def get_dataset(self, dataset_id: str) -> Dataset:
        """Read a dataset with its head. Raises NotFound(DATASET_NOT_FOUND)."""

    @abstractmethod
    async def list_datasets(self, *, after: str = "", limit: int) -> Sequence[Dataset]:
        """Read at most ``limit`` datasets whose ids follow ``after``, ordered by id as bytes."""

    @abstractmethod
    async def update_dataset(
        self, dataset: Dataset, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Dataset:
        """Replace the settings of the dataset with this number and return it, one generation on.

        The identity may differ only while the dataset has no live record and no tombstone
        (FailedPrecondition(IDENTITY_IN_USE)); ``rekey`` is for the rest.
        Raises NotFound, Aborted(ETAG_MISMATCH) when the generation is another.
        """

    @abstractmethod
    async def rekey(
        self,
        dataset: Dataset,
        make_record_id: Callable[[bytes, str], str],
        *,
        expected_generation: int,
        identity: RequestIdentity | None = None,
    ) -> tuple[Dataset, Appended | None]:
        """Store new settings with another identity and give every record its new id, in one commit.

        ``make_record_id(data, source_id)`` runs on the writer's thread; whatever it raises undoes everything
        and is raised here. Records that move are deleted under the old id and put under the new one (reason
        SOURCE); of several that meet, the one with the newest (revision, position) stays. Rolls back open
        sessions of the dataset.
        """

    @abstractmethod
    async def delete_dataset(
        self, dataset_number: int, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> None:
        """Remove a dataset with everything in it. Raises NotFound, Aborted(ETAG_MISMATCH)."""

    @abstractmethod
    async def create_source(self, source: Source, *, identity: RequestIdentity | None = None) -> Source:
        """Store a new source and return it with its number. Raises NotFound, AlreadyExists(SOURCE_EXISTS)."""

    @abstractmethod
    async def get_source(self, dataset_id: str, source_id: str) -> Source:
        """Read a source. Raises NotFound(DATASET_NOT_FOUND or SOURCE_NOT_FOUND)."""

    @abstractmethod
    async def list_sources(self, dataset_id: str, *, after: str = "", limit: int) -> Sequence[Source]:
        """Read at most ``limit`` sources whose ids follow ``after``. Raises NotFound(DATASET_NOT_FOUND)."""

    @abstractmethod
    async def update_source(
        self, source: Source, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Source:
        """Replace the settings of the source with this number. Raises NotFound, Aborted(ETAG_MISMATCH)."""

    @abstractmethod
    async def delete_source(
        self, source: Source, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> Appended | None:
        """Remove a source, its sessions and the records that it owns (one commit, reason SOURCE)."""

    @abstractmethod
    async def create_key(self, key: Key, *, identity: RequestIdentity | None = None) -> Key:
        """Store a key. Raises NotFound(SOURCE_NOT_FOUND) when a PUSH key's source number is not there."""

    @abstractmethod
    async def get_key(self, key_id: str) -> Key:
        """Read a key. Raises NotFound(KEY_NOT_FOUND). Keys of deleted sources are gone."""

    @abstractmethod
    async def list_keys(self, *, after: str = "", limit: int) -> Sequence[Key]:
        """Read at most ``limit`` keys whose ids follow ``after``."""

    @abstractmethod
    async def update_key(
        self, key: Key, *, expected_generation: int, identity: RequestIdentity | None = None
    ) -> Key:
        """Replace title, patterns and expiry of a key. Raises NotFound, Aborted(ETAG_MISMATCH)."""

    @abstractmethod
    async def delete_key(
        self, key_id: str, *, expected_generation: int | None, identity: RequestIdentity | None = None
    ) -> None:
        """Remove a key. Raises NotFound, Aborted(ETAG_MISMATCH)."""

    @abstractmethod
    async def touch_keys(self, last_used_us: dict[str, int]) -> None:
        """Record when keys were last used; ids that are gone are passed over."""

    # -- writing ------------------------------------------------------------------------------------------

    @abstractmethod
    async def commit(
        self,
        commits: Sequence[Commit],
        *,
        carry_changes: int = 10_000,
        sent: Callable[[], None] | None = None,
    ) -> GroupResult:
        """Apply a group of commits in one transaction, in the order given, and make it durable once.

        Each commit has its own revision and its own verdict. One that fails leaves nothing behind and takes
        nothing of the others with it. When the transaction as a whole fails, this raises and none of them
        has happened (STORE_FULL) or that is not known (STORE_UNAVAILABLE). A SessionCommit may have a
        transaction of its own; when a later transaction of the group fails, its commits and those behind
        them have the error as their verdict.

        Raises Contended, having done nothing, when the group is of several datasets and another node or a stranger
        holds one of them for longer than the others should wait.

        A store that has several lanes may call ``sent`` when nothing is left but to wait for the database: then the
        next group may be given to it, also of the same dataset, and is worked out on top of this one meanwhile. It is
        applied after this one; when this one fails, it is worked out anew.

        Inside the transaction, in this order: the identity is looked up; dataset and source exist and the
        generation is the one expected (NotFound, Aborted(DATASET_CHANGED)); the source is enabled
        (FailedPrecondition(SOURCE_DISABLED)); the session, if one is named, is open and the sequence is next
        (PermissionDenied(SESSION_INVALID), OutOfRange(SEQUENCE_GAP); a sequence that was accepted already gets
        its first answer, under whatever identity, or InvalidArgument(REQUEST_ID_REUSED) for other content); the conditions hold
        (Aborted(CONDITION_FAILED) with every failed one as a Violation, or with ``partial`` the status
        CONFLICT). Then:

        * an upsert whose hash equals the live record's is UNCHANGED: no revision, no change; under SHARED the
          record goes over to the writing source without an event. Otherwise CREATED or UPDATED.
        * a delete of a live record leaves a tombstone: DELETED. Of anything else: NOT_FOUND. Under PER_SOURCE
          records of other sources are anything else.
        * a SessionCommit applies the staged actions in their order and, in REPLACE mode, deletes what the source
          holds beyond them (reason REPLACE), by a set-based difference. Unchanged records keep their
          revision. The guard is asked about the source's own records that a REPLACE would delete.
          FailedPrecondition(SESSION_INCOMPLETE, MASS_DELETE) leave the session open.
        * a conflict is a record that a SessionCommit would create, change or delete, and whose newest version
          or tombstone has a revision above the session's base revision. By the session's policy conflicts are
          overwritten like any other (OVERWRITE), left as they are and counted as kept (KEEP_NEWER), or the
          reason to refuse the commit (ABORT: Aborted(SESSION_CONFLICT) with their number as ``conflicts``; the
          session stays open). This is decided before the guard is asked. Unchanged records are no conflict; nor
          is a deletion whose tombstone was purged.
        * the source's last-received time is set, also when nothing changed.
        * a ``producer``, looked up before anything else: it exists with this epoch
          (FailedPrecondition(PRODUCER_FENCED)); its numbers follow the last durable one, or end there or before, which
          makes the commit a replay without effect (anything else: OutOfRange(SEQUENCE_GAP) with ``expected``).
          Its last sequence and last-received time are set with the effect, also when nothing changed and when the
          write is empty because every reading was refused.

        A commit with ``dry_run`` goes through all of it, reports what would become of it, and changes nothing.
        """

    @abstractmethod
    async def find_answer(self, identity: RequestIdentity) -> CommitResult | None:
        """First answer to a commit with this identity, None if there was none. Raises REQUEST_ID_REUSED."""

    @abstractmethod
    async def forget_requests(self, *, before_us: int, limit: int, lease: Lease | None = None) -> int:
        """Forget up to ``limit`` identities remembered until before this time; return how many. Raises LEASE_LOST."""

    # -- producers ----------------------------------------------------------------------------------------

    @abstractmethod
    async def open_producer(
        self,
        source_number: int,
        producer_id: str,
        *,
        epoch: int,
        previous_epoch: int = 0,
        dry_run: bool = False,
        identity: RequestIdentity | None = None,
    ) -> tuple[Producer, int]:
        """Open a producer, made when it is new, and return it with how far ``previous_epoch`` came.

        ``epoch`` 0 begins the next epoch, durably; any other must be the present one
        (FailedPrecondition(PRODUCER_FENCED)). An epoch number is never used twice for a producer id of a source, also
        after ``delete_producer``: the first one is the clock's milliseconds. The second result is the last sequence
        that became durable in ``previous_epoch`` or before; 0 when that epoch is not known.
        The same ``identity`` again does not begin another epoch: it opens the one that it began, if that is the present
        one still. Raises NotFound(SOURCE_NOT_FOUND), FailedPrecondition(SOURCE_DISABLED), REQUEST_ID_REUSED.
        """

    @abstractmethod
    async def get_producer(self, source_number: int, producer_id: str) -> Producer:
        """Read a producer. Raises NotFound(PRODUCER_NOT_FOUND)."""

    @abstractmethod
    async def list_producers(self, source_number: int, *, after: str = "", limit: int) -> Sequence[Producer]:
        """Read at most ``limit`` producers of a source whose ids follow ``after``, ordered by id as bytes."""

    @abstractmethod
    async def delete_producer(
        self, source_number: int, producer_id: str, *, identity: RequestIdentity | None = None
    ) -> None:
        """Forget a producer; what it wrote stays. Raises NotFound(PRODUCER_NOT_FOUND).

        The epochs that it used stay used up: opened again, it begins above them, at sequence 1.
        """

    # -- replicas -----------------------------------------------------------------------------------------

    @abstractmethod
    async def report_replicas(self, reports: Sequence[Replica]) -> None:
        """Record how far replicas have come, new ones among them; those of datasets that are gone are passed over.

        A revision never goes back by this within a dataset, except to 0: the replica begins anew.
        """

    @abstractmethod
    async def list_replicas(self, dataset_number: int, *, reported_since_us: int = 0) -> Sequence[Replica]:
        """Read the replicas of a dataset that have reported since then, those furthest behind first."""

    @abstractmethod
    async def delete_replica(
        self, dataset_number: int, replica_id: str, *, identity: RequestIdentity | None = None
    ) -> None:
        """Forget a replica. Raises NotFound(REPLICA_NOT_FOUND)."""

    @abstractmethod
    async def forget_replicas(self, *, before_us: int, limit: int, lease: Lease | None = None) -> int:
        """Forget up to ``limit`` replicas that last reported before this time; return how many. Raises LEASE_LOST."""

    # -- sessions -----------------------------------------------------------------------------------------

    @abstractmethod
    async def open_session(self, session: Session, *, identity: RequestIdentity | None = None) -> Session:
        """Store a new session, rolling back the one that its source has open.

        Its base revision becomes the dataset's revision in the same transaction.
        Raises NotFound, FailedPrecondition(SOURCE_DISABLED). A replayed identity returns the session it
        opened while that is still open, otherwise PermissionDenied(SESSION_INVALID).
        """

    @abstractmethod
    async def get_session(self, session_id: str, *, source_number: int) -> Session:
        """Read an open session of this source. Anything else: PermissionDenied(SESSION_INVALID)."""

    @abstractmethod
    async def stage(
        self,
        session_id: str,
        write: Upserts | Deletes,
        *,
        source_number: int,
        sequence: int = 0,
        identity: RequestIdentity | None = None,
    ) -> StagedCall:
        """Keep one action of an accrue or replace session, durably, as the next call.

        A sequence that was accepted already is answered and not kept again, but with other content it is
        refused (REQUEST_ID_REUSED); one that cannot come next:
        OutOfRange(SEQUENCE_GAP) with ``expected``.
        """

    @abstractmethod
    async def prepare_session(self, session_id: str) -> None:
        """Do ahead of a SessionCommit whatever can be done without holding up other writers. Optional."""

    @abstractmethod
    async def discard_session(
        self, session_id: str, *, source_number: int, identity: RequestIdentity | None = None
    ) -> int:
        """End a session and drop what it staged; return the revision of its dataset then, to a retry the same.

        Not open: SESSION_INVALID, unless the identity says that this very call did it before.
        """

    @abstractmethod
    async def expire_sessions(self, *, now_us: int, lease: Lease | None = None) -> int:
        """Roll back every session whose time is over; return how many. Raises LEASE_LOST."""

    @abstractmethod
    async def count_sessions(self) -> int:
        """Number of open sessions."""

    # -- reading ------------------------------------------------------------------------------------------

    @abstractmethod
    async def read_changes(
        self,
        dataset_number: int,
        *,
        after: int,
        max_changes: int,
        max_bytes: int,
        seen_revision: int = 0,
    ) -> Page:
        """Read changes after position ``after`` in order, with the head, all from one snapshot.

        At most ``max_changes``, and no more than ``max_bytes`` of ids and data unless the first change alone
        is larger. ``seen_revision`` asks for the commit id that the store has for that revision (at 0: the
        head commit id of the empty dataset). Raises NotFound(DATASET_NOT_FOUND).
        """

    @abstractmethod
    async def read_named_changes(
        self,
        dataset_number: int,
        record_ids: Sequence[str],
        *,
        after: int,
        through_revision: int,
        max_bytes: int,
        seen_revision: int = 0,
    ) -> Page:
        """Read those of these records, a few thousand at most, that exist and have not changed since a revision.

        The page is as of ``read_changes``: newest versions after position ``after``, none of them above
        ``through_revision``. ``complete`` tells here that none was left out because of ``max_bytes``.
        """

    @abstractmethod
    async def read_head(self, dataset_number: int) -> Head:
        """Read the head. Raises NotFound(DATASET_NOT_FOUND)."""

    @abstractmethod
    async def get_records(
        self, dataset_number: int, record_ids: Sequence[str], *, max_bytes: int
    ) -> tuple[Sequence[Record], Sequence[str], int]:
        """Records that exist (in any order), ids not read because of ``max_bytes``, and the revision."""

    @abstractmethod
    async def list_records(
        self, dataset_number: int, *, after: str, limit: int, max_bytes: int
    ) -> tuple[Sequence[Record], bool, int]:
        """Records whose ids follow ``after``, ordered as bytes; whether there are more; the revision."""

    @abstractmethod
    async def list_entries(
        self, dataset_number: int, *, after: str, through: str = "", limit: int
    ) -> EntryPage:
        """Live records with ids after ``after`` up to and including ``through`` (empty: the end), ordered as bytes."""

    @abstractmethod
    async def count_entries(self, dataset_number: int, *, after: str, through: str = "") -> int:
        """Count the live records of such a range."""

    @abstractmethod
    async def list_heads(self, *, after: str = "", limit: int) -> Sequence[tuple[str, bytes, int, Head]]:
        """Read (dataset id, incarnation, number, head) of at most ``limit`` datasets whose ids follow ``after``."""

    @abstractmethod
    async def revision_times(self, dataset_number: int, revisions: Sequence[int]) -> Sequence[int]:
        """Commit time (µs) of each of these revisions; for one below the watermark, of the oldest one kept."""

    # -- nodes --------------------------------------------------------------------------------------------

    @abstractmethod
    async def acquire_lease(self, name: str, *, holder: str, seconds: float) -> Lease | None:
        """Take a lease for so long from now, or extend it; None while another holder has it.

        One that nobody has, or whose time is over, is taken with the next fence: 1, 2, 3, … over all holders of the
        name. One's own is extended under its fence, also late, if nobody has taken it. The time is the store's.
        """

    @abstractmethod
    async def release_lease(self, lease: Lease) -> None:
        """Give a lease back, so that another holder need not wait for its time; nothing if it is another's now."""

    @abstractmethod
    async def report_node(self, node: Node) -> None:
        """Record what a node tells about itself, in place of what it told before, with the store's time."""

    @abstractmethod
    async def remove_node(self, node_id: str) -> None:
        """Forget a node; nothing if it is not known."""

    @abstractmethod
    async def list_nodes(self, *, reported_since_us: int = 0) -> Sequence[Node]:
        """Read the nodes that have reported since then, ordered by (name, node id) as bytes."""

    # -- upkeep -------------------------------------------------------------------------------------------

    @abstractmethod
    async def purge(
        self,
        dataset_number: int,
        *,
        before_us: int,
        min_revisions: int,
        max_tombstones: int,
        not_beyond: int | None = None,
        lease: Lease | None = None,
    ) -> PurgeResult:
        """Move the purge watermark and drop the tombstones and commit ids below it, in one transaction.

        The watermark goes to the newest revision that was committed before ``before_us``, has at least
        ``min_revisions`` after it, is not above ``not_beyond``, and needs no more than ``max_tombstones`` dropped, or to the next one that
        has tombstones when that alone has more; every tombstone up to it goes. It never goes back.
        Raises NotFound(DATASET_NOT_FOUND), LEASE_LOST.
        """

    @abstractmethod
    async def maintain(self) -> None:
        """Housekeeping of the backend that should not happen inside somebody's commit (checkpoint)."""

    @abstractmethod
    async def probe(self) -> None:
        """Raise what a write would raise now (STORE_FULL, STORE_UNAVAILABLE); else do nothing."""
