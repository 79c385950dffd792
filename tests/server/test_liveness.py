"""Liveness: a pure function of stored facts, and a board that is told of readings and of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.store_values import START_US, HeldClock
from syncline_server.freshness.board import Board, judge
from syncline_server.freshness.liveness import Liveness
from syncline_server.model import Producer, ProducerState, Source

UNKNOWN, ALIVE, LATE, LOST = (
    ProducerState.UNKNOWN,
    ProducerState.ALIVE,
    ProducerState.LATE,
    ProducerState.LOST,
)
SECOND = 1_000_000


def producer(number=1, **facts):
    values = {
        "number": number,
        "source_number": 1,
        "dataset_id": "books",
        "source_id": "default",
        "producer_id": f"p{number}",
        "epoch": 1,
        "last_sequence": 0,
        "create_time_us": START_US,
        "open_time_us": START_US,
    }
    return Producer(**(values | facts))


def source(expect_every_us=10 * SECOND):
    return Source(
        number=1,
        dataset_number=1,
        dataset_id="books",
        source_id="default",
        generation=1,
        expect_every_us=expect_every_us,
    )


@pytest.mark.parametrize(
    ("age_us", "state", "began_us", "next_us"),
    [
        (0, ALIVE, 0, 10),
        (9, ALIVE, 0, 10),
        (10, LATE, 10, 30),
        (29, LATE, 10, 30),
        (30, LOST, 30, None),
        (10**15, LOST, 30, None),
        (-1_000_000, ALIVE, 0, 10),
        (-1_000_001, UNKNOWN, 0, None),
    ],
)
def test_the_state_follows_from_the_age(age_us, state, began_us, next_us):
    verdict = judge(age_us, 10)
    assert (verdict.state, verdict.age_of_state_us, verdict.next_age_us) == (state, began_us, next_us)
    assert judge(age_us, None).state is UNKNOWN


def test_g19_a_clock_that_jumps_makes_nobody_late_and_brings_nobody_back():
    """G19: what this process heard is measured on the monotonic clock."""

    class Jumping(HeldClock):
        jump_us = 0

        def now_us(self):
            return super().now_us() + self.jump_us

    clock = Jumping()
    liveness = Liveness(None, clock, keep_alive_seconds=10)
    made = producer(create_time_us=clock.now_us(), open_time_us=clock.now_us())
    liveness.opened(source(), made)
    for jump_seconds in (0, 86_400, -86_400):
        clock.jump_us = jump_seconds * SECOND
        assert liveness.standing(source(), made).state is ALIVE
    clock.pass_seconds(10)
    for jump_seconds in (0, 86_400, -86_400):
        clock.jump_us = jump_seconds * SECOND
        assert liveness.standing(source(), made).state is LATE
    clock.pass_seconds(20)
    assert liveness.standing(source(), made).state is LOST


def test_g19_after_a_restart_the_state_comes_from_the_stored_facts():
    clock = HeldClock()
    liveness = Liveness(None, clock, keep_alive_seconds=10)
    for age, state in ((1, ALIVE), (10, LATE), (30, LOST), (-5, UNKNOWN)):
        heard = producer(last_received_us=clock.us - age * SECOND)
        assert liveness.standing(source(), heard).state is state
    standing = liveness.standing(source(), producer(last_received_us=clock.us - 15 * SECOND))
    assert standing.state_time_us == clock.us - 5 * SECOND
    assert liveness.standing(source(None), producer()).state is UNKNOWN


def watched(*producers, expect_every_us=10 * SECOND):
    board = Board()
    for one in producers:
        board.put(one, expect_every_us, sign_us=START_US, now_us=START_US)
    return board


def states(board):
    return [board.standing(number).state for number in board.numbers()]


def test_the_board_tells_of_each_change_once():
    board = watched(producer(1), producer(2))
    assert board.take() == ([1, 2], [])
    board.look(board.next_look_us - 1)
    assert board.take() == ([], [])
    board.hear(2, last_sequence=1, received_us=START_US, now_us=START_US + 5 * SECOND)
    assert board.take() == ([], []), "alive as before"
    board.look(START_US + 10 * SECOND)
    assert (board.take(), states(board)) == (([1], []), [LATE, ALIVE])
    board.look(START_US + 15 * SECOND)
    assert (board.take(), states(board)) == (([2], []), [LATE, LATE])
    board.look(START_US + 30 * SECOND)
    assert (board.take(), states(board)) == (([1], []), [LOST, LATE])
    board.hear(1, last_sequence=7, received_us=START_US + 31 * SECOND, now_us=START_US + 31 * SECOND)
    assert (board.take(), states(board)) == (([1], []), [ALIVE, LATE])
    assert board.standing(1).producer.last_sequence == 7
    assert board.next_look_us == START_US + 35 * SECOND


def test_a_new_epoch_is_told_and_keeps_the_state():
    board = watched(producer(1))
    board.look(START_US + 10 * SECOND)
    board.take()
    again = producer(1, epoch=2, open_time_us=START_US + 11 * SECOND)
    board.put(again, 10 * SECOND, sign_us=START_US, now_us=START_US + 11 * SECOND)
    assert (board.take(), states(board)) == (([1], []), [LATE]), "a link is no reading"
    board.put(producer(1), 10 * SECOND, sign_us=START_US, now_us=START_US + 11 * SECOND)
    assert board.take() == ([], []), "older facts change nothing"


def test_a_setting_that_changes_is_looked_at_at_once():
    board = watched(producer(1), expect_every_us=None)
    assert (states(board), board.next_look_us) == ([UNKNOWN], None)
    board.take()
    for expected, state in ((60 * SECOND, ALIVE), (10 * SECOND, LATE), (SECOND, LOST), (None, UNKNOWN)):
        board.expect(1, expected, now_us=START_US + 20 * SECOND)
        assert (board.take(), states(board)) == (([1], []), [state])
    board.expect(2, SECOND, now_us=START_US + 20 * SECOND)
    assert board.take() == ([], []), "another source"


def test_who_goes_is_told_and_never_late():
    board = watched(producer(1), producer(2, source_number=2))
    board.take()
    board.remove(board.of_source(2))
    changed, deleted = board.take()
    assert (changed, [one.number for one in deleted]) == ([], [2])
    board.look(START_US + 100 * SECOND)
    assert board.take() == ([1], [])
    assert board.standing(2) is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hear"), st.integers(1, 3)),
        st.tuples(st.just("pass"), st.integers(0, 40)),
        st.tuples(st.just("expect"), st.sampled_from([None, 1, 5, 10, 30])),
        st.tuples(st.just("open"), st.integers(1, 4)),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_board_agrees_with_the_function_at_any_time(steps):
    """Told states are those that the pure function gives; nobody is told twice of the same."""
    board, now, expected = watched(producer(1), producer(2)), START_US, 10 * SECOND
    signs, epochs, told = {1: now, 2: now}, {1: 1, 2: 1}, {}
    for what, value in steps:
        if what == "hear" and value in signs:
            signs[value] = now
            board.hear(value, last_sequence=1, received_us=now, now_us=now)
        elif what == "pass":
            now += value * SECOND
            board.look(now)
        elif what == "expect":
            expected = value and value * SECOND
            board.expect(1, expected, now_us=now)
        elif what == "open":
            signs.setdefault(value, now)
            epochs[value] = epochs.get(value, 0) + 1
            board.put(producer(value, epoch=epochs[value]), expected, sign_us=now, now_us=now)
        for number in board.take()[0]:
            standing = board.standing(number)
            news = (standing.state, standing.producer.epoch)
            assert told.get(number) != news
            told[number] = news
        assert told == {n: (judge(now - signs[n], expected).state, epochs[n]) for n in signs}
