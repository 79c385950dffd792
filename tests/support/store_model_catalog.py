"""The reference model of a store: datasets, sources and keys. See store_model."""

from dataclasses import replace

from support.store_model_base import ModelBase
from support.store_model_values import State
from syncline_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NotFound,
)
from syncline_server.model import (
    Dataset,
    Head,
    Reason,
    Role,
    Source,
)


class ModelCatalog(ModelBase):
    """The part of the model that is about what there is, and who may use it."""

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
