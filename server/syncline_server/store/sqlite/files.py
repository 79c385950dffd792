"""The files of a store: the database, beside it its lock, its ballast and the directory of staged sessions."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syncline_server.store.abc import StoreRefused

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
BALLAST_BYTES: Final = 4 << 20
"""Given up when the disk is full, so that what frees space (purge, checkpoint, deleting) can still run."""
RESERVE_BYTES: Final = 1 << 20
"""With less free space than this a write is expected to fail."""

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs"}
)
_MOUNTS: Final = Path("/proc/self/mounts")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFiles:
    """Where the parts of a store lie."""

    database: Path

    @property
    def lock(self) -> Path:
        """Side file that the server holds locked."""
        return self.database.with_name(self.database.name + ".lock")

    @property
    def ballast(self) -> Path:
        """Space held back."""
        return self.database.with_name(self.database.name + ".ballast")

    @property
    def staging(self) -> Path:
        """Directory of staged sessions, a file each."""
        return self.database.with_name("staging")

    @property
    def incoming(self) -> Path:
        """A store that is being copied to here, until it is complete."""
        return self.database.with_name(self.database.name + ".incoming")

    @property
    def moved(self) -> Path:
        """The store that was here, until it was copied elsewhere."""
        return self.database.with_name(self.database.name + ".moved")

    @property
    def side_files(self) -> tuple[Path, Path]:
        """What SQLite keeps beside the database."""
        name = self.database.name
        return self.database.with_name(name + "-wal"), self.database.with_name(name + "-shm")

    def prepare(self) -> None:
        """Make the directories and the empty database file, private to this user.

        SQLite gives its side files the mode of the database. Raises StoreRefused.
        """
        directory = self.database.parent
        try:
            directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            self.staging.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
            # Opened with O_CREAT only when it is not there: closing a descriptor of a database that is
            # in use would drop SQLite's locks.
            if not self.database.exists():
                os.close(os.open(self.database, os.O_CREAT | os.O_RDWR, PRIVATE_FILE))
            for path, mode in (
                (self.database, PRIVATE_FILE),
                (self.staging, PRIVATE_DIRECTORY),
            ):
                path.chmod(mode)
        except OSError as error:
            raise StoreRefused(f"{directory} cannot be used for the store: {error}") from error
        sync_directory(directory)


def refuse_other_states(files: StoreFiles) -> None:
    """Raise StoreRefused where a store was moved away from, or is not complete yet; an empty one would be made there."""
    if files.database.exists():
        return
    if files.incoming.exists():
        raise StoreRefused(
            f"{files.incoming} is the unfinished copy of a store: run syncline-server copy again, or remove it"
        )
    if files.moved.exists():
        raise StoreRefused(
            f"the store was moved away from here by syncline-server copy: give the address of the new one; "
            f"to make an empty store here, move {files.moved} elsewhere first"
        )


def refuse_network_file_system(path: Path) -> None:
    """Raise StoreRefused when the file lies where locks and shared memory do not work."""
    kind = file_system_of(path)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreRefused(f"{path} is on a network file system ({kind}); the store needs a local disk")


def file_system_of(path: Path) -> str:
    """Type of the file system that holds ``path``, as mounted; empty when the system does not tell."""
    with suppress(OSError):
        best, kind = "", ""
        target = str(path.resolve())
        for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            _, mount, name, *_ = line.split(" ")
            mount = mount.encode().decode("unicode_escape")
            inside = target == mount or target.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, name
        return kind
    return ""


@contextmanager
def exclusive_lock(files: StoreFiles) -> Iterator[None]:
    """Hold the store for this process. Raises StoreRefused when another one has it."""
    descriptor = os.open(files.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StoreRefused(
                f"{files.database} is in use by another process (id {owner}); "
                "stop that server, or point this one at another data directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Space that this process may still fill on the disk of ``path``."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def load_ballast(files: StoreFiles) -> None:
    """Hold space back, when there is plenty."""
    with suppress(OSError):
        if files.ballast.exists() or free_bytes(files.database.parent) < 2 * BALLAST_BYTES:
            return
        descriptor = os.open(files.ballast, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
        finally:
            os.close(descriptor)


def drop_ballast(files: StoreFiles) -> bool:
    """Give the space back; whether there was any."""
    try:
        files.ballast.unlink()
    except FileNotFoundError:
        return False
    return True


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
