"""What the command keeps between its calls and threads: token files, copies, batches."""

import asyncio
import json
import os
import threading

import msgspec
import pytest

from syncline import ChangeBatch, Checkpoint
from syncline.cli.batches import batches
from syncline.cli.copyfile import CopyFile, DivergedError
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.files import BadRecord, FileError, Record, read_json_lines
from syncline.cli.state import Position, held, read_position, replacing, write_position
from syncline.copies import Digest

# -- token files --------------------------------------------------------------------------------------------


def test_positions_come_back(tmp_path):
    path = tmp_path / "token"
    position = Position(dataset="books", token=b"\x00\xff", revision=3, record_count=2, digest=b"d" * 16)

    assert read_position(path, "books") is None
    write_position(path, position)

    assert read_position(path, "books") == position
    assert [file.name for file in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "junk",
        "{}",
        '{"dataset":"books","token":"!"}',
        '{"dataset":"books","token":"","digest":"x"}',
        "\udcff",
    ],
)
def test_what_is_no_token_file_is_refused(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content, errors="surrogateescape")

    with pytest.raises(CommandError, match="not a token file") as caught:
        read_position(path, "books")
    assert caught.value.code is ExitCode.USAGE


def test_a_token_of_another_dataset_is_refused(tmp_path):
    write_position(tmp_path / "token", Position(dataset="films", token=b"t"))

    with pytest.raises(CommandError, match="belongs to dataset 'films'"):
        read_position(tmp_path / "token", "books")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    with pytest.raises(RuntimeError), replacing(path) as draft:
        draft.write(b"half")
        raise RuntimeError

    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_devices_and_directories_are_not_replaced(tmp_path):
    for path in (tmp_path, tmp_path / "pipe"):
        if path.name == "pipe":
            os.mkfifo(path)
        with pytest.raises(CommandError, match="not a regular file"), replacing(path):
            pass


def test_a_symbolic_link_keeps_pointing(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)

    with replacing(link) as draft:
        draft.write(b"new")

    assert link.is_symlink()
    assert target.read_text() == "new"


def test_two_processes_do_not_share_a_file(tmp_path):
    with held(tmp_path / "token"), pytest.raises(CommandError, match="in use"), held(tmp_path / "token"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "token")
    with held(tmp_path / "token"), pytest.raises(CommandError, match="in use"), held(tmp_path / "link"):
        pass
    with held(tmp_path / "token"):
        pass


# -- copies -------------------------------------------------------------------------------------------------


