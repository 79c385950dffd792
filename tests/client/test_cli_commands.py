"""The command from its arguments to its exit code, over an SDK client that does what a test says."""

import ast
import contextlib
import io
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import syncline
from syncline.cli import main
from syncline.cli.exits import MEANINGS, ExitCode
from syncline.cli.failures import IN_OPTIONS, failure_of, in_options
from syncline.cli.files import Record
from syncline.cli.refusals import Refusals
from syncline.models import Results

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = syncline.Limits(
    records_per_call=10, bytes_per_call=1000, bytes_per_record=500, depth=64, bytes_per_record_id=512
)
INFO = syncline.DatasetInfo(
    dataset="books",
    uid="u",
    identity=syncline.by_key("isbn"),
    scope="shared",
    schema={"properties": {"year": {"type": "integer"}}},
    display_name="B\x1b[31mooks",
    description="",
    retention=syncline.Retention(),
    annotations={},
    revision=7,
    record_count=1234,
    digest=b"\xab" * 16,
    purge_revision=0,
    create_time=NOW,
    update_time=NOW,
    commit_time=NOW,
    etag="e",
)


class Told:
    """Output for programs that is kept."""

    json = True

    def __init__(self) -> None:
        self.notes: list[dict] = []

    def note_value(self, value: dict) -> None:
        self.notes.append(value)


class FakeDataset:
    """Holds what was pushed; a record with ``"bad"`` in it is refused."""

    def __init__(self) -> None:
        self.pushed: list[list[dict]] = []
        self.checked: list[list[dict]] = []
        self.sessions: list[str] = []
        self.committed: bool | None = None

    def _result(self, rows, status):
        violations = tuple(
            syncline.Violation(index=i, pointer="/bad", keyword="type", message=f"{row['bad']} is bad")
            for i, row in enumerate(rows)
            if "bad" in row
        )
        statuses = [8 if "bad" in row else status for row in rows]
        return syncline.PushResult(
            revision=7,
            results=Results(["x"] * len(rows), statuses, violations),
            records=len(rows),
            violations=violations,
        )

    async def push(self, records, *, source="default", partial=False, validate_only=False, **_):
        rows = [json.loads(record) for record in records]
        result = self._result(rows, 1)
        if validate_only:
            self.checked.append(rows)
            return result
        if result.violations and not partial:
            raise syncline.InvalidRecords("refused", violations=result.violations[:1], total_violations=9)
        self.pushed.append([row for row in rows if "bad" not in row])
        return result

    async def upsert(self, records):
        return await self.push(records)

    async def close(self, *, commit):
        self.committed = commit
        return syncline.SessionResult(
            revision=8, created=2 * commit, updated=0, unchanged=0, deleted=5 * commit, kept=3 * commit
        )

    @contextlib.asynccontextmanager
    async def session(self, mode, *, source, allow_mass_delete, on_conflict):
        self.sessions.append(f"{mode} {source} {allow_mass_delete} {on_conflict}")
        yield self

    async def get_many(self, ids):
        return {
            i: SimpleNamespace(
                record_id=i,
                revision=1,
                source="default",
                create_time=NOW,
                update_time=NOW,
                json=b'{"a":"\xc2\x9b"}',
            )
            for i in ids
            if i != "nope"
        }


class FakeClient:
    address = "127.0.0.1:7420"

    def __init__(self) -> None:
        self.books = FakeDataset()
        self.error: Exception | None = None
        self.calls: list[tuple] = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        return None

    def dataset(self, dataset):
        return self.books

    async def server_info(self):
        if self.error:
            raise self.error
        return syncline.ServerInfo(
            version="9.9",
            store="sqlite",
            server_time=NOW,
            start_time=NOW,
            limits=LIMITS,
            role="admin",
            writable=True,
        )

    async def nodes(self):
        return []

    async def get_dataset(self, dataset):
        return INFO

    async def list_datasets(self):
        if self.error:
            raise self.error
        return [INFO]

    async def create_dataset(self, dataset, **settings):
        self.calls.append((dataset, settings))
        return INFO

    async def delete_dataset(self, dataset, **settings):
        self.calls.append((dataset, settings))


