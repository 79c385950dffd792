"""Who is heard from, and who should have been: the I/O-free part.

Time here is *steady*: the wall clock's when the process started, moved on by the monotonic clock. A wall clock that
jumps while the server runs makes nobody late and brings nobody back (guarantee G19).
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from syncline_server.model import Producer, ProducerState

LOST_FACTOR: Final = 3
"""A producer that was not heard from for this many times as long as expected is lost."""
TOLERANCE_US: Final = 1_000_000
"""A time further in the future than this was written under another clock, and proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A state, and when it will be another one unless the producer is heard from."""

    state: ProducerState
    age_of_state_us: int
    """Age of the last sign of life at which this state began."""
    next_age_us: int | None
    """Age at which the next state begins; None: never."""


def judge(age_us: int, expect_every_us: int | None) -> Verdict:
    """The state of a producer whose last sign of life is this old, negative when it lies in the future."""
    if expect_every_us is None or age_us < -TOLERANCE_US:
        return Verdict(state=ProducerState.UNKNOWN, age_of_state_us=0, next_age_us=None)
    lost_after_us = expect_every_us * LOST_FACTOR
    if age_us < expect_every_us:
        return Verdict(state=ProducerState.ALIVE, age_of_state_us=0, next_age_us=expect_every_us)
    if age_us < lost_after_us:
        return Verdict(state=ProducerState.LATE, age_of_state_us=expect_every_us, next_age_us=lost_after_us)
    return Verdict(state=ProducerState.LOST, age_of_state_us=lost_after_us, next_age_us=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A producer with its state."""

    producer: Producer
    state: ProducerState
    state_time_us: int
    """Since when, on the wall clock of the facts: of ALIVE and UNKNOWN, the last sign of life."""


def standing_of(producer: Producer, verdict: Verdict) -> Standing:
    """Put the two together."""
    sign_us = _sign_us(producer)
    return Standing(producer=producer, state=verdict.state, state_time_us=sign_us + verdict.age_of_state_us)


def _sign_us(producer: Producer) -> int:
    """When a producer last gave a sign of life, on the wall clock; its first opening counts as one."""
    return producer.create_time_us if producer.last_received_us is None else producer.last_received_us


@dataclass(slots=True)
class _Watched:
    producer: Producer
    expect_every_us: int | None
    sign_us: int
    """Steady time of the last sign of life."""
    verdict: Verdict
    planned_us: int | None = None
    """When it is to be looked at, as the heap has it; other times there are of no use any more."""

    def judge(self, now_us: int) -> None:
        self.verdict = judge(now_us - self.sign_us, self.expect_every_us)


class Board:
    """The producers of one dataset. Changes gather until they are taken."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._heap: list[tuple[int, int]] = []
        """Steady time at which to look, and number of the producer; earlier than needed when it was heard since."""
        self._changed: set[int] = set()
        self._deleted: list[Producer] = []

    @property
    def next_look_us(self) -> int | None:
        """Steady time at which somebody may become late or lost."""
        return self._heap[0][0] if self._heap else None

    def put(self, producer: Producer, expect_every_us: int | None, *, sign_us: int, now_us: int) -> None:
        """A producer that was read or opened; facts of an older epoch than is known change nothing."""
        known = self._watched.get(producer.number)
        if known is not None and known.producer.epoch >= producer.epoch:
            return
        if known is None:
            watched = _Watched(producer, expect_every_us, sign_us, judge(now_us - sign_us, expect_every_us))
            self._watched[producer.number] = watched
        else:
            watched = known
            watched.producer = replace(
                producer,
                last_sequence=max(producer.last_sequence, known.producer.last_sequence),
                last_received_us=known.producer.last_received_us or producer.last_received_us,
            )
        self._changed.add(producer.number)
        self._plan(producer.number, watched)

    def hear(
        self,
        number: int,
        *,
        last_sequence: int,
        received_us: int,
        now_us: int,
        sign_us: int | None = None,
    ) -> None:
        """A reading became durable: at ``sign_us`` (None: now), which the wall clock calls ``received_us``."""
        watched = self._watched.get(number)
        if watched is None:
            return
        watched.sign_us = now_us if sign_us is None else sign_us
        watched.producer = replace(
            watched.producer, last_sequence=last_sequence, last_received_us=received_us
        )
        if watched.verdict.state is not ProducerState.ALIVE:
            self._look(number, watched, now_us)

    def received_us(self, number: int) -> int | None:
        """When the newest reading known of a producer was received, on the wall clock; None: there is none."""
        watched = self._watched.get(number)
        return None if watched is None else watched.producer.last_received_us

    def expect(self, source_number: int, expect_every_us: int | None, *, now_us: int) -> None:
        """The setting of a source changed."""
        for number, watched in self._watched.items():
            if watched.producer.source_number == source_number:
                watched.expect_every_us = expect_every_us
                watched.planned_us = None
                self._look(number, watched, now_us)

    def remove(self, numbers: Iterable[int]) -> None:
        """These producers are gone."""
        for number in numbers:
            watched = self._watched.pop(number, None)
            self._changed.discard(number)
            if watched is not None:
                self._deleted.append(watched.producer)

    def of_source(self, source_number: int) -> Sequence[int]:
        """Numbers of the producers of a source."""
        return [n for n, watched in self._watched.items() if watched.producer.source_number == source_number]

    def look(self, now_us: int) -> None:
        """Find out who has become late or lost by now."""
        while self._heap and self._heap[0][0] <= now_us:
            planned_us, number = heapq.heappop(self._heap)
            watched = self._watched.get(number)
            if watched is not None and watched.planned_us == planned_us:
                watched.planned_us = None
                self._look(number, watched, now_us)

    def take(self) -> tuple[list[int], list[Producer]]:
        """Numbers of those that changed since the last take, and those that went."""
        changed, deleted = sorted(self._changed), self._deleted
        self._changed, self._deleted = set(), []
        return changed, deleted

    def numbers(self) -> list[int]:
        """All producers, in the order in which they were first opened."""
        return sorted(self._watched)

    def standing(self, number: int) -> Standing | None:
        """A producer as it is now; None: it has gone."""
        watched = self._watched.get(number)
        return None if watched is None else standing_of(watched.producer, watched.verdict)

    def _look(self, number: int, watched: _Watched, now_us: int) -> None:
        before = watched.verdict.state
        watched.judge(now_us)
        if watched.verdict.state is not before:
            self._changed.add(number)
        self._plan(number, watched)

    def _plan(self, number: int, watched: _Watched) -> None:
        """See that it is looked at in time. A look that comes too early plans the next one."""
        if watched.verdict.next_age_us is None:
            return
        due_us = watched.sign_us + watched.verdict.next_age_us
        if watched.planned_us is None or due_us < watched.planned_us:
            watched.planned_us = due_us
            heapq.heappush(self._heap, (due_us, number))
