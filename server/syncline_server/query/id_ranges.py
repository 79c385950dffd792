"""Where in the order of ids the records of a filter can be, so that a list need not look at all others."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from syncline_server.filters.syntax import Metadata
from syncline_server.filters.terms import Terms

_LAST: Final = "\U0010ffff" * 4
"""Follows, in the order of ids, what any real id goes on with."""


class IdRanges:
    """The whole order of ids, or the stretches of it that begin with certain texts."""

    __slots__ = ("_begins", "exact")

    def __init__(self, terms: Terms | None) -> None:
        self._begins: Sequence[str] | None = None
        self.exact = False
        """Each stretch is a single id."""
        if terms is not None and terms.path.metadata is Metadata.RECORD_ID:
            self.exact = not terms.prefixes
            self._begins = sorted(terms.prefixes or map(str, terms.values))

    def seek(self, after: str) -> str | None:
        """Where to read on ``after`` an id: there, or right before the next stretch; None behind the last one."""
        if self._begins is None:
            return after
        place = bisect_right(self._begins, after)
        if place and not self.exact and after.startswith(self._begins[place - 1]):
            return after
        return _right_before(self._begins[place]) if place < len(self._begins) else None


def _right_before(text: str) -> str:
    """Text that precedes this one, with as good as nothing between them."""
    if not text:
        return ""
    before = ord(text[-1]) - 1
    if before < 0:
        return text[:-1]
    if 0xD800 <= before < 0xE000:  # surrogates are no characters
        before = 0xD7FF
    return text[:-1] + chr(before) + _LAST
