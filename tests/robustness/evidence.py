"""A history with what follows from it: states, where each write took effect, replayed views."""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property, partial

from robustness.history import DatasetLog, Frame, History, Logged, Operation, View
from robustness.model import Copy, Model, replay


class Evidence:
    """What the validators look at."""

    def __init__(self, history: History) -> None:
        self.history = history

    @cached_property
    def models(self) -> dict[str, Model]:
        """S(r) by dataset."""
        return {name: Model(log, partial(self._writers, name)) for name, log in self.history.datasets.items()}

    def _writers(self, dataset: str, revision: int) -> list[Operation]:
        return self.by_place.get((dataset, revision), [])

    def model(self, dataset: str) -> Model:
        """S(r) of one."""
        return self.models.setdefault(dataset, Model(DatasetLog()))

    @cached_property
    def written(self) -> dict[int, dict[int, set[str]]]:
        """By number of the operation: the revisions that hold its records, and which records."""
        found: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for log in self.history.datasets.values():
            for logged in log.commits:
                for record_id, data in logged.changes.items():
                    if data is not None and (number := json.loads(data).get("op")):
                        found[number][logged.revision].add(record_id)
        return found

    @cached_property
    def places(self) -> dict[int, set[int]]:
        """By number of the operation: every revision at which it took effect, by whatever sign."""
        places: dict[int, set[int]] = {}
        for operation in self.history.operations:
            signs = set(self.written.get(operation.number, ()))
            if operation.kind != "reading" and operation.request_id in self.history.requests:
                signs.add(self.history.requests[operation.request_id])
            if operation.outcome == "ok" and operation.changed and operation.kind != "reading":
                signs.update(operation.answers or [operation.revision or 0])
            places[operation.number] = signs
        return places

    @cached_property
    def by_place(self) -> dict[tuple[str, int], list[Operation]]:
        """By dataset and revision: the operations that took effect there."""
        found: dict[tuple[str, int], list[Operation]] = defaultdict(list)
        for operation in self.history.operations:
            for revision in self.places[operation.number]:
                found[operation.dataset, revision].append(operation)
        return found

    def commits(self) -> Iterator[tuple[str, Logged]]:
        """Every revision of every dataset."""
        for name, log in self.history.datasets.items():
            for logged in log.commits:
                yield name, logged

    def frames(self) -> Iterator[tuple[View, Frame, Copy]]:
        """All frames of all views, each with the copy that it comes to."""
        for view in self.history.views:
            for frame, copy in replay(view):
                yield view, frame, copy
