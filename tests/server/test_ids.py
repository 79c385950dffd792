"""UUIDv7s of APPEND datasets: well formed, and growing whatever the clock does."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from syncline_server.ids import UuidSequence, new_uid


class Times:
    def __init__(self, *times_us):
        self.times_us = list(times_us)

    def __call__(self):
        return self.times_us.pop(0) if len(self.times_us) > 1 else self.times_us[0]


@given(st.lists(st.integers(0, 10**16), min_size=1, max_size=10), st.integers(0, 20))
def test_ids_grow_also_when_the_clock_goes_back(times_us, count):
    sequence = UuidSequence(Times(*times_us))
    taken = [made for _ in times_us for made in sequence.take(count)]
    assert taken == sorted(set(taken))
    assert len(taken) == count * len(times_us)
    for made in taken:
        parsed = uuid.UUID(made)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, made)


def test_ids_hold_the_time_of_the_call():
    assert uuid.UUID(UuidSequence(Times(1_645_557_742_000_999)).take(1)[0]).int >> 80 == 1_645_557_742_000


def test_when_random_steps_run_out_of_room_the_next_millisecond_begins():
    sequence = UuidSequence(Times(5_000), random_bytes=lambda count: b"\xff" * count)
    sequence._tail = (1 << 74) - 1
    sequence._milliseconds = 5
    first, second = sequence.take(2)
    assert uuid.UUID(first).int >> 80 == 6
    assert first < second


def test_uids_are_random():
    assert len({new_uid() for _ in range(1_000)}) == 1_000
    assert uuid.UUID(bytes=new_uid()).version == 4
