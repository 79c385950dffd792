"""How violations name places and show values."""

from collections.abc import Iterable
from typing import Final

from syncline_server.logs import printable

VALUE_CHARACTERS: Final = 80
"""Longest part of a value that a message shows."""
MESSAGE_CHARACTERS: Final = 300
"""Longest message; twenty of them have to fit into the details of one error."""

_TYPE_NAMES: Final = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def pointer_of(path: Iterable[str | int]) -> str:
    """JSON Pointer (RFC 6901) of a path."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def shown(text: str, limit: int = VALUE_CHARACTERS) -> str:
    """The text, shortened, with control characters and those that reorder text escaped."""
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")


def type_name(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    return _TYPE_NAMES.get(type(value), "an object")
