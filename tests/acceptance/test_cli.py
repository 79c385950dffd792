"""The ``syncline`` command as a process of its own, against a real server."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from syncline.cli.exits import ExitCode

SECONDS = 30.0
SCHEMA = {
    "type": "object",
    "required": ["isbn"],
    "properties": {
        "isbn": {"type": "string"},
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "price": {"type": ["number", "null"]},
    },
    "additionalProperties": False,
}


class Command:
    """Runs the command with the address and key of a server."""

    def __init__(self, server, directory: Path) -> None:
        self._directory = directory
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")
        }
        self._environment |= {"SYNCLINE_SERVER": server.address, "SYNCLINE_KEY": server.key, "TZ": "UTC"}

    def process(self, *arguments: str, **settings) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "syncline.cli", *arguments],
            cwd=self._directory,
            env=self._environment | settings.pop("env", {}),
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings,
        )

    def __call__(self, *arguments: str, given: str | None = None, code: int = 0, env=None) -> "Done":
        stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
        process = self.process(*arguments, stdin=stdin, env=env or {})
        try:
            out, err = process.communicate(None if given is None else given.encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == code, (process.returncode, out, err)
        return Done(out.decode(), err.decode())


class Done:
    def __init__(self, out: str, err: str) -> None:
        self.out = out
        self.err = err

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


class Follower:
    """A running `watch`, whose JSON lines are read as they come."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self._rest = b""
        self.lines: list[dict] = []

    def until(self, wanted) -> dict:
        """The first line that ``wanted`` says yes to."""
        deadline = time.monotonic() + SECONDS
        seen = 0
        while True:
            for line in self.lines[seen:]:
                if wanted(line):
                    return line
            seen = len(self.lines)
            readable, _, _ = select.select(
                [self._process.stdout], [], [], max(0, deadline - time.monotonic())
            )
            data = os.read(self._process.stdout.fileno(), 65536) if readable else b""
            assert data, (self.lines, self._process.stderr.read() if self._process.poll() is not None else "")
            *whole, self._rest = (self._rest + data).split(b"\n")
            self.lines += map(json.loads, whole)

    def end(self, number=signal.SIGINT) -> tuple[int, str]:
        self._process.send_signal(number)
        _, err = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, err.decode()


@pytest.fixture
def command(request, tmp_path, client):
    """The command for the test's own server if it asks for one, else for the shared one."""
    name = "server" if "server" in request.fixturenames else "shared_server"
    return Command(request.getfixturevalue(name), tmp_path)


