"""What the server asks of the allocator."""

import os
import platform
import subprocess
import sys

import pytest

_PROBE = """
import ctypes, sys
from syncline_server.app import keep_freed_memory

class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = MallInfo
libc.malloc.restype = ctypes.c_void_p
keep_freed_memory()
before = libc.mallinfo2().hblks
libc.malloc(2 << 20)
print(libc.mallinfo2().hblks - before)
"""


def _mappings_for_2_mib(**variables: str) -> int:
    """How many mappings of its own a buffer of 2 MiB gets in a process that was told to keep memory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", _PROBE], env=env | variables, capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_buffers_of_pages_come_from_memory_that_is_kept():
    assert _mappings_for_2_mib() == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_the_environment_decides_about_memory():
    assert _mappings_for_2_mib(MALLOC_MMAP_THRESHOLD_="1048576") == 1
