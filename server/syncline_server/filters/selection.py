"""What a reader wants of a dataset: the records that match a filter, and of them the fields in a mask.

The language is that of docs/reference/filters.md. A selection is compiled once and shared by all who ask for the
same, in whatever words.
"""

import enum
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, final

import msgspec

from syncline_server.errors import InvalidArgument
from syncline_server.filters.canonical import canonical, text_of
from syncline_server.filters.parser import parse
from syncline_server.filters.predicates import Predicate, compile_filter, needs_data
from syncline_server.filters.projection import Project, compile_mask, parse_mask
from syncline_server.filters.scanner import SyntaxFault
from syncline_server.filters.syntax import Node
from syncline_server.filters.terms import Terms, terms_of

JsonObject = dict[str, Any]

MAX_FILTER_BYTES: Final = 4096
"""Of a filter in UTF-8."""
FINGERPRINT_BYTES: Final = 8

_PERSON: Final = b"syncline.filter"
_SHOWN: Final = 30
"""Characters of a filter shown on each side of an error."""
_CACHED: Final = 1_024
_CACHED_CHARACTERS: Final = 512
"""Longer filters are rare, and a thousand of the longest, compiled, would take 250 MB."""
_NO_DATA: Final[JsonObject] = {}

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode
"""The writer that ingest makes canonical bytes with; every number comes out as it went in."""


class CostClass(enum.IntEnum):
    """What finding the records of a filter costs; the numbers are those of ``syncline.v1.Accepted.CostClass``."""

    UNFILTERED = 0
    INDEXED = 1
    SCANNED = 2


@final
class Row:
    """One version of a record, parsed once for all selections that look at it."""

    __slots__ = ("_value", "data", "record_id", "revision", "update_time_us")

    def __init__(self, record_id: str, revision: int, update_time_us: int, data: bytes) -> None:
        self.record_id = record_id
        self.revision = revision
        self.update_time_us = update_time_us
        self.data = data
        self._value: JsonObject | None = None

    @property
    def value(self) -> JsonObject:
        """The data, parsed."""
        value = self._value
        if value is None:
            value = self._value = _decode(self.data)
        return value


@final
class Selection:
    """A filter, a mask, or both. Made by ``parse_selection``; equal when they mean the same."""

    __slots__ = (
        "_needs_data",
        "_predicate",
        "_project",
        "cost_class",
        "filter",
        "fingerprint",
        "has_filter",
        "has_mask",
        "mask_paths",
        "terms",
    )

    def __init__(self, node: Node | None, mask_paths: tuple[str, ...]) -> None:
        """Of a canonical tree and canonical paths."""
        self.filter: str = text_of(node) if node else ""
        """Canonical text; empty: every record."""
        self.mask_paths = mask_paths
        """Canonical; empty: whole records."""
        self.fingerprint: bytes = _fingerprint(self.filter, mask_paths)
        """Tells what is selected; never eight zero bytes, which stand for everything."""
        self.has_filter: bool = node is not None
        self.has_mask: bool = bool(mask_paths)
        self.terms: Terms | None = terms_of(node) if node else None
        """INDEXED: what every matching record must have in one field."""
        self.cost_class = _cost_class(node, self.terms)
        self._predicate: Predicate | None = compile_filter(node) if node else None
        self._needs_data = needs_data(node) if node else False
        self._project: Project | None = compile_mask(mask_paths) if mask_paths else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return (self.filter, self.mask_paths) == (other.filter, other.mask_paths)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<Selection {self.fingerprint.hex()} {self.cost_class.name}>"

    def matches(self, row: Row) -> bool:
        """Whether a record matches the filter."""
        if self._predicate is None:
            return True
        return self._predicate(row.value if self._needs_data else _NO_DATA, row)

    def project(self, row: Row) -> bytes:
        """Canonical JSON of the fields in the mask; the record's own bytes without one."""
        if self._project is None:
            return row.data
        return _encode(self._project(row.value))


def parse_selection(filter: str, mask_paths: Sequence[str]) -> Selection | None:  # noqa: A002 - as in the proto
    """Parse a filter and the paths of a field mask; None: every record, whole.

    Raises InvalidArgument: FILTER_INVALID with ``position``, the place in the text in characters from 0; or
    INVALID_REQUEST for the mask.
    """
    if not filter and not mask_paths:
        return None
    paths = tuple(mask_paths)
    if len(filter) + sum(map(len, paths)) > _CACHED_CHARACTERS:
        return _new_selection(filter, paths)
    return _cached_selection(filter, paths)


def _new_selection(text: str, mask_paths: tuple[str, ...]) -> Selection | None:
    node = parse_filter(text)
    paths = parse_mask(mask_paths)
    return Selection(node, paths) if node or paths else None


_cached_selection = lru_cache(maxsize=_CACHED)(_new_selection)


def parse_filter(text: str) -> Node | None:
    """Canonical tree of a filter; None for white space. Raises InvalidArgument(FILTER_INVALID)."""
    encoded = text.encode(errors="replace")
    if len(encoded) > MAX_FILTER_BYTES:
        position = len(encoded[:MAX_FILTER_BYTES].decode(errors="ignore"))
        raise _invalid(text, SyntaxFault(f"longer than {MAX_FILTER_BYTES} bytes", position))
    if not text.strip(" \t\r\n"):
        return None
    try:
        return canonical(parse(text))
    except SyntaxFault as fault:
        raise _invalid(text, fault) from None


def _cost_class(node: Node | None, terms: Terms | None) -> CostClass:
    if node is None:
        return CostClass.UNFILTERED
    return CostClass.INDEXED if terms else CostClass.SCANNED


def _fingerprint(text: str, mask_paths: tuple[str, ...]) -> bytes:
    digest = blake2b(digest_size=FINGERPRINT_BYTES, person=_PERSON)
    for part in (text, *mask_paths):  # each behind its length, so that they cannot run into each other
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    fingerprint = digest.digest()
    return fingerprint if any(fingerprint) else b"\xff" * FINGERPRINT_BYTES


def _invalid(text: str, fault: SyntaxFault) -> InvalidArgument:
    begin = max(0, fault.position - _SHOWN)
    shown = text[begin : fault.position + _SHOWN]
    shown = "".join(character if character.isprintable() else "\N{MIDDLE DOT}" for character in shown)
    before = "..." if begin else ""
    caret = " " * (len(before) + fault.position - begin) + "^"
    problem = f"{fault.problem} (at position {fault.position})"
    return InvalidArgument(
        "FILTER_INVALID",
        f"filter: {problem}\n{before}{shown}\n{caret}",
        fields=[("filter", problem)],
        position=fault.position,
    )
