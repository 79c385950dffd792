"""Two servers in the test's own loop over one PostgreSQL database, and what can be wrong between them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from support.hosted import hosted
from support.wire import House, house
from syncline_server.notify.abc import Hinted
from syncline_server.notify.postgres import PostgresNotifier

FEED = {"checkpoint_seconds": 0.4}


class DeafNotifier(PostgresNotifier):
    """Of a node that no wake-up reaches, and that does not know it."""

    def hear(self, hinted: Hinted) -> Callable[[], None]:
        del hinted
        return lambda: None


class Nodes:
    """Starts nodes of one store; they share the admin key. ``hosted``: from fixtures too."""

    def __init__(
        self, directory: Path, address: str, stack: AsyncExitStack, patch: pytest.MonkeyPatch
    ) -> None:
        self.address = address
        self._directory = directory
        self._stack = stack
        self._patch = patch

    async def start(self, *, deaf: bool = False, **settings: Any) -> House:
        """One more. ``deaf``: wake-ups do not reach it, and it looks by itself once an hour."""
        with self._patch.context() as patch:
            if deaf:
                patch.setattr("syncline_server.app.make_notifier", DeafNotifier)
                self._patch.setattr("syncline_server.catalog.lookout.LOOK_SECONDS", 3_600.0)
                self._patch.setattr("syncline_server.catalog.lookout.DEAF_LOOK_SECONDS", 3_600.0)
            made = house(self._directory, **FEED | {"store": self.address} | settings)
            return await self._stack.enter_async_context(hosted(made))

    async def sql(self, statement: str, *arguments: Any) -> Any:
        """What somebody else does to the database."""
        connection = await asyncpg.connect(self.address)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()


@asynccontextmanager
async def nodes_of(directory: Path, address: str, patch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    """Nodes that are gone at the end."""
    async with AsyncExitStack() as stack:
        yield Nodes(directory, address, stack, patch)
