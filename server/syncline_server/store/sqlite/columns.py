"""Bulk data in and out of SQLite in single steps.

sqlite3 releases the GIL around every step of a statement and has to win it back from a busy event loop
afterwards, which can take milliseconds. So a statement on a hot path does all its work in one step: rows go in
as one ``VALUES`` list of a fixed size (so that the statement stays cached) or as one JSON array, and come out
as one row whose values are whole columns joined by newlines or commas. Neither record ids nor canonical JSON
can hold a newline.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

_CHUNKS: Final = (1024, 256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Rows in one statement. Short lists are filled up with rows of NULL, which the statements skip: a row too much
costs less than a statement, after which the GIL has to be won back."""


def json_array(values: Sequence[str] | Sequence[int]) -> str:
    """JSON text for ``json_each``."""
    return msgspec.json.encode(values).decode()


def integers(column: str) -> list[int]:
    """Integers joined by commas."""
    return [int(value) for value in column.split(",")]


def chunk_sizes(rows: int) -> list[int]:
    """Statement sizes that together hold ``rows``, the last one perhaps more."""
    sizes = []
    while rows > 0:
        fitting = max((size for size in _CHUNKS if size <= rows), default=1)
        next_above = min((size for size in _CHUNKS if size >= rows), default=fitting)
        size = next_above if rows * 2 >= next_above else fitting
        sizes.append(size)
        rows -= size
    return sizes


@lru_cache(maxsize=64)
def _values(rows: int, width: int, first_parameter: int) -> str:
    numbers = iter(range(first_parameter, first_parameter + rows * width))
    return ",".join("(" + ",".join(f"?{next(numbers)}" for _ in range(width)) + ")" for _ in range(rows))


class BulkInsert:
    """An ``INSERT … SELECT … FROM (VALUES …)`` of any number of rows.

    ``template`` has ``{values}`` where the list goes; the rows' columns are ``column1``, ``column2``, … and the
    statement must skip rows whose ``column1`` is NULL. ``?1`` … ``?n`` are the ``shared`` parameters.
    """

    def __init__(self, template: str, *, width: int, shared: int) -> None:
        self._width = width
        self._statements: Final[Callable[[int], str]] = lru_cache(maxsize=None)(
            lambda rows: template.format(values=_values(rows, width, shared + 1))
        )

    def run(self, connection: sqlite3.Connection, shared: Sequence[Any], flat: list[Any]) -> None:
        """Insert the rows, given one after the other in ``flat``."""
        start = 0
        for size in chunk_sizes(len(flat) // self._width):
            part = flat[start : start + size * self._width]
            if missing := size * self._width - len(part):
                part += [None] * missing
            connection.execute(self._statements(size), [*shared, *part])
            start += size * self._width
