"""T01, T110: the server is ended under load, again and again; nothing acknowledged is lost, nothing is doubled."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

import pytest

from robustness.traffic import PLAIN, Traffic
from support.server_process import ServerProcess

CYCLES = 20


async def run_cycles(
    server: ServerProcess, cycles: int, seed: int, *, down: Callable[[], Awaitable[object]]
) -> None:
    """Four writers and one subscriber through ``cycles`` ends of the server; then everything is checked."""
    rng = random.Random(seed)
    async with Traffic.on(server, seed=seed, crowd=PLAIN) as traffic:
        for _ in range(cycles):
            await asyncio.sleep(rng.uniform(0.005, 0.3))  # the fault comes at any moment
            await down()
            await server.start()
        await traffic.acknowledged(10)
        await traffic.finish()
        assert traffic.resets == []
        assert len(traffic.history.acknowledged()) > cycles
    await server.stop()
    assert server.fsck() == []


async def test_t01_g02_kill_loop(server, seed):
    await run_cycles(server, CYCLES, seed, down=lambda: server.stop(signal.SIGKILL))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_t01_g02_kill_loop_long(server, seed):
    await run_cycles(server, 200, seed, down=lambda: server.stop(signal.SIGKILL))


async def test_t110_g20_sigterm_loop(server, seed):
    """T110: SIGTERM under load keeps what was acknowledged and ends with 0 within the grace."""
    codes = []

    async def down():
        codes.append(await server.stop())

    await run_cycles(server, 5, seed, down=down)
    assert codes == [0] * 5
