"""Readers of input files: JSON, JSON Lines, CSV and TSV, as streams with line numbers.

Every reader is a generator over a binary stream and holds one record at a time, so that any size of input
goes through bounded memory. What it yields is the record's JSON text, not a parsed object: numbers of any
length and duplicate members reach the server's strict parser as they stand in the file, and what that
parser has to say can be told with the line number.

A record that cannot be turned into JSON text (a broken CSV row, a line that is not UTF-8) is yielded as a
``BadRecord``, and reading goes on. When the form of the whole file is broken (a JSON array without an end),
``FileError`` is raised, because nothing after that place can be trusted.

Formats: JSON is RFC 8259 (one object, an array of objects, or objects one after the other as ``jq`` writes
them); JSON Lines is https://jsonlines.org; CSV is RFC 4180 with a header, TSV the same with tabs.
"""

import csv
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from io import BufferedIOBase
from pathlib import PurePath
from typing import Final, NamedTuple

from syncline.cli.columns import row_writer

RECORD_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""Longest record that is read at all. Far above what servers accept by default (1 MiB), so that the server's
own limit speaks first, and low enough to end on a file that is not what its name says."""

_CHUNK_BYTES: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# The last alternative is a string that the end of the window cuts.
_TOKEN: Final = re.compile(_STRING.pattern + rb'|[\[\]{}]|"', re.DOTALL)
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_WORD: Final = re.compile(rb'[^ \t\r\n,\[\]{}"]+')


class Format(StrEnum):
    """Form of an input file."""

    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


class Record(NamedTuple):
    """One record: the line of the file on which it begins (from 1) and its JSON text."""

    line: int
    data: bytes


class BadRecord(NamedTuple):
    """A record that could not be read: its line, what is wrong as a short keyword, and in words."""

    line: int
    keyword: str
    message: str


class FileError(Exception):
    """The form of the file is broken; ``line`` tells where."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


_EXTENSIONS: Final = {
    ".json": Format.JSON,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".jsonlines": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
}


def format_of(path: str) -> Format | None:
    """The format that a file's extension stands for; None when it is not known."""
    return _EXTENSIONS.get(PurePath(path).suffix.lower())


def read(
    stream: BufferedIOBase,
    form: Format,
    *,
    schema: object = None,
    limit_bytes: int = RECORD_LIMIT_BYTES,
) -> Iterator[Record | BadRecord]:
    """Read records. ``schema`` is the dataset's JSON Schema (parsed), used for the types of CSV columns.

    Raises FileError, and whatever reading the stream raises.
    """
    match form:
        case Format.JSON:
            return read_json(stream, limit_bytes=limit_bytes)
        case Format.JSONL:
            return read_json_lines(stream, limit_bytes=limit_bytes)
        case Format.CSV:
            return read_csv(stream, schema=schema, delimiter=",", limit_bytes=limit_bytes)
        case Format.TSV:
            return read_csv(stream, schema=schema, delimiter="\t", limit_bytes=limit_bytes)


def read_json_lines(
    stream: BufferedIOBase, *, limit_bytes: int = RECORD_LIMIT_BYTES
) -> Iterator[Record | BadRecord]:
    """Read one JSON text a line. Empty lines are skipped, a byte order mark and CRLF are taken off."""
    lines = _Lines(stream, limit_bytes)
    for raw in lines:
        if raw is None:
            yield BadRecord(lines.number, "size", _too_long(limit_bytes))
            continue
        data = raw.strip(b" \t\r\n")
        if data:
            yield Record(lines.number, data)


