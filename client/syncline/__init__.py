"""Syncline: push records, follow changes, hold exact copies.

::

    async with syncline.connect("127.0.0.1:7420") as client:
        await client.create_dataset("books", identity=syncline.by_key("isbn"))
        books = client.dataset("books")
        await books.push([{"isbn": "978-0060589462", "title": "Zen and the Art of Motorcycle Maintenance"}])
        async for event in books.changes():
            print(event)
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ._public import *  # noqa: F403 - the form that type checkers take for a re-export

_MODULES: Final = frozenset(
    ("client", "copies", "dataset", "errors", "events", "feed", "mirror", "models", "names", "session")
)

if not TYPE_CHECKING:  # else every name would be good

    def __getattr__(name: str) -> Any:
        """Import what is asked for (PEP 562): the server takes the names of resources from here and nothing else."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name == "__all__" or not name.startswith("_"):
            public = importlib.import_module(f"{__name__}._public")
            if name == "__all__" or name in public.__all__:
                value = globals()[name] = getattr(public, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__"), *_MODULES})


logging.getLogger("syncline").addHandler(logging.NullHandler())  # quiet unless the program wants to hear
