"""Field masks: which fields of a record a reader gets.

A path names a member by the names from the outside in, and with it everything below. Members that are not there
are left out, and with them the objects that would be empty; a path does not lead into arrays.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from syncline_server.errors import InvalidArgument
from syncline_server.filters.canonical import name_text
from syncline_server.filters.scanner import Scanner, SyntaxFault

MAX_PATHS: Final = 1_000
MAX_MASK_BYTES: Final = 4096
"""Of all paths together in UTF-8."""
MAX_NAMES: Final = 64
"""In one path: records are not nested deeper."""

JsonObject = dict[str, Any]
Project = Callable[[JsonObject], JsonObject]

_Tree = dict[str, Any]
"""Name → tree below, or None for everything below."""

_MISSING: Final = object()


def parse_mask(paths: Sequence[str]) -> tuple[str, ...]:
    """Canonical paths of a mask; empty for everything (no paths, or ``*``).

    Sorted, and without those that another one covers. Raises InvalidArgument(INVALID_REQUEST).
    """
    if len(paths) > MAX_PATHS or sum(map(_length, paths)) > MAX_MASK_BYTES:
        raise _invalid("read_mask", f"more than {MAX_PATHS} paths or {MAX_MASK_BYTES} bytes")
    tree: _Tree = {}
    whole = False
    for index, path in enumerate(paths):
        if path == "*":
            whole = True
            continue
        try:
            _add(tree, _names(path))
        except SyntaxFault as fault:
            problem = f"is no path: {fault.problem} at position {fault.position}"
            raise _invalid(f"read_mask.paths[{index}]", problem) from None
    return () if whole else tuple(_paths_of(tree))


def compile_mask(paths: Iterable[str]) -> Project:
    """Compile canonical paths."""
    tree: _Tree = {}
    for path in paths:
        _add(tree, _names(path))
    return _projection(tree)


def _length(path: str) -> int:
    return len(path.encode(errors="replace"))


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", f"{field} {problem}", fields=[(field, problem)])


def _names(path: str) -> list[str]:
    scanner = Scanner(path)
    names = [scanner.name()]
    while scanner.text.startswith(".", scanner.at):
        scanner.at += 1
        names.append(scanner.name())
        if len(names) > MAX_NAMES:
            scanner.fail(f"records are not nested deeper than {MAX_NAMES} levels")
    if scanner.at < len(path):
        scanner.fail(f"expected '.' or the end, found {scanner.found()}")
    return names


def _add(tree: _Tree, names: Sequence[str]) -> None:
    *outer, last = names
    for name in outer:
        below = tree.setdefault(name, {})
        if below is None:  # a shorter path has everything
            return
        tree = below
    tree[last] = None


def _paths_of(tree: _Tree, before: str = "") -> Iterable[str]:
    for name, below in sorted(tree.items()):
        path = before + name_text(name)
        if below is None:
            yield path
        else:
            yield from _paths_of(below, f"{path}.")


def _projection(tree: _Tree) -> Project:
    whole = tuple(name for name, below in tree.items() if below is None)
    parts = tuple((name, _projection(below)) for name, below in tree.items() if below is not None)
    if not parts:
        return lambda data: {name: data[name] for name in whole if name in data}

    def project(data: JsonObject) -> JsonObject:
        kept = {name: data[name] for name in whole if name in data}
        for name, inner in parts:
            found = data.get(name, _MISSING)
            if type(found) is dict:
                part = inner(found)
                if part:
                    kept[name] = part
        return kept

    return project
