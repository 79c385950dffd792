"""The input of `push` and `delete`: which file, which form, which schema, how large the calls."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.files import BadRecord, Format, Record, format_of, read

if TYPE_CHECKING:
    from syncline import Client, Limits

STDIN: Final = "-"


@dataclass(slots=True)
class Input:
    """An open input file. ``total_bytes`` is None for pipes and terminals."""

    name: str
    form: Format
    stream: BufferedIOBase
    raw: FileIO
    total_bytes: int | None

    def done_bytes(self) -> int:
        """Bytes read so far; only where ``total_bytes`` is known."""
        return self.raw.tell()

    def rows(self, schema: object) -> Iterator[Record | BadRecord]:
        """The records."""
        return read(self.stream, self.form, schema=schema)

    @property
    def has_columns(self) -> bool:
        """Whether the types of the values come from the schema."""
        return self.form in (Format.CSV, Format.TSV)


@contextlib.contextmanager
def opened(path: str, form: Format | None) -> Iterator[Input]:
    """Open a file, or standard input for ``-``.

    Raises CommandError when the format is neither given nor known from the extension, and OSError.
    """
    form = form or format_of(path)
    if form is None:
        if path != STDIN:
            raise CommandError(
                f"the format of {path} is not known from its extension",
                code=ExitCode.USAGE,
                hint=f"say which it is: --format {'|'.join(Format)}.",
            )
        form = Format.JSONL
    if path == STDIN and sys.stdin.isatty():
        sys.stderr.write(f"reading {form} from the terminal; end with Ctrl-D\n")
    try:
        raw = FileIO(0 if path == STDIN else path, closefd=path != STDIN)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", code=ExitCode.USAGE) from None
    stream = BufferedReader(raw, 256 * 1024)
    is_file = raw.seekable()
    try:
        yield Input(
            "stdin" if path == STDIN else Path(path).name,
            form,
            stream,
            raw,
            os.fstat(raw.fileno()).st_size if is_file else None,
        )
    finally:
        if is_file:  # closing a pipe would wait for the thread that waits in it
            stream.close()


async def schema_for(client: "Client", dataset: str, source: Input) -> object:
    """The dataset's schema where the format needs it for its types, otherwise None."""
    if not source.has_columns:
        return None
    return (await client.get_dataset(dataset)).schema


async def limits_for(client: "Client", batch: int) -> tuple[int, int]:
    """Records and bytes of one call: what was asked for, within what the server accepts."""
    limits: Limits = (await client.server_info()).limits
    return min(batch, limits.records_per_call), limits.bytes_per_call
