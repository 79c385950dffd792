"""Which of many selections a record may match, found by hash.

A selection with terms is kept under the values, or prefixes, of its one field; finding it costs a look-up for each
field that any selection is kept under, and for prefixes one for each length, however many selections there are.
Selections without terms are always candidates.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar, final

from syncline_server.filters.predicates import Getter, getter
from syncline_server.filters.selection import Row, Selection
from syncline_server.filters.syntax import Path
from syncline_server.filters.terms import Terms

T = TypeVar("T", bound=Hashable)
_K = TypeVar("_K", bound=Hashable)

_LONGEST_PREFIX: Final = 64
"""Characters of a prefix that are looked up; what follows them is left to the test of the filter."""
_NO_DATA: Final[dict[str, object]] = {}
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


@final
class _Entry(Generic[T]):
    """A selection, and those who have it."""

    __slots__ = ("payloads", "selection")

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.payloads: dict[T, None] = {}


@final
class _Field(Generic[T]):
    """Entries by the value of one field."""

    __slots__ = ("_prefixes", "_values", "get", "in_data")

    def __init__(self, path: Path) -> None:
        self.get: Getter = getter(path)
        self.in_data = path.metadata is None
        self._values: dict[Hashable, dict[Selection, _Entry[T]]] = {}
        self._prefixes: dict[int, dict[str, dict[Selection, _Entry[T]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._values or self._prefixes)

    def add(self, terms: Terms, entry: _Entry[T]) -> None:
        for value in terms.values:
            self._values.setdefault(_key(value), {})[entry.selection] = entry
        for prefix in _looked_up(terms):
            self._prefixes.setdefault(len(prefix), {}).setdefault(prefix, {})[entry.selection] = entry

    def remove(self, terms: Terms, selection: Selection) -> None:
        for value in terms.values:
            _drop(self._values, _key(value), selection)
        for prefix in _looked_up(terms):
            _drop(self._prefixes[len(prefix)], prefix, selection)
            if not self._prefixes[len(prefix)]:
                del self._prefixes[len(prefix)]

    def collect(self, row: Row, entries: list[_Entry[T]]) -> None:
        """Append the entries that the value in ``row`` leads to."""
        value = self.get(row.value if self.in_data else _NO_DATA, row)
        if self._values and type(value) in _SCALARS:
            found = self._values.get(_key(value))
            if found:
                entries.extend(found.values())
        if self._prefixes and type(value) is str:
            for length, by_prefix in self._prefixes.items():
                found = by_prefix.get(value[:length])
                if found:
                    entries.extend(found.values())


class SelectionIndex(Generic[T]):
    """Selections with payloads. A selection is tested once, however many payloads it has."""

    __slots__ = ("_entries", "_fields", "_scanned")

    def __init__(self) -> None:
        self._entries: dict[Selection, _Entry[T]] = {}
        self._fields: dict[Path, _Field[T]] = {}
        self._scanned: dict[Selection, _Entry[T]] = {}

    def __len__(self) -> int:
        """Count the different selections."""
        return len(self._entries)

    def add(self, selection: Selection, payload: T) -> None:
        """Add a payload; one that is there is not added again."""
        entry = self._entries.get(selection)
        if entry is None:
            entry = self._entries[selection] = _Entry(selection)
            if selection.terms is None:
                self._scanned[selection] = entry
            else:
                path = selection.terms.path
                if path not in self._fields:
                    self._fields[path] = _Field(path)
                self._fields[path].add(selection.terms, entry)
        entry.payloads[payload] = None

    def remove(self, selection: Selection, payload: T) -> None:
        """Remove a payload. Raises KeyError when it is not there."""
        entry = self._entries[selection]
        del entry.payloads[payload]
        if entry.payloads:
            return
        del self._entries[selection]
        if selection.terms is None:
            del self._scanned[selection]
            return
        field = self._fields[selection.terms.path]
        field.remove(selection.terms, selection)
        if not field:
            del self._fields[selection.terms.path]

    def candidates(self, row: Row) -> list[T]:
        """Payloads whose selections may match; all that do are among them, each once."""
        return [payload for entry in self._candidates(row) for payload in entry.payloads]

    def matching(self, row: Row) -> list[T]:
        """Payloads whose selections match."""
        return [
            payload
            for entry in self._candidates(row)
            if entry.selection.matches(row)
            for payload in entry.payloads
        ]

    def _candidates(self, row: Row) -> list[_Entry[T]]:
        entries: list[_Entry[T]] = []
        for field in self._fields.values():
            field.collect(row, entries)
        if self._scanned:
            entries.extend(self._scanned.values())
        return entries


def _key(value: Hashable) -> Hashable:
    """Hash key of a scalar: 1 and 1.0 have the same, but true, which Python takes for 1, has another."""
    return (value,) if type(value) is bool else value


def _looked_up(terms: Terms) -> set[str]:
    return {prefix[:_LONGEST_PREFIX] for prefix in terms.prefixes}


def _drop(by_key: dict[_K, dict[Selection, _Entry[T]]], key: _K, selection: Selection) -> None:
    held = by_key[key]
    del held[selection]
    if not held:
        del by_key[key]
