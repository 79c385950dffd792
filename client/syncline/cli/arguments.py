"""Values of options that people write: lengths of time and moments."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from syncline.cli.exits import CommandError, ExitCode

_UNIT_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LENGTH: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d|w)", re.ASCII)


def duration_argument(option: str, text: str) -> timedelta:
    """A length of time such as `30 s`, `90min`, `12h`, `7d`. Raises CommandError."""
    match = _LENGTH.fullmatch(text.strip())
    try:
        if match:
            return timedelta(seconds=float(match[1]) * _UNIT_SECONDS[match[2]])
    except OverflowError:
        pass
    raise CommandError(
        f"{option} takes a length of time, as in 30s, 90min, 12h or 7d, not {text!r}", code=ExitCode.USAGE
    )


def moment_argument(option: str, text: str, now: datetime | None = None) -> datetime:
    """A moment: a length of time from now, or a date and time in ISO 8601 (local unless it says). Raises CommandError."""
    if _LENGTH.fullmatch(text.strip()):
        return (now or datetime.now(UTC)) + duration_argument(option, text)
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise CommandError(
            f"{option} takes a length of time (30d) or a date (2030-01-31, 2030-01-31T12:00Z), not {text!r}",
            code=ExitCode.USAGE,
        ) from None