@pytest.fixture
def client(monkeypatch):
    client = FakeClient()
    client.arguments = None

    def connect(address, **arguments):
        client.arguments = {"address": address, **arguments}
        return client

    monkeypatch.setattr(syncline, "connect", connect)
    for name in (
        "SYNCLINE_SERVER",
        "SYNCLINE_TLS",
        "SYNCLINE_CA",
        "SYNCLINE_CERT",
        "SYNCLINE_INSECURE",
        "NO_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    return client


@pytest.fixture
def books_file(tmp_path):
    def write(text, name="books.jsonl"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


# -- exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (syncline.NotFound("x", reason="DATASET_NOT_FOUND"), ExitCode.NOT_FOUND),
        (syncline.NotAuthenticated("x"), ExitCode.NOT_ALLOWED),
        (syncline.PermissionDenied("x"), ExitCode.NOT_ALLOWED),
        (syncline.SessionInvalid("x"), ExitCode.NOT_ALLOWED),
        (syncline.InvalidRecords("x"), ExitCode.REFUSED),
        (syncline.MassDeleteRefused("x"), ExitCode.REFUSED),
        (syncline.Unavailable("x"), ExitCode.UNAVAILABLE),
        (syncline.DeadlineExceeded("x"), ExitCode.UNAVAILABLE),
        (syncline.Overloaded("x"), ExitCode.UNAVAILABLE),
        (syncline.AlreadyExists("x"), ExitCode.CONFLICT),
        (syncline.EtagMismatch("x"), ExitCode.CONFLICT),
        (syncline.ServerError("x"), ExitCode.ERROR),
        (syncline.InvalidArgument("x"), ExitCode.USAGE),
        (OSError(28, "No space left on device"), ExitCode.ERROR),
        (RuntimeError("x"), ExitCode.ERROR),
    ],
)
def test_errors_become_exit_codes_and_few_lines(client, capsys, error, code):
    client.error = error

    assert main(["dataset", "list"]) == code

    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert 1 <= len(told.err.splitlines()) <= 3
    assert "error:" in told.err


def test_every_error_of_the_sdk_has_an_exit_code():
    kinds = [
        kind
        for name in syncline.__all__
        if isinstance(kind := getattr(syncline, name), type) and issubclass(kind, syncline.SynclineError)
    ]

    assert len(kinds) > 20
    assert {failure_of(kind("x")).code for kind in kinds} <= set(MEANINGS)


def test_a_filter_that_cannot_be_read_is_shown_with_the_place(client, capsys):
    client.error = syncline.InvalidArgument(
        "filter: expected a value, found the end (at position 6)\nyear <\n      ^",
        fields={"filter": "expected a value, found the end (at position 6)"},
    )

    assert main(["dataset", "list"]) == ExitCode.USAGE
    assert capsys.readouterr().err.splitlines() == [
        "error: filter: expected a value, found the end (at position 6)",
        "  year <",
        "        ^",
    ]


def test_a_store_that_is_away_is_told_in_the_terms_of_the_command(client, capsys):
    client.error = syncline.Unavailable(
        "the store cannot answer (away); retry with the same request id", reason="STORE_UNAVAILABLE"
    )

    assert main(["dataset", "list"]) == ExitCode.UNAVAILABLE
    assert capsys.readouterr().err.splitlines() == [
        "error: the store cannot answer (away)",
        "hint: the server is there, its store is not; running this again is safe.",
    ]


def test_debug_shows_the_traceback(client, capsys):
    client.error = RuntimeError("deep")

    assert main(["dataset", "list", "--debug"]) == ExitCode.ERROR
    assert "Traceback" in capsys.readouterr().err


def test_a_schema_file_that_cannot_be_read(client, capsys, tmp_path):
    missing = str(tmp_path / "missing.json")

    assert main(["dataset", "create", "books", "--schema", missing]) == ExitCode.USAGE
    assert capsys.readouterr().err == f"error: {missing}: No such file or directory\n"


