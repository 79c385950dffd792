"""Files that remember where a follower is: written whole or not at all, used by one process at a time."""

import base64
import binascii
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from syncline._file_lock import FileLock
from syncline.cli.exits import CommandError, ExitCode


class _Stored(msgspec.Struct, forbid_unknown_fields=False):
    dataset: str
    token: str
    revision: int = 0
    record_count: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a follower of a dataset is. Revision, count and digest are those of its last checkpoint."""

    dataset: str
    token: bytes
    revision: int = 0
    record_count: int = 0
    digest: bytes = b""


def read_position(path: Path, dataset: str) -> Position | None:
    """The position in a token file; None when there is no such file.

    Raises CommandError when the file is something else, or of another dataset.
    """
    _check_regular(path)
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        token = base64.b64decode(stored.token, validate=True)
        digest = bytes.fromhex(stored.digest)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise CommandError(
            f"{path} is not a token file",
            code=ExitCode.USAGE,
            hint="name another file, or remove this one to begin again from nothing.",
        ) from None
    if stored.dataset != dataset:
        raise CommandError(
            f"{path} belongs to dataset {stored.dataset!r}, not to {dataset!r}",
            code=ExitCode.USAGE,
            hint="use one token file for each dataset.",
        )
    return Position(
        dataset=dataset,
        token=token,
        revision=stored.revision,
        record_count=stored.record_count,
        digest=digest,
    )


def write_position(path: Path, position: Position) -> None:
    """Store a position; after a crash the file holds this one or the one before."""
    stored = _Stored(
        dataset=position.dataset,
        token=base64.b64encode(position.token).decode(),
        revision=position.revision,
        record_count=position.record_count,
        digest=position.digest.hex(),
    )
    with replacing(path) as file:
        file.write(msgspec.json.encode(stored) + b"\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` on leaving without an error, once it is on disk."""
    _check_regular(path)
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        _sync_directory(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename durable."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise CommandError(f"{path} is not a regular file", code=ExitCode.USAGE)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file for this process, by a lock on a file beside it.

    Raises CommandError when another process holds it, as when a cron job overtakes its predecessor.
    """
    lock = FileLock(path)
    if not lock.take():
        raise CommandError(
            f"{path} is in use by another process", hint="wait for it, or use a file of its own."
        )
    try:
        yield
    finally:
        lock.release()
