"""What a copy of a store moves, in words that both backends have, and what each of its two sides must be able to do.

Rows are tuples of int, str, bytes, bool and None, in the order of ``Table.columns``. Positions, revisions and numbers are
the same in every backend, which is what keeps tokens and identities valid.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias

from syncline_server.digests import digest_sum
from syncline_server.model import DIGEST_MODULUS
from syncline_server.store.abc import StoreRefused

Row: TypeAlias = tuple[Any, ...]
Key: TypeAlias = tuple[Any, ...]

Change: TypeAlias = tuple[int, int, int, int, str, bytes | None, int, int, bytes | None]
"""position, revision, commit time, reason, record id, data (None: tombstone), source number, create time, hash."""
POSITION: Final = 0
SOURCE: Final = 6

RevisionRow: TypeAlias = tuple[int, bytes, int, str, int, int, int, int]
"""revision, commit id, commit time, key id, source number, reason, puts, deletes."""

StagedAction: TypeAlias = tuple[int, str, bytes | None, bytes | None]
"""ordinal, record id, hash, data (both None: delete)."""
StagedCall: TypeAlias = tuple[int, str | None, bytes | None, bytes, int]
"""number, request id, fingerprint, content, records of all calls up to this one."""

Owners: TypeAlias = Mapping[tuple[int, int], tuple[int, int]]
"""(bucket, source number) to the number of entries and a sum over their positions."""

BUCKET_BITS: Final = 13
"""Positions of one bucket, when owners are compared."""
OWNERS_MODULUS: Final = (1 << 31) - 1
"""The sum is of the cubes of positions modulo this, so that changes hardly ever cancel out."""

CHUNK_ROWS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that is copied whole and then kept equal, row by row in the order of its key."""

    name: str
    key: tuple[str, ...]
    """The first of the columns."""
    columns: tuple[str, ...]
    chunk_rows: int = CHUNK_ROWS

    def key_of(self, row: Row) -> Key:
        """The key of a row."""
        return row[: len(self.key)]


def _table(name: str, key: str, others: str, *, chunk_rows: int = CHUNK_ROWS) -> Table:
    keys = tuple(key.split())
    return Table(name=name, key=keys, columns=(*keys, *others.split()), chunk_rows=chunk_rows)


HISTORY: Final = _table("history", "number", "history_id time_us cause")
DATASET: Final = _table(
    "dataset",
    "number",
    "dataset_id incarnation generation identity_kind key_fields record_scope schema display_name description"
    " min_age_us min_revisions annotations create_time_us update_time_us",
    chunk_rows=200,
)
HEAD: Final = _table(
    "head",
    "dataset_number",
    "revision commit_id record_count digest commit_time_us purge_revision last_position",
)
SOURCES: Final = _table(
    "source",
    "number",
    "dataset_number source_id generation display_name disabled create_time_us update_time_us last_received_us"
    " expect_every_us",
)
ACCESS_KEY: Final = _table(
    "access_key",
    "key_id",
    "secret_hash role source_number patterns display_name generation expire_time_us create_time_us last_used_us",
)
SESSION: Final = _table(
    "session",
    "session_id",
    "dataset_number source_number mode allow_mass_delete idle_timeout_us create_time_us active_time_us calls records"
    " conflict_policy base_revision",
)
PRODUCER: Final = _table(
    "producer",
    "number",
    "source_number producer_id epoch last_sequence create_time_us open_time_us last_received_us",
)
PRODUCER_EPOCH: Final = _table("producer_epoch", "producer_number epoch", "base_sequence")
REPLICA: Final = _table("replica", "dataset_number replica_id", "key_id revision report_time_us")
REQUEST: Final = _table(
    "request",
    "request_id",
    "fingerprint remember_until_us resource revision changed statuses record_ids created updated unchanged deleted"
    " calls kept",
    chunk_rows=500,
)