@pytest.fixture
def books(command, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    command("dataset", "create", "books", "--by-key", "isbn", "--schema", "schema.json")
    return tmp_path


def csv_of(count: int, title: str = "T") -> str:
    return "isbn,title,year,price\n" + "".join(f"b{i},{title} {i},{1900 + i},\n" for i in range(count))


async def test_datasets_from_birth_to_death(command):
    command("dataset", "create", "books", "--by-key", "isbn", "--display-name", "All of them")
    again = command("dataset", "create", "books", code=ExitCode.CONFLICT)

    assert again.err.startswith("error: ")
    assert command("--json", "dataset", "show", "books").lines[0]["identity"] == {
        "kind": "key",
        "key_fields": ["isbn"],
    }
    assert "All of them" in command("dataset", "list").out
    command("dataset", "update", "books", "--description", "x", "--retention-age", "2d")
    shown = command("dataset", "show", "books", "--json").lines[0]
    assert (shown["description"], shown["retention"]["min_age"]) == ("x", 172_800.0)
    assert "Nobody is there to answer" in command("dataset", "delete", "books", code=ExitCode.USAGE).err
    command("dataset", "delete", "books", "--yes")
    assert "hint:" in command("dataset", "show", "books", code=ExitCode.NOT_FOUND).err


async def test_push_delete_get_ls(command, books):
    (books / "books.csv").write_text(csv_of(2500))

    assert "2,500 created; revision 3" in command("push", "books", "books.csv").out
    assert "2,500 unchanged; revision 3" in command("push", "books", "books.csv").out
    [record] = command("get", "books", "b7").lines
    assert record["data"] == {"isbn": "b7", "title": "T 7", "year": 1907, "price": None}
    assert len(command("ls", "books").out.splitlines()) == 2500
    assert len(command("ls", "books", "-n", "3").out.splitlines()) == 3
    assert "1 record deleted" in command("delete", "books", "-", given='{"isbn":"b7"}\n').out
    assert "1 record deleted, 1 not there" in command("delete", "books", "--id", "b8", "--id", "b7").out
    assert "no record b7" in command("get", "books", "b7", code=ExitCode.NOT_FOUND).err


async def test_push_tells_every_bad_record_with_its_line(command, books):
    rows = csv_of(30).splitlines()
    rows[5] = "b4,T,x,y"
    rows[20] = "torn"
    (books / "bad.csv").write_text("\n".join(rows))

    refused = command("push", "books", "bad.csv", "--batch", "10", code=ExitCode.REFUSED)

    told = refused.err.splitlines()
    assert [line.partition(" ")[0] for line in told[:3]] == ["bad.csv:6:", "bad.csv:6:", "bad.csv:21:"]
    assert {"/year:", "/price:"} == {line.split(" ")[1] for line in told[:2]}
    assert "Nothing was changed." in refused.err
    assert command("ls", "books").out == ""
    assert "29 of 30" not in command("push", "books", "bad.csv", "--dry-run", code=ExitCode.REFUSED).out
    assert (
        "28 of 30 records pushed"
        in command("push", "books", "bad.csv", "--partial", code=ExitCode.REFUSED).out
    )


async def test_numbers_and_bytes_go_through_exactly(command, books):
    command("dataset", "create", "numbers")
    text = '{"big":123456789012345678901234567890,"text":"\\u001b[31m\u202e"}'

    command("push", "numbers", "-", given=text)

    assert text.replace('"', "")[:36] in command("ls", "numbers").out.replace('"', "")
    assert "\u202e" in command("ls", "numbers", env={"PYTHONIOENCODING": "ascii"}).out
    refused = command("push", "numbers", "-", given='{"a":1,"a":2}', code=ExitCode.REFUSED)
    assert refused.err.startswith("stdin:1: ")


async def test_g15_replace_is_exact_from_the_command_line(command, books):
    """G15: what is not in the file goes, and the guard asks first."""
    (books / "all.csv").write_text(csv_of(300))
    (books / "few.csv").write_text(csv_of(299, "New"))
    (books / "one.csv").write_text(csv_of(1))
    command("push", "books", "all.csv", "--session", "replace")

    replaced = command("push", "books", "few.csv", "--session", "replace")
    assert "299 updated, 1 deleted; revision 2" in replaced.out
    refused = command("push", "books", "one.csv", "--session", "replace", code=ExitCode.REFUSED)
    assert "--allow-mass-delete" in refused.err
    assert len(command("ls", "books").out.splitlines()) == 299
    command("push", "books", "one.csv", "--session", "replace", "--allow-mass-delete")
    assert len(command("ls", "books").out.splitlines()) == 1


async def test_g16_a_bad_record_rolls_the_session_back(command, books):
    """G16"""
    (books / "bad.csv").write_text(csv_of(20) + "bx,T,x,\n")

    refused = command("push", "books", "bad.csv", "--session", "accrue", code=ExitCode.REFUSED)

    assert "bad.csv:22: /year:" in refused.err
    assert command("ls", "books").out == ""


async def test_g11_sync_goes_on_where_it_stopped(command, books):
    """G11, G7: each line once, and the checkpoint last."""
    command("push", "books", "-", "--format", "csv", given=csv_of(1500))

    first = command("sync", "books", "--token-file", "token").lines
    command("push", "books", "-", given='{"isbn":"b1","title":"new"}')
    command("delete", "books", "--id", "b2")
    second = command("sync", "books", "--token-file", "token").lines

    assert [line["kind"] for line in first] == ["put"] * 1500 + ["checkpoint"]
    assert [(line["kind"], line.get("record_id")) for line in second] == [
        ("put", "b1"),
        ("delete", "b2"),
        ("checkpoint", None),
    ]
    assert second[-1]["record_count"] == 1499
    assert "belongs to dataset" in command("sync", "other", "--token-file", "token", code=ExitCode.USAGE).err


async def test_g7_a_copy_is_exact_and_mends_itself(command, books):
    """G7"""
    copy = books / "copy.jsonl"

    def lines():
        return {line["record_id"]: line["data"] for line in map(json.loads, copy.read_text().splitlines())}

    def listed():
        return {line["record_id"]: line["data"] for line in command("ls", "books").lines}

    command("push", "books", "-", "--format", "csv", given=csv_of(1500))
    assert "1,500 changes" in command("sync", "books", "--into", "copy.jsonl").out
    assert lines() == listed()
    command("push", "books", "-", given='{"isbn":"b1","title":"new"}\n{"isbn":"new"}')
    command("delete", "books", "--id", "b2")
    assert "3 changes" in command("sync", "books", "--into", "copy.jsonl").out
    assert lines() == listed()
    copy.write_text(copy.read_text().replace("T 77", "T 78"))
    mended = command("sync", "books", "--into", "copy.jsonl")
    assert "starting over" in mended.err
    assert "proven by digest" in mended.out
    assert lines() == listed()


async def test_g7_part_of_a_dataset_is_listed_and_kept(command, books):
    """G7: `ls` and `sync` under a filter and a mask; what leaves the filter is told, another filter begins anew."""
    copy = books / "copy.jsonl"

    def titles():
        return {line["record_id"]: line["data"] for line in map(json.loads, copy.read_text().splitlines())}

    def sync(*arguments, filter="year < 1903"):  # noqa: A002 - the word for it
        return command("sync", "books", "--filter", filter, "--fields", "isbn, title", *arguments)

    command("push", "books", "-", "--format", "csv", given=csv_of(9))
    listed = command("ls", "books", "--filter", "year >= 1907", "--fields", "title").lines
    assert [line["data"] for line in listed] == [{"title": "T 7"}, {"title": "T 8"}]
    assert [line.get("data") for line in sync("--token-file", "token").lines] == [
        *({"isbn": f"b{i}", "title": f"T {i}"} for i in range(3)),
        None,
    ]
    assert "3 records, proven by digest" in sync("--into", "copy.jsonl").out

    command("push", "books", "-", given='{"isbn":"b0","year":1999}\n{"isbn":"b9","title":"new","year":1}')
    left, came, checkpoint = sync("--token-file", "token").lines
    assert (left["kind"], left["record_id"], "data" in left) == ("remove", "b0", False)
    assert (came["kind"], came["data"]) == ("put", {"isbn": "b9", "title": "new"})
    assert checkpoint["record_count"] == 3
    assert "2 changes up to revision 2; 3 records, proven" in sync("--into", "copy.jsonl").out
    assert titles() == {
        "b1": {"isbn": "b1", "title": "T 1"},
        "b2": {"isbn": "b2", "title": "T 2"},
        "b9": {"isbn": "b9", "title": "new"},
    }
    other = sync("--into", "copy.jsonl", filter="year = 1999")
    assert "a complete new copy is needed" in other.err
    assert titles() == {"b0": {"isbn": "b0"}}


async def test_watch_under_a_filter(command, books):
    command("push", "books", "-", "--format", "csv", given=csv_of(3))
    follower = Follower(command.process("watch", "books", "--filter", "year > 1900", "--fields", "year"))
    follower.until(lambda line: line["kind"] == "checkpoint")
    assert [line.get("data") for line in follower.lines] == [{"year": 1901}, {"year": 1902}, None]

    command("push", "books", "-", given='{"isbn":"b1","year":1899}')
    assert follower.until(lambda line: line["kind"] == "remove")["record_id"] == "b1"
    assert follower.end()[0] == ExitCode.INTERRUPTED


@pytest.mark.parametrize("name", ["ls", "sync", "watch"])
async def test_a_wrong_filter_is_told_with_its_place(command, books, name):
    refused = command(name, "books", "--filter", "year > 1900 AND titel", code=ExitCode.USAGE)

    assert refused.err.splitlines()[1:3] == ["  year > 1900 AND titel", "  " + " " * 21 + "^"]


async def test_watch_follows_a_restart_and_remembers(server, command, books):
    """G11: over SIGKILL and restart of the server, and over its own end."""
    command("push", "books", "-", given='{"isbn":"a"}')
    follower = Follower(command.process("watch", "books", "--token-file", "token"))
    try:
        follower.until(lambda line: line["kind"] == "checkpoint")
        await server.restart(signal.SIGKILL)
        command("push", "books", "-", given='{"isbn":"b"}')
        follower.until(lambda line: line.get("record_id") == "b")
        follower.until(lambda line: line.get("revision") == 2 and line["kind"] == "checkpoint")
    finally:
        code, err = follower.end()
    assert code == ExitCode.INTERRUPTED
    assert err.splitlines()[0].startswith("connection lost, trying again: cannot reach")
    assert "connected again" in err
    assert "Traceback" not in err

    command("push", "books", "-", given='{"isbn":"c"}')
    again = Follower(command.process("watch", "books", "--token-file", "token"))
    try:
        again.until(lambda line: line["kind"] == "checkpoint")
        assert [line["record_id"] for line in again.lines if line["kind"] == "put"] == ["c"]
    finally:
        code, _ = again.end(signal.SIGTERM)
    assert code == ExitCode.TERMINATED


async def test_watch_from_now_leaves_out_what_is_there(command, books):
    command("push", "books", "-", given='{"isbn":"a"}')
    follower = Follower(command.process("watch", "books", "--from-now"))
    try:
        follower.until(lambda line: line["kind"] == "checkpoint")
        command("push", "books", "-", given='{"isbn":"b"}')
        put = follower.until(lambda line: line["kind"] == "put")
    finally:
        follower.end()
    assert put["record_id"] == "b"


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", ExitCode.ERROR), (b"\x03", ExitCode.INTERRUPTED)])
async def test_a_question_is_asked_before_a_dataset_goes(command, books, answer, code):
    master, slave = pty.openpty()
    process = command.process(
        "dataset", "delete", "books", stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""
    try:
        while b"[y/N]" not in shown:
            readable, _, _ = select.select([master], [], [], SECONDS)
            assert readable, shown
            shown += os.read(master, 65536)
        if answer == b"\x03":
            process.send_signal(signal.SIGINT)
        else:
            os.write(master, answer)
        assert process.wait(SECONDS) == code
    finally:
        os.close(master)
        process.kill()
        process.wait()
    assert command("dataset", "show", "books").out


async def test_t107_watch_on_a_terminal_is_readable_and_safe(command, books):
    """T107: colours are ours, and nothing in the data steers the terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 200, 0, 0))
    process = command.process(
        "watch", "books", stdin=slave, stdout=slave, stderr=slave, env={"TERM": "xterm", "NO_COLOR": ""}
    )
    os.close(slave)
    shown = b""
    try:
        command("push", "books", "-", given='{"isbn":"x\\u009b31m\u202e","title":"\\u001b]0;evil\\u0007"}')
        deadline = time.monotonic() + SECONDS
        while b"waiting for changes" not in shown.partition(b"evil")[2]:
            readable, _, _ = select.select([master], [], [], max(0, deadline - time.monotonic()))
            assert readable, shown
            shown += os.read(master, 65536)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)
        os.close(master)
    text = shown.decode()
    assert process.returncode == ExitCode.INTERRUPTED
    assert "put" in text
    assert "\\u001b]0;evil\\u0007" in text
    assert "\x1b]0;" not in text
    assert "\x9b" not in text
    assert "\u202e" not in text


async def test_a_reader_that_goes_away_is_no_error(command, books):
    command("push", "books", "-", "--format", "csv", given=csv_of(5000))

    for arguments in (["ls", "books"], ["sync", "books"], ["watch", "books"]):
        process = command.process(*arguments)
        process.stdout.read(100)
        process.stdout.close()
        assert process.wait(SECONDS) == ExitCode.BROKEN_PIPE
        assert process.stderr.read() == b""
        process.stderr.close()


async def test_a_push_from_a_pipe_is_there_before_the_pipe_ends(command, books):
    """Records of a slow pipe are not held back, and Ctrl-C ends a push that waits for more."""
    process = command.process("push", "books", "-", stdin=subprocess.PIPE)
    process.stdin.write(b'{"isbn":"a"}\n')
    process.stdin.flush()
    deadline = time.monotonic() + SECONDS
    while not command("ls", "books").out:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    code = process.wait(SECONDS)  # with the pipe still open
    _, err = process.communicate()

    assert code == ExitCode.INTERRUPTED
    assert err == b""


async def test_keys_open_what_they_name(command, books, shared_server):
    made = command("key", "create", "push", "--dataset", "books", "--display-name", "loader")
    [secret] = made.out.splitlines()
    key_id = secret.split("_")[1]

    def as_key(*arguments, code=0, given=None):
        return command(*arguments, code=code, given=given, env={"SYNCLINE_KEY": secret})

    assert "1 created" in as_key("push", "books", "-", given='{"isbn":"a"}').out
    as_key("ls", "books", code=ExitCode.NOT_ALLOWED)
    as_key("status")
    assert "loader" in command("key", "list").out
    assert secret not in command("key", "show", key_id, "--json").out
    [second] = command("key", "rotate", key_id, "--old-expires", "0s").out.splitlines()
    command("key", "delete", key_id, "--yes")
    assert "error:" in as_key("status", code=ExitCode.NOT_ALLOWED).err
    secret = second
    as_key("status")
    command("key", "delete", second.split("_")[1], "--yes")


async def test_sources_can_be_switched(command, books):
    command("source", "create", "books", "feed")
    command("source", "disable", "books", "feed")

    refused = command("push", "books", "-", "--source", "feed", given='{"isbn":"a"}', code=ExitCode.REFUSED)

    assert "syncline source enable" in refused.err
    assert "disabled" in command("source", "list", "books").out
    command("source", "enable", "books", "feed")
    command("push", "books", "-", "--source", "feed", given='{"isbn":"a"}')
    command("source", "delete", "books", "feed", "--yes")
    command("source", "show", "books", "feed", code=ExitCode.NOT_FOUND)
    assert command("ls", "books").out == ""


async def test_status_shows_the_server_and_its_datasets(command, books):
    command("push", "books", "-", given='{"isbn":"a"}')

    assert "writable: yes" in command("status").out
    told = command("status", "--json").lines[0]
    assert told["server"]["role"] == "admin"
    assert [(n["this_node"], n["silent"], n["lag"]) for n in told["nodes"]] == [(True, False, 0)]
    assert [(d["dataset"], d["revision"], d["record_count"]) for d in told["datasets"]] == [("books", 1, 1)]


async def test_a_server_that_is_not_there_says_what_to_do(command):
    gone = command("status", "--server", "127.0.0.1:1", code=ExitCode.UNAVAILABLE)

    assert "syncline-server serve" in gone.err
    assert len(gone.err.splitlines()) <= 3


async def test_g5_a_push_survives_a_restart_of_the_server(server, command, books):
    """G5: the calls under way are made again and have one effect."""
    process = command.process("push", "books", "-", "--batch", "50", stdin=subprocess.PIPE)
    rows = [json.dumps({"isbn": f"b{i}", "year": i}) + "\n" for i in range(2000)]
    process.stdin.write("".join(rows[:1000]).encode())
    process.stdin.flush()
    deadline = time.monotonic() + SECONDS
    while not command("ls", "books", "-n", "1").out:  # it is under way
        assert time.monotonic() < deadline
    await server.restart(signal.SIGKILL)
    out, err = process.communicate("".join(rows[1000:]).encode(), timeout=SECONDS)

    assert process.returncode == 0, err
    assert b"2,000 records" in out
    assert len(command("ls", "books").out.splitlines()) == 2000
