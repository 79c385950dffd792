"""Exit codes, and how an error becomes one of them with a message and a next step.

The table below is the only place that defines them; the epilog of ``syncline --help`` prints it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """What the command's exit status means."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    REFUSED = 5
    UNAVAILABLE = 6
    CONFLICT = 7
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.OK: "done",
    ExitCode.ERROR: "failed for a reason that is not below",
    ExitCode.USAGE: "wrong arguments, or an input file that cannot be read",
    ExitCode.NOT_FOUND: "the dataset, source, key or record is not there",
    ExitCode.NOT_ALLOWED: "the key is missing, wrong, or may not do this",
    ExitCode.REFUSED: "records, or a whole write, were refused; each reason is on stderr",
    ExitCode.UNAVAILABLE: "the server cannot be reached or cannot answer now; trying again is safe",
    ExitCode.CONFLICT: "it exists already, is in use, or somebody else was faster",
    ExitCode.INTERRUPTED: "ended by Ctrl-C",
    ExitCode.BROKEN_PIPE: "the reader of the output went away",
    ExitCode.TERMINATED: "ended by SIGTERM",
}


class CommandError(Exception):
    """An error that the command itself finds; ``hint`` is the next step."""

    def __init__(self, message: str, *, code: ExitCode = ExitCode.ERROR, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What to tell about an error, and how to end."""

    code: ExitCode
    message: str
    reason: str = ""
    hint: str = ""
    details: Sequence[str] = ()

    def json(self) -> str:
        """The same as one line of JSON."""
        import msgspec

        body = {
            "exit_code": int(self.code),
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "details": list(self.details),
        }
        return msgspec.json.encode({"error": body}).decode()
