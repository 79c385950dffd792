"""Reads of single records and lists of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from syncline_server.errors import InvalidArgument, NotFound
from syncline_server.feed.feed import Feed
from syncline_server.filters.selection import Selection
from syncline_server.ids import has_controls
from syncline_server.model import Dataset, Record
from syncline_server.query import page_tokens
from syncline_server.query.selecting import Selected, masked, select_page
from syncline_server.store.abc import Store

MAX_BATCH: Final = 1_000
"""Ids in one BatchGet."""
DEFAULT_PAGE_RECORDS: Final = 100
MAX_PAGE_RECORDS: Final = 1_000

_BATCH_BYTES: Final = 1 << 20
"""Keeps an answer well below a client's default limit of 4 MiB."""
_ANY_BYTES: Final = 1 << 31
"""One record, however large the setting lets it be."""
_PAGE_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What was found of the ids asked for, each list in the order asked for."""

    records: Sequence[Record]
    missing_record_ids: Sequence[str]
    unread_record_ids: Sequence[str]
    """They did not fit: ask again for these."""
    revision: int
    """The dataset's, in the snapshot that was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPage:
    """A page of a list."""

    records: Sequence[Record]
    """Under a filter fewer than asked for, or none, though there may be more."""
    next_page_token: str
    """Empty: that was all."""
    revision: int
    """The dataset's, in the snapshot that was read."""


class Records:
    """Point reads of one store.

    Every method takes ``min_revision`` (guarantee G14): it waits until the dataset has reached that, up to
    ``timeout_seconds`` (None: the feed's setting), then raises Unavailable(REVISION_NOT_REACHED). All raise
    NotFound(DATASET_NOT_FOUND).
    """

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store = store
        self._feed = feed

    async def get(
        self,
        dataset: Dataset,
        record_id: str,
        *,
        min_revision: int = 0,
        timeout_seconds: float | None = None,
    ) -> Record:
        """Read one record. Raises NotFound(RECORD_NOT_FOUND)."""
        await self._reach(dataset, min_revision, timeout_seconds)
        records, _, revision = await self._store.get_records(
            dataset.number, _possible([record_id]), max_bytes=_ANY_BYTES
        )
        if not records:
            raise NotFound(
                "RECORD_NOT_FOUND",
                f"dataset {dataset.dataset_id} has no record {record_id[:80]!r}",
                dataset=dataset.dataset_id,
                record_id=record_id[:80],
                revision=revision,
            )
        return records[0]

    async def batch_get(
        self,
        dataset: Dataset,
        record_ids: Sequence[str],
        *,
        selection: Selection | None = None,
        min_revision: int = 0,
        timeout_seconds: float | None = None,
    ) -> Batch:
        """Read 1 to 1,000 records from one snapshot; an id given twice is answered once.

        Of ``selection`` only the mask is used. The limit of bytes counts whole records.
        Raises InvalidArgument(INVALID_REQUEST, LIMIT_EXCEEDED).
        """
        if not record_ids:
            raise InvalidArgument(
                "INVALID_REQUEST", "record_ids: name at least one", fields=[("record_ids", "is empty")]
            )
        if len(record_ids) > MAX_BATCH:
            raise InvalidArgument(
                "LIMIT_EXCEEDED",
                f"record_ids: {len(record_ids)} ids, at most {MAX_BATCH} are read at once",
                fields=[("record_ids", f"more than {MAX_BATCH}")],
                limit="ids_per_call",
                maximum=MAX_BATCH,
                actual=len(record_ids),
            )
        await self._reach(dataset, min_revision, timeout_seconds)
        wanted = list(dict.fromkeys(record_ids))
        records, unread, revision = await self._store.get_records(
            dataset.number, _possible(wanted), max_bytes=_BATCH_BYTES
        )
        found = {record.record_id: masked(record, selection) for record in records}
        left = set(unread)
        return Batch(
            records=[found[i] for i in wanted if i in found],
            missing_record_ids=[i for i in wanted if i not in found and i not in left],
            unread_record_ids=[i for i in wanted if i in left],
            revision=revision,
        )

    async def list(
        self,
        dataset: Dataset,
        *,
        page_size: int = 0,
        page_token: str = "",
        selection: Selection | None = None,
        min_revision: int = 0,
        timeout_seconds: float | None = None,
    ) -> RecordPage:
        """List records in the order of their ids as bytes, each page a snapshot of its own.

        ``page_size`` 0: 100; above 1,000: 1,000; also less, to stay near 256 KiB, and with a filter so as not to
        look through more than 10,000 records or 4 MiB.
        Raises InvalidArgument(INVALID_REQUEST, PAGE_TOKEN_INVALID).
        """
        if page_size < 0:
            raise InvalidArgument(
                "INVALID_REQUEST", "page_size: must not be negative", fields=[("page_size", "is negative")]
            )
        fingerprint = selection.fingerprint if selection else b""
        secret = self._store.info.token_secret
        after = ""
        if page_token:
            after = page_tokens.decode(
                page_token, incarnation=dataset.incarnation, secret=secret, fingerprint=fingerprint
            )
        await self._reach(dataset, min_revision, timeout_seconds)
        found = await self._page(
            dataset.number, selection, after, min(page_size or DEFAULT_PAGE_RECORDS, MAX_PAGE_RECORDS)
        )
        token = ""
        if found.last_id is not None:
            token = page_tokens.encode(
                found.last_id, incarnation=dataset.incarnation, secret=secret, fingerprint=fingerprint
            )
        return RecordPage(records=found.records, next_page_token=token, revision=found.revision)

    async def _page(
        self, dataset_number: int, selection: Selection | None, after: str, limit: int
    ) -> Selected:
        if selection is not None:
            return await select_page(
                self._store, dataset_number, selection, after=after, limit=limit, max_bytes=_PAGE_BYTES
            )
        records, more, revision = await self._store.list_records(
            dataset_number, after=after, limit=limit, max_bytes=_PAGE_BYTES
        )
        last_id = records[-1].record_id if more else None
        return Selected(records=records, last_id=last_id, revision=revision)

    async def _reach(self, dataset: Dataset, revision: int, timeout_seconds: float | None) -> None:
        if revision > dataset.head.revision:
            await self._feed.wait_revision(dataset.number, revision, timeout_seconds=timeout_seconds)


def _possible(record_ids: Sequence[str]) -> Sequence[str]:
    """Those that a record can have; stores are asked for no others."""
    return [record_id for record_id in record_ids if not has_controls(record_id)]
