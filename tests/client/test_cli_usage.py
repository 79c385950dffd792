"""The command from its arguments to its exit code, over an SDK client that does what a test says: failures and options."""

import ast
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import syncline
from syncline.cli import main
from syncline.cli.exits import MEANINGS, ExitCode
from syncline.cli.failures import IN_OPTIONS, failure_of, in_options

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
def test_errors_become_exit_codes_and_few_lines(fake, capsys, error, code):
    fake.error = error

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


def test_a_filter_that_cannot_be_read_is_shown_with_the_place(fake, capsys):
    fake.error = syncline.InvalidArgument(
        "filter: expected a value, found the end (at position 6)\nyear <\n      ^",
        fields={"filter": "expected a value, found the end (at position 6)"},
    )

    assert main(["dataset", "list"]) == ExitCode.USAGE
    assert capsys.readouterr().err.splitlines() == [
        "error: filter: expected a value, found the end (at position 6)",
        "  year <",
        "        ^",
    ]


def test_a_store_that_is_away_is_told_in_the_terms_of_the_command(fake, capsys):
    fake.error = syncline.Unavailable(
        "the store cannot answer (away); retry with the same request id", reason="STORE_UNAVAILABLE"
    )

    assert main(["dataset", "list"]) == ExitCode.UNAVAILABLE
    assert capsys.readouterr().err.splitlines() == [
        "error: the store cannot answer (away)",
        "hint: the server is there, its store is not; running this again is safe.",
    ]


def test_debug_shows_the_traceback(fake, capsys):
    fake.error = RuntimeError("deep")

    assert main(["dataset", "list", "--debug"]) == ExitCode.ERROR
    assert "Traceback" in capsys.readouterr().err


def test_a_schema_file_that_cannot_be_read(fake, capsys, tmp_path):
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


def test_errors_for_programs_are_json(fake, capsys):
    fake.error = syncline.NotFound("no \x1b books", reason="DATASET_NOT_FOUND")

    assert main(["--json", "dataset", "list"]) == ExitCode.NOT_FOUND

    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["exit_code"], error["reason"], error["message"]) == (
        3,
        "DATASET_NOT_FOUND",
        "no \x1b books",
    )


def test_t107_errors_are_escaped(fake, capsys):
    """T107"""
    fake.error = syncline.NotFound("no \x1b[31m\u202ebooks")

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
def test_wrong_arguments_are_2(fake, monkeypatch, capsys, arguments):
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
def test_shared_options_stand_anywhere_and_the_last_one_counts(fake, arguments):
    assert main(arguments) == ExitCode.OK
    assert fake.arguments == {"address": "a:1", "key": "k", "tls": None, "insecure": False}


def test_options_go_before_the_environment(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("SYNCLINE_SERVER", "env:1")
    monkeypatch.setenv("SYNCLINE_CA", str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").touch()
    (other := tmp_path / "other.pem").touch()

    assert main(["dataset", "list"]) == ExitCode.OK
    assert fake.arguments["address"] == "env:1"
    assert fake.arguments["tls"] == syncline.Tls(ca=tmp_path / "ca.pem")
    assert main(["dataset", "list", "--server", "b:2", "--ca", str(other)]) == ExitCode.OK
    assert fake.arguments["address"] == "b:2"
    assert fake.arguments["tls"] == syncline.Tls(ca=other)


def test_a_flag_in_the_environment_is_1_or_0(fake, monkeypatch):
    monkeypatch.setenv("SYNCLINE_TLS", "maybe")

    assert main(["dataset", "list"]) == ExitCode.USAGE


# -- help ---------------------------------------------------------------------------------------------------


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
