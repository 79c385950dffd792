"""Readers of input files: what they take, what they refuse, on which line; in bounded memory."""

import io
import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncline.cli import files
from syncline.cli.files import (
    BadRecord,
    FileError,
    Format,
    Record,
    format_of,
    read,
    read_csv,
    read_json,
    read_json_lines,
)

objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=8)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
spaces = st.sampled_from(["", " ", "\n", "\r\n", "\t\n  "])


class Dribble(io.BufferedIOBase):
    """A stream that gives a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = io.BytesIO(data)
        self._size = size

    def read1(self, size: int = -1) -> bytes:
        return self._data.read(self._size)


def lines_of(text: str | bytes):
    return list(read_json_lines(io.BytesIO(text.encode() if isinstance(text, str) else text)))


def json_of(text: str | bytes):
    return list(read_json(io.BytesIO(text.encode() if isinstance(text, str) else text)))


def rows_of(text: str | bytes, schema=None, **more):
    data = text.encode() if isinstance(text, str) else text
    return [
        (row.line, json.loads(row.data)) if isinstance(row, Record) else row
        for row in read_csv(io.BytesIO(data), schema=schema, **more)
    ]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.json", "json"),
        ("a.JSONL", "jsonl"),
        ("x/b.ndjson", "jsonl"),
        ("a.csv", "csv"),
        ("a.b.tsv", "tsv"),
        ("a.txt", None),
        ("-", None),
    ],
)
def test_format_comes_from_the_extension(name, form):
    assert format_of(name) == form


# -- JSON Lines ---------------------------------------------------------------------------------------------


def test_json_lines_are_counted_and_stripped():
    assert lines_of('\ufeff{"a":1}\r\n\n  {"b":2}  \n{"c":3}') == [
        Record(1, b'{"a":1}'),
        Record(3, b'{"b":2}'),
        Record(4, b'{"c":3}'),
    ]


def test_json_lines_go_as_they_are():
    """Duplicate members and long numbers are for the server's strict parser."""
    line = b'{"a":1,"a":2,"n":123456789012345678901234567890.10}'

    assert lines_of(line) == [Record(1, line)]


def test_a_line_above_the_limit_is_told_and_reading_goes_on():
    text = b'{"a":1}\n' + b"x" * 100 + b'\n{"b":2}\n' + b"y" * 100

    assert list(read_json_lines(io.BytesIO(text), limit_bytes=20)) == [
        Record(1, b'{"a":1}'),
        BadRecord(2, "size", "longer than 20 bytes"),
        Record(3, b'{"b":2}'),
        BadRecord(4, "size", "longer than 20 bytes"),
    ]


def test_a_line_of_exactly_the_limit_is_read():
    assert list(read_json_lines(io.BytesIO(b"x" * 20 + b"\n" + b"y" * 20), limit_bytes=20)) == [
        Record(1, b"x" * 20),
        Record(2, b"y" * 20),
    ]


# -- JSON ---------------------------------------------------------------------------------------------------


