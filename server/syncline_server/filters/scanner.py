"""The words of filters and of field masks: paths, quoted text, bare values."""

import re
from typing import Final, NoReturn

_SPACE: Final = " \t\r\n"
_WORD: Final = re.compile(r"\w[\w-]*")
"""A name that needs no quotes: letters, digits and ``_`` of any script, inside also ``-``."""
_BARE: Final = re.compile(r"""[^\s()"'`\\,;=<>!&|\[\]{}]+""")
"""A value without quotes, up to what can only be something else."""
_PLAIN: Final = re.compile(r"""[^"'\\]+""")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_ESCAPES: Final = {
    '"': '"',
    "'": "'",
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}
_HEX: Final = re.compile(r"[0-9A-Fa-f]{4}")


class SyntaxFault(Exception):
    """The text is wrong at ``position``, counted in characters from 0."""

    def __init__(self, problem: str, position: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.position = position


class Scanner:
    """A place in a text. What is read is passed over; what is not there raises SyntaxFault."""

    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        lone = _SURROGATE.search(text)
        if lone:
            self.fail("half of a surrogate pair is not text", lone.start())

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        """Raise SyntaxFault at a position, without one here."""
        raise SyntaxFault(problem, self.at if position is None else position)

    def found(self) -> str:
        """What stands here, in the words of an error."""
        return repr(self.text[self.at]) if self.at < len(self.text) else "the end"

    def skip_space(self) -> None:
        """Pass over white space."""
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    def take(self, symbol: str) -> bool:
        """Whether this symbol stands here, after white space; then it is passed over."""
        self.skip_space()
        if not self.text.startswith(symbol, self.at):
            return False
        self.at += len(symbol)
        return True

    def take_keyword(self, keyword: str) -> bool:
        """Whether this keyword, in any case, stands here as a whole word; then it is passed over."""
        self.skip_space()
        word = _WORD.match(self.text, self.at)
        if word is None or word[0].upper() != keyword:
            return False
        self.at = word.end()
        return True

    def name(self) -> str:
        """Name of a field, in quotes or without."""
        if self.at_quote():
            return self.quoted(prefix=False)[0]
        word = _WORD.match(self.text, self.at)
        if word is None:
            self.fail(f"expected the name of a field, found {self.found()}")
        self.at = word.end()
        return word[0]

    def bare_value(self) -> str | None:
        """Value without quotes, if there is one here."""
        value = _BARE.match(self.text, self.at)
        if value is None:
            return None
        self.at = value.end()
        return value[0]

    def at_quote(self) -> bool:
        """Whether a quoted text begins here."""
        return self.text.startswith(('"', "'"), self.at)

    def quoted(self, *, prefix: bool) -> tuple[str, bool]:
        r"""Text in quotes, and whether it ended in a star that is not escaped.

        With ``prefix`` false a star is nothing special. The escapes are those of JSON, ``\'`` and ``\*``.
        """
        begin = self.at
        quote = self.text[begin]
        self.at += 1
        parts: list[str] = []
        star = -1
        while not self.text.startswith(quote, self.at):
            if self.at >= len(self.text):
                self.fail("the quoted text has no end", begin)
            if prefix and star >= 0:
                self.fail("a star stands for anything only at the end of a text; \\* is the character", star)
            if self.text[self.at] == "\\":
                parts.append(self._escape(star_too=prefix))
            elif prefix and self.text[self.at] == "*":
                star = self.at
                self.at += 1
            else:
                parts.append(self._plain(prefix=prefix))
        self.at += 1
        return "".join(parts), star >= 0

    def _plain(self, *, prefix: bool) -> str:
        plain = _PLAIN.match(self.text, self.at)
        part = plain[0] if plain else self.text[self.at]  # the other kind of quote
        if prefix:
            part = part.partition("*")[0]
        self.at += len(part)
        return part

    def _escape(self, *, star_too: bool) -> str:
        begin = self.at
        letter = self.text[begin + 1 : begin + 2]
        self.at += 2
        if letter == "u":
            return self._unicode(begin)
        if letter == "*" and star_too:
            return "*"
        try:
            return _ESCAPES[letter]
        except KeyError:
            self.fail(f"{self.text[begin : begin + 2]} is not an escape", begin)

    def _unicode(self, begin: int) -> str:
        first = self._hex(begin)
        if 0xD800 <= first < 0xDC00 and self.text.startswith("\\u", self.at):
            self.at += 2
            second = self._hex(begin)
            if 0xDC00 <= second < 0xE000:
                return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
        if 0xD800 <= first < 0xE000:
            self.fail("half of a surrogate pair is not text", begin)
        return chr(first)

    def _hex(self, begin: int) -> int:
        digits = _HEX.match(self.text, self.at)
        if digits is None:
            self.fail("\\u needs four hexadecimal digits", begin)
        self.at = digits.end()
        return int(digits[0], 16)
