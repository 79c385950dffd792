"""Text of a filter to its tree: a recursive descent over the grammar in docs/reference/filters.md.

It is that of AIP-160 (https://google.aip.dev/160) without functions and without literals that name no field, and
with ``IN``. As there, OR binds tighter than AND.
"""

from collections.abc import Callable
from typing import Final

from syncline_server.filters.scanner import Scanner
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
from syncline_server.filters.values import KEYWORDS, LITERALS, read_bare, read_time_us

MAX_DEPTH: Final = 32
"""Parentheses and negations inside each other."""
MAX_VALUES: Final = 1_000
"""Of one IN."""
MAX_HAS: Final = 32
"""Conditions with ``:`` in one filter, each of which may have to look through a long array."""

_OPERATORS: Final = (
    Operator.NOT_EQUAL,
    Operator.LESS_OR_EQUAL,
    Operator.GREATER_OR_EQUAL,
    Operator.EQUAL,
    Operator.LESS,
    Operator.GREATER,
)
"""Longer ones first."""
_METADATA: Final = {kind.value: kind for kind in Metadata}
_NOT_FILTERABLE: Final = {
    "source": "the source of a record is not filterable, because it can change without an event",
    "create_time": "create_time is not filterable",
}


def parse(text: str) -> Node:
    """Parse a filter that is not empty. Raises SyntaxFault."""
    return _Parser(text).parse()


