"""Options for a part of a dataset: `--filter` and `--fields`."""

from collections.abc import Sequence
from typing import Annotated

import typer

FilterOption = Annotated[
    str | None,
    typer.Option("--filter", metavar="TEXT", help="Only records that match, as in 'year >= 1990'."),
]

FieldsOption = Annotated[
    str | None,
    typer.Option("--fields", metavar="NAMES", help="Only these fields of the records, with commas between."),
]


def names_of(fields: str | None) -> Sequence[str] | None:
    """The fields that an option names."""
    return None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
