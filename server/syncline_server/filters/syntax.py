"""What a filter says, parsed: the tree that parser makes and the others read.

Values are text, numbers, true, false and null, as JSON has them; of ``update_time`` they are microseconds.
"""

import enum
from dataclasses import dataclass

Scalar = str | int | float | bool | None


class Metadata(enum.Enum):
    """What a record has beside its data."""

    RECORD_ID = "record_id"
    REVISION = "revision"
    UPDATE_TIME = "update_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What a condition is about: a field of the data, by names from the outside in, or metadata."""

    names: tuple[str, ...] = ()
    metadata: Metadata | None = None


class Operator(enum.Enum):
    """A comparison."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """``path operator value``."""

    path: Path
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """``path = "text*"``, or ``!=`` of it."""

    path: Path
    text: str
    negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class In:
    """``path IN (values)``."""

    path: Path
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exists:
    """``path:*``."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Has:
    """``path:value``; with ``prefix`` ``path:"text*"``."""

    path: Path
    value: Scalar
    prefix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """``NOT operand``."""

    operand: "Node"


@dataclass(frozen=True, slots=True, kw_only=True)
class And:
    """All of them."""

    operands: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Or:
    """At least one of them."""

    operands: "tuple[Node, ...]"


Node = Compare | Prefix | In | Exists | Has | Not | And | Or
