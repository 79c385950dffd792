"""An exact copy of a dataset in one file, as `syncline sync --into` keeps it.

One line of JSON for each record: ``{"record_id":…,"revision":…,"data":…}``. A new version of the file is
written beside the old one from the old one and the changes, proven by count and digest against the
checkpoint (where that has them), and only then put in its place. Memory grows with the number of changes, not
with the copy: the data of the changes waits in a temporary file.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from syncline._digest import Tally, entry_digest
from syncline.cli.exits import CommandError
from syncline.cli.state import replacing

if TYPE_CHECKING:
    from syncline import ChangeBatch, Checkpoint


class CopyLine(msgspec.Struct):
    """One line of the file."""

    record_id: str
    revision: int
    data: msgspec.Raw


_decode = msgspec.json.Decoder(CopyLine).decode
_encode = msgspec.json.Encoder().encode


class DivergedError(CommandError):
    """The copy is not what the checkpoint says."""


class CopyFile:
    """The copy in a file, and the changes that are to go into it. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spool: BinaryIO | None = None
        self._offsets: dict[str, int] = {}
        """Where the newest version of a changed record is in the spool; -1: deleted."""
        self.is_new = not path.exists()
        """Whether there is no copy yet, so that a complete one has to come."""
        self._from_nothing = self.is_new

    def __enter__(self) -> "CopyFile":
        self._spool = tempfile.TemporaryFile(dir=self._path.resolve().parent)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._spool is not None:
            self._spool.close()

    def start_over(self) -> None:
        """Forget the file and the changes so far: a complete new copy follows."""
        self._from_nothing = True
        self._offsets.clear()

    def add(self, batch: "ChangeBatch[Any]") -> None:
        """Take in changes."""
        assert self._spool is not None
        kinds = batch.kinds
        for i, record_id in enumerate(batch.record_ids):
            if kinds and kinds[i] != 1:
                self._offsets[record_id] = -1
                continue
            self._offsets[record_id] = self._spool.tell()
            self._spool.write(
                _encode(CopyLine(record_id, batch.revisions[i], msgspec.Raw(batch.json[i]))) + b"\n"
            )

    def commit(self, checkpoint: "Checkpoint") -> None:
        """Write the file anew and put it in place. Raises DivergedError when it does not equal the dataset."""
        try:
            if self._offsets or self._from_nothing:
                with replacing(self._path) as draft:
                    self._verify(checkpoint, draft.write)
            else:
                self._verify(checkpoint, len)  # nothing to write
        except msgspec.DecodeError as error:
            raise DivergedError(f"{self._path} is not a copy that this command wrote: {error}") from None
        self._offsets.clear()
        self._from_nothing = False

    def _verify(self, checkpoint: "Checkpoint", write: Callable[[bytes], object]) -> None:
        tally = Tally()
        for line in self._lines():
            entry = _decode(line)
            write(line)
            tally.add((entry_digest(entry.record_id, entry.revision, bytes(entry.data)),))
        if not tally.agrees(checkpoint):
            raise DivergedError(
                f"{self._path} would hold {tally.count:,} records with digest {tally.digest.hex()}, the dataset has "
                f"{checkpoint.record_count:,} with {checkpoint.digest.hex()} at revision {checkpoint.revision:,}"
            )

    def _lines(self) -> Iterator[bytes]:
        """Every line of the new file: the old ones that no change touches, then the changed ones."""
        assert self._spool is not None
        if not self._from_nothing:
            with self._path.open("rb") as old:
                for line in old:
                    if _decode(line).record_id not in self._offsets:
                        yield line
        self._spool.seek(0)
        offset = 0
        for line in self._spool:
            if self._offsets.get(_decode(line).record_id) == offset:
                yield line
            offset += len(line)
