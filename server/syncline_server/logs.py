"""The log: structlog events with stable names, one line each, on standard error.

Nobody outside chooses what a line looks like: control characters, line ends, ANSI escapes and the Unicode
characters that reorder text are escaped in every value. Payloads and secrets are not logged; what looks like a
key of ours is cut to its public part all the same.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "text"]

_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: line ends, ANSI escapes
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line separators, byte order mark, lone surrogates
)
_SECRET: Final = re.compile(r"\b(sl_[0-9A-Za-z]+_)[0-9A-Za-z_-]{8,}")


def configure_logs(level: Level = "info", form: Format = "auto", stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for this process."""
    output = sys.stderr if stream is None else stream
    as_text = form == "text" or (form == "auto" and output.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        escape_values,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if as_text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))  # libraries speak up when something is wrong


def escape_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every value printable on one line, and cut keys to their public part."""
    for name, value in event.items():
        if name == "exception":  # keeps its lines, indented, so that none of them can pass for an event
            event[name] = "\n    ".join(map(printable, str(value).splitlines()))
        elif isinstance(value, str):
            event[name] = printable(value)
        elif value is not None and not isinstance(value, bool | int | float):
            event[name] = printable(str(value))
    return event


def printable(text: str) -> str:
    """The text with everything escaped that could end its line or disguise it."""
    return _SECRET.sub(r"\1…", _UNSAFE.sub(_escape, text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {10: "\\n", 13: "\\r", 9: "\\t"}.get(code) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    )
