"""A filter's tree to one function: nested closures, each a comparison of what JSON gave.

``1`` and ``1.0`` are the same number and compared exactly, also with integers of any size; ``true`` is no number,
though Python says so; text is compared by code points, which is the order of its bytes.
"""

import operator as operators
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from syncline_server.filters.syntax import (
    And,
    Compare,
    Exists,
    Has,
    In,
    Metadata,
    Node,
    Not,
    Operator,
    Or,
    Path,
    Prefix,
    Scalar,
)

JsonObject = dict[str, Any]


class RecordMetadata(Protocol):
    """What a record has beside its data."""

    record_id: str
    revision: int
    update_time_us: int


Predicate = Callable[[JsonObject, RecordMetadata], bool]
"""(data, metadata) → whether the record matches."""
Getter = Callable[[JsonObject, RecordMetadata], object]
"""(data, metadata) → the value at a path, or MISSING."""

_Test = Callable[[Any], bool]

MISSING: Final = object()
"""Stands for a field that is not there; no JSON value equals it."""

_NUMBERS: Final = frozenset({int, float})
_ORDER: Final[Mapping[Operator, Callable[[Any, Any], bool]]] = {
    Operator.LESS: operators.lt,
    Operator.LESS_OR_EQUAL: operators.le,
    Operator.GREATER: operators.gt,
    Operator.GREATER_OR_EQUAL: operators.ge,
}


def compile_filter(node: Node) -> Predicate:
    """Compile a tree."""
    if isinstance(node, And):
        return _all_of([compile_filter(operand) for operand in node.operands])
    if isinstance(node, Or):
        return _any_of([compile_filter(operand) for operand in node.operands])
    if isinstance(node, Not):
        return _none_of(compile_filter(node.operand))
    if isinstance(node, Exists | Has):
        return _reaching(node.path.names, _has(node))
    return _at(node.path, _test(node))


def needs_data(node: Node) -> bool:
    """Whether any condition looks into the data."""
    if isinstance(node, And | Or):
        return any(needs_data(operand) for operand in node.operands)
    if isinstance(node, Not):
        return needs_data(node.operand)
    return node.path.metadata is None


def getter(path: Path) -> Getter:
    """Compile a path. It leads through objects only; at anything else it is MISSING."""
    if path.metadata is Metadata.RECORD_ID:
        return lambda _, row: row.record_id
    if path.metadata is Metadata.REVISION:
        return lambda _, row: row.revision
    if path.metadata is Metadata.UPDATE_TIME:
        return lambda _, row: row.update_time_us
    if len(path.names) == 1:
        name = path.names[0]
        return lambda data, _: data.get(name, MISSING)
    return _nested(path.names)


def _nested(names: tuple[str, ...]) -> Getter:
    *outer, last = names

    def get(data: JsonObject, _: RecordMetadata) -> object:
        here: Any = data
        for name in outer:
            here = here.get(name)
            if type(here) is not dict:
                return MISSING
        return here.get(last, MISSING)

    return get


# -- and, or, not -----------------------------------------------------------------------------------------


def _all_of(tests: list[Predicate]) -> Predicate:
    if len(tests) == 2:
        first, second = tests
        return lambda data, row: first(data, row) and second(data, row)

    def matches(data: JsonObject, row: RecordMetadata) -> bool:
        for test in tests:  # noqa: SIM110 - all() with a generator costs twice the time
            if not test(data, row):
                return False
        return True

    return matches


def _any_of(tests: list[Predicate]) -> Predicate:
    if len(tests) == 2:
        first, second = tests
        return lambda data, row: first(data, row) or second(data, row)

    def matches(data: JsonObject, row: RecordMetadata) -> bool:
        for test in tests:  # noqa: SIM110
            if test(data, row):
                return True
        return False

    return matches


def _none_of(test: Predicate) -> Predicate:
    return lambda data, row: not test(data, row)


