"""What reaches a screen: escaped, aligned, cut to fit; and what reaches a pipe: untouched."""

import io
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncline import ChangeBatch, by_key
from syncline.cli.arguments import duration_argument, moment_argument
from syncline.cli.changes import json_lines, text_lines
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.render import Output, age, escape, escape_json, plain, shorten, width

NASTY = "a\x1b[31m\r\n\x07\x9b\u202ered\u2066\u200bz\ud800"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def batch(*changes, commit_time_us=1_700_000_000_123_456):
    ids, data, kinds = zip(*changes, strict=True)
    return ChangeBatch(
        record_ids=list(ids),
        json=list(data),
        revisions=[7] * len(ids),
        commit_times_us=[commit_time_us] * len(ids),
        kinds=list(kinds),
        reasons=[1, 3][: len(ids)],
        from_revision=6,
        to_revision=7,
        partial=False,
        previous_token=b"p",
        token=b"t",
        decode=msgspec.json.decode,
    )


@given(st.text() | st.just(NASTY))
def test_t107_escaped_text_cannot_steer_a_terminal(text):
    """T107: no control and no bidirectional character is left, and the text is on one line."""
    shown = escape(text)

    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert not set(shown) & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029"
    )
    assert len(shown.splitlines()) <= 1


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=9)))
def test_t107_escaped_json_is_the_same_value(value):
    """T107"""
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if b"\xed" in data and any("\ud800" <= c <= "\udfff" for c in data.decode("utf-8", "surrogatepass")):
        return  # not JSON that a server would send

    assert json.loads(escape_json(data)) == value


def test_t107_names_in_tables_are_escaped():
    """T107"""
    output = Output(out=Terminal(), err=Terminal(), colour=False)

    output.table(["name"], [[NASTY]])

    assert output.out.getvalue() == "NAME\n" + escape(NASTY) + "\n"


def test_t107_json_is_escaped_on_a_terminal_and_exact_in_a_pipe():
    """T107"""
    data = '{"a":"\u202e\x9b"}'.encode()
    terminal, pipe = Output(out=Terminal()), Output(out=io.StringIO())

    terminal.json_line(data)
    pipe.json_line(data)

    assert terminal.out.getvalue() == '{"a":"\\u202e\\u009b"}\n'
    assert pipe.out.getvalue() == data.decode() + "\n"


def test_tables_are_aligned_by_what_is_seen():
    output = Output(out=io.StringIO())

    output.table(["name", ">count", "note"], [["a", "1,000", ""], ["日本", "7", "x"]])

    assert output.out.getvalue() == "NAME  COUNT  NOTE\na     1,000\n日本      7  x\n"


@given(st.text(alphabet="aé日本", max_size=30), st.integers(1, 20))
def test_shortened_text_fits(text, columns):
    shown = shorten(text, columns)

    assert width(shown) <= columns
    assert shown == text or shown.endswith("…")


@pytest.mark.parametrize(
    ("colour", "environment", "stream", "painted"),
    [
        (None, {}, Terminal, True),
        (None, {}, io.StringIO, False),
        (None, {"NO_COLOR": "1"}, Terminal, False),
        (None, {"TERM": "dumb"}, Terminal, False),
        (False, {}, Terminal, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, colour, environment, stream, painted):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert (Output(out=stream(), colour=colour).paint("x", "red") != "x") == painted


def test_ages_are_in_their_largest_unit():
    now = datetime(2026, 1, 1, tzinfo=UTC)

    ages = [age(now - timedelta(seconds=s), now) for s in (-5, 3, 119, 120, 7199, 7200, 200_000)]

    assert ages == ["0 s", "3 s", "119 s", "2 min", "119 min", "2 h", "2 d"]
    assert age(None) == "-"


def test_values_for_programs():
    assert plain(
        {"t": datetime(2026, 1, 1, tzinfo=UTC), "d": timedelta(days=1), "b": b"\x0f", "i": by_key("a")}
    ) == {"t": "2026-01-01T00:00:00Z", "d": 86400.0, "b": "0f", "i": {"kind": "key", "key_fields": ["a"]}}


def test_changes_as_json_keep_the_bytes_of_the_data():
    put, delete = json_lines(batch(("a", b'{"n":123456789012345678901234567890}', 1), ("b", b"", 2)))

    assert put == (
        b'{"kind":"put","record_id":"a","revision":7,"commit_time":"2023-11-14T22:13:20.123456Z",'
        b'"reason":"api","data":{"n":123456789012345678901234567890}}'
    )
    assert json.loads(delete) == {
        "kind": "delete",
        "record_id": "b",
        "revision": 7,
        "commit_time": "2023-11-14T22:13:20.123456Z",
        "reason": "replace",
    }


def test_t107_changes_as_text_are_one_line_each_that_fits():
    """T107"""
    output = Output(out=Terminal(), err=Terminal(), colour=False)

    lines = list(text_lines(batch((NASTY, b'{"a":"' + b"x" * 500 + b'"}', 1), ("b", b"", 2)), output))

    assert [len(line.splitlines()) for line in lines] == [1, 1]
    assert "\x1b" not in lines[0]
    assert all(width(line) <= max(output.columns, 80) for line in lines)
    assert " put " in lines[0]
    assert " delete b" in lines[1]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("1.5 min", 90), ("2h", 7200), ("7d", 604_800), ("1w", 604_800)]
)
def test_lengths_of_time(text, seconds):
    assert duration_argument("--x", text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "-1s", "1y", "s", "1e9d", "999999999999d"])
def test_lengths_of_time_that_are_none(text):
    with pytest.raises(CommandError) as caught:
        duration_argument("--x", text)
    assert caught.value.code is ExitCode.USAGE


def test_moments():
    now = datetime(2026, 1, 1, tzinfo=UTC)

    assert moment_argument("--x", "1d", now) == datetime(2026, 1, 2, tzinfo=UTC)
    assert moment_argument("--x", "2030-01-31T12:00Z") == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert moment_argument("--x", "2030-01-31").tzinfo is not None
    with pytest.raises(CommandError):
        moment_argument("--x", "tomorrow")