class _Parser(Scanner):
    """One method for each rule of the grammar."""

    __slots__ = ("_depth", "_has_conditions")

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._has_conditions = 0

    def parse(self) -> Node:
        node = self._expression()
        self.skip_space()
        if self.at < len(self.text):
            self.fail(
                f"expected AND, OR or the end, found {self.found()}; text of several words stands in quotes"
            )
        return node

    def _expression(self) -> Node:
        return _joined(And, self._list_of(self._factor, "AND"))

    def _factor(self) -> Node:
        return _joined(Or, self._list_of(self._term, "OR"))

    def _list_of(self, rule: Callable[[], Node], keyword: str) -> list[Node]:
        found = [rule()]
        while self.take_keyword(keyword):
            found.append(rule())
        return found

    def _term(self) -> Node:
        if self.take_keyword("NOT") or self.take("-"):
            return Not(operand=self._deeper(self._term))
        if self.take("("):
            inside = self._deeper(self._expression)
            if not self.take(")"):
                self.fail(f"expected AND, OR or ')', found {self.found()}")
            return inside
        return self._restriction()

    def _deeper(self, rule: Callable[[], Node]) -> Node:
        if self._depth == MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        node = rule()
        self._depth -= 1
        return node

    def _restriction(self) -> Node:
        self.skip_space()
        begin = self.at
        path = self._path()
        if self.take(":"):
            return self._has(path, begin)
        if self.take_keyword("IN"):
            return self._in(path)
        self.skip_space()
        at = self.at
        for operator in _OPERATORS:
            if self.take(operator.value):
                return self._comparison(path, operator, at)
        return self.fail(f"expected = != < <= > >= : or IN after the field, found {self.found()}")

    # -- paths --------------------------------------------------------------------------------------------

    def _path(self) -> Path:
        begin = self.at
        quoted = self.at_quote()
        first = self.name()
        if not quoted:
            self._check_first(first, begin)
        names = [first]
        while self.text.startswith(".", self.at):
            self.at += 1
            names.append(self.name())
        metadata = None if quoted else _METADATA.get(first)
        if metadata is None:
            return Path(names=tuple(names))
        if len(names) > 1:
            self.fail(
                f'{first} has no fields; a field of the data with this name is written "{first}"', begin
            )
        return Path(metadata=metadata)

    def _check_first(self, name: str, begin: int) -> None:
        if name.upper() in KEYWORDS or name in LITERALS:
            self.fail(f'expected a field, found {name}; a field with this name is written "{name}"', begin)
        if name in _NOT_FILTERABLE:
            self.fail(
                f'{_NOT_FILTERABLE[name]}; a field of the data with this name is written "{name}"', begin
            )

    # -- conditions ---------------------------------------------------------------------------------------

    def _comparison(self, path: Path, operator: Operator, at: int) -> Node:
        begin, value, prefix = self._value(path)
        if prefix:
            if operator not in {Operator.EQUAL, Operator.NOT_EQUAL}:
                self.fail("a text that ends in a star is compared by = and != only; \\* is the character", at)
            assert isinstance(value, str)
            return Prefix(path=path, text=value, negated=operator is Operator.NOT_EQUAL)
        ordered = operator not in {Operator.EQUAL, Operator.NOT_EQUAL}
        if ordered and (value is None or isinstance(value, bool)):
            self.fail("true, false and null have no order: they are compared by = and != only", begin)
        return Compare(path=path, operator=operator, value=value)

    def _has(self, path: Path, begin: int) -> Node:
        if path.metadata is not None:
            self.fail(f"{path.metadata.value} is always there: compare it by =", begin)
        if self._has_conditions == MAX_HAS:
            self.fail(f"a filter has at most {MAX_HAS} conditions with ':'", begin)
        self._has_conditions += 1
        self.skip_space()
        if self.text.startswith("*", self.at):
            begin = self.at
            if self.bare_value() != "*":
                self.fail("a star stands for anything only at the end of a text; \\* is the character", begin)
            return Exists(path=path)
        _, value, prefix = self._value(path)
        return Has(path=path, value=value, prefix=prefix)

    def _in(self, path: Path) -> Node:
        if not self.take("("):
            self.fail(f"expected '(' after IN, found {self.found()}")
        values: list[Scalar] = []
        while True:
            begin, value, prefix = self._value(path)
            if prefix:
                self.fail("IN takes no prefixes: join conditions with = by OR", begin)
            if len(values) == MAX_VALUES:
                self.fail(f"IN takes at most {MAX_VALUES} values", begin)
            values.append(value)
            if self.take(")"):
                return In(path=path, values=tuple(values))
            if not self.take(","):
                self.fail(f"expected ',' or ')' after a value, found {self.found()}")

    # -- values -------------------------------------------------------------------------------------------

    def _value(self, path: Path) -> tuple[int, Scalar, bool]:
        """Where the value begins, the value, and whether it is a prefix."""
        self.skip_space()
        begin = self.at
        prefix = False
        value: Scalar
        if self.at_quote():
            value, prefix = self.quoted(prefix=True)
        else:
            word = self.bare_value()
            if word is None:
                self.fail(f"expected a value, found {self.found()}")
            value, prefix = self._bare(word, begin)
        if prefix and not value:
            self.fail("a star alone is no text; that a field is there is asked by field:*", begin)
        if path.metadata is not None:
            value = self._metadata_value(path.metadata, value, begin, prefix=prefix)
        return begin, value, prefix

    def _bare(self, word: str, begin: int) -> tuple[Scalar, bool]:
        text, star, rest = word.partition("*")
        if rest:
            position = begin + len(text)
            self.fail("a star stands for anything only at the end of a text; \\* is the character", position)
        if not text:
            return "", True
        try:
            value = read_bare(text)
        except ValueError as error:
            self.fail(str(error), begin)
        if star and not isinstance(value, str):
            self.fail("only text has prefixes: if it is text, put it in quotes", begin)
        return value, bool(star)

    def _metadata_value(self, metadata: Metadata, value: Scalar, begin: int, *, prefix: bool) -> Scalar:
        if metadata is Metadata.RECORD_ID:
            if not isinstance(value, str):
                self.fail("record_id is text: put the value in quotes", begin)
            return value
        if metadata is Metadata.REVISION:
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.fail("revision is a number", begin)
            return value
        if prefix or not isinstance(value, str):
            self.fail("write a time as RFC 3339 does, such as 2026-11-22T10:00:00Z", begin)
        try:
            return read_time_us(value)
        except ValueError as error:
            self.fail(str(error), begin)


def _joined(kind: type[And] | type[Or], operands: list[Node]) -> Node:
    return operands[0] if len(operands) == 1 else kind(operands=tuple(operands))
