"""Facts of the machine that the figures were measured on, and of processes."""

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

from bench import loops

_FSYNC_ROUNDS = 300


def disk_directory() -> Path:
    """Where data goes: the first of these that is not in memory, because an fsync there costs nothing.

    Raises RuntimeError when all are.
    """
    for candidate in (Path("/var/tmp"), Path.cwd()):  # noqa: S108
        if candidate.is_dir() and os.access(candidate, os.W_OK) and file_system(candidate) != "tmpfs":
            return candidate
    raise RuntimeError("neither /var/tmp nor this directory is on a disk; name one with --directory")


def file_system(path: Path) -> str:
    """Type of the file system that holds the path, of the longest mount point above it."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    above = [(mount, kind) for _, mount, kind, *_ in mounts if path.resolve().is_relative_to(mount)]
    return max(above, key=lambda found: len(found[0]))[1]


def fsyncs_per_second(directory: Path) -> float:
    """How often 4 KiB can be made durable, one after the other."""
    path = directory / "fsync"
    with path.open("wb", buffering=0) as file:
        start = time.monotonic()
        for _ in range(_FSYNC_ROUNDS):
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
        seconds = time.monotonic() - start
    path.unlink()
    return _FSYNC_ROUNDS / seconds


def describe(directory: Path) -> dict[str, Any]:
    """What a reader of the figures wants to know of the machine."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "fdatasync_4k_per_second": round(fsyncs_per_second(directory)),
        "python": platform.python_version(),
        "event_loop": loops.name(),
        "load_before": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def resident_bytes(pid: int) -> int:
    """Memory that the process holds now (VmRSS)."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """The most that it ever held (VmHWM)."""
    return _status_bytes(pid, "VmHWM")


def cpu_seconds(pid: int) -> float:
    """Time on a CPU that the process has used, all threads together (fields 14 and 15 of /proc/pid/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_cpu_seconds(pid: int) -> dict[int, float]:
    """The same of each child of the process that lives, to the nanosecond. For children with a single thread."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):  # it has ended in between
            found[int(child)] = int(Path(f"/proc/{child}/schedstat").read_text().split()[0]) / 1e9
    return found


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {name}")
