"""What a check of a store found."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int], None]
"""Called with a dataset's id and the number of its records that were checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What was found in a dataset."""

    dataset_id: str
    revision: int
    record_count: int
    tombstones: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckReport:
    """What ``fsck`` found. ``problems`` are sentences, the first the most important."""

    problems: tuple[str, ...]
    datasets: tuple[DatasetFacts, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems
