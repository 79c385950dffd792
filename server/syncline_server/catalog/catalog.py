"""Datasets and their sources: settings, and what is made of them once and used for every call.

What a call needs of them is cached. A change made through this process drops the entry at once; one made by
another node is seen after MAX_AGE_SECONDS at the latest. Until then the store refuses commits that were checked against
old settings (DATASET_CHANGED), and an answer that would be "not there" or "not allowed" by a cached entry is given only
after the store was asked. So the cache decides about speed and never about what is so.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

from syncline_server.catalog import checks
from syncline_server.catalog.schema import Schema, compile_schema, stored_schema
from syncline_server.clock import Clock
from syncline_server.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from syncline_server.ids import new_uid
from syncline_server.model import (
    Appended,
    Dataset,
    Head,
    Identity,
    Record,
    RecordScope,
    RequestIdentity,
    Retention,
    Source,
    Violation,
)
from syncline_server.notify.abc import Notifier
from syncline_server.store.abc import Store

MAX_AGE_SECONDS: Final = 10.0
"""After this a cached entry is read again."""
CACHE_ENTRIES: Final = 10_000
"""More datasets or sources than this in use at once make the cache start anew."""
UPDATE_ATTEMPTS: Final = 5
"""How often an update without etag is tried again when somebody else was faster."""
REKEY_PAGE_RECORDS: Final = 1_000
REKEY_PAGE_BYTES: Final = 4 << 20
REKEY_VIOLATIONS: Final = 10_000

MakeRecordId = Callable[[bytes, str], str]
RecordIdRule = Callable[[Identity, RecordScope], MakeRecordId]
"""Gives the function (canonical bytes, source id) → record id. It lives in ingest, above this room."""

T = TypeVar("T")

_DATASET_FIELDS: Final = frozenset(
    {"display_name", "description", "identity", "schema", "retention", "annotations"}
)
_FIXED_DATASET_FIELDS: Final = frozenset({"record_scope"})
_SOURCE_FIELDS: Final = frozenset({"display_name", "disabled", "expect_every_us"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDataset:
    """A dataset with what is made of its settings. The same object as long as the settings are the same."""

    dataset: Dataset
    """Its head is that of when it was opened."""
    schema: Schema


@dataclass(frozen=True, slots=True)
class _Entry:
    value: Any
    fresh_until: float


class Catalog:
    """The datasets and sources of a store."""

    def __init__(
        self, store: Store, notifier: Notifier, clock: Clock, *, record_id_rule: RecordIdRule
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._clock = clock
        self._record_id_rule = record_id_rule
        self._datasets: dict[str, _Entry] = {}
        self._sources: dict[tuple[str, str], _Entry] = {}
        self._listeners: list[Callable[[Dataset], None]] = []
        self._forgotten = 0
        """Grows with every drop: what was being read meanwhile may be old already and is not kept."""

    # -- what calls need ----------------------------------------------------------------------------------

    async def dataset(self, dataset_id: str, *, incarnation: bytes = b"") -> OpenDataset:
        """The dataset as calls need it; ``incarnation``: the caller knows it by. Raises NotFound(DATASET_NOT_FOUND)."""
        entry = self._datasets.get(dataset_id)
        if entry is not None and self._clock.monotonic() < entry.fresh_until:
            fresh = cast("OpenDataset", entry.value)
            if not incarnation or incarnation == fresh.dataset.incarnation:
                return fresh
        forgotten = self._forgotten
        try:
            dataset = await self._store.get_dataset(dataset_id)
        except NotFound:
            self.forget(dataset_id)
            raise
        opened = None if entry is None else cast("OpenDataset", entry.value)
        if opened is None or opened.dataset.etag != dataset.etag or opened.dataset.number != dataset.number:
            opened = OpenDataset(dataset=dataset, schema=stored_schema(dataset.schema))
        self._keep(self._datasets, dataset_id, opened, forgotten)
        return opened

    async def use(
        self, dataset_id: str, work: Callable[[Dataset], Awaitable[T]], *, incarnation: bytes = b""
    ) -> T:
        """Do ``work`` with the dataset; when it is not there, with the one that another node has made in its place.

        Raises what ``work`` raises, NotFound(DATASET_NOT_FOUND).
        """
        opened = await self.dataset(dataset_id, incarnation=incarnation)
        try:
            return await work(opened.dataset)
        except NotFound as error:
            if error.reason != "DATASET_NOT_FOUND":
                raise
            self.forget(dataset_id)
            again = await self.dataset(dataset_id)
            if again.dataset.number == opened.dataset.number:
                raise
        return await work(again.dataset)

    async def source(self, dataset_id: str, source_id: str, *, afresh: bool = False) -> Source:
        """The source as calls need it; ``afresh``: as it is in the store now.

        Raises NotFound(DATASET_NOT_FOUND, SOURCE_NOT_FOUND).
        """
        entry = self._sources.get((dataset_id, source_id))
        if entry is not None and not afresh and self._clock.monotonic() < entry.fresh_until:
            return cast("Source", entry.value)
        forgotten = self._forgotten
        source = await self._store.get_source(dataset_id, source_id)
        self._keep(self._sources, (dataset_id, source_id), source, forgotten)
        return source

    def forget(self, dataset_id: str) -> None:
        """Drop what is cached of a dataset and its sources; the next call reads it again."""
        self._forgotten += 1
        self._datasets.pop(dataset_id, None)
        for key in [key for key in self._sources if key[0] == dataset_id]:
            del self._sources[key]

    def _keep(self, cache: dict[Any, _Entry], key: object, value: object, forgotten: int) -> None:
        if self._forgotten == forgotten:
            if len(cache) >= CACHE_ENTRIES:
                cache.clear()
            cache[key] = _Entry(value, self._clock.monotonic() + MAX_AGE_SECONDS)

    # -- datasets -----------------------------------------------------------------------------------------

    async def create_dataset(
        self,
        dataset_id: str,
        settings: Mapping[str, object],
        *,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Dataset:
        """Make a dataset and its source ``default``. Settings go by their names in ``Dataset``.

        Raises InvalidArgument(INVALID_REQUEST, SCHEMA_INVALID), AlreadyExists(DATASET_EXISTS).
        """
        checks.refuse(checks.check_id("dataset_id", dataset_id))
        now_us = self._clock.now_us()
        blank = Dataset(
            number=0,
            dataset_id=dataset_id,
            incarnation=new_uid(),
            generation=1,
            identity=Identity(),
            record_scope=RecordScope.SHARED,
            schema="",
            display_name="",
            description="",
            retention=Retention(),
            annotations={},
            create_time_us=now_us,
            update_time_us=now_us,
            head=Head(),
        )
        dataset = _changed(blank, settings, _DATASET_FIELDS | _FIXED_DATASET_FIELDS)
        _check_dataset(dataset)
        if validate_only:
            await _refuse_existing(
                self._store.get_dataset(dataset_id), "DATASET_EXISTS", f"dataset {dataset_id!r}"
            )
            return dataset
        created = await self._store.create_dataset(dataset, identity=identity)
        self.forget(dataset_id)
        self.tell_created(created)
        self._notifier.tell(created.number, created.head.revision)
        return created

    def tell_created(self, dataset: Dataset) -> None:
        """Tell the listeners of a dataset that was found, made by another node."""
        for listener in tuple(self._listeners):
            listener(dataset)

    @property
    def has_listeners(self) -> bool:
        """Whether anybody wants to hear of datasets that are made."""
        return bool(self._listeners)

    def listen(self, created: Callable[[Dataset], None]) -> Callable[[], None]:
        """Call ``created`` with each dataset that is made, until the returned function is called.

        A retried request tells again of a dataset that was there already.
        """
        self._listeners.append(created)
        return lambda: self._listeners.remove(created)

    async def get_dataset(self, dataset_id: str) -> Dataset:
        """Read a dataset with its head. Raises NotFound(DATASET_NOT_FOUND)."""
        return await self._store.get_dataset(dataset_id)

    async def list_datasets(self, *, after: str = "", limit: int) -> Sequence[Dataset]:
        """At most ``limit`` datasets whose ids follow ``after``."""
        return await self._store.list_datasets(after=after, limit=limit)

    async def update_dataset(
        self,
        dataset_id: str,
        changes: Mapping[str, object],
        *,
        etag: str = "",
        rekey: bool = False,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Dataset:
        """Set the fields given, by their names in ``Dataset``; the others stay.

        ``rekey`` allows a change of identity while there are records: all get new ids in one commit. Raises
        InvalidArgument(INVALID_REQUEST, SCHEMA_INVALID; RECORD_INVALID when records cannot be re-keyed),
        NotFound, Aborted(ETAG_MISMATCH), FailedPrecondition(IDENTITY_IN_USE).
        """

        async def update() -> Dataset:
            current = await self._store.get_dataset(dataset_id)
            wanted = _changed(current, changes, _DATASET_FIELDS, _FIXED_DATASET_FIELDS)
            wanted = replace(wanted, update_time_us=self._clock.now_us())
            _check_dataset(wanted)
            moves = rekey and wanted.identity != current.identity
            if moves and current.head.record_count:
                await self._check_rekey(wanted)
            if validate_only:
                checks.refuse_other_etag(etag, current)
                if not moves:
                    _refuse_identity_in_use(current, wanted)
                return wanted
            expected = checks.expected_generation(etag, current) if etag else current.generation
            if not moves:
                return await self._store.update_dataset(
                    wanted, expected_generation=expected, identity=identity
                )
            updated, appended = await self._store.rekey(
                wanted,
                self._record_id_rule(wanted.identity, wanted.record_scope),
                expected_generation=expected,
                identity=identity,
            )
            self._announce(appended)
            return updated

        try:
            return await _persistently(update, once=bool(etag))
        finally:
            self.forget(dataset_id)

    async def delete_dataset(
        self,
        dataset_id: str,
        *,
        etag: str = "",
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> int | None:
        """Delete a dataset with everything in it; return its number, None when a retry finds that done.

        Raises NotFound(DATASET_NOT_FOUND), Aborted(ETAG_MISMATCH).
        """
        try:
            current = await self._store.get_dataset(dataset_id)
        except NotFound:
            if identity is None or validate_only:
                raise
            # Only the store knows whether this very request deleted it; no dataset has the number 0.
            await self._store.delete_dataset(0, expected_generation=None, identity=identity)
            return None
        if validate_only:
            checks.refuse_other_etag(etag, current)
            return current.number
        expected = checks.expected_generation(etag, current) if etag else None
        try:
            await self._store.delete_dataset(current.number, expected_generation=expected, identity=identity)
        finally:
            self.forget(dataset_id)
        self._notifier.tell(current.number, current.head.revision + 1)
        if identity is not None and await self._is_there(current):
            return None  # this request had deleted the dataset that bore the name before
        return current.number

    async def _is_there(self, dataset: Dataset) -> bool:
        try:
            return (await self._store.get_dataset(dataset.dataset_id)).number == dataset.number
        except NotFound:
            return False

    async def _check_rekey(self, wanted: Dataset) -> None:
        """Try the new ids ahead of the commit, which stops at the first record that has none, to tell of all."""
        make_record_id = self._record_id_rule(wanted.identity, wanted.record_scope)
        violations: list[Violation] = []
        total, after, index, more = 0, "", 0, True
        while more:
            records, more, _ = await self._store.list_records(
                wanted.number, after=after, limit=REKEY_PAGE_RECORDS, max_bytes=REKEY_PAGE_BYTES
            )
            for record in records:
                found = _rekey_violations(make_record_id, record, index)
                total += len(found)
                violations += found[: REKEY_VIOLATIONS - len(violations)]
                index += 1
            after = records[-1].record_id if records else after
        if violations:
            raise InvalidArgument(
                "RECORD_INVALID",
                f"{total} records cannot get an id under the new identity, nothing was changed; "
                f"first: {violations[0].message}",
                violations=violations,
                total_violations=total,
            )

    # -- sources ------------------------------------------------------------------------------------------

    async def create_source(
        self,
        dataset_id: str,
        source_id: str,
        settings: Mapping[str, object],
        *,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Source:
        """Make a source. Settings go by their names in ``Source``.

        Raises InvalidArgument(INVALID_REQUEST), NotFound(DATASET_NOT_FOUND), AlreadyExists(SOURCE_EXISTS).
        """
        checks.refuse(checks.check_id("source_id", source_id))
        dataset = await self._store.get_dataset(dataset_id)
        now_us = self._clock.now_us()
        blank = Source(
            number=0,
            dataset_number=dataset.number,
            dataset_id=dataset_id,
            source_id=source_id,
            generation=1,
            create_time_us=now_us,
            update_time_us=now_us,
        )
        source = _changed(blank, settings, _SOURCE_FIELDS)
        checks.refuse(checks.check_display_name(source.display_name))
        if validate_only:
            await _refuse_existing(
                self._store.get_source(dataset_id, source_id), "SOURCE_EXISTS", f"source {source_id!r}"
            )
            return source
        created = await self._store.create_source(source, identity=identity)
        self.forget(dataset_id)
        return created

    async def get_source(self, dataset_id: str, source_id: str) -> Source:
        """Read a source. Raises NotFound(DATASET_NOT_FOUND, SOURCE_NOT_FOUND)."""
        return await self._store.get_source(dataset_id, source_id)

    async def list_sources(self, dataset_id: str, *, after: str = "", limit: int) -> Sequence[Source]:
        """At most ``limit`` sources whose ids follow ``after``. Raises NotFound(DATASET_NOT_FOUND)."""
        return await self._store.list_sources(dataset_id, after=after, limit=limit)

    async def update_source(
        self,
        dataset_id: str,
        source_id: str,
        changes: Mapping[str, object],
        *,
        etag: str = "",
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Source:
        """Set the fields given, by their names in ``Source``; the others stay.

        Raises InvalidArgument(INVALID_REQUEST), NotFound, Aborted(ETAG_MISMATCH).
        """

        async def update() -> Source:
            current = await self._store.get_source(dataset_id, source_id)
            wanted = _changed(current, changes, _SOURCE_FIELDS)
            wanted = replace(wanted, update_time_us=self._clock.now_us())
            checks.refuse(checks.check_display_name(wanted.display_name))
            if validate_only:
                checks.refuse_other_etag(etag, current)
                return wanted
            expected = checks.expected_generation(etag, current) if etag else current.generation
            return await self._store.update_source(wanted, expected_generation=expected, identity=identity)

        try:
            return await _persistently(update, once=bool(etag))
        finally:
            self.forget(dataset_id)

    async def delete_source(
        self,
        dataset_id: str,
        source_id: str,
        *,
        etag: str = "",
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Source | None:
        """Delete a source, its open session and the records that it owns; None when a retry finds that done.

        Raises NotFound(DATASET_NOT_FOUND, SOURCE_NOT_FOUND), Aborted(ETAG_MISMATCH).
        """
        try:
            current = await self._store.get_source(dataset_id, source_id)
        except NotFound:
            if identity is None or validate_only:
                raise
            # As for datasets; no source has the number 0.
            gone = Source(
                number=0, dataset_number=0, dataset_id=dataset_id, source_id=source_id, generation=0
            )
            await self._store.delete_source(gone, expected_generation=None, identity=identity)
            return None
        if validate_only:
            checks.refuse_other_etag(etag, current)
            return current
        expected = checks.expected_generation(etag, current) if etag else None
        try:
            self._announce(
                await self._store.delete_source(current, expected_generation=expected, identity=identity)
            )
        finally:
            self.forget(dataset_id)
        if identity is not None and await self._is_source(current):
            return None  # this request had deleted the source that bore the name before
        return current

    async def _is_source(self, source: Source) -> bool:
        try:
            found = await self._store.get_source(source.dataset_id, source.source_id)
        except NotFound:
            return False
        return found.number == source.number

    def _announce(self, appended: Appended | None) -> None:
        if appended is not None:
            self._notifier.announce(appended)


async def _persistently(update: Callable[[], Awaitable[T]], *, once: bool) -> T:
    """Read, change and write again when somebody else was faster and the caller named no version."""
    for _ in range(0 if once else UPDATE_ATTEMPTS - 1):
        try:
            return await update()
        except Aborted as error:
            if error.reason != "ETAG_MISMATCH":
                raise
    return await update()


async def _refuse_existing(read: Awaitable[object], reason: str, what: str) -> None:
    try:
        await read
    except NotFound:
        return
    raise AlreadyExists(reason, f"{what} exists already")


def _changed(
    current: T, changes: Mapping[str, object], allowed: frozenset[str], fixed: frozenset[str] = frozenset()
) -> T:
    """The settings with the changes in them. A fixed field may be named, with the value that it has."""
    same = {name for name in fixed & changes.keys() if getattr(current, name) == changes[name]}
    checks.refuse(checks.check_changes(changes.keys() - same, allowed=allowed, fixed=fixed))
    return cast("T", replace(cast("Any", current), **changes))


def _check_dataset(dataset: Dataset) -> None:
    problems = [
        *checks.check_display_name(dataset.display_name),
        *checks.check_description(dataset.description),
        *checks.check_annotations(dataset.annotations),
        *checks.check_identity(dataset.identity),
        *checks.check_retention(dataset.retention),
    ]
    checks.refuse(problems)
    compile_schema(dataset.schema)


def _refuse_identity_in_use(current: Dataset, wanted: Dataset) -> None:
    """Say what the store would say; only it knows whether there are tombstones."""
    if wanted.identity != current.identity and current.head.record_count:
        raise FailedPrecondition(
            "IDENTITY_IN_USE",
            f"dataset {current.dataset_id!r} holds records, whose ids come from its identity; ask to re-key it",
            dataset=current.dataset_id,
        )


def _rekey_violations(make_record_id: MakeRecordId, record: Record, index: int) -> list[Violation]:
    try:
        make_record_id(record.data, record.source_id)
    except InvalidArgument as error:
        return [
            replace(
                violation, index=index, message=f"record {json.dumps(record.record_id)}: {violation.message}"
            )
            for violation in error.violations
        ]
    return []
