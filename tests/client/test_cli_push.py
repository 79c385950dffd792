"""``syncline push`` from its arguments to its exit code, over an SDK client that does what a test says."""

import json

import pytest

import syncline
from syncline.cli import main
from syncline.cli.exits import ExitCode
from syncline.cli.files import Record
from syncline.cli.refusals import Refusals


class Told:
    """Output for programs that is kept."""

    json = True

    def __init__(self) -> None:
        self.notes: list[dict] = []

    def note_value(self, value: dict) -> None:
        self.notes.append(value)


def test_push_goes_in_calls_within_the_limits_of_the_server(fake, books_file, capsys):
    file = books_file("".join(f'{{"n":{i}}}\n' for i in range(25)))

    assert main(["push", "books", file]) == ExitCode.OK

    assert [len(call) for call in fake.books.pushed] == [10, 10, 5]
    assert [row["n"] for call in fake.books.pushed for row in call] == list(range(25))
    assert capsys.readouterr().out.startswith("books: 25 records in ")


def test_push_takes_the_types_of_columns_from_the_schema(fake, books_file):
    assert main(["push", "books", books_file("isbn,year\nx,1999\n", "books.csv")]) == ExitCode.OK
    assert fake.books.pushed == [[{"isbn": "x", "year": 1999}]]


def test_push_tells_every_error_with_its_line_and_stops_writing(fake, books_file, capsys):
    lines = [f'{{"n":{i}}}' for i in range(30)]
    lines[14], lines[27] = '{"n":14,"bad":"\u202e"}', '{"bad":2}'
    file = books_file("\n".join(lines))

    assert main(["push", "books", file]) == ExitCode.REFUSED

    told = capsys.readouterr()
    assert told.err.splitlines()[:2] == [
        "books.jsonl:15: /bad: \\u202e is bad",
        "books.jsonl:28: /bad: 2 is bad",
    ]
    assert "2 records refused. The first 10 records of the input were pushed" in told.err
    assert "10 of 30 records pushed" in told.out
    assert [len(call) for call in fake.books.pushed] == [10]


def test_push_refuses_a_call_with_a_row_that_cannot_be_read(fake, books_file, capsys):
    file = books_file("a,b\n1,2\n3\n", "books.csv")

    assert main(["push", "books", file]) == ExitCode.REFUSED

    assert fake.books.pushed == []
    assert capsys.readouterr().err.startswith("books.csv:3: 1 cell, but the header has 2 cells\n")


def test_push_partial_pushes_the_good_ones(fake, books_file, capsys):
    file = books_file('{"n":1}\n{"bad":1}\n{"n":3}\n')

    assert main(["push", "books", file, "--partial"]) == ExitCode.REFUSED

    assert fake.books.pushed == [[{"n": 1}, {"n": 3}]]
    assert "2 of 3 records pushed" in capsys.readouterr().out


def test_push_dry_run_changes_nothing(fake, books_file, capsys):
    file = books_file('{"n":1}\n{"n":2}\n')

    assert main(["push", "books", file, "--dry-run", "--session", "replace"]) == ExitCode.OK

    assert fake.books.pushed == []
    assert fake.books.sessions == []
    assert fake.books.checked == [[{"n": 1}, {"n": 2}]]
    assert "2 records checked" in capsys.readouterr().out


def test_push_session_commits_what_is_good(fake, books_file, capsys):
    arguments = [
        "push",
        "books",
        books_file('{"n":1}\n'),
        "--session",
        "replace",
        "--allow-mass-delete",
        "--source",
        "feed",
        "--on-conflict",
        "keep_newer",
    ]

    assert main(arguments) == ExitCode.OK

    assert fake.books.sessions == ["replace feed True keep_newer"]
    assert fake.books.committed is True
    assert "5 deleted, 3 kept as they are, changed meanwhile; revision 8" in capsys.readouterr().out


@pytest.mark.parametrize("session", [[], ["--session", "stream"]])
def test_push_on_conflict_needs_a_session_that_commits(fake, books_file, session):
    arguments = ["push", "books", books_file('{"n":1}\n'), "--on-conflict", "abort", *session]

    assert main(arguments) == ExitCode.USAGE

    assert fake.books.pushed == []


def test_g16_push_session_with_a_bad_record_is_rolled_back(fake, books_file, capsys):
    """G16: and every error is told."""
    file = books_file("".join('{"n":1}\n' for _ in range(12)) + '{"bad":1}\n{"bad":2}\n')

    assert main(["push", "books", file, "--session", "accrue"]) == ExitCode.REFUSED

    told = capsys.readouterr()
    assert fake.books.committed is False
    assert told.err.splitlines()[:2] == ["books.jsonl:13: /bad: 1 is bad", "books.jsonl:14: /bad: 2 is bad"]
    assert "rolled back: nothing was changed" in told.err


def test_push_for_programs(fake, books_file, capsys):
    file = books_file('{"n":1}\n{"bad":1}\n')

    assert main(["push", "books", file, "--partial", "--json"]) == ExitCode.REFUSED

    told = capsys.readouterr()
    assert json.loads(told.out) | {"seconds": 0} == {
        "dataset": "books",
        "source": "default",
        "dry_run": False,
        "records": 2,
        "created": 1,
        "updated": 0,
        "unchanged": 0,
        "deleted": 0,
        "kept": 0,
        "superseded": 0,
        "written": 1,
        "revision": 7,
        "refused": 1,
        "seconds": 0,
    }
    assert json.loads(told.err) == {"line": 2, "pointer": "/bad", "keyword": "type", "message": "1 is bad"}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            'Detected duplicate key "n" at line 1 column 9',
            'Detected duplicate key "n" at column 9 of the record',
        ),
        ("expected value at line 3 column 2", "expected value at line 4 column 2"),
        ("the number is too large for a double", "the number is too large for a double"),
    ],
)
def test_a_place_in_a_record_is_told_as_a_place_in_the_file(message, told):
    output = Told()
    refusals = Refusals("books.jsonl", output)

    refusals.refused(
        [syncline.Violation(index=0, pointer="", keyword="json", message=message)], [Record(2, b"{}")]
    )

    assert output.notes == [{"line": 2, "pointer": "", "keyword": "json", "message": told}]


def test_push_shows_some_errors_and_counts_all(fake, books_file, capsys):
    file = books_file("".join('{"bad":1}\n' for _ in range(8)))

    assert main(["push", "books", file, "--max-errors", "3"]) == ExitCode.REFUSED

    told = capsys.readouterr().err
    assert told.count("is bad") == 3
    assert "and 5 more errors" in told
    assert "8 records refused" in told


def test_push_tells_where_a_file_is_torn(fake, books_file, capsys):
    assert main(["push", "books", books_file('[{"n":1},\n{"n":', "books.json")]) == ExitCode.USAGE
    assert "line 2: the JSON value that begins here has no end" in capsys.readouterr().err
