"""What a JSON Schema can cost, found before it is compiled or given a record.

A validator walks the schema along the record. Where several subschemas look at the same value (``allOf``,
``anyOf``, ``$ref``, overlapping ``patternProperties`` …) the work multiplies, and in a recursive schema it
can double with every level: forty lines are enough to keep a processor busy for days. This module bounds the
number of subschemas that may look at any one value of a record:

* ``in place`` edges lead from a subschema to those that look at the same value; a cycle of them never ends
  and is refused.
* ``descending`` edges lead to those that look at a member or item. Edges to differently named members cannot
  meet at one value, so the bound takes the worst name, not the sum.
* Starting with the root at the top of the record, levels follow each other until the counts repeat or the
  depth limit of records is reached.

The bound times the number of values in a record bounds the work on that record. Keywords differ a thousandfold
in what they take (keyword_cost), so the same walk adds up times as well as numbers of subschemas.

References may only point into the schema itself, so nothing is ever fetched.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import Any, Final
from urllib.parse import unquote

from syncline_server.catalog.keyword_cost import NO_WORK, Work, longest_keyword, most_digits, work_of

MAX_EVALUATIONS: Final = 1_000
"""Most subschemas that may look at one value."""
MAX_ENTRIES: Final = 20_000
"""Most entries of long keywords for one object: more than fit into a schema, unless it repeats itself."""
MAX_MEETINGS: Final = 1_000_000
"""Most pairs of a named member and a rule for any member that are compared while a level is worked out."""
LEVELS: Final = 64
"""Depth of records; deeper ones are refused before their schema is asked."""

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

_LISTS_IN_PLACE: Final = ("allOf", "anyOf", "oneOf")
_SCHEMAS_IN_PLACE: Final = ("not", "if", "then", "else")
_SCHEMAS_OF_MEMBERS: Final = ("additionalProperties", "unevaluatedProperties")
_SCHEMAS_OF_ITEMS: Final = ("items", "contains", "unevaluatedItems")
_ENTRIES_PER_EVALUATION: Final = 16
"""Values of an ``enum`` are compared about so many times faster than a subschema is evaluated."""
_COLLECTING_FACTOR: Final = 3
"""``unevaluated…`` makes the validator go through its neighbours again; measured: 2.4 times the work."""

_Label = tuple[str, str | int]
_ANY_MEMBER: Final = ("member", "")
_ANY_ITEM: Final = ("item", -1)
_NAME: Final = ("name", "")
_NOTHING: Final[Mapping[str, Any]] = {}

Counts = dict[int, int]
"""How often each subschema, by its number, looks at one value."""


class SchemaRefused(Exception):
    """The schema is outside of what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaCost:
    """Bounds on the work that one record can make."""

    evaluations: int
    """Most subschemas that look at any one value of a record."""
    entries: int
    """Most entries of ``required`` and the like that are gone through for any one object."""
    errors_above: int
    """Most errors about one value and all that it is in: each holds a copy of what it is about."""
    work: Work
    """Most work for any one value; ``unique`` for it and all that it is in."""
    digits: int
    """Most decimal digits of a number in the schema, written out."""
    has_names: bool
    """``propertyNames``, whose errors are about the object, not the name: one for each member of it."""
    longest_keyword: int
    """Bytes of the longest ``enum`` or ``const``: messages quote it."""


@dataclass(slots=True)
class _Node:
    """One subschema."""

    weight: int = 1
    entries: int = 0
    work: Work = NO_WORK
    in_place: list[int] = field(default_factory=list)
    named: list[tuple[_Label, int]] = field(default_factory=list)
    """Looks at the member or item of this label."""
    unnamed: list[tuple[_Label, int, frozenset[_Label]]] = field(default_factory=list)
    """Looks at any member or any item, but those."""


def examine(schema: Mapping[str, Any]) -> SchemaCost:
    """Bound what a schema can cost. Raises SchemaRefused."""
    return _Graph(schema).count()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """What there is to do for any one value of a level, at most."""

    evaluations: int = 0
    entries: int = 0
    work: Work = NO_WORK

    def __or__(self, other: "_Level") -> "_Level":
        return _Level(
            evaluations=max(self.evaluations, other.evaluations),
            entries=max(self.entries, other.entries),
            work=self.work | other.work,
        )