class _Lines:
    """Lines of a binary stream, counted, with their ends; None stands for one that is longer than the limit."""

    def __init__(self, stream: BufferedIOBase, limit_bytes: int) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self.number = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> bytes | None:
        line = self._stream.readline(self._limit_bytes + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        if len(line) <= self._limit_bytes or line.endswith(b"\n"):
            return line
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(_CHUNK_BYTES)
        return None


def _too_long(limit_bytes: int) -> str:
    return f"longer than {limit_bytes:,} bytes"


# ---------------------------------------------------------------------------------------------- JSON


def read_json(
    stream: BufferedIOBase, *, limit_bytes: int = RECORD_LIMIT_BYTES
) -> Iterator[Record | BadRecord]:
    """Read an object, an array of objects, or several objects one after the other.

    Only the borders of the elements are looked for; what stands inside is the server's business.
    """
    window = _Window(stream, limit_bytes)
    match window.next():
        case b"":
            return
        case b"{":
            while window.next():
                yield window.element()
        case b"[":
            yield from _elements(window)
            if window.next():
                raise FileError(window.line, "text after the end of the JSON array")
        case other:
            raise FileError(
                window.line, f"a JSON file begins with an object or an array, not with {_shown(other)}"
            )


def _elements(window: "_Window") -> Iterator[Record]:
    opened = window.line
    window.take(1)
    if window.next() == b"]":
        window.take(1)
        return
    while True:
        window.next()
        yield window.element()
        match window.next():
            case b",":
                window.take(1)
            case b"]":
                window.take(1)
                return
            case b"":
                raise FileError(
                    window.line,
                    f"the JSON array that begins on line {opened} has no end: is the file cut off?",
                )
            case other:
                raise FileError(
                    window.line,
                    f'expected "," or "]" after an element of the JSON array, found {_shown(other)}',
                )


class _Window:
    """The part of a JSON file that is in memory, and the line on which it begins."""

    def __init__(self, stream: BufferedIOBase, limit_bytes: int) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._buffer = b""
        self._start = 0
        self._ended = False
        self.line = 1
        while len(self._buffer) < len(_BOM) and self._fill():
            pass
        if self._buffer.startswith(_BOM):
            self._start = len(_BOM)

    def _fill(self) -> bool:
        """Read on; False at the end of the file. What was taken is dropped."""
        chunk = b"" if self._ended else self._stream.read1(_CHUNK_BYTES)
        self._ended = not chunk
        self._buffer = self._buffer[self._start :] + chunk
        self._start = 0
        return not self._ended

    def next(self) -> bytes:
        """Skip white space and return the byte after it, which stays; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._buffer, self._start)
            self.take(match.end() - self._start if match else 0)
            if self._start < len(self._buffer) or not self._fill():
                return self._buffer[self._start : self._start + 1]

    def take(self, count: int) -> bytes:
        """Go on by ``count`` bytes and return them."""
        taken = self._buffer[self._start : self._start + count]
        self._start += count
        self.line += taken.count(b"\n")
        return taken

    def element(self) -> Record:
        """Take the JSON value that begins here."""
        line = self.line
        first = self._buffer[self._start : self._start + 1]
        if first in (b"{", b"["):
            size = self._bracketed_size()
        elif first == b'"':
            size = self._size(_STRING)
        elif _WORD.match(first):
            size = self._size(_WORD)
        elif first:
            raise FileError(line, f"expected a JSON object, found {_shown(first)}")
        else:
            raise FileError(line, "expected a JSON object, found the end of the file: is it cut off?")
        return Record(line, self.take(size))

    def _bracketed_size(self) -> int:
        """Bytes from the bracket here to the one that closes it."""
        depth = scanned = 0
        while True:
            for match in _TOKEN.finditer(self._buffer, self._start + scanned):
                token = match[0]
                if token == b'"':
                    break
                if token in (b"{", b"["):
                    depth += 1
                elif token in (b"}", b"]"):
                    depth -= 1
                    if not depth:
                        return match.end() - self._start
                scanned = match.end() - self._start
            self._grow()

    def _size(self, pattern: re.Pattern[bytes]) -> int:
        """Bytes of the string or word here, which ends before the end of the window or of the file."""
        while True:
            match = pattern.match(self._buffer, self._start)
            if match and (match.end() < len(self._buffer) or not self._fill()):
                return len(match[0])
            if not match:
                self._grow()

    def _grow(self) -> None:
        if not self._fill():
            raise FileError(self.line, "the JSON value that begins here has no end: is the file cut off?")
        if len(self._buffer) > self._limit_bytes + _CHUNK_BYTES:
            raise FileError(self.line, f"the JSON value that begins here is {_too_long(self._limit_bytes)}")


def _shown(first: bytes) -> str:
    return ascii(first.decode("latin-1"))


# ----------------------------------------------------------------------------------------------- CSV


class _TextError(ValueError):
    """A line of a CSV file that is not UTF-8, or longer than the limit."""


class _TextLines:
    """Lines as text for ``csv.reader``. It goes on after an error, which a generator would not."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def __iter__(self) -> "_TextLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if line is None:
            raise _TextError("a line is too long")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise _TextError(f"not UTF-8 at byte {error.start + 1} of line {self._lines.number}") from None


def read_csv(
    stream: BufferedIOBase,
    *,
    schema: object = None,
    delimiter: str = ",",
    limit_bytes: int = RECORD_LIMIT_BYTES,
) -> Iterator[Record | BadRecord]:
    """Read rows under a header. Types of the columns come from the schema: see ``columns``.

    A row with more or fewer cells than the header is a BadRecord: it is more often a torn file or a missing
    quote than a wish. Rows without any cell are skipped.
    """
    csv.field_size_limit(limit_bytes)
    lines = _Lines(stream, limit_bytes)
    rows = csv.reader(_TextLines(lines), delimiter=delimiter, strict=True)
    write: Callable[[list[str]], bytes] | None = None
    width = 0
    while True:
        line = lines.number + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except (_TextError, csv.Error) as error:
            if write is None:
                raise FileError(line, f"the header cannot be read: {error}") from None
            yield BadRecord(
                line, "csv", str(error) if isinstance(error, _TextError) else f"not valid CSV: {error}"
            )
            continue
        if not row:
            continue
        if write is None:
            write, width = _header(row, schema, line), len(row)
        elif len(row) != width:
            yield BadRecord(line, "csv", f"{_cells(len(row))}, but the header has {_cells(width)}")
        else:
            yield Record(line, write(row))


def _header(row: list[str], schema: object, line: int) -> Callable[[list[str]], bytes]:
    try:
        return row_writer(row, schema)
    except ValueError as error:
        raise FileError(line, str(error)) from None


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"
