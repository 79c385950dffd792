"""Wake-ups: "look again, dataset N is at least at revision R". Truth stays in the store.

A wake-up may be lost, late, doubled or wrong; that changes latency and nothing else. Whoever listens reads
the store to learn what is so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from syncline_server.model import Appended

Listener = Callable[[Appended], None]


class Notifier(ABC):
    """Carries wake-ups from whoever commits to whoever follows."""

    @abstractmethod
    def announce(self, appended: Appended) -> None:
        """Tell every listener that a dataset moved. Call only when the commit is durable. Never blocks."""

    @abstractmethod
    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` on the event loop for each announcement, until the returned function is called."""
