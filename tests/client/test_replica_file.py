"""File replicas: mending, one writing process, what is on disk (G7; F61; T66-T68)."""

import logging
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import syncline
from support.digest_ranges import serve
from support.scripted_replica import Subscribed
from support.scripted_server import Refuse, ScriptedServer, changes, checkpoint
from support.waiting import until
from syncline import ReplicaState
from syncline.v1.sync_service_pb2 import DigestRangesResponse

ROWS = [(f"k{i:03}", b'{"v":%d}' % i, 1 + i // 100) for i in range(400)]


def replica_of(client: syncline.Client, path: Path, **given: Any) -> syncline.Replica[Any]:
    return client.dataset("books").replica(path, **given)


def content(rows: Any = ROWS) -> dict[str, tuple[bytes, int]]:
    return {record_id: (data, revision) for record_id, data, revision in rows}


@pytest.fixture
async def path(scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, tmp_path: Path) -> Path:
    """A file that was brought to revision 4 and closed."""
    path = tmp_path / "books.db"
    stream.script([[changes(0, 4, ROWS), checkpoint(4, ROWS)]])
    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
    return path


def edit(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql)
    connection.close()


async def test_g11_goes_on_where_it_was(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    stream.script([[changes(4, 5, [("k000", None, 5)]), checkpoint(5, ROWS[1:])]])

    async with replica_of(client, path) as replica:
        assert (len(replica), replica["k000"], replica.revision) == (400, {"v": 0}, 4)
        assert (replica.is_complete, replica.is_verified) == (True, True)
        assert replica.staleness is not None
        assert replica.staleness < timedelta(minutes=1)
        await replica.wait_for(5, timeout_seconds=10)
        assert "k000" not in replica

    assert stream.tokens == [b"", b"c4"]


async def test_is_of_use_without_a_server(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    stream.script([Refuse("UNAVAILABLE")])

    async with replica_of(client, path) as replica:
        assert replica["k001"] == {"v": 1}
        await until(lambda: replica.state is ReplicaState.DISCONNECTED)
        with pytest.raises(syncline.StaleData, match="was not brought up to date once in"):
            await replica.ready(timeout_seconds=0.05)


async def test_t68_damaged_row_is_found_and_only_that_is_fetched(
    scripted: ScriptedServer,
    stream: Subscribed,
    client: syncline.Client,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """T68: also when nothing happens in the dataset."""
    edit(path, """UPDATE record SET json = '{"v":"evil"}' WHERE record_id = 'k123'""")
    stream.script([[checkpoint(4, ROWS)]])
    serve(scripted, content(), 4)

    with caplog.at_level(logging.WARNING, "syncline.replica"):
        async with replica_of(client, path) as replica:
            heard: list[Any] = []
            replica.on_change(heard.append)
            assert not replica.is_verified
            await until(lambda: replica.is_verified)
            await until(lambda: heard)
            assert replica["k123"] == {"v": 123}
            (repair,) = replica.repairs
            assert (repair.records, repair.removed) == (1, 0)
            assert [change.record_id for change in heard] == ["k123"]

    assert "is not what was written" in caplog.text
    assert "looking for what differs" in caplog.text
    assert "Subscribe" not in caplog.text
    assert stream.tokens == [b"", b"c4"]


async def test_t68_lost_and_added_rows(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    edit(path, "DELETE FROM record WHERE record_id BETWEEN 'k100' AND 'k109'")
    edit(path, "INSERT INTO record VALUES ('k0005', 1, 1, '{}', zeroblob(16))")
    later = [*ROWS, ("new", b"{}", 5)]
    stream.script([[changes(4, 5, [("new", b"{}", 5)]), checkpoint(5, later)]])
    serve(scripted, content(later), 5)

    async with replica_of(client, path) as replica:
        await replica.wait_for(5, timeout_seconds=10)
        assert {put.record_id: (put.json, put.revision) for put in replica.records()} == content(later)
        (repair,) = replica.repairs
        assert (repair.records, repair.removed) == (10, 1)


async def test_mended_with_newer_records_it_is_proven_when_the_feed_has_come_so_far(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    """The dataset moves on while it is looked into; until then the state before is served."""
    newer = content() | {"k123": (b"{}", 6)}
    edit(path, "DELETE FROM record WHERE record_id = 'k123'")
    rows = [(record_id, data, revision) for record_id, (data, revision) in newer.items()]
    stream.script([[checkpoint(4, ROWS)], [changes(4, 5), checkpoint(5, ROWS)]])
    serve(scripted, newer, 6)

    async with replica_of(client, path) as replica:
        await until(lambda: replica.repairs)
        assert (replica.state, replica.revision, "k123" in replica) == (ReplicaState.MENDING, 4, False)
        stream.send(changes(5, 6, [("k123", b"{}", 6)]), checkpoint(6, rows))
        await replica.wait_for(6, timeout_seconds=10)
        assert replica["k123"] == {}
        assert replica.state is ReplicaState.LIVE


async def test_t68_what_cannot_be_mended_is_fetched_anew(
    scripted: ScriptedServer,
    stream: Subscribed,
    client: syncline.Client,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server that does not offer digests, one whose digests are wrong, and one that never cuts a range."""
    uncut = DigestRangesResponse(
        revision=4, part_counts=[1], through=[""], record_counts=[400], digests=[bytes(16)]
    )
    for answer in (Refuse("UNIMPLEMENTED"), None, uncut):
        edit(path, "DELETE FROM record WHERE record_id = 'k007'")
        stream.script([[checkpoint(4, ROWS)]], [[changes(0, 4, ROWS), checkpoint(4, ROWS)]])
        stream.adds.clear()
        if answer is not None:
            scripted.script("DigestRanges", answer)
        else:
            serve(scripted, content(ROWS[:-1]), 4)

        async with replica_of(client, path) as replica:
            await until(lambda: replica.is_verified)
            assert len(replica) == 400

        assert stream.tokens == [b"c4", b""]
    assert caplog.text.count("everything is fetched anew") == 3


async def test_verify_looks_at_the_bytes(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    stream.script([[checkpoint(4, ROWS)]])
    serve(scripted, content(), 4)

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        assert await replica.verify()
        edit(path, "UPDATE record SET revision = 9 WHERE record_id = 'k200'")
        assert not await replica.verify()
        await until(lambda: replica.is_verified)
        assert replica.record("k200").revision == 3
        assert [repair.records for repair in replica.repairs] == [1]


async def test_t67_second_one_reads_along_and_takes_over(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    """T67: one writes; what it commits is seen; and when it ends another one goes on."""
    stream.script([[checkpoint(4, ROWS)]])
    first = replica_of(client, path)
    await first.__aenter__()
    await first.ready(timeout_seconds=10)

    async with replica_of(client, path) as second:
        await second.ready(timeout_seconds=10)
        assert (second.is_read_only, second.state, len(second)) == (True, ReplicaState.READ_ONLY, 400)
        for refused in (second.changes, lambda: second.on_change(print)):
            with pytest.raises(
                syncline.ReplicaReadOnly, match=r"another process brings .*books\.db up to date"
            ):
                refused()
        with pytest.raises(syncline.ReplicaReadOnly):
            await second.verify()
        stream.send(changes(4, 5, [("k000", None, 5)]), checkpoint(5, ROWS[1:]))
        await second.wait_for(5, timeout_seconds=10)
        assert (len(second), "k000" in second) == (399, False)
        assert second.staleness is not None

        stream.script([[changes(5, 6, [("k001", None, 6)]), checkpoint(6, ROWS[2:])]])
        await first.__aexit__(None)
        await until(lambda: not second.is_read_only)
        await second.wait_for(6, timeout_seconds=10)
        assert second.state is ReplicaState.LIVE


async def test_first_copy_goes_on_where_it_was_broken_off(
    scripted: ScriptedServer,
    stream: Subscribed,
    client: syncline.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A partial copy is stored with its own token, and nobody sees it."""
    monkeypatch.setattr("syncline.replica._file.ROWS_BUFFERED", 100)
    path = tmp_path / "books.db"
    pages = [[changes(i, i + 1, ROWS[i * 100 : i * 100 + 100])] for i in range(4)]
    stream.script(pages[:3], [*pages[3:], [checkpoint(4, ROWS)]])

    async with replica_of(client, path) as replica:
        await until(lambda: stored_token(path) == b"t3")
        assert (len(replica), replica.is_complete, replica.state) == (0, False, ReplicaState.COPYING)
    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        assert len(replica) == 400

    assert stream.tokens == [b"", b"t3"]


def stored_token(path: Path) -> bytes:
    connection = sqlite3.connect(path)
    (token,) = connection.execute("SELECT new_token FROM state").fetchone()
    connection.close()
    return token or b""


async def test_file_is_a_table_for_everybody(path: Path) -> None:
    connection = sqlite3.connect(path)
    found = connection.execute(
        "SELECT record_id, revision, json_extract(json, '$.v') FROM record WHERE record_id = 'k150'"
    ).fetchall()
    connection.close()

    assert found == [("k150", 2, 150)]


async def test_other_filter_begins_anew(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, path: Path
) -> None:
    """What another filter selected is not shown."""
    stream.script([[changes(0, 4, ROWS[:10]), checkpoint(4, ROWS[:10])]])

    async with replica_of(client, path, filter="v < 10") as replica:
        assert (len(replica), replica.is_complete) == (0, False)
        await replica.ready(timeout_seconds=10)
        assert len(replica) == 10

    assert stream.tokens[-1] == b""


async def test_files_that_are_something_else(client: syncline.Client, path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("something else" * 100)
    other = tmp_path / "other.db"
    edit(other, "CREATE TABLE x (y)")
    newer = tmp_path / "newer.db"
    newer.write_bytes(path.read_bytes())
    edit(newer, "PRAGMA user_version = 9")

    for file, words in (
        (text, "file is not a database"),
        (other, "is a database of something else"),
        (newer, "newer version of syncline"),
    ):
        before = file.read_bytes()
        with pytest.raises(syncline.ReplicaUnusable, match=words):
            await replica_of(client, file).__aenter__()
        assert file.read_bytes() == before
    with pytest.raises(syncline.ReplicaUnusable, match="is a replica of 'books', not of 'films'"):
        await client.dataset("films").replica(path).__aenter__()


async def test_a_file_that_never_got_anything_may_become_a_copy_of_something_else(
    scripted: ScriptedServer, stream: Subscribed, client: syncline.Client, tmp_path: Path
) -> None:
    path = tmp_path / "books.db"
    stream.script([Refuse("NOT_FOUND")], [[changes(0, 4, ROWS), checkpoint(4, ROWS)]])
    async with client.dataset("boosk").replica(path) as mistyped:
        with pytest.raises(syncline.ReplicaStopped):
            await mistyped.ready(timeout_seconds=10)

    async with replica_of(client, path) as replica:
        await replica.ready(timeout_seconds=10)
        assert (len(replica), replica.revision) == (400, 4)
