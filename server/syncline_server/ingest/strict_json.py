"""Strict JSON in, canonical JSON out.

Accepted is one object (RFC 8259) in UTF-8, without a byte order mark, duplicate names, NaN, Infinity or
numbers that overflow a double, lone surrogates, NUL in names, or integers of more than 4,300 digits, nested
at most ``depth`` deep. Integers are exact; other numbers are IEEE doubles.

The canonical form has names sorted by code point, no white space, the shortest text of each double that reads
back as itself, and escapes only where JSON demands them. Equal canonical bytes are what "unchanged" means,
so ``1``, ``1.0`` and ``true`` are three values.

The parser is jiter and the writer msgspec. What neither of them refuses is found by tests on the bytes that
are cheap for almost every record, and by an exact walk over the parsed object for the few they suspect.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

import jiter
import msgspec

from syncline_server.catalog.violations import pointer_of, shown, type_name

JsonObject = dict[str, Any]

POINTER_CHARACTERS: Final = 200
"""Longest pointer that is told; a record can be one deep path of long names."""

_CONTAINERS: Final = frozenset({dict, list})

_from_json = jiter.from_json
_encode = msgspec.json.Encoder(order="deterministic").encode


class Refused(Exception):
    """A record is not accepted. ``keyword`` names the rule, here ``json`` or ``depth``; ``pointer`` says where."""

    def __init__(self, keyword: str, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.keyword = keyword
        self.message = message
        self.pointer = shown(pointer, POINTER_CHARACTERS)


def parse(raw: bytes, *, depth: int) -> tuple[JsonObject, bytes]:
    """Parse one object and write it canonically. Raises Refused."""
    try:
        value = _from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise _syntax_error(str(error)) from None
    if type(value) is not dict:
        raise Refused("json", f"expected an object, found {type_name(value)}")
    canonical = _encode(value)
    # 1e400 parses to infinity, which is then written as null. A null that was posted is always written again,
    # so an infinity makes the counts differ.
    if b"null" in canonical and raw.count(b"null") != canonical.count(b"null"):
        _refuse_infinity(value)
    _refuse_names_and_depth(value, canonical, depth)
    return value, canonical


def parse_canonical(raw: bytes, *, depth: int) -> JsonObject | None:
    """Parse an object that was posted in canonical form; None when it was not, or is not accepted.

    Twice as fast as ``parse``: whatever is written again as the very same bytes had no duplicate names and no
    infinity in it, so nothing needs to look for them.
    """
    try:
        value = _from_json(raw, allow_inf_nan=False, cache_mode="keys")
    except ValueError:
        return None
    if _encode(value) != raw or type(value) is not dict:
        return None
    _refuse_names_and_depth(value, raw, depth)
    return value


def _refuse_names_and_depth(value: JsonObject, canonical: bytes, depth: int) -> None:
    if b"\\" in canonical and b"\\u0000" in canonical:  # the one way in which NUL is written
        _refuse_nul_in_names(value)
    if canonical.count(b"{") + canonical.count(b"[") > depth:
        _refuse_depth(value, depth)


def _syntax_error(text: str) -> Refused:
    if text.startswith("recursion limit"):
        return Refused("depth", "nested too deeply")
    # The position stands at the end and survives the shortening of a name in front of it.
    what, at, where = text.rpartition(" at line ")
    return Refused("json", f"{shown(what)}{at}{where}")


def _members(value: object) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value from this one down, with its path."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while pending:
        path, here = pending.pop()
        if type(here) is dict:
            pending.extend(((*path, name), member) for name, member in here.items())
        elif type(here) is list:
            pending.extend(((*path, index), member) for index, member in enumerate(here))
        yield path, here


def _refuse_infinity(value: JsonObject) -> None:
    for path, member in _members(value):
        if type(member) is float and math.isinf(member):
            raise Refused("json", "the number is too large for a double", pointer_of(path))


def _refuse_nul_in_names(value: JsonObject) -> None:
    for path, member in _members(value):
        if type(member) is dict and any("\0" in name for name in member):
            raise Refused("json", "a member name holds NUL", pointer_of(path))


def _refuse_depth(value: JsonObject, depth: int) -> None:
    level: list[Any] = [value]
    for _ in range(depth):
        level = [
            member
            for outer in level
            for member in (outer.values() if type(outer) is dict else outer)
            if type(member) in _CONTAINERS
        ]
        if not level:
            return
    path = next(
        path for path, member in _members(value) if len(path) >= depth and type(member) in _CONTAINERS
    )
    raise Refused("depth", f"nested deeper than {depth} levels", pointer_of(path))
