"""The reference model of a store: what it holds. See store_model."""

import secrets
from collections.abc import Callable
from dataclasses import replace

from support.store_model_nodes import ModelNodes
from support.store_model_values import (
    REMEMBER_US,
    Remembered,
    Row,
    Staged,
    State,
    changes_of,
)
from syncline_server.errors import (
    InvalidArgument,
    NotFound,
)
from syncline_server.model import (
    Appended,
    CommitResult,
    Dataset,
    Head,
    Key,
    Producer,
    Replica,
    RequestIdentity,
    Source,
)
from syncline_server.store.abc import StoreInfo


class ModelBase(ModelNodes):
    """Everything, and how it is found."""

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

    def _source(self, number: int) -> Source:
        if number not in self._sources:
            raise NotFound("SOURCE_NOT_FOUND", "no such source")
        return self._sources[number]

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
            changes=changes_of(rows) if len(rows) <= carry_changes else None,
        )