class Dataset:
    """A dataset in a dict, with the changes that lead to it."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[int, bytes]] = {}
        self.revision = 0

    def commit(self, **changes: object) -> ChangeBatch:
        self.revision += 1
        ids, data, kinds = [], [], []
        for record_id, value in changes.items():
            ids.append(record_id)
            if value is None:
                self.records.pop(record_id)
                data.append(b"")
                kinds.append(2)
            else:
                text = msgspec.json.encode({"v": value})
                self.records[record_id] = (self.revision, text)
                data.append(text)
                kinds.append(1)
        return ChangeBatch(
            record_ids=ids,
            json=data,
            revisions=[self.revision] * len(ids),
            commit_times_us=[0] * len(ids),
            kinds=kinds if 2 in kinds else [],
            reasons=[],
            from_revision=self.revision - 1,
            to_revision=self.revision,
            partial=False,
            previous_token=b"",
            token=b"t",
            decode=msgspec.json.decode,
        )

    def checkpoint(self) -> Checkpoint:
        digest = Digest()
        for record_id, (revision, data) in self.records.items():
            digest.put(record_id, revision, data)
        return Checkpoint(
            revision=self.revision,
            record_count=len(self.records),
            digest=digest.value,
            commit_time=None,
            token=b"t",
        )


def content(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["record_id"]: (line["revision"], msgspec.json.encode(line["data"])) for line in lines}
    assert len(found) == len(lines)
    return found


def test_g7_a_copy_takes_in_puts_updates_and_deletes(tmp_path):
    """G7: after each checkpoint the file holds the dataset."""
    path, dataset = tmp_path / "copy.jsonl", Dataset()
    for changes in ({"a": 1, "b": 2, "c": 3}, {"b": 5}, {"a": None, "d": 4}, {"a": 7, "c": None}):
        with CopyFile(path) as copy:
            copy.add(dataset.commit(**changes))
            copy.add(dataset.commit(z=1))
            copy.add(dataset.commit(z=2))
            copy.commit(dataset.checkpoint())

        assert content(path) == dataset.records
    assert [file.name for file in tmp_path.iterdir()] == ["copy.jsonl"]


def test_a_copy_that_starts_over_forgets_what_was(tmp_path):
    path, dataset = tmp_path / "copy.jsonl", Dataset()
    path.write_text("not even JSON\n")

    with CopyFile(path) as copy:
        copy.add(Dataset().commit(gone=1))
        copy.start_over()
        copy.add(dataset.commit(a=1))
        copy.commit(dataset.checkpoint())

    assert content(path) == dataset.records


@pytest.mark.parametrize("damage", ["", "{}\n", '{"record_id":"x","revision":1,"data":{}}\n', "junk\n"])
def test_g7_a_damaged_copy_is_found_and_left_as_it_is(tmp_path, damage):
    """G7: count and digest prove the copy, also when nothing changed."""
    path, dataset = tmp_path / "copy.jsonl", Dataset()
    with CopyFile(path) as copy:
        copy.add(dataset.commit(a=1, b=2))
        copy.commit(dataset.checkpoint())
    damaged = path.read_text().splitlines(keepends=True)[0] + damage
    path.write_text(damaged)

    for changes in ({}, {"c": 3}):
        with CopyFile(path) as copy, pytest.raises(DivergedError):
            copy.add(dataset.commit(**changes))
            copy.commit(dataset.checkpoint())

    assert path.read_text() == damaged


# -- batches ------------------------------------------------------------------------------------------------


def records(count, size=1):
    return [Record(line, b"x" * size) for line in range(1, count + 1)]


async def collect(rows, **limits):
    return [batch async for batch in batches(rows, **({"most_records": 3, "most_bytes": 100} | limits))]


async def test_batches_keep_order_and_limits():
    found = await collect([*records(4), BadRecord(5, "csv", "bad"), *records(3)])

    assert [len(batch) for batch in found] == [3, 3, 2]
    assert [record.line for batch in found for record in batch.records] == [1, 2, 3, 4, 1, 2, 3]
    assert [len(batch.bad) for batch in found] == [0, 1, 0]


async def test_a_record_larger_than_a_batch_goes_alone():
    found = await collect([*records(1, 10), *records(1, 500), *records(2, 10)])

    assert [batch.size_bytes for batch in found] == [10, 500, 20]


async def test_an_error_of_the_reader_comes_after_the_batches_before_it():
    def rows():
        yield from records(4)
        raise FileError(5, "torn")

    seen = []
    with pytest.raises(FileError, match="torn"):
        async for batch in batches(rows(), most_records=3, most_bytes=100):
            seen += batch.records
    assert seen == records(4)


async def test_a_slow_pipe_is_not_kept_waiting():
    """Records that came are handed out while the reader waits for more."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        stream = os.fdopen(reading, "rb")
        incoming = batches(read_json_lines(stream), most_records=100, most_bytes=1000, linger_seconds=0.01)
        pipe.write(b'{"a":1}\n')
        first = await asyncio.wait_for(anext(incoming), 10)
        pipe.write(b'{"b":2}\n')
        second = await asyncio.wait_for(anext(incoming), 10)
        await incoming.aclose()

    assert (first.data, second.data) == ([b'{"a":1}'], [b'{"b":2}'])
    thread = next((t for t in threading.enumerate() if t.name == "syncline-input"), None)
    if thread is not None:
        thread.join(10)
    stream.close()


async def test_reading_ahead_is_bounded():
    """The reader waits for the loop: at most two full batches and the growing one are in memory."""
    read = []

    def rows():
        for record in records(1000):
            read.append(record)
            yield record

    incoming = batches(rows(), most_records=10, most_bytes=10_000)
    await anext(incoming)
    for _ in range(50):
        await asyncio.sleep(0.001)
    ahead = len(read)
    await incoming.aclose()

    assert ahead <= 50
