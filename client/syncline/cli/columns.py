"""Types of CSV columns, from a JSON Schema; rows of cells to JSON text.

* A column is looked up in ``properties`` of the schema; ``type``, ``enum``, ``const``, ``anyOf``, ``oneOf``,
  ``allOf`` and ``$ref`` into the same schema are understood. A column that the schema does not describe
  holds strings.
* A column with dots (``station.id``) is a member of an object, as in key fields, unless the schema has a
  property of exactly that name.
* A cell becomes the first of integer, number, boolean (``true``, ``false``, in any case, ``1``, ``0``),
  array, object (JSON text) that the schema allows and that the cell can be read as, otherwise a string, even
  where the schema allows none: the server then refuses it, and its report is the one that tells the line.
* An empty cell is null where the schema allows null, otherwise the member is left out. CSV has no way to
  tell an empty string.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, Final

import msgspec

Convert = Callable[[str], str | None]
"""JSON text of a cell; None leaves the member out."""

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,4000}(?:\.0*)?")
_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLEANS: Final = {"true": "true", "false": "false", "1": "true", "0": "false"}
_REF_DEPTH: Final = 16


def row_writer(header: Sequence[str], schema: object = None) -> Callable[[list[str]], bytes]:
    """A function from the cells of a row to its JSON text.

    Raises ValueError when the header has an empty or repeated name, or one that is also the beginning of
    another (``a`` and ``a.b``).
    """
    tree: dict[str, Any] = {}
    for index, name in enumerate(header):
        if not name.strip():
            raise ValueError(f"column {index + 1} has no name")
        path = _path(name, schema)
        _place(tree, path, (index, _converter(_types_at(schema, path))), name)
    write = _object_writer(tree)
    return lambda row: (write(row) or "{}").encode()


def _path(name: str, schema: object) -> list[str]:
    parts = name.split(".")
    if len(parts) == 1 or not all(parts) or name in _properties(schema, schema):
        return [name]
    return parts


def _place(tree: dict[str, Any], path: list[str], leaf: tuple[int, Convert], name: str) -> None:
    *parents, last = path
    for part in parents:
        branch = tree.setdefault(part, {})
        if type(branch) is not dict:
            raise ValueError(f"column {name!r} needs an object where another column has a value")
        tree = branch
    if last in tree:
        raise ValueError(f"column {name!r} is there twice, or is also the beginning of another column")
    tree[last] = leaf


def _object_writer(tree: dict[str, Any]) -> Callable[[list[str]], str | None]:
    """A function to the JSON text of an object; None when all its members are left out."""
    members = [(encode_basestring(name) + ":", *_member_writer(node)) for name, node in tree.items()]

    def write(row: list[str]) -> str | None:
        parts = []
        for prefix, index, convert, nested in members:
            text = nested(row) if nested is not None else convert(row[index])
            if text is not None:
                parts.append(prefix + text)
        return "{" + ",".join(parts) + "}" if parts else None

    return write


def _member_writer(node: Any) -> tuple[int, Convert, Callable[[list[str]], str | None] | None]:
    if isinstance(node, dict):
        return 0, _string, _object_writer(node)
    index, convert = node
    return index, convert, None


# --------------------------------------------------------------------------------------------- cells


def _integer(cell: str) -> str | None:
    text = cell.strip()
    if not _INTEGER.fullmatch(text):
        return None
    return str(int(text.partition(".")[0]))


def _number(cell: str) -> str | None:
    text = cell.strip()
    if _JSON_NUMBER.fullmatch(text):
        return text
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return repr(value) if math.isfinite(value) else None


def _boolean(cell: str) -> str | None:
    return _BOOLEANS.get(cell.strip().lower())


def _json_of(first: str) -> Convert:
    def convert(cell: str) -> str | None:
        text = cell.strip()
        if not text.startswith(first):
            return None
        try:
            msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return None
        return text

    return convert


def _string(cell: str) -> str | None:
    return encode_basestring(cell)


_TYPE_NAMES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}

# In the order in which they are tried.
_CONVERTERS: Final[Mapping[str, Convert]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "array": _json_of("["),
    "object": _json_of("{"),
}


def _converter(types: frozenset[str]) -> Convert:
    empty = "null" if "null" in types else None
    tried = [convert for name, convert in _CONVERTERS.items() if name in types]
    if not tried:
        return lambda cell: encode_basestring(cell) if cell else empty

    def convert(cell: str) -> str | None:
        if not cell:
            return empty
        for attempt in tried:
            text = attempt(cell)
            if text is not None:
                return text
        return encode_basestring(cell)

    return convert


# -------------------------------------------------------------------------------------------- schema


def _types_at(schema: object, path: Sequence[str]) -> frozenset[str]:
    nodes: list[Mapping[str, Any]] = [schema] if isinstance(schema, Mapping) else []
    for part in path:
        nodes = [
            properties[part]
            for node in nodes
            if part in (properties := _properties(node, schema)) and isinstance(properties[part], Mapping)
        ]
    return frozenset(name for node in nodes for part in _parts(node, schema) for name in _types(part))


def _properties(node: object, root: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in _parts(node, root):
        properties = part.get("properties")
        if isinstance(properties, Mapping):
            found.update(properties)
    return found


def _parts(node: object, root: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A schema and all that it is put together from."""
    if not isinstance(node, Mapping) or depth > _REF_DEPTH:
        return
    yield node
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        yield from _parts(_follow(root, reference[1:]), root, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        branches = node.get(keyword)
        for branch in branches if isinstance(branches, list) else ():
            yield from _parts(branch, root, depth + 1)


def _follow(root: object, pointer: str) -> object:
    node = root
    for part in pointer.split("/")[1:]:
        if not isinstance(node, Mapping):
            return None
        node = node.get(part.replace("~1", "/").replace("~0", "~"))
    return node


def _types(node: Mapping[str, Any]) -> Iterator[str]:
    declared = node.get("type")
    if isinstance(declared, str):
        yield declared
    elif isinstance(declared, list):
        yield from (name for name in declared if isinstance(name, str))
    else:
        values = node.get("enum")
        yield from (_type_of(value) for value in (values if isinstance(values, list) else ()))
        if "const" in node:
            yield _type_of(node["const"])


def _type_of(value: object) -> str:
    return _TYPE_NAMES.get(type(value), "object")
