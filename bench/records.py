"""The records that every system is given: about 150 bytes of JSON, keyed by ``sku``."""

import random
from collections.abc import Iterator
from typing import Any, Final

import msgspec

Item = dict[str, Any]

SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "sku": {"type": "string", "minLength": 1, "maxLength": 40},
        "name": {"type": "string", "maxLength": 80},
        "price": {"type": "number", "minimum": 0},
        "stock": {"type": "integer", "minimum": 0},
        "warehouse": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "updated": {"type": "string"},
        "sent_ns": {"type": "integer"},
    },
    "required": ["sku", "name", "price", "stock"],
    "additionalProperties": False,
}

_WAREHOUSES: Final = ("ams-1", "fra-2", "lon-1", "sin-3", "iad-7")
_TAGS: Final = (["new"], ["sale", "web"], ["bulky"], ["web"], ["fragile", "new"])

encode_item: Final = msgspec.json.Encoder().encode
decode_item: Final = msgspec.json.Decoder(Item).decode


def make_item(number: int, edition: int = 0) -> Item:
    """Item ``number``; another edition has another stock and price."""
    return {
        "sku": f"item-{number:08d}",
        "name": f"Bracket, galvanised, series {number % 977}",
        "price": round((number * 7 + edition * 13) % 99991 / 100, 2),
        "stock": (number + edition * 31) % 5000,
        "warehouse": _WAREHOUSES[number % 5],
        "tags": _TAGS[number % 5],
        "updated": "2026-11-22T07:00:00Z",
    }


def shuffled_items(count: int) -> list[Item]:
    """Items 0…count-1 in an order without pattern, the same each time: what an index likes least."""
    items = [make_item(number) for number in range(count)]
    random.Random(count).shuffle(items)
    return items


def batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of ``size``, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
