"""Wake-ups: "look again, dataset N is at least at revision R". Truth stays in the store.

A wake-up may be lost, late, doubled or wrong; that changes latency and nothing else. Whoever listens reads
the store to learn what is so.

What this process commits is announced to it with its changes, which are true. From other processes come hints, which
anybody may have made up: they say where to look, and are never taken for a fact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

from syncline_server.model import Appended

Listener = Callable[[Appended], None]

Hint = Mapping[int, int]
"""Dataset number → revision that it is said to have reached."""
EVERYWHERE: Final[Hint] = {}
"""The hint that something may have been missed: look at all datasets."""
Hinted = Callable[[Hint], None]


class Notifier(ABC):
    """Carries wake-ups from whoever commits to whoever follows."""

    hears: bool
    """Hints of other processes come in, as far as is known."""

    @abstractmethod
    def announce(self, appended: Appended) -> None:
        """Tell every listener that a dataset moved. Call only when the commit is durable. Never blocks."""

    @abstractmethod
    def tell(self, dataset_number: int, revision: int) -> None:
        """Hint to other processes that this dataset is worth a look: it was made, or is gone. Never blocks."""

    @abstractmethod
    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` on the event loop for each announcement, until the returned function is called."""

    @abstractmethod
    def hear(self, hinted: Hinted) -> Callable[[], None]:
        """Call ``hinted`` on the event loop for each hint, until the returned function is called."""

    @abstractmethod
    def running(self) -> AbstractAsyncContextManager[None]:
        """Exchange wake-ups with other processes while the block lasts."""