# -- conditions of one value ------------------------------------------------------------------------------


def _at(path: Path, test: _Test) -> Predicate:
    if path.metadata is None and len(path.names) == 1:
        name = path.names[0]
        return lambda data, _: test(data.get(name, MISSING))
    get = getter(path)
    return lambda data, row: test(get(data, row))


def _test(node: Compare | Prefix | In) -> _Test:
    if isinstance(node, In):
        return _one_of(node.values)
    if isinstance(node, Prefix):
        begins = _begins(node.text)
        return _differs(begins) if node.negated else begins
    if node.operator is Operator.EQUAL:
        return _equals(node.value)
    if node.operator is Operator.NOT_EQUAL:
        return _differs(_equals(node.value))
    assert node.value is not None
    return _ordered(node.operator, node.value)


def _equals(value: Scalar) -> _Test:
    if value is None or isinstance(value, bool):
        return lambda found: found is value
    if value in {0, 1}:  # the numbers that Python takes true and false for
        return lambda found: found == value and type(found) is not bool
    return lambda found: found == value


def _differs(equals: _Test) -> _Test:
    return lambda found: found is not MISSING and not equals(found)


def _begins(text: str) -> _Test:
    return lambda found: type(found) is str and found.startswith(text)


def _one_of(values: Iterable[Scalar]) -> _Test:
    """Values by their types, because a set of Python takes 1 and True for the same and lists not at all."""
    by_type: dict[type, set[Scalar]] = {}
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            by_type.setdefault(type(value), set()).add(value)
        else:
            by_type.setdefault(int, set()).add(value)
    if int in by_type:
        by_type[float] = by_type[int]
    return _in_set_of_type(by_type)


def _in_set_of_type(by_type: Mapping[type, set[Scalar]]) -> _Test:
    none: set[Scalar] = set()
    sets = by_type.get

    def test(found: Any) -> bool:
        values = sets(type(found), none)
        return bool(values) and found in values

    return test


def _ordered(operator: Operator, value: str | float) -> _Test:
    holds = _ORDER[operator]
    if isinstance(value, str):
        return lambda found: type(found) is str and holds(found, value)
    return lambda found: type(found) in _NUMBERS and holds(found, value)


# -- has --------------------------------------------------------------------------------------------------


def _has(node: Exists | Has) -> _Test:
    if isinstance(node, Exists):
        return lambda _: True
    value = node.value
    if node.prefix and isinstance(value, str):
        equals = _begins(value)
        contains = _any(equals)
    else:
        equals = _equals(value)
        contains = _contains(value)

    def test(found: Any) -> bool:
        # An object is looked through by its names, as AIP-160 has it for maps.
        return contains(found) if type(found) is list or type(found) is dict else equals(found)

    return test


def _any(equals: _Test) -> _Test:
    return lambda found: any(map(equals, found))


def _contains(value: Scalar) -> _Test:
    """Whether something is in a list or among names; at the speed of Python's own ``in`` where that is exact."""
    if isinstance(value, bool) or value in {0, 1}:
        return _any(_equals(value))
    return lambda found: value in found


def _reaching(names: tuple[str, ...], test: _Test) -> Predicate:
    if len(names) == 1:
        name = names[0]

        def matches_member(data: JsonObject, _: RecordMetadata) -> bool:
            found = data.get(name, MISSING)
            return found is not MISSING and test(found)

        return matches_member
    return lambda data, _: any(map(test, _reached(data, names)))


def _reached(data: JsonObject, names: tuple[str, ...]) -> Iterator[Any]:
    """Values at a path that leads through objects, and through arrays to each of their objects."""
    objects: list[JsonObject] = [data]
    for name in names[:-1]:
        inner = [found[name] for found in objects if name in found]
        objects = [
            element
            for member in inner
            for element in (member if type(member) is list else (member,))
            if type(element) is dict
        ]
    return (found[names[-1]] for found in objects if names[-1] in found)
