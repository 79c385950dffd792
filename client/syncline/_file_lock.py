"""One process at a time for a file, by a lock on a file beside it.

The system drops the lock when the process ends, however it ends.
"""

import os
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: without the lock
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """A lock that is taken or not."""

    def __init__(self, path: Path) -> None:
        target = path.resolve()  # whoever comes by a symbolic link finds the same lock
        self._path = target.with_name(f".{target.name}.lock")
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        """Take it, if nobody else has it. Raises OSError when the directory cannot be written."""
        if fcntl is None:  # pragma: no cover
            return True
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except BaseException:
            file.close()
            raise
        os.set_inheritable(file.fileno(), False)
        self._file = file
        return True

    def release(self) -> None:
        """Give it back; without effect when it was not taken."""
        if self._file is not None:
            self._file.close()
            self._file = None
