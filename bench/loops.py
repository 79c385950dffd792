"""The event loop of every Python process of the benchmark: uvloop when it is installed, as in the server."""

import asyncio
import importlib.metadata
from collections.abc import Coroutine
from typing import Any

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end."""
    return asyncio.run(main) if uvloop is None else uvloop.run(main)


def name() -> str:
    """Name and version, for the report."""
    return "asyncio" if uvloop is None else f"uvloop {importlib.metadata.version('uvloop')}"
