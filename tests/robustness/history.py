"""What clients did and saw in one run, in memory and as JSON lines.

Everything carries the time of one monotonic clock. Writers put the number of their operation into every record, and
every answer carries a revision; so the total order is given, and no search for a linearisation is needed.
"""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "rejected", "unknown"]

Version = tuple[int, bytes]
"""Revision and canonical JSON of a record."""

State = dict[str, Version]
"""A copy by record id."""


def canonical(value: dict[str, Any]) -> bytes:
    """The byte form that the server stores."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# -- what clients did ---------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Operation:
    """One write: a call, the commit of a session, or one reading of a producer."""

    number: int
    kind: Literal["push", "delete", "session", "replace", "reading"]
    dataset: str
    source: str = "default"
    puts: dict[str, bytes] = field(default_factory=dict)
    """Canonical JSON by record id; of records posted twice in one write the last."""
    deletes: tuple[str, ...] = ()
    scope: str = ""
    """Of a replace: nobody else writes ids that begin so."""
    request_id: str = ""
    invoked: float = 0.0
    returned: float | None = None
    outcome: Outcome = "unknown"
    code: str = ""
    """Reason or status code when it was not OK."""
    revision: int | None = None
    changed: bool | None = None
    answers: list[int] = field(default_factory=list)
    """Revisions of all OKs: a write that is sent again gets the first answer again."""
    owner: str = ""
    """Session or producer that it belongs to."""
    epoch: int = 0
    """Of the producer, or number of the session among those of its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A producer's epoch or a source's session began; whoever was before it is fenced."""

    owner: str
    """Producer or source."""
    epoch: int
    invoked: float
    returned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a read, or an application that looked at its replica, saw."""

    name: str
    dataset: str
    selection: str = "all"
    asked: tuple[str, ...] | None = None
    """Record ids that were asked for; None: everything."""
    min_revision: int = 0
    invoked: float
    returned: float
    revision: int
    records: State
    latest: int = 0
    """Above 0: it is of ``revision`` or of a later one up to this, which the reader cannot tell."""
    is_live: bool = True
    """It answers from the server, so it must have whatever was acknowledged before it; a replica need not."""


# -- what subscribers saw -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A subscription began, from a token that this view was given earlier, or from nothing."""

    at: float
    token: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Changes: (kind, record id, revision, data), kind being ``put``, ``delete`` or ``remove``."""

    at: float
    from_revision: int
    to_revision: int
    partial: bool = False
    changes: tuple[tuple[str, str, int, bytes], ...] = ()
    token: bytes = b""
    folded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The copy is said to be exact."""

    at: float
    revision: int
    count: int
    digest: bytes
    token: bytes
    going_away: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The copy begins anew."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The subscription ended: code and reason of the server, or ``LEFT`` when the client went."""

    at: float
    code: str
    reason: str = ""
    credit_since: float | None = None
    """Since when all of its credit was granted anew; see ``subscribers.Credit``."""


Frame = Opened | Batch | Checkpoint | Reset | Ended


@dataclass(slots=True, kw_only=True)
class View:
    """One subscriber of one dataset: everything it received, over all its connections."""

    name: str
    dataset: str
    selection: str = "all"
    mode: str = "latest"
    frames: list[Frame] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)
    """Tokens that it was given, oldest first."""
    resume: bytes = b""
    """The newest of them, unless a reset came since."""
    revoked: float | None = None
    """When the key that it reads with was deleted."""

    def note(self, *frames: Frame) -> None:
        """Something came."""
        for frame in frames:
            self.frames.append(frame)
            if isinstance(frame, (Batch, Checkpoint)) and frame.token:
                self.tokens.append(frame.token)
                self.resume = frame.token
            elif isinstance(frame, Reset):
                self.resume = b""


