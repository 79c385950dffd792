r"""What goes to the screen: tables, lines, colours, times; and nothing that steers the terminal.

Data and names come from anybody. On a terminal, control characters and the characters that reorder text
(bidirectional controls) are shown as ``\uXXXX``. In JSON output to a file or pipe nothing is changed.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TextIO

import msgspec

_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_STYLES: Final[Mapping[str, str]] = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[31m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "blue": "\x1b[34m",
    "cyan": "\x1b[36m",
}
_RESET: Final = "\x1b[0m"


def escape(text: str) -> str:
    r"""The text with every character that could steer a terminal as ``\uXXXX``."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def escape_json(data: bytes) -> bytes:
    """The same JSON value with every character that could steer a terminal as an escape sequence."""
    return escape(data.decode(errors="replace")).encode()


def width(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def shorten(text: str, columns: int) -> str:
    """The text cut to at most ``columns`` on the terminal, with an ellipsis where it was cut."""
    if width(text) <= columns:
        return text
    kept = text[: max(0, columns - 1)]
    while kept and width(kept) > columns - 1:
        kept = kept[:-1]
    return kept + "…"


def local_time(moment: datetime | None) -> str:
    """A time in the local zone, to the second; a dash when there is none."""
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago a time was, in its largest unit; a dash when there is none."""
    if moment is None:
        return "-"
    seconds = max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds())
    for limit, unit_seconds, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit_seconds)} {unit}"
    return f"{int(seconds // 86_400)} d"


def count(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A length of time, as few characters as are useful."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s"


@dataclass(slots=True, kw_only=True)
class Output:
    """Standard output and error of one run of the command."""

    json: bool = False
    colour: bool | None = None
    """True and False force it; None: on a terminal, unless NO_COLOR is set or TERM is dumb."""
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    note_through: Callable[[str], None] | None = None
    """Takes the notes instead of ``err`` while something else is drawn there."""

    @property
    def out_is_terminal(self) -> bool:
        """Whether a person reads standard output."""
        return self.out.isatty()

    @property
    def err_is_terminal(self) -> bool:
        """Whether a person reads standard error."""
        return self.err.isatty()

    @property
    def columns(self) -> int:
        """Width of the terminal; wide when there is none."""
        if not self.out_is_terminal:
            return 10_000
        try:
            return os.get_terminal_size(self.out.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def paint(self, text: str, *styles: str, stream: TextIO | None = None) -> str:
        """The text in these styles where colours are wanted."""
        target = stream or self.out
        wanted = self.colour
        if wanted is None:
            wanted = target.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return "".join(_STYLES[style] for style in styles) + text + _RESET if wanted and text else text

    def line(self, text: str = "") -> None:
        """One line on standard output."""
        self.out.write(text + "\n")

    def note(self, text: str) -> None:
        """One line on standard error, for people."""
        if self.note_through is not None:
            self.note_through(text)
            return
        self.err.write(text + "\n")
        self.err.flush()

    def value(self, value: object) -> None:
        """One value as one line of JSON. ``msgspec.Raw`` inside it stays as it is."""
        self.json_line(msgspec.json.encode(value))

    def note_value(self, value: object) -> None:
        """One value as one line of JSON on standard error."""
        data = msgspec.json.encode(value)
        self.note((escape_json(data) if self.err_is_terminal else data).decode())

    def json_line(self, data: bytes) -> None:
        """One line of JSON text, byte for byte unless a person reads it."""
        if self.out_is_terminal:
            data = escape_json(data)
        self.out.write(data.decode(errors="surrogateescape") + "\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Aligned columns under a head. A name that begins with ``>`` is aligned to the right."""
        names = [name.lstrip(">").upper() for name in columns]
        cells = [[escape(cell) for cell in row] for row in rows]
        widths = [max(width(name), *(width(row[i]) for row in cells), 0) for i, name in enumerate(names)]
        right = [name.startswith(">") for name in columns]
        self.line(self.paint(_aligned(names, widths, right), "bold"))
        for row in cells:
            self.line(shorten(_aligned(row, widths, right), self.columns))

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one pair a line; values of several lines are indented."""
        shown = [(name, value) for name, value in pairs if value]
        margin = max((len(name) for name, _ in shown), default=0) + 2
        for name, value in shown:
            lines = [escape(part) for part in value.splitlines()] or [""]
            self.line(self.paint(f"{name}:".ljust(margin), "bold") + lines[0])
            for more in lines[1:]:
                self.line(" " * margin + more)


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for cell, columns, to_right in zip(cells, widths, right, strict=True):
        space = " " * (columns - width(cell))
        parts.append(space + cell if to_right else cell + space)
    return "  ".join(parts).rstrip()


def indented_json(data: bytes) -> str:
    """JSON text with two spaces a level."""
    return msgspec.json.format(data, indent=2).decode()


def plain(value: Any) -> Any:
    """A value for JSON output: times in RFC 3339, lengths of time in seconds, bytes as lower-case hex."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if is_dataclass(value):
        return plain_fields(value)
    convert = _PLAIN.get(type(value))
    return value if convert is None else convert(value)


_PLAIN: Final[Mapping[type, Callable[[Any], Any]]] = {
    datetime: lambda moment: moment.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    timedelta: timedelta.total_seconds,
    bytes: bytes.hex,
}


def plain_fields(value: Any) -> dict[str, Any]:
    """A dataclass for JSON output."""
    return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
