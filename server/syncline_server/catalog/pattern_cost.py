"""What a pattern can cost on an engine that takes linear time.

Linear in the string, but each byte may cost a step for each state that the automaton is in, and a counted
repetition multiplies states: ``a[ab]{1000}c`` takes a thousand times as long as ``a[ab]c`` (measured: 37 ns
for each state and byte). So states are counted, from the text of the pattern; its syntax is checked later, by
the engine itself.
"""

import re
from typing import Final

MAX_STATES: Final = 1_000
"""Of a pattern that is anchored and of limited length: it looks at no more characters than it has states."""
MAX_STATES_UNBOUNDED: Final = 100
"""Of a pattern that can be anywhere in the string, or of any length."""

_PIECE: Final = re.compile(
    r"\\[pP]\{[^}]*\}|\\u\{[^}]*\}|\\x\{[^}]*\}|\\.|"  # escapes: one state
    r"\[\^?\]?(?:\\.|[^\]\\])*\]|"  # a class: one state
    r"\((?:\?(?:[a-zA-Z-]*:|P?<[^>]*>))?|\)|"
    r"\{(?P<least>\d{1,6})(?P<open>,(?P<most>\d{1,6})?)?\}|"
    r"[*+?|^$]|.",
    re.DOTALL,
)


def pattern_cost(pattern: str) -> int:
    """Number of states, at most. Raises ValueError when they are too many."""
    states = _count_states(pattern)
    bounded = _is_bounded(pattern)
    limit = MAX_STATES if bounded else MAX_STATES_UNBOUNDED
    if states > limit:
        kind = "that begins with ^ and has no open repetition" if bounded else "of any length or place"
        raise ValueError(
            f"pattern {pattern[:80]!r} has {states} states with its repetitions written out; "
            f"one {kind} may have {limit}"
        )
    return states


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