# -- what the store did -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One revision as the store committed it. Data None: deleted."""

    revision: int
    commit_id: bytes
    changes: dict[str, bytes | None]
    """Without what later revisions of the same group replaced: nobody can ever have seen it."""
    group: int = 0
    """Revisions that one transaction committed have the same; 0: each is by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """The watermark of a dataset was moved."""

    at: float
    revision: int
    order: int = 0
    """Its place among all purges and leases."""
    node: str = ""
    """By whom."""


@dataclass(slots=True, kw_only=True)
class DatasetLog:
    """Everything that was committed to one dataset, and what it is at the end."""

    commits: list[Logged] = field(default_factory=list)
    purges: list[Purged] = field(default_factory=list)
    final: State = field(default_factory=dict)
    """As the server answers at the end."""
    head: int = 0
    count: int = 0
    digest: bytes = bytes(16)


# -- all of it ----------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class History:
    """One run."""

    seed: int = 0
    operations: list[Operation] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    guests: list[View] = field(default_factory=list)
    """Subscribers with keys of their own, which are taken from them."""
    revocation_seconds: float = 30.0
    """A stream whose key was deleted has ended after this."""
    faults: list[tuple[float, str]] = field(default_factory=list)
    calm_since: float | None = None
    """When the last fault was over; what is owed within a time is owed from then on."""
    ended: float | None = None
    checkpoint_seconds: float = 10.0
    """The server's interval."""
    datasets: dict[str, DatasetLog] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    """Revision of each request with an id that had an effect, as the store remembers."""
    covered: dict[bytes, int] = field(default_factory=dict)
    """Of each token that was used: the revision up to which it does not need tombstones."""
    seen: dict[bytes, int] = field(default_factory=dict)
    """Of each of them: the newest revision that anything in the copy may be of."""
    leases: list[tuple[int, str]] = field(default_factory=list)
    """The place of each among all purges and leases, and the node that was given it."""
    complaints: list[str] = field(default_factory=list)
    """What clients found out by themselves: a replica had to be mended, a copy diverged, a writer did not end."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def invoke(self, kind: str, dataset: str, **what: Any) -> Operation:
        """Note that a write begins."""
        operation = Operation(
            number=what.pop("number", None) or self.next_number(),
            kind=kind,  # type: ignore[arg-type]
            dataset=dataset,
            invoked=time.monotonic(),
            **what,
        )
        self.operations.append(operation)
        return operation

    def next_number(self) -> int:
        """For an operation whose records are to carry it."""
        return next(self._numbers)

    def view(self, name: str, dataset: str, **what: Any) -> View:
        """A new subscriber."""
        self.views.append(View(name=name, dataset=dataset, **what))
        return self.views[-1]

    def fault(self, what: str) -> None:
        """Note a fault."""
        self.faults.append((time.monotonic(), what))

    def acknowledged(self, dataset: str | None = None) -> list[Operation]:
        """Writes that changed something and were answered OK, by dataset and revision."""
        done = [
            op
            for op in self.operations
            if op.outcome == "ok" and op.changed and dataset in (None, op.dataset)
        ]
        return sorted(done, key=lambda op: (op.dataset, op.revision or 0))

    def save(self, path: Path) -> None:
        """Write it as JSON lines: one object each, its kind in ``is``."""
        with path.open("w", encoding="utf-8") as file:

            def line(kind: str, what: Any) -> None:
                file.write(json.dumps({"is": kind} | what, default=_text) + "\n")

            line("run", {"seed": self.seed, "calm_since": self.calm_since, "complaints": self.complaints})
            for at, what in self.faults:
                line("fault", {"at": at, "what": what})
            for operation in self.operations:
                line("operation", asdict(operation))
            for opening in self.openings:
                line("opening", asdict(opening))
            for read in self.reads:
                line("read", asdict(read))
            for view in self.views:
                for frame in view.frames:
                    line(type(frame).__name__.lower(), {"view": view.name} | asdict(frame))
            for name, log in self.datasets.items():
                for logged in log.commits:
                    line("commit", {"dataset": name} | asdict(logged))
                for purged in log.purges:
                    line("purge", {"dataset": name} | asdict(purged))


def _text(value: object) -> str:
    """Data as text, tokens and digests as hex."""
    assert isinstance(value, bytes)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex()
    return text if text.isprintable() else value.hex()
