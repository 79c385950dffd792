"""`syncline mirror` and `syncline verify`, as processes of their own against a real server (T66-T68)."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

import syncline
from support.waiting import until


@pytest.fixture
def command(shared_server, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")}
    environment |= {"SYNCLINE_SERVER": shared_server.address, "SYNCLINE_KEY": shared_server.key}

    def start(*arguments, **streams):
        return subprocess.Popen(
            [sys.executable, "-m", "syncline.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            text=True,
            **streams,
        )

    return start


@pytest.fixture
def run(command):
    def run(*arguments, code=0):
        process = command(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == code, out + err
        return out if code == 0 else err

    return run


@pytest.fixture
async def books(client):
    await client.create_dataset("books", identity=syncline.by_key("isbn"))
    books = client.dataset("books")
    await books.push([{"isbn": str(i), "year": 1990 + i} for i in range(9)])
    return books


def edit(path, sql):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)


async def test_t68_copy_is_made_proven_damaged_and_mended(books, run, tmp_path):
    """T68: what `verify` does not prove, it can mend."""
    said = run("mirror", "books", "books.db", "--once")
    assert said.startswith("books -> books.db: live at revision 1, 9 records, proven")
    await books.push([{"isbn": "9", "year": 2000}])
    proof = json.loads(run("verify", "books", "books.db", "--json"))
    assert (proof["is_proven"], proof["revision"], proof["server_revision"], proof["changes"]) == (
        True,
        1,
        2,
        1,
    )

    edit(tmp_path / "books.db", "UPDATE record SET json = '{}' WHERE record_id = '3'")
    assert "is not proven: it is not what was written" in run("verify", "books", "books.db", code=1)
    said = run("verify", "books", "books.db", "--repair")
    assert "books.db is books at revision 2: 10 records" in said
    assert run("verify", "books", "books.db") == said


async def test_t67_mirror_until_it_is_stopped(books, command, run, tmp_path):
    """T67: a second one is refused; the file can be proven all the time; SIGTERM ends it in order."""
    mirror = command("mirror", "books", "books.db", "--replica-id", "kiosk", stdout=subprocess.PIPE)
    try:
        assert "live at revision 1, 9 records, proven" in mirror.stdout.readline()
        await books.push([{"isbn": "x", "year": 1}])
        assert "live at revision 2, 10 records, proven" in mirror.stdout.readline()
        assert "is kept by another process" in run("mirror", "books", "books.db", code=7)
        assert "proven by the server at revision 2" in run("verify", "books", "books.db")
        mirror.send_signal(signal.SIGTERM)
        await until(lambda: mirror.poll() is not None)
    finally:
        mirror.kill()
        mirror.communicate()
    assert mirror.returncode == 143
    assert not (tmp_path / "books.db-wal").exists()


async def test_what_is_wrong_is_told(books, run, tmp_path):
    (tmp_path / "text.db").write_text("no database")
    assert "file is not a database" in run("mirror", "books", "text.db", code=2)
    assert "does not exist" in run("verify", "books", "none.db", code=2)
    said = run("mirror", "films", "films.db", code=3)
    assert said.startswith("error: dataset 'films' does not exist")


async def test_a_file_whose_pages_are_damaged_is_not_proven(books, run, tmp_path):
    run("mirror", "books", "books.db", "--once")
    with (tmp_path / "books.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096 * 8)

    assert "remove it to begin anew" in run("verify", "books", "books.db", code=1)
