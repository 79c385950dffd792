"""`make demo`, with each store: it proves what it says, and leaves nothing behind, also when it is stopped."""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 30)]


@pytest.fixture
def place():
    """Where the demo makes its directories. PostgreSQL has to get there too, as another user and by a short path."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield directory


async def start(place: str, store: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "examples.demo", store),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": place, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def left_behind(place: str) -> list[str]:
    """Files, and processes whose arguments or environment name the place."""
    found = [str(left) for left in Path(place).iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is another user's
        if place.encode() in told and int(process.name) != os.getpid():
            found.append(told.replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_the_demo_proves_what_it_says(place, store):
    process = await start(place, store)
    async with asyncio.timeout(SECONDS):
        printed, _ = await process.communicate()

    lines = printed.decode().splitlines()
    assert process.returncode == 0, printed.decode()
    assert lines[-1].startswith("all proven in ")
    assert any("(equal)" in line for line in lines)
    assert left_behind(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("scene", ["server at", "nodes A", "3. third edition"])
async def test_a_demo_that_is_stopped_leaves_nothing(place, scene, number):
    process = await start(place, "sqlite" if scene == "server at" else "postgres")
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        while not (line := (await process.stdout.readline()).decode()).startswith(scene):
            assert line, "it ended before"
        process.send_signal(number)
        rest = (await process.stdout.read()).decode()
        assert await process.wait() == 130, rest

    assert rest.splitlines()[-1] == "stopped; nothing that was started is left"
    assert left_behind(place) == []