def test_an_authority_that_is_not_there(capsys):
    assert main(["dataset", "list", "--ca", "none.pem"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "error: none.pem is not there, or no file\n"


def test_a_mirror_into_a_directory_that_is_not_there(capsys, tmp_path):
    file = tmp_path / "none" / "books.db"

    assert main(["mirror", "books", str(file)]) == ExitCode.USAGE
    assert capsys.readouterr().err == f"error: {file}: {file.parent} is not a directory\n"


def test_errors_for_programs_are_json(client, capsys):
    client.error = syncline.NotFound("no \x1b books", reason="DATASET_NOT_FOUND")

    assert main(["--json", "dataset", "list"]) == ExitCode.NOT_FOUND

    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["exit_code"], error["reason"], error["message"]) == (
        3,
        "DATASET_NOT_FOUND",
        "no \x1b books",
    )


def test_t107_errors_are_escaped(client, capsys):
    """T107"""
    client.error = syncline.NotFound("no \x1b[31m\u202ebooks")

    main(["dataset", "list"])

    assert capsys.readouterr().err == "error: no \\u001b[31m\\u202ebooks\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["push"],
        ["push", "books", "no-such-file.csv"],
        ["push", "books", "README"],
        ["push", "books", "-", "--format", "xml"],
        ["push", "books", "x.csv", "--partial", "--session", "replace"],
        ["delete", "books"],
        ["delete", "books", "-", "--id", "x"],
        ["dataset", "create", "books", "--by-key", "a", "--append"],
        ["dataset", "update", "books"],
        ["dataset", "delete", "books"],
        ["key", "create", "push"],
        ["key", "create", "admin", "--dataset", "books"],
        ["key", "create", "read"],
        ["nonsense"],
        ["status", "--cert", "x.pem"],
    ],
)
def test_wrong_arguments_are_2(client, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    assert main(arguments) == ExitCode.USAGE
    assert capsys.readouterr().err


def test_every_exit_code_is_in_the_help(capsys):
    assert set(MEANINGS) == set(ExitCode)
    assert main(["--help"]) == ExitCode.OK

    text = capsys.readouterr().out
    for code in ExitCode:
        assert f" {code.value}: " in text


def test_advice_of_the_sdk_is_in_terms_of_options():
    """Each phrase that is replaced is one that the SDK says: otherwise its advice would go out in code."""
    package = Path(syncline.__file__).parent
    said = [
        node.value
        for file in package.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]

    for phrase, option in IN_OPTIONS.items():
        assert any(phrase in text for text in said), phrase
        assert in_options(f"x; {phrase} y") == f"x; {option} y"


# -- shared options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--server", "a:1", "--key", "k", "dataset", "list"],
        ["dataset", "--server", "a:1", "--key", "k", "list"],
        ["dataset", "list", "--server", "a:1", "--key", "k"],
        ["--server", "b:2", "--key", "k", "dataset", "list", "--server", "a:1"],
    ],
)
def test_shared_options_stand_anywhere_and_the_last_one_counts(client, arguments):
    assert main(arguments) == ExitCode.OK
    assert client.arguments == {"address": "a:1", "key": "k", "tls": None, "insecure": False}


