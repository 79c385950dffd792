"""Which part of a dataset a feed or copy is of: a filter, and the fields of the records."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from google.protobuf.field_mask_pb2 import FieldMask


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records of a dataset, and which of their fields. A token belongs to one selection."""

    filter: str = ""
    fields: tuple[str, ...] = ()
    """Dotted paths; empty: whole records."""

    @property
    def mask(self) -> FieldMask | None:
        """The fields for the wire."""
        return FieldMask(paths=self.fields) if self.fields else None

    @property
    def is_filtered(self) -> bool:
        """Whether it is not the whole dataset."""
        return bool(self.filter or self.fields)

    @property
    def text(self) -> str:
        """One line that is different for different selections, and empty for everything."""
        return f"{self.filter}\n{','.join(self.fields)}" if self.is_filtered else ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The other way round."""
        filter_text, _, fields = text.rpartition("\n")
        return cls(filter=filter_text, fields=tuple(fields.split(",")) if fields else ())


EVERYTHING: Final = Selection()


def selection_of(filter: str | None, fields: Iterable[str] | None) -> Selection:  # noqa: A002 - the word for it
    """A selection as users give it. Raises TypeError for fields that are one string."""
    if isinstance(fields, str):
        raise TypeError("fields is a list of field names; put the one that you have in a list")
    return Selection(filter=filter or "", fields=tuple(fields or ()))
