"""The reference model of a store: records, pages and heads. See store_model."""

from hashlib import blake2b

from support.store_model_base import ModelBase
from support.store_model_values import Row, State, changes_of
from syncline_server.model import (
    EntryPage,
    Page,
    Record,
)


class ModelReading(ModelBase):
    """The part of the model that changes nothing."""

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
            changes=changes_of(page),
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