CATALOG: Final = (HISTORY, DATASET, HEAD, SOURCES, ACCESS_KEY, SESSION, PRODUCER, PRODUCER_EPOCH, REPLICA)
"""Those that a session, a key or a dataset has few rows in; a row comes after the rows that it refers to."""
BOOLEANS: Final = frozenset({"disabled", "allow_mass_delete", "changed"})
SEQUENCES: Final = ("dataset", "source", "producer")
"""Tables whose numbers are never given out again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a dataset stands, as far as a copy has to know."""

    number: int
    dataset_id: str
    shared: bool
    revision: int
    record_count: int
    digest: bytes
    purge_revision: int
    last_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """How far the copy of a dataset has come, and what it holds."""

    position: int = 0
    revision: int = 0
    record_count: int = 0
    digest: int = 0
    since: int = 0
    """Revision of the source at which this was all of it, or nothing: whatever has been deleted since left a tombstone of
    a later revision."""

    def after(self, changes: Sequence[Change], replaced: Sequence[tuple[str, int, bytes | None]]) -> "Copied":
        """With these rows, in place of (record id, revision, hash) that came before."""
        come = [(row[4], row[1], row[8]) for row in changes if row[8] is not None]
        left = self.without(replaced)
        return replace(
            left,
            position=changes[-1][POSITION],
            record_count=left.record_count + len(come),
            digest=(left.digest + digest_sum(come)) % DIGEST_MODULUS,
        )

    def without(self, gone: Sequence[tuple[str, int, bytes | None]]) -> "Copied":
        """Without these (record id, revision, hash)."""
        live = [(record_id, revision, value) for record_id, revision, value in gone if value is not None]
        return replace(
            self,
            record_count=self.record_count - len(live),
            digest=(self.digest - digest_sum(live)) % DIGEST_MODULUS,
        )


class Phase(Enum):
    """How far the store that is being made has come."""

    EMPTY = "empty"
    COPYING = "copying"
    EQUAL = "equal"
    """Everything is in it, nothing can be added; the other one is being set aside."""
    STORE = "store"
    """It is a store that servers may open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which store it is."""

    store_id: bytes
    token_secret: bytes


class Reporter(Protocol):
    """Hears how it goes."""

    def say(self, line: str) -> None:
        """Something began or ended."""

    def progress(self, done: int, total: int) -> None:
        """Positions that were passed, of those that there are by now."""


class Side(Protocol):
    """What can be read from either store."""

    name: str
    """Address for people, without a password."""

    async def rows(self, table: Table, after: Key | None) -> Sequence[Row]:
        """Up to ``table.chunk_rows`` rows behind a key, in the order of the keys as bytes."""

    async def owners(self, dataset_number: int) -> Owners:
        """Who owns how many entries, by buckets of positions."""

    async def request_sums(self) -> Row:
        """Numbers that differ when the remembered requests differ."""


def refuse_problems(problems: Sequence[str]) -> None:
    """Raise StoreRefused when a check of the new store found some."""
    if problems:
        raise StoreRefused(f"the copy is damaged: {problems[0]}; check the old store (syncline-server fsck)")


