"""Keep an exact copy in a SQLite file, and go on after being stopped at any moment.

The records, and the token that continues them, are committed together and at checkpoints only. So whoever reads the
file sees a state that the dataset really had, and a crash costs nothing but the time since the last checkpoint.

To run it, with a server on this machine (`make serve`): `.venv/bin/python examples/follow.py`.
"""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import syncline

TABLES = """
create table if not exists record (id text primary key, data text not null) without rowid;
create table if not exists position (only integer primary key check (only = 1), token blob not null);
"""


class Copy:
    """The copy of one dataset in one file."""

    def __init__(self, file: sqlite3.Connection) -> None:
        self._file = file
        file.executescript(TABLES)

    @property
    def token(self) -> bytes | None:
        """Continues the copy; None while there is none."""
        row = self._file.execute("select token from position").fetchone()
        return row[0] if row else None

    def apply(self, event: object) -> bool:
        """Apply one event; true when the copy is exact now."""
        match event:
            case syncline.Put():
                self._file.execute(
                    "insert or replace into record values (?, ?)", (event.record_id, event.json.decode())
                )
            case syncline.Delete():
                self._file.execute("delete from record where id = ?", (event.record_id,))
            case syncline.Reset():
                self._file.execute("delete from record")
            case syncline.Checkpoint():
                self._file.execute("insert or replace into position values (1, ?)", (event.token,))
                self._file.commit()
                return True
            case _:
                raise TypeError(f"unknown event: {event!r}")
        return False


async def follow(dataset: syncline.Dataset, copy: Copy, *, until_revision: int) -> None:
    """Follow to the first checkpoint at this revision or later. Your own follower goes on for ever."""
    async with dataset.changes(token=copy.token) as changes:
        async for event in changes:
            if copy.apply(event) and event.revision >= until_revision:
                print(f"exact at revision {event.revision}: {event.record_count} records")
                return


async def main() -> None:
    Path("follow.db").unlink(missing_ok=True)
    async with syncline.connect("127.0.0.1:7420") as client:
        await client.create_dataset("follow", identity=syncline.by_key("n"))
        numbers = client.dataset("follow")
        await numbers.push([{"n": n} for n in range(100)])

        for _ in range(2):  # stopped, and started again
            with contextlib.closing(sqlite3.connect("follow.db")) as file:
                await follow(numbers, Copy(file), until_revision=1)

        pushed = await numbers.push([{"n": n} for n in range(100, 110)])
        with contextlib.closing(sqlite3.connect("follow.db")) as file:
            await follow(numbers, Copy(file), until_revision=pushed.revision)

        await client.delete_dataset("follow")
    Path("follow.db").unlink()


asyncio.run(main())

# Prints:
# exact at revision 1: 100 records
# exact at revision 1: 100 records
# exact at revision 2: 110 records
