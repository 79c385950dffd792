"""Versions that the server is known to be safe with.

They are checked when it starts: a lock file does not help a user who installed by hand.
"""

import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

FLOORS: Final[Mapping[str, tuple[int, ...]]] = {
    "grpcio": (1, 84),  # earlier ones take an oversized or bomb message into memory before refusing it
    "protobuf": (6, 33, 5),  # what the generated code was made for
    "aiosqlite": (0, 22, 1),  # its connection's thread is used directly
    "anyio": (4, 10),
    "jiter": (0, 13),
    "jsonschema-rs": (0, 40),
}
CEILINGS: Final[Mapping[str, tuple[int, ...]]] = {"aiosqlite": (0, 23)}
PYTHON: Final = (3, 11)


class WrongVersion(Exception):
    """A library is too old, or too new to be known."""


def check_versions(version_of: Callable[[str], str] = version) -> None:
    """Raise WrongVersion, naming each wrong one, unless all are as this server needs them."""
    wrong = []
    if sys.version_info < PYTHON:
        wrong.append(f"Python {sys.version.split()[0]} (needs 3.11 or newer)")
    for name, floor in FLOORS.items():
        try:
            found = version_of(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        ceiling = CEILINGS.get(name)
        if _numbers(found) < floor:
            wrong.append(f"{name} {found} (needs {_text(floor)} or newer)")
        elif ceiling is not None and _numbers(found) >= ceiling:
            wrong.append(f"{name} {found} (needs one before {_text(ceiling)})")
    if wrong:
        raise WrongVersion("cannot run with " + ", ".join(wrong) + "; run: pip install -U 'syncline[server]'")


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