class CopySource(Side, Protocol):
    """The store that is copied. Nothing of it changes until it is set aside."""

    stages: bool
    """Whether what open sessions hold can be read now."""

    async def identity(self) -> Identity:
        """Which store it is. Raises StoreRefused when its schema is another than this program's."""

    async def moved_identity(self) -> Identity | None:
        """Which store was set aside here, when there is no other by now."""

    def snapshot(self) -> AbstractAsyncContextManager[None]:
        """Inside, everything that is read is of one moment."""

    def final(
        self, reporter: Reporter, *, wait: bool, meanwhile: Callable[[], Awaitable[object]]
    ) -> AbstractAsyncContextManager[None]:
        """Inside, nobody writes the store.

        With ``wait`` for as long as it takes to be alone, calling ``meanwhile`` again and again. Raises StoreRefused.
        """

    async def set_aside(self, to: str) -> None:
        """Inside ``final``: nothing can be written to it any more, from the end of that block on."""

    async def heads(self) -> Sequence[Head]:
        """All datasets, with where they stand."""

    async def commit_id(self, dataset_number: int, revision: int) -> bytes | None:
        """Commit id of a revision; None below the watermark or above the head."""

    async def changes(
        self, dataset_number: int, after: int, *, max_rows: int, max_bytes: int
    ) -> Sequence[Change]:
        """Rows behind a position in their order, each with its entry, all of one moment."""

    async def revisions(self, dataset_number: int, after: int, *, limit: int) -> Sequence[RevisionRow]:
        """Revisions behind one, in their order."""

    async def owned(self, dataset_number: int, bucket: int) -> Sequence[tuple[str, int]]:
        """Record ids and owners of a bucket."""

    async def requests(self, after: tuple[int, str], limit: int) -> Sequence[Row]:
        """Remembered requests behind (remember_until_us, request id), in that order, as rows of ``REQUEST``."""

    async def first_request_us(self) -> int | None:
        """Until when the one is remembered that is forgotten first."""

    async def sequences(self) -> Mapping[str, int]:
        """Highest number given out by each of ``SEQUENCES``."""

    async def staged_calls(self, session_id: str, after: int) -> Sequence[StagedCall]:
        """Some accepted calls of a session behind a number, in their order."""

    async def staged_actions(
        self, session_id: str, after: int, *, max_rows: int, max_bytes: int
    ) -> Sequence[StagedAction]:
        """Some of what a session holds behind an ordinal, in their order; an action that another one took the place of may be missing."""


class CopyTarget(Side, Protocol):
    """The store that is made. Servers refuse it until it is complete."""

    async def phase(self) -> tuple[Phase, Identity | None]:
        """How far it has come, and of which store it is the copy."""

    async def begin(self, identity: Identity) -> None:
        """Make it, or go on with it."""

    async def copied(self) -> dict[int, Copied]:
        """How far each dataset has come."""

    async def put(self, dataset_number: int, copied: Copied, changes: Sequence[Change]) -> Copied:
        """Add rows to what was copied, in place of those of the same record ids; with how far this comes."""

    async def put_revisions(self, dataset_number: int, rows: Sequence[RevisionRow]) -> None:
        """Add revisions, with how far this comes."""

    async def commit_id(self, dataset_number: int, revision: int) -> bytes | None:
        """Commit id of a revision."""

    async def purge(self, dataset_number: int, revision: int) -> None:
        """Drop tombstones up to, and revisions before this one."""

    async def drop(self, dataset_number: int) -> None:
        """The dataset is gone."""

    async def apply(self, table: Table, gone: Sequence[Key], rows: Sequence[Row]) -> None:
        """Delete rows, then insert or replace others, as one transaction."""

    async def correct(
        self, dataset_number: int, copied: Copied, bucket: int, rows: Sequence[tuple[str, int]]
    ) -> Copied:
        """Set the owners of records, and remove what else there is in this bucket."""

    async def settled(self, dataset_number: int, revision: int) -> None:
        """What was copied of the dataset is all of it, at this revision."""

    async def put_requests(self, rows: Sequence[Row]) -> None:
        """Add remembered requests; those that are there already are passed over."""

    async def forget_requests(self, before_us: int) -> None:
        """Forget those remembered until before this time."""

    async def newest_request_us(self) -> int:
        """Until when the one is remembered that is forgotten last; 0: there is none."""

    async def staged(self, session_id: str) -> tuple[int, int]:
        """Accepted calls of a session that are complete, and the records of them."""

    async def stage(self, session_id: str, actions: Sequence[StagedAction]) -> None:
        """Add to what a session holds, in place of earlier actions on the same record ids."""

    async def accept(self, session_id: str, calls: Sequence[StagedCall], active_time_us: int) -> None:
        """Add accepted calls, whose actions are all there."""

    async def checked(self) -> bool:
        """Whether ``check`` found nothing in an earlier run."""

    async def check(self) -> None:
        """Read everything back. Raises StoreRefused with what fsck finds."""

    async def equal(self, sequences: Mapping[str, int]) -> None:
        """Everything is in it: durably note that."""

    async def finish(self) -> None:
        """Make it a store that servers may open."""
