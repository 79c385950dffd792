"""What was wrong with records, told with the lines of the file they came from."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from syncline.cli.files import BadRecord, Record
from syncline.cli.render import Output, escape

if TYPE_CHECKING:
    from syncline import Violation

SHOWN_BY_DEFAULT: Final = 100
"""Errors shown to a person; the others are counted."""


_PLACE: Final = re.compile(r" at line (\d+) column (\d+)$")
"""Where the server's JSON parser stood, counted from the record's own beginning."""


class Refusals:
    """Tells every error of every bad record as it is found, and counts."""

    def __init__(self, name: str, output: Output, most_shown: int = SHOWN_BY_DEFAULT) -> None:
        self._name = name
        self._output = output
        self._most_shown = most_shown
        self.records = 0
        """Bad records."""
        self.errors = 0
        """Errors in them; a record can have several."""
        self.unlisted = 0
        """Errors that the server counted but did not list."""

    def unreadable(self, records: Iterable[BadRecord]) -> None:
        """Tell records that could not be read from the file."""
        for record in records:
            self.records += 1
            self._tell(record.line, "", record.keyword, record.message)

    def refused(
        self, violations: Sequence["Violation"], records: Sequence[Record], total: int | None = None
    ) -> None:
        """Tell what the server found wrong with these records."""
        for violation in violations:
            line = records[violation.index].line
            self._tell(line, violation.pointer, violation.keyword, _in_file(violation.message, line))
        self.records += len({violation.index for violation in violations})
        self.unlisted += max(0, (total or 0) - len(violations))

    def _tell(self, line: int, pointer: str, keyword: str, message: str) -> None:
        self.errors += 1
        if self._output.json:
            self._output.note_value(
                {"line": line, "pointer": pointer, "keyword": keyword, "message": message}
            )
        elif self.errors <= self._most_shown:
            place = self._output.paint(f"{escape(self._name)}:{line}:", "bold", stream=self._output.err)
            where = escape(pointer) + ": " if pointer else ""
            self._output.note(f"{place} {where}{escape(message)}")

    def close(self) -> None:
        """Tell how many errors were not shown."""
        hidden = (
            self.unlisted if self._output.json else max(0, self.errors - self._most_shown) + self.unlisted
        )
        if hidden:
            self._output.note(
                f"… and {hidden:,} more errors (--max-errors {self.errors + self.unlisted} shows all)"
            )


def _in_file(message: str, first_line: int) -> str:
    """A place in the record as a place in the file that it came from, where the record begins on ``first_line``."""
    if (place := _PLACE.search(message)) is None:
        return message
    line, column = int(place[1]), place[2]
    told = (
        f" at line {first_line + line - 1} column {column}"
        if line > 1
        else f" at column {column} of the record"
    )
    return message[: place.start()] + told