def test_options_go_before_the_environment(client, monkeypatch, tmp_path):
    monkeypatch.setenv("SYNCLINE_SERVER", "env:1")
    monkeypatch.setenv("SYNCLINE_CA", str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").touch()
    (other := tmp_path / "other.pem").touch()

    assert main(["dataset", "list"]) == ExitCode.OK
    assert client.arguments["address"] == "env:1"
    assert client.arguments["tls"] == syncline.Tls(ca=tmp_path / "ca.pem")
    assert main(["dataset", "list", "--server", "b:2", "--ca", str(other)]) == ExitCode.OK
    assert client.arguments["address"] == "b:2"
    assert client.arguments["tls"] == syncline.Tls(ca=other)


def test_a_flag_in_the_environment_is_1_or_0(client, monkeypatch):
    monkeypatch.setenv("SYNCLINE_TLS", "maybe")

    assert main(["dataset", "list"]) == ExitCode.USAGE


# -- push ---------------------------------------------------------------------------------------------------


def test_push_goes_in_calls_within_the_limits_of_the_server(client, books_file, capsys):
    file = books_file("".join(f'{{"n":{i}}}\n' for i in range(25)))

    assert main(["push", "books", file]) == ExitCode.OK

    assert [len(call) for call in client.books.pushed] == [10, 10, 5]
    assert [row["n"] for call in client.books.pushed for row in call] == list(range(25))
    assert capsys.readouterr().out.startswith("books: 25 records in ")


def test_push_takes_the_types_of_columns_from_the_schema(client, books_file):
    assert main(["push", "books", books_file("isbn,year\nx,1999\n", "books.csv")]) == ExitCode.OK
    assert client.books.pushed == [[{"isbn": "x", "year": 1999}]]


def test_push_tells_every_error_with_its_line_and_stops_writing(client, books_file, capsys):
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
    assert [len(call) for call in client.books.pushed] == [10]


def test_push_refuses_a_call_with_a_row_that_cannot_be_read(client, books_file, capsys):
    file = books_file("a,b\n1,2\n3\n", "books.csv")

    assert main(["push", "books", file]) == ExitCode.REFUSED

    assert client.books.pushed == []
    assert capsys.readouterr().err.startswith("books.csv:3: 1 cell, but the header has 2 cells\n")


def test_push_partial_pushes_the_good_ones(client, books_file, capsys):
    file = books_file('{"n":1}\n{"bad":1}\n{"n":3}\n')

    assert main(["push", "books", file, "--partial"]) == ExitCode.REFUSED

    assert client.books.pushed == [[{"n": 1}, {"n": 3}]]
    assert "2 of 3 records pushed" in capsys.readouterr().out


def test_push_dry_run_changes_nothing(client, books_file, capsys):
    file = books_file('{"n":1}\n{"n":2}\n')

    assert main(["push", "books", file, "--dry-run", "--session", "replace"]) == ExitCode.OK

    assert client.books.pushed == []
    assert client.books.sessions == []
    assert client.books.checked == [[{"n": 1}, {"n": 2}]]
    assert "2 records checked" in capsys.readouterr().out


def test_push_session_commits_what_is_good(client, books_file, capsys):
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

    assert client.books.sessions == ["replace feed True keep_newer"]
    assert client.books.committed is True
    assert "5 deleted, 3 kept as they are, changed meanwhile; revision 8" in capsys.readouterr().out


@pytest.mark.parametrize("session", [[], ["--session", "stream"]])
def test_push_on_conflict_needs_a_session_that_commits(client, books_file, session):
    arguments = ["push", "books", books_file('{"n":1}\n'), "--on-conflict", "abort", *session]

    assert main(arguments) == ExitCode.USAGE

    assert client.books.pushed == []


def test_g16_push_session_with_a_bad_record_is_rolled_back(client, books_file, capsys):
    """G16: and every error is told."""
    file = books_file("".join('{"n":1}\n' for _ in range(12)) + '{"bad":1}\n{"bad":2}\n')

    assert main(["push", "books", file, "--session", "accrue"]) == ExitCode.REFUSED

    told = capsys.readouterr()
    assert client.books.committed is False
    assert told.err.splitlines()[:2] == ["books.jsonl:13: /bad: 1 is bad", "books.jsonl:14: /bad: 2 is bad"]
    assert "rolled back: nothing was changed" in told.err


def test_push_for_programs(client, books_file, capsys):
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


def test_push_shows_some_errors_and_counts_all(client, books_file, capsys):
    file = books_file("".join('{"bad":1}\n' for _ in range(8)))

    assert main(["push", "books", file, "--max-errors", "3"]) == ExitCode.REFUSED

    told = capsys.readouterr().err
    assert told.count("is bad") == 3
    assert "and 5 more errors" in told
    assert "8 records refused" in told


def test_push_tells_where_a_file_is_torn(client, books_file, capsys):
    assert main(["push", "books", books_file('[{"n":1},\n{"n":', "books.json")]) == ExitCode.USAGE
    assert "line 2: the JSON value that begins here has no end" in capsys.readouterr().err


# -- the others ---------------------------------------------------------------------------------------------


def test_get_tells_what_is_missing(client, capsys):
    assert main(["get", "books", "a", "nope"]) == ExitCode.NOT_FOUND

    told = capsys.readouterr()
    assert json.loads(told.out)["data"] == {"a": "\x9b"}
    assert told.err == "books has no record nope\n"


def test_t107_status_escapes_names(client, capsys):
    """T107"""
    assert main(["status"]) == ExitCode.OK

    out = capsys.readouterr().out
    assert "B\\u001b[31mooks" in out
    assert "1,234" in out
    assert "\x1b" not in out


def test_status_of_a_key_that_may_not_list(client, monkeypatch, capsys):
    async def refuse():
        raise syncline.PermissionDenied("no")

    monkeypatch.setattr(client, "list_datasets", refuse)

    assert main(["status", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["datasets"] is None


def test_dataset_create_reads_its_schema(client, books_file):
    schema = books_file('{"type": "object"}', "schema.json")

    assert (
        main(["dataset", "create", "books", "--by-key", "a,b.c", "--schema", schema, "--annotation", "x=1=2"])
        == 0
    )

    name, settings = client.calls[0]
    assert name == "books"
    assert settings["identity"] == syncline.by_key("a", "b.c")
    assert settings["schema"] == '{"type": "object"}'
    assert settings["annotations"] == {"x": "1=2"}


def test_dataset_delete_deletes_what_was_asked_about(client):
    assert main(["dataset", "delete", "books", "--yes"]) == ExitCode.OK
    assert client.calls == [("books", {"etag": "e"})]


def test_completion_knows_the_datasets(client):
    from syncline.cli.complete import complete_dataset

    context = SimpleNamespace(
        params={"server": "x:1", "dataset": None}, parent=SimpleNamespace(params={"key": "k"}, parent=None)
    )

    assert complete_dataset(context, "b") == ["books"]
    assert complete_dataset(context, "z") == []
    assert client.arguments["address"] == "x:1"
    assert client.arguments["key"] == "k"
    client.error = syncline.Unavailable("down")
    assert complete_dataset(context, "b") == []


def test_help_is_quick():
    """Best of three, with room for a busy machine: 0.4 s on an idle one."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "syncline.cli", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        seconds.append(time.monotonic() - started)

    assert min(seconds) < 2.0
