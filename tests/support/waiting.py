"""Waiting for a state instead of for a time."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(
    condition: Callable[[], object] | Callable[[], Awaitable[object]], *, seconds: float = 20.0
) -> None:
    """Wait until the condition, a function or coroutine function, holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if isinstance(held, Awaitable):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