@given(st.lists(objects, max_size=6), spaces, st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_json_arrays_are_split_at_their_elements(values, space, size, bom, indent):
    text = (
        "["
        + space
        + f"{space},{space}".join(json.dumps(v, indent=indent) for v in values)
        + space
        + "]"
        + space
    )
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()

    found = list(read_json(Dribble(data, size)))

    assert [json.loads(record.data) for record in found] == values


@given(st.lists(objects, min_size=1, max_size=6), spaces, st.integers(1, 40))
def test_json_objects_one_after_the_other(values, space, size):
    data = space.join(json.dumps(value, ensure_ascii=False) for value in values).encode()

    assert [json.loads(record.data) for record in read_json(Dribble(data, size))] == values


def test_json_elements_know_their_lines():
    assert json_of('[\n  {"a":\n 1},\n\n  {"b": "x\\"]}"}, 5, null, "s,{", [1]\n]\n') == [
        Record(2, b'{"a":\n 1}'),
        Record(5, b'{"b": "x\\"]}"}'),
        Record(5, b"5"),
        Record(5, b"null"),
        Record(5, b'"s,{"'),
        Record(5, b"[1]"),
    ]


@pytest.mark.parametrize("text", ["", " \n", "[]", " [ \n ] "])
def test_json_without_records(text):
    assert json_of(text) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[{"a":1}', 1, "has no end"),
        ('[\n{"a":1},\n', 3, "cut off"),
        ('[{"a":1},\n]', 2, "']'"),
        ('[{"a":1} {"b":2}]', 1, 'expected ","'),
        ('[\n{"a":"x', 2, "no end"),
        ('["x', 1, "no end"),
        ('{"a":1}\n{"b":', 2, "no end"),
        ("isbn,title\n", 1, "begins with an object or an array"),
        ('[{"a":1}]\nmore', 2, "after the end"),
        ("[,]", 1, "','"),
    ],
)
def test_broken_json_is_told_with_its_line(text, line, says):
    with pytest.raises(FileError) as caught:
        json_of(text)
    assert caught.value.line == line
    assert says in caught.value.message


@given(st.binary(max_size=60))
def test_any_bytes_end_in_records_or_file_errors(data):
    for form in Format:
        try:
            found = list(read(io.BytesIO(data), form, limit_bytes=40))
        except FileError:
            continue
        assert all(record.line >= 1 for record in found)


def test_json_values_above_the_limit_end_the_file():
    data = b'[{"a":"' + b"x" * (2 * files._CHUNK_BYTES) + b'"}]'

    with pytest.raises(FileError, match="longer than 100 bytes"):
        list(read_json(io.BytesIO(data), limit_bytes=100))


# -- CSV ----------------------------------------------------------------------------------------------------

SCHEMA = {
    "properties": {
        "isbn": {"type": "string"},
        "year": {"type": "integer"},
        "price": {"type": ["number", "null"]},
        "sold": {"type": "boolean"},
        "tags": {"type": "array"},
        "kind": {"enum": ["a", 1, None]},
        "ref": {"$ref": "#/$defs/money"},
        "any": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "station": {"properties": {"id": {"type": "integer"}, "name": {}}},
        "dotted.name": {"type": "integer"},
    },
    "$defs": {"money": {"type": "number"}},
}


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("isbn", "007", "007"),
        ("isbn", " x ", " x "),
        ("year", "007", 7),
        ("year", " 1999 ", 1999),
        ("year", "1999.0", 1999),
        ("year", "-5", -5),
        ("year", "1e3", "1e3"),
        ("year", "12345678901234567890123", 12345678901234567890123),
        ("year", "x", "x"),
        ("price", "1.50", 1.5),
        ("price", "5", 5),
        ("price", ".5", 0.5),
        ("price", "+1e400", "+1e400"),
        ("price", "NaN", "NaN"),
        ("price", "1,5", "1,5"),
        ("sold", "TRUE", True),
        ("sold", "0", False),
        ("sold", "yes", "yes"),
        ("tags", '["a", 1]', ["a", 1]),
        ("tags", "[broken", "[broken"),
        ("kind", "a", "a"),
        ("kind", "1", 1),
        ("ref", "2.5", 2.5),
        ("any", "5", 5),
        ("any", "x", "x"),
        ("unknown", "5", "5"),
    ],
)
def test_cells_take_the_type_of_the_schema(column, cell, value):
    quoted = '"' + cell.replace('"', '""') + '"'

    [(_, row)] = rows_of(f"{column}\n{quoted}\n", SCHEMA)

    assert row == {column: value}
    assert type(row[column]) is type(value)


def test_the_same_cells_without_a_schema_are_strings():
    assert rows_of("year,sold\n1999,true\n") == [(2, {"year": "1999", "sold": "true"})]


def test_an_empty_cell_is_null_where_the_schema_allows_it_and_else_left_out():
    assert rows_of("isbn,year,price,kind\nx,,,\n", SCHEMA) == [
        (2, {"isbn": "x", "price": None, "kind": None})
    ]


