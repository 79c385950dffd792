"""A notifier whose hints a test makes up."""

from collections.abc import Callable

from syncline_server.notify.abc import Hint, Hinted
from syncline_server.notify.local import LocalNotifier


class Hints(LocalNotifier):
    """Hears, as far as it can tell, until a test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.hears = True
        self.hinted: list[Hinted] = []

    def hear(self, hinted: Hinted) -> Callable[[], None]:
        self.hinted.append(hinted)
        return lambda: self.hinted.remove(hinted)

    def hint(self, hint: Hint) -> None:
        for hinted in self.hinted:
            hinted(hint)
