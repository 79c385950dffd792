"""Wake-ups inside one process: a plain call."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from syncline_server.model import Appended
from syncline_server.notify.abc import Hinted, Listener, Notifier


class LocalNotifier(Notifier):
    """Calls its listeners at once, in the order in which they began to listen. Nobody else commits."""

    def __init__(self) -> None:
        self.hears = False
        self._listeners: list[Listener] = []

    def announce(self, appended: Appended) -> None:
        """See Notifier."""
        for listener in tuple(self._listeners):
            listener(appended)

    def tell(self, dataset_number: int, revision: int) -> None:
        """See Notifier. There is nobody else."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See Notifier."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def hear(self, hinted: Hinted) -> Callable[[], None]:
        """See Notifier. No hint comes."""
        del hinted
        return lambda: None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See Notifier."""
        yield