def test_dots_make_objects_unless_the_schema_has_the_name():
    assert rows_of("station.id,station.name,dotted.name,a..b\n7,Main,3,z\n,,,\n", SCHEMA) == [
        (2, {"station": {"id": 7, "name": "Main"}, "dotted.name": 3, "a..b": "z"}),
        (3, {}),
    ]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("a,,b", "column 2 has no name"),
        ("a,a", "twice"),
        ("a,a.b", "needs an object"),
        ("a.b,a", "beginning of another"),
    ],
)
def test_headers_that_cannot_be_are_refused(header, says):
    with pytest.raises(FileError, match=says):
        rows_of(f"{header}\n1,2,3\n")


def test_csv_rows_know_their_lines_and_bad_ones_do_not_end_the_file():
    text = b'\xef\xbb\xbfa,b\r\n1,"two\r\nlines"\r\n\r\n3\r\n4,5,6\r\n\xff,7\r\n"x"y,8\r\n9,10'

    assert rows_of(text) == [
        (2, {"a": "1", "b": "two\r\nlines"}),
        BadRecord(5, "csv", "1 cell, but the header has 2 cells"),
        BadRecord(6, "csv", "3 cells, but the header has 2 cells"),
        BadRecord(7, "csv", "not UTF-8 at byte 1 of line 7"),
        BadRecord(8, "csv", "not valid CSV: ',' expected after '\"'"),
        (9, {"a": "9", "b": "10"}),
    ]


def test_a_quote_that_is_never_closed_is_a_bad_record_within_the_limit():
    text = 'a,b\n1,"open\n' + "x,y\n" * 100

    found = rows_of(text, limit_bytes=64)

    assert found[0].line == 2
    assert isinstance(found[0], BadRecord)


def test_tsv_and_semicolons_inside():
    assert [json.loads(r.data) for r in read(io.BytesIO(b"a\tb\n1;2\t3\n"), Format.TSV)] == [
        {"a": "1;2", "b": "3"}
    ]


@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), st.text(min_size=1, max_size=6)), max_size=5))
def test_csv_strings_come_out_as_they_went_in(rows):
    rows = [row for row in rows if not any("\ud800" <= c <= "\udfff" for cell in row for c in cell)]
    text = "a,b\n" + "".join(
        ",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows
    )

    assert [row for _, row in rows_of(text)] == [{"a": a, "b": b} for a, b in rows]


# -- memory -------------------------------------------------------------------------------------------------


class Endless(io.RawIOBase):
    """A file of so many records that is made as it is read."""

    def __init__(self, first: bytes, record: bytes, count: int) -> None:
        self._head = first
        self._record = record
        self._left = count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self._head and self._left:
            many = min(self._left, max(1, len(buffer) // len(self._record)))
            self._head, self._left = self._record * many, self._left - many
        part, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize(
    ("form", "first", "record"),
    [
        (Format.JSONL, b"", b'{"a":"' + b"x" * 80 + b'"}\n'),
        (Format.JSON, b"[{}", b',{"a":"' + b"x" * 80 + b'"}'),
        (Format.CSV, b"a,b\n", b"1," + b"x" * 80 + b"\n"),
    ],
)
def test_readers_hold_one_record_at_a_time(form, first, record):
    """20 MB of input through less than 2 MiB of memory."""
    count = 20_000_000 // len(record) // (8 if form is Format.CSV else 4)
    stream = io.BufferedReader(Endless(first, record, count), 256 * 1024)
    tracemalloc.start()
    try:
        seen = 0
        try:
            for _ in read(stream, form):
                seen += 1
        except FileError:
            assert form is Format.JSON  # the array is not closed
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert seen >= count
    assert peak < 2 * 1024 * 1024


def test_records_are_json_text_as_bytes():
    assert msgspec.json.decode(lines_of('{"a":1}')[0].data) == {"a": 1}
