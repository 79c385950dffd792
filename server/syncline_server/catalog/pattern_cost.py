r"""What a pattern can cost on an engine that takes linear time.

Linear in the string, but each byte may cost a step for each state that the automaton is in, and a counted
repetition multiplies states: ``a[ab]{1000}c`` takes a thousand times as long as ``a[ab]c`` (measured: up to 12 ns
for each state and byte, ``\pL{95}x``). So states are counted, from the text of the pattern; its syntax is checked
later, by the engine itself.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_STATES: Final = 1_000
"""Of a pattern that is anchored and of limited length: it looks at no more characters than it has states."""
MAX_STATES_UNBOUNDED: Final = 100
"""Of a pattern that can be anywhere in the string, or of any length."""

_STATE_BYTE_NS: Final = 12.0
_BYTE_NS: Final = 30.0
_FEW_STATES: Final = 10
"""With so few the engine makes an automaton of them that takes one step for a byte."""
_BYTES_PER_CHARACTER: Final = 4

_PIECE: Final = re.compile(
    r"\\[pP]\{[^}]*\}|\\u\{[^}]*\}|\\x\{[^}]*\}|\\.|"  # escapes: one state
    r"\[\^?\]?(?:\\.|[^\]\\])*\]|"  # a class: one state
    r"\((?:\?(?:[a-zA-Z-]*:|P?<[^>]*>))?|\)|"
    r"\{(?P<least>\d{1,6})(?P<open>,(?P<most>\d{1,6})?)?\}|"
    r"[*+?|^$]|.",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternCost:
    """Times in nanoseconds. A pattern has either ``byte_ns`` or the other two."""

    states: int
    byte_ns: float
    """For each byte of a string."""
    start_ns: float
    """For a string, when only its beginning matters …"""
    start_byte_ns: float
    """… and for each byte of it, when that is less."""


def pattern_cost(pattern: str) -> PatternCost:
    """What a pattern costs, at most. Raises ValueError when it has too many states."""
    states = _count_states(pattern)
    bounded = _is_bounded(pattern)
    limit = MAX_STATES if bounded else MAX_STATES_UNBOUNDED
    if states > limit:
        kind = "that begins with ^ and has no open repetition" if bounded else "of any length or place"
        raise ValueError(
            f"pattern {pattern[:80]!r} has {states} states with its repetitions written out; "
            f"one {kind} may have {limit}"
        )
    byte_ns = _BYTE_NS + (_STATE_BYTE_NS * states if states > _FEW_STATES else 0.0)
    return PatternCost(
        states=states,
        byte_ns=0.0 if bounded else byte_ns,
        start_ns=byte_ns * _BYTES_PER_CHARACTER * (states + 1) if bounded else 0.0,
        start_byte_ns=byte_ns if bounded else 0.0,
    )


def _count_states(pattern: str) -> int:
    groups = [0]
    """States of each open group so far."""
    last = 0
    """States of the element before, which a repetition would multiply."""
    for match in _PIECE.finditer(pattern):
        piece = match[0]
        if piece.startswith("("):
            groups.append(0)
            last = 0
        elif piece == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif match["least"] is not None:
            times = max(int(match["most"] or match["least"]), 1)
            groups[-1] += last * (times - 1)
            last *= times
        elif piece not in "*+?|^$":
            last = 1
            groups[-1] += 1
        if groups[-1] > 10 * MAX_STATES:
            break
    return sum(groups)


def _is_bounded(pattern: str) -> bool:
    """Whether only the beginning of a string matters: it starts with ^, has no other branch, and an end."""
    if not pattern.startswith("^"):
        return False
    depth = 0
    for match in _PIECE.finditer(pattern):
        piece = match[0]
        if piece in "*+" or (match["open"] and not match["most"]):
            return False
        depth += piece.startswith("(") - (piece == ")")
        if piece == "|" and depth == 0:
            return False
    return True
