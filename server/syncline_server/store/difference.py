"""What the commit of a staged session does, as every backend counts it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a difference does."""

    created: int
    updated: int
    deleted: int
    deleted_of_source: int
    """Of the deleted ones, those that the source asked about owned."""

    @property
    def changed(self) -> int:
        """Number of changes."""
        return self.created + self.updated + self.deleted
