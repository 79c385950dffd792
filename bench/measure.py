"""Figures, ratios, and the ways of measuring that they share."""

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.systems.base import System


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured quantity of one or several systems."""

    name: str
    what: str
    """One line for people."""
    unit: str
    better: Literal["higher", "lower"]
    values: Mapping[str, float]
    """By system."""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What the values are the medians of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Something that this version has to reach, and whether it did."""

    what: str
    limit: float
    measured: float
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one measurement found."""

    figures: Sequence[Figure]
    requirements: Sequence[Requirement] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where a measurement runs, and with whom."""

    directory: Path
    """On a disk; every measurement has its own, and it is removed afterwards."""
    quick: bool
    peers: Mapping[str, System]
    """The ones that are on this machine."""
    say: Callable[[str], None]
    """Tells what is being done."""
    systems: dict[str, dict[str, str]] = field(default_factory=dict)
    """Version and durability of what a measurement has used beside the peers."""

    def pick(self, full: int, quick: int) -> int:
        """The first, or under ``--quick`` the second."""
        return quick if self.quick else full


Measurement = Callable[[Room], Awaitable[Outcome]]


def at_least(what: str, ours: float, theirs: float | None, limit: float) -> Sequence[Requirement]:
    """``ours / theirs`` must not be below the limit. Nothing when the peer is missing."""
    if theirs is None:
        return ()
    ratio = ours / theirs
    return (Requirement(what=what, limit=limit, measured=ratio, reached=ratio >= limit),)


def at_most(what: str, measured: float, limit: float) -> Requirement:
    """``measured`` must not be above the limit."""
    return Requirement(what=what, limit=limit, measured=measured, reached=measured <= limit)


async def interleaved(
    rounds: int, contenders: Mapping[str, Callable[[int], Awaitable[float]]]
) -> dict[str, list[float]]:
    """Measure each in turn, ``rounds`` times over, so that the machine's bad moments meet them all."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            gc.collect()
            samples[name].append(await contender(number))
    return samples


def medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in samples.items()}


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile, ``part`` between 0 and 1."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * part))]


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()

    @property
    def seconds(self) -> float:
        """So far."""
        return (time.monotonic_ns() - self._start_ns) / 1e9


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Take what exists now (the prepared records) out of the garbage collector's sight, for every system alike."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def work_directory(parent: Path) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="syncline-bench-", dir=parent) as name:
        yield Path(name)
