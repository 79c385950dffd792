"""Wake-ups inside one process: a plain call."""

from collections.abc import Callable

from syncline_server.model import Appended
from syncline_server.notify.abc import Listener, Notifier


class LocalNotifier(Notifier):
    """Calls its listeners at once, in the order in which they began to listen."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def announce(self, appended: Appended) -> None:
        """See Notifier."""
        for listener in tuple(self._listeners):
            listener(appended)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See Notifier."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
