"""Named places in the code where a test can make the process die or wait. Nothing happens unless asked.

``SYNCLINE_FAILPOINTS="commit.before=kill@3;commit.after=sleep:200"`` kills the process (SIGKILL) when
``commit.before`` is reached for the third time, and sleeps 200 ms whenever ``commit.after`` is reached.

Actions: ``kill``, ``exit:CODE`` (at once, without clean-up), ``sleep:MILLISECONDS``. ``@N``: only the N-th time.

Places: ``commit.before`` (before BEGIN), ``commit.rows`` (rows written, not committed), ``commit.after`` (durable,
not answered), ``purge``, ``reclaim``, ``migration.N`` (step N written, not committed), ``checkpoint.before``,
``checkpoint.after``, ``stage.rows``, ``stage.after``, ``prepare``, ``session.applied``, ``copy.batch``,
``copy.compared``, ``copy.equal``, ``copy.set_aside``.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "SYNCLINE_FAILPOINTS"


@dataclass(slots=True)
class _Failpoint:
    action: str
    argument: int
    only_hit: int
    hits: int = 0

    def reached(self) -> None:
        self.hits += 1
        if self.only_hit and self.hits != self.only_hit:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "exit":
            os._exit(self.argument)
        else:
            time.sleep(self.argument / 1_000)


def parse(text: str) -> Mapping[str, _Failpoint]:
    """Read the form above. Raises ValueError when it is not of that form."""
    points: dict[str, _Failpoint] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, separator, rest = part.partition("=")
        action_text, _, hit = rest.partition("@")
        action, _, argument = action_text.partition(":")
        if not separator or action not in ("kill", "exit", "sleep") or (action == "kill") is bool(argument):
            raise ValueError(f"{VARIABLE}: {part!r} is not NAME=kill|exit:CODE|sleep:MILLISECONDS[@N]")
        points[name.strip()] = _Failpoint(
            action=action, argument=int(argument or 0), only_hit=int(hit) if hit else 0
        )
    return points


_points: Mapping[str, _Failpoint] = parse(os.environ.get(VARIABLE, ""))


def configure(text: str) -> None:
    """Replace the failpoints of this process; ``""`` removes all."""
    global _points  # noqa: PLW0603 - one table for the process, like the environment that it comes from
    _points = parse(text)


def hit(name: str) -> None:
    """Tell that a place is reached."""
    if _points and (point := _points.get(name)) is not None:
        point.reached()