class _Graph:
    """The subschemas that can be reached from the root, and who leads to whom."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._digits = 0
        self._has_names = False
        self._longest_keyword = 0
        self._anchors: dict[str, Mapping[str, Any]] | None = None
        self._numbers: dict[int, int] = {}
        self._nodes: list[_Node] = []
        self._unread: list[Mapping[str, Any]] = []
        self._number(root)
        while self._unread:
            self._read(self._unread.pop())
        self._order = self._in_place_order()

    def count(self) -> SchemaCost:
        """Most that there is to do at any one value."""
        level = self._spread({0: 1})
        here = most = self._weigh(level)
        errors_above, unique = here.evaluations + here.entries, here.work.unique
        for depth in range(1, LEVELS + 1):
            following: Counts = {}
            here = _Level()
            for counts in self._levels_below(level):
                spread = self._spread(counts)
                here |= self._weigh(spread)
                for number, count in spread.items():
                    following[number] = max(count, following.get(number, 0))
            if not following:
                break
            most |= here
            # When a level is the same as the one before, so are all that follow.
            times = LEVELS + 1 - depth if following == level else 1
            errors_above += times * (here.evaluations + here.entries)
            unique += times * here.work.unique
            if following == level:
                break
            level = following
        return SchemaCost(
            evaluations=most.evaluations,
            entries=most.entries,
            errors_above=errors_above,
            work=replace(most.work, unique=unique),
            digits=self._digits,
            has_names=self._has_names,
            longest_keyword=self._longest_keyword,
        )

    def _weigh(self, counts: Counts) -> _Level:
        evaluations = sum(count * self._nodes[number].weight for number, count in counts.items())
        entries = sum(count * self._nodes[number].entries for number, count in counts.items())
        if evaluations > MAX_EVALUATIONS or entries > MAX_ENTRIES:
            raise SchemaRefused(
                f"more than {MAX_EVALUATIONS} subschemas can come to look at one value: too costly to check"
            )
        work = NO_WORK
        for number, count in counts.items():
            work += self._nodes[number].work * count
        return _Level(evaluations=evaluations, entries=entries, work=work)

    def _spread(self, counts: Counts) -> Counts:
        """Add everything that the given subschemas lead to at the same value."""
        spread = defaultdict(int, counts)
        heap = sorted((self._order[number], number) for number in counts)
        done = set()
        total = 0
        while heap:
            _, number = heappop(heap)
            if number in done:
                continue
            done.add(number)
            total += spread[number]
            if total > MAX_EVALUATIONS:
                break  # _weigh refuses it
            for child in self._nodes[number].in_place:
                spread[child] += spread[number]
                heappush(heap, (self._order[child], child))
        return dict(spread)

    def _levels_below(self, level: Counts) -> Iterator[Counts]:
        """For each kind of member or item: which subschemas look at it, and how often."""
        named: dict[_Label, Counts] = {_ANY_MEMBER: {}, _ANY_ITEM: {}}
        unnamed: dict[str, list[tuple[int, int, frozenset[_Label]]]] = defaultdict(list)
        for number, count in level.items():
            node = self._nodes[number]
            for label, child in node.named:
                counts = named.setdefault(label, {})
                counts[child] = counts.get(child, 0) + count
            for label, child, others in node.unnamed:
                unnamed[label[0]].append((child, count, others))
        if len(named) * sum(map(len, unnamed.values())) > MAX_MEETINGS:
            raise SchemaRefused("too many rules for any member beside too many named members")
        for label, counts in named.items():
            for child, count, others in unnamed[label[0]]:
                if label not in others:
                    counts[child] = counts.get(child, 0) + count
            if counts:
                yield counts

    def _in_place_order(self) -> list[int]:
        """Position of each subschema, so that in place edges only lead onwards."""
        predecessors: dict[int, list[int]] = {number: [] for number in range(len(self._nodes))}
        for number, node in enumerate(self._nodes):
            for child in node.in_place:
                predecessors[child].append(number)
        try:
            order = tuple(TopologicalSorter(predecessors).static_order())
        except CycleError:
            raise SchemaRefused("a subschema refers to itself for the same value, without end") from None
        position = [0] * len(order)
        for place, number in enumerate(order):
            position[number] = place
        return position

    # -- reading subschemas -------------------------------------------------------------------------------

    def _number(self, schema: object) -> int | None:
        """Number of a subschema; it is read later. None for true and false, which cost nothing."""
        if not isinstance(schema, Mapping):
            return None
        number = self._numbers.get(id(schema))
        if number is None:
            number = self._numbers[id(schema)] = len(self._nodes)
            self._nodes.append(_Node())
            self._unread.append(schema)
        return number

    def _numbered(self, schemas: Iterable[object]) -> Iterator[int]:
        return (number for schema in schemas if (number := self._number(schema)) is not None)

    def _read(self, schema: Mapping[str, Any]) -> None:
        node = self._nodes[self._numbers[id(schema)]]
        self._check_dialect(schema)
        self._weigh_keywords(schema, node)
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                node.in_place += self._numbered([self._resolve(schema[keyword])])
        for keyword in _LISTS_IN_PLACE:
            node.in_place += self._numbered(_list(schema.get(keyword)))
        node.in_place += self._numbered(schema.get(keyword) for keyword in _SCHEMAS_IN_PLACE)
        node.in_place += self._numbered(_object(schema.get("dependentSchemas")).values())
        if "unevaluatedProperties" in schema or "unevaluatedItems" in schema:
            node.in_place *= _COLLECTING_FACTOR
        self._read_members(schema, node)
        self._read_items(schema, node)

    def _read_members(self, schema: Mapping[str, Any], node: _Node) -> None:
        properties = _object(schema.get("properties"))
        for name, member in properties.items():
            node.named += [(("member", name), number) for number in self._numbered([member])]
        for member in _object(schema.get("patternProperties")).values():
            rule = member if isinstance(member, Mapping) else _NOTHING  # the name is matched all the same
            node.unnamed += [(_ANY_MEMBER, number, frozenset()) for number in self._numbered([rule])]
        others = frozenset(("member", name) for name in properties)
        for number in self._numbered(schema.get(keyword) for keyword in _SCHEMAS_OF_MEMBERS):
            node.unnamed.append((_ANY_MEMBER, number, others))
        node.named += [(_NAME, number) for number in self._numbered([schema.get("propertyNames")])]

    def _read_items(self, schema: Mapping[str, Any], node: _Node) -> None:
        first = _list(schema.get("prefixItems"))
        for index, item in enumerate(first):
            node.named += [(("item", index), number) for number in self._numbered([item])]
        for keyword in _SCHEMAS_OF_ITEMS:
            others = (
                frozenset(("item", index) for index in range(len(first)))
                if keyword == "items"
                else frozenset()
            )
            for number in self._numbered([schema.get(keyword)]):
                node.unnamed.append((_ANY_ITEM, number, others))

    def _weigh_keywords(self, schema: Mapping[str, Any], node: _Node) -> None:
        options = _list(schema.get("enum"))
        plain = all(not isinstance(option, dict | list) for option in options)
        node.weight += len(options) // (_ENTRIES_PER_EVALUATION if plain else 1)
        dependent = _object(schema.get("dependentRequired"))
        node.entries += len(_list(schema.get("required"))) + len(dependent)
        node.entries += sum(len(_list(names)) for names in dependent.values())
        try:
            node.work = work_of(schema)
        except ValueError as error:
            raise SchemaRefused(str(error)) from None
        self._digits = max(self._digits, most_digits(schema))
        self._has_names = self._has_names or "propertyNames" in schema
        self._longest_keyword = max(self._longest_keyword, longest_keyword(schema))

    def _check_dialect(self, schema: Mapping[str, Any]) -> None:
        dialect = schema.get("$schema", DRAFT)
        if not isinstance(dialect, str) or dialect.rstrip("#") != DRAFT:
            raise SchemaRefused(f"$schema must be {DRAFT}, or absent")
        if "$id" in schema and schema is not self._root:
            raise SchemaRefused("$id is allowed at the top only: references point into this one document")

    # -- references ---------------------------------------------------------------------------------------

    def _resolve(self, reference: object) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaRefused(f"reference {str(reference)[:80]!r} leaves the schema; only '#…' is allowed")
        fragment = unquote(reference[1:])
        if fragment and not fragment.startswith("/"):
            target: Any = self._find_anchor(fragment)
        else:
            target = self._root
            for step in fragment.split("/")[1:]:
                target = _step(target, step.replace("~1", "/").replace("~0", "~"))
        if not isinstance(target, Mapping | bool):
            raise SchemaRefused(f"reference {reference[:80]!r} leads to nothing")
        return target

    def _find_anchor(self, name: str) -> object:
        if self._anchors is None:
            self._anchors = {}
            pending: list[object] = [self._root]
            while pending:
                here = pending.pop()
                if isinstance(here, Mapping):
                    for keyword in ("$anchor", "$dynamicAnchor"):
                        if isinstance(here.get(keyword), str):
                            if here[keyword] in self._anchors:
                                raise SchemaRefused(f"anchor {here[keyword][:80]!r} is there twice")
                            self._anchors[here[keyword]] = here
                    pending.extend(here.values())
                elif isinstance(here, list):
                    pending.extend(here)
        return self._anchors.get(name)


def _step(value: object, step: str) -> object:
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(value):
        return value[int(step[:9])]
    return None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
