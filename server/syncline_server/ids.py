"""Ids that the server makes, and what no id holds."""

import os
import re
import uuid
from collections.abc import Callable
from typing import Final

_TAIL_BITS: Final = 74
_STEP_BYTES: Final = 4
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def has_controls(text: str) -> bool:
    """Whether a text holds control characters. No record id does, whatever it is made of, and stores rely on that."""
    return _CONTROLS.search(text) is not None


def new_uid() -> bytes:
    """16 bytes of a fresh UUIDv4: the incarnation of a dataset."""
    return uuid.uuid4().bytes


class UuidSequence:
    """UUIDv7s (RFC 9562, section 5.7), each greater than the one before, also when the clock stands or goes back.

    48 bits of Unix time in milliseconds, then 74 bits that are random in each new millisecond and grow by a
    random step within one (section 6.2, method 2), so that records pushed in one call sort as they were pushed.
    """

    def __init__(self, now_us: Callable[[], int], random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._now_us = now_us
        self._random_bytes = random_bytes
        self._milliseconds = -1
        self._tail = 0

    def take(self, count: int) -> list[str]:
        """The next ``count`` of them, in their usual 36 characters."""
        self._enter(self._now_us() // 1_000)
        steps = self._random_bytes(_STEP_BYTES * count)
        taken = []
        for start in range(0, len(steps), _STEP_BYTES):
            self._tail += 1 + int.from_bytes(steps[start : start + _STEP_BYTES])
            if self._tail >> _TAIL_BITS:
                self._enter(self._milliseconds + 1)
            taken.append(_uuid7(self._milliseconds, self._tail))
        return taken

    def _enter(self, milliseconds: int) -> None:
        if milliseconds > self._milliseconds:
            self._milliseconds = milliseconds
            # The highest bit is left free, so that steps hardly ever run out of room.
            self._tail = int.from_bytes(self._random_bytes(10)) & (1 << _TAIL_BITS - 1) - 1


def _uuid7(milliseconds: int, tail: int) -> str:
    bits = (
        (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | tail >> 62 << 64
        | 0b10 << 62
        | tail & (1 << 62) - 1
    )
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
