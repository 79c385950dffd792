"""Values of one field that every matching record must have: what makes a filter findable by hash."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from syncline_server.filters.syntax import (
    And,
    Compare,
    In,
    Metadata,
    Node,
    Operator,
    Or,
    Path,
    Prefix,
    Scalar,
)
from syncline_server.filters.values import write_value

_MAX_VALUES: Final = 1_000
"""More are not kept apart; the filter is tested for every change instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The field at ``path`` equals one of ``values``; or, where those are empty, begins with one of ``prefixes``."""

    path: Path
    values: tuple[Scalar, ...] = ()
    """Distinct as JSON values: 1 and true may both be there, 1 and 1.0 not."""
    prefixes: tuple[str, ...] = ()
    """None of them begins with another, so that a text begins with at most one."""

    @property
    def rank(self) -> tuple[int, int]:
        """How selective it is, the smaller the more: equality before IN before prefixes."""
        return (1 if self.prefixes else 0, len(self.values) + len(self.prefixes))


def terms_of(node: Node) -> Terms | None:
    """The most selective terms of a filter; None when none decide."""
    return min(_terms(node).values(), key=lambda terms: terms.rank, default=None)


def _terms(node: Node) -> dict[Path, Terms]:
    """Terms of a filter, by field."""
    if isinstance(node, And):
        return _of_all([_terms(operand) for operand in node.operands])
    if isinstance(node, Or):
        return _of_any([_terms(operand) for operand in node.operands])
    terms = _of_condition(node)
    return {terms.path: terms} if terms else {}


def _of_condition(node: Node) -> Terms | None:
    if not isinstance(node, Compare | In | Prefix) or node.path.metadata not in {None, Metadata.RECORD_ID}:
        return None
    if isinstance(node, In):
        return Terms(path=node.path, values=node.values)
    if isinstance(node, Prefix):
        return None if node.negated else Terms(path=node.path, prefixes=(node.text,))
    return Terms(path=node.path, values=(node.value,)) if node.operator is Operator.EQUAL else None


def _of_all(parts: Sequence[dict[Path, Terms]]) -> dict[Path, Terms]:
    best: dict[Path, Terms] = {}
    for part in parts:
        for path, terms in part.items():
            if path not in best or terms.rank < best[path].rank:
                best[path] = terms
    return best


def _of_any(parts: Sequence[dict[Path, Terms]]) -> dict[Path, Terms]:
    common = set(parts[0]).intersection(*parts[1:])
    joined = ((path, _joined(path, [part[path] for part in parts])) for path in common)
    return {path: terms for path, terms in joined if terms is not None}


def _joined(path: Path, terms: Iterable[Terms]) -> Terms | None:
    values = {write_value(value): value for each in terms for value in each.values}
    prefixes = {prefix for each in terms for prefix in each.prefixes}
    if len(values) + len(prefixes) > _MAX_VALUES:
        return None
    if not prefixes:
        return Terms(path=path, values=tuple(values.values()))
    texts = [value for value in values.values() if isinstance(value, str)]
    if len(texts) < len(values) or "" in texts:  # every text begins with the empty one
        return None
    return Terms(path=path, prefixes=_shortest({*prefixes, *texts}))


def _shortest(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Those that begin with none of the others."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)
