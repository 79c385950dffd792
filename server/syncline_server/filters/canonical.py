"""One form for filters that say the same in other words, so that those who write them share the work.

Nested ANDs and ORs become flat, without repetitions, in the order of their text; equalities of one field joined by
OR become one IN; values of an IN are sorted; a double negation goes. The canonical text is a filter again, and
reads as the same tree.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

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
from syncline_server.filters.values import write_text, write_time, write_value

_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED_FIRST: Final = frozenset(
    {
        *(kind.value for kind in Metadata),
        "source",
        "create_time",
        "and",
        "or",
        "not",
        "in",
        "true",
        "false",
        "null",
    }
)
"""Words that mean something else at the beginning of a path."""


def canonical(node: Node) -> Node:
    """Equivalent tree in canonical form."""
    if isinstance(node, And):
        return _joined(And, _flat(And, node.operands))
    if isinstance(node, Or):
        return _joined(Or, _equalities_merged(_flat(Or, node.operands)))
    if isinstance(node, Not):
        operand = canonical(node.operand)
        return operand.operand if isinstance(operand, Not) else Not(operand=operand)
    if isinstance(node, In):
        return _membership(node.path, node.values)
    return node


def text_of(node: Node) -> str:
    """Text of a filter."""
    if isinstance(node, And):
        return " AND ".join(text_of(operand) for operand in node.operands)
    if isinstance(node, Or):
        return " OR ".join(_inner(operand, And) for operand in node.operands)
    if isinstance(node, Not):
        return "NOT " + _inner(node.operand, And | Or)
    return _condition_text(node)


def _condition_text(node: Compare | Prefix | In | Exists | Has) -> str:
    path = path_text(node.path)
    if isinstance(node, Compare):
        return f"{path} {node.operator.value} {_value(node.path, node.value)}"
    if isinstance(node, Prefix):
        operator = Operator.NOT_EQUAL if node.negated else Operator.EQUAL
        return f"{path} {operator.value} {write_text(node.text, prefix=True)}"
    if isinstance(node, In):
        return f"{path} IN ({', '.join(_value(node.path, value) for value in node.values)})"
    if isinstance(node, Exists):
        return f"{path}:*"
    value = node.value
    return f"{path}:{write_text(value, prefix=node.prefix) if isinstance(value, str) else write_value(value)}"


def path_text(path: Path) -> str:
    """Text of a path."""
    if path.metadata is not None:
        return path.metadata.value
    first, *others = path.names
    quoted = first.lower() in _QUOTED_FIRST
    return ".".join([_quoted(first) if quoted else name_text(first), *map(name_text, others)])


def name_text(name: str) -> str:
    """Name of a field, in quotes where it needs them."""
    return name if _PLAIN_NAME.fullmatch(name) else _quoted(name)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _inner(node: Node, kinds: object) -> str:
    return f"({text_of(node)})" if isinstance(node, kinds) else text_of(node)  # type: ignore[arg-type]


def _value(path: Path, value: Scalar) -> str:
    if path.metadata is Metadata.UPDATE_TIME:
        assert isinstance(value, int)
        return f'"{write_time(value)}"'
    return write_value(value)


def _flat(kind: type[And | Or], operands: Iterable[Node]) -> Iterator[Node]:
    for operand in map(canonical, operands):
        if isinstance(operand, kind):
            yield from operand.operands
        else:
            yield operand


def _joined(kind: type[And] | type[Or], operands: Iterable[Node]) -> Node:
    by_text = {text_of(operand): operand for operand in operands}
    if len(by_text) == 1:
        return next(iter(by_text.values()))
    return kind(operands=tuple(by_text[text] for text in sorted(by_text)))


def _membership(path: Path, values: Iterable[Scalar]) -> Node:
    by_text = {write_value(value): value for value in values}
    distinct = tuple(by_text[text] for text in sorted(by_text))
    if len(distinct) == 1:
        return Compare(path=path, operator=Operator.EQUAL, value=distinct[0])
    return In(path=path, values=distinct)


def _equalities_merged(operands: Iterable[Node]) -> Iterator[Node]:
    """Operands of an OR, with all equalities of one field in one IN."""
    values: dict[Path, list[Scalar]] = {}
    for operand in operands:
        if isinstance(operand, In):
            values.setdefault(operand.path, []).extend(operand.values)
        elif isinstance(operand, Compare) and operand.operator is Operator.EQUAL:
            values.setdefault(operand.path, []).append(operand.value)
        else:
            yield operand
    for path, found in values.items():
        yield _membership(path, found)
