"""Names and ids that both sides agree on: resource names, record ids, request ids.

The grammar of record ids is in ``docs/reference/record-ids.md``; it is injective (different keys never
meet) and reversible (``parse_record_id``).
"""

import math
import re
import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec

KeyValue = str | int | float | bool

ID_PATTERN: Final = re.compile(r"[a-z](?:[a-z0-9._-]{0,61}[a-z0-9])?")
"""Ids of datasets and sources: 1 to 63 characters."""
MEMBER_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Ids that replicas and producers give themselves."""

_UUID7: Final = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
)
_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f~,/\ud800-\udfff]+")
_ESCAPED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f~,/]")
_UNESCAPE: Final = re.compile(r"~(?:([~cs])|u([0-9a-f]{4}))")
_TO_ESCAPE: Final = {"~": "~~", ",": "~c", "/": "~s"}
_FROM_ESCAPE: Final = {"~": "~", "c": ",", "s": "/"}
_JSON_BEGINS: Final = frozenset("-0123456789tf")
"""How the JSON of a number or a boolean begins; no escape begins so."""


def dataset_name(dataset: str) -> str:
    """Resource name of a dataset: ``datasets/{dataset}``."""
    return f"datasets/{dataset}"


def source_name(dataset: str, source: str) -> str:
    """Resource name of a source: ``datasets/{dataset}/sources/{source}``."""
    return f"datasets/{dataset}/sources/{source}"


def parse_dataset_name(name: str) -> str:
    """Id in ``datasets/{dataset}``. Raises ValueError when it is not such a name."""
    collection, _, dataset = name.partition("/")
    if collection != "datasets" or not ID_PATTERN.fullmatch(dataset):
        raise ValueError(f"not a dataset name: {name[:80]!r} (expected datasets/{{dataset}})")
    return dataset


def parse_source_name(name: str) -> tuple[str, str]:
    """Ids in ``datasets/{dataset}/sources/{source}``. Raises ValueError when it is not such a name."""
    parts = name.split("/")
    if (
        len(parts) != 4
        or parts[0] != "datasets"
        or parts[2] != "sources"
        or not ID_PATTERN.fullmatch(parts[1])
        or not ID_PATTERN.fullmatch(parts[3])
    ):
        raise ValueError(
            f"not a source name: {name[:80]!r} (expected datasets/{{dataset}}/sources/{{source}})"
        )
    return parts[1], parts[3]


def producer_name(dataset: str, source: str, producer: str) -> str:
    """Resource name of a producer: ``datasets/{dataset}/sources/{source}/producers/{producer}``."""
    return f"datasets/{dataset}/sources/{source}/producers/{producer}"


def parse_producer_name(name: str) -> tuple[str, str, str]:
    """Ids in ``datasets/{dataset}/sources/{source}/producers/{producer}``. Raises ValueError."""
    source, separator, producer = name.partition("/producers/")
    try:
        if separator and MEMBER_ID_PATTERN.fullmatch(producer):
            return (*parse_source_name(source), producer)
    except ValueError:
        pass
    raise ValueError(
        f"not a producer name: {name[:80]!r} "
        "(expected datasets/{dataset}/sources/{source}/producers/{producer})"
    )


def encode_key(values: Sequence[KeyValue]) -> str:
    """Record id of a key: its values, joined by commas.

    Strings stand as they are, with ``~``, ``,``, ``/`` and control characters escaped; the empty string is
    ``~e``; other values are ``~`` and their canonical JSON, so that ``"1"`` and ``1`` never meet. Raises
    ValueError when there is no value, or one that JSON cannot write: a lone surrogate, NaN, infinity.
    """
    if len(values) == 1 and type(value := values[0]) is str and _PLAIN.fullmatch(value):
        return value
    if not values:
        raise ValueError("a key has at least one value")
    return ",".join(map(_encode_value, values))


def _encode_value(value: KeyValue) -> str:
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
        return _ESCAPED.sub(_escape, value) if value else "~e"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be part of a key")
    return "~" + msgspec.json.encode(value).decode()


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return _TO_ESCAPE.get(character) or f"~u{ord(character):04x}"


def parse_record_id(record_id: str) -> tuple[str | None, tuple[KeyValue, ...]]:
    """Source qualifier (under PER_SOURCE, else None) and key values of a record id under KEY.

    Raises ValueError when the id was not made by ``encode_key``.
    """
    qualifier, slash, key = record_id.rpartition("/")
    try:
        values = tuple(map(_decode_value, key.split(",")))
        if encode_key(values) == key and (ID_PATTERN.fullmatch(qualifier) or not slash):
            return (qualifier if slash else None), values
    except ValueError:
        pass
    raise ValueError(f"not the record id of a key: {record_id[:80]!r}")


def _decode_value(part: str) -> KeyValue:
    if part == "~e":
        return ""
    if part.startswith("~") and part[1:2] in _JSON_BEGINS:
        value: KeyValue = msgspec.json.decode(part[1:])
        return value
    return _UNESCAPE.sub(lambda m: _FROM_ESCAPE[m[1]] if m[1] else chr(int(m[2], 16)), part)


def new_request_id(now_ms: int | None = None) -> str:
    """A fresh UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix time in ms, then random bits.

    The time inside is what lets the server refuse a retry that comes after it has forgotten the first try.
    """
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = (
        (ms & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | secrets.randbits(12) << 64
        | 0b10 << 62
        | secrets.randbits(62)
    )
    return str(uuid.UUID(int=bits))


def request_id_time_ms(request_id: str) -> int:
    """Unix time in ms inside a UUIDv7. Raises ValueError when it is not one in its usual 36 characters."""
    if not _UUID7.fullmatch(request_id):
        raise ValueError(f"not a UUIDv7: {request_id[:80]!r}")
    return int(request_id[:8] + request_id[9:13], 16)
