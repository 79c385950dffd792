"""The I/O-free core of a producer's stream: T25, G5 and G6 with messages doubled, cut off and answered late."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from syncline_server.errors import OutOfRange
from syncline_server.ingest.backlog import OVERHEAD_BYTES, Backlog, Taken


def records(first, count):
    return [b"%d" % n for n in range(first, first + count)]


def test_chunks_are_joined_up_to_the_limits():
    backlog = Backlog(last_sequence=4)
    for first in (5, 7, 9, 11):
        assert backlog.receive(first, records(first, 2)) is Taken.QUEUED
    assert backlog.take(max_records=5, max_bytes=99).records == records(5, 4)
    assert backlog.take(max_records=99, max_bytes=99).records == records(5, 4), "until it is durable"
    backlog.applied()
    assert backlog.durable == 8
    assert backlog.take(max_records=99, max_bytes=3).records == records(9, 2)
    backlog.applied()
    assert backlog.take(max_records=1, max_bytes=1).records == records(11, 2), "one message always goes"
    backlog.applied()
    assert backlog.take(max_records=9, max_bytes=9) is None
    assert backlog.weight == 0


def test_repeats_are_cut_off_and_gaps_refused():
    backlog = Backlog(last_sequence=2)
    assert backlog.receive(1, records(1, 2)) is Taken.REPEATED
    assert backlog.receive(1, records(1, 4)) is Taken.QUEUED
    assert backlog.take(max_records=9, max_bytes=99).records == records(3, 2)
    with pytest.raises(OutOfRange) as gap:
        backlog.receive(6, records(6, 1))
    assert gap.value.metadata["expected"] == "5"
    assert backlog.weight == 2 * (OVERHEAD_BYTES + 1)


def test_what_another_stream_made_durable_is_cut_off():
    backlog = Backlog(last_sequence=0)
    backlog.receive(1, records(1, 4))
    backlog.take(max_records=9, max_bytes=99)
    assert not backlog.holds(1)
    assert not backlog.holds(5)
    assert backlog.holds(3)
    backlog.cut(3)
    assert backlog.durable == 2
    assert backlog.take(max_records=9, max_bytes=99).records == records(3, 2)
    backlog.applied()
    assert (backlog.durable, backlog.weight) == (4, 0)


def test_a_refusing_source_drops_until_the_right_one_comes_again():
    backlog = Backlog(last_sequence=0)
    backlog.receive(1, records(1, 3))
    backlog.refuse()
    assert (backlog.weight, backlog.take(max_records=9, max_bytes=99)) == (0, None)
    assert backlog.receive(4, records(4, 1)) is Taken.DROPPED
    backlog.resume()
    assert backlog.receive(5, records(5, 1)) is Taken.DROPPED, "sent before the producer knew"
    assert backlog.receive(1, records(1, 2)) is Taken.QUEUED
    with pytest.raises(OutOfRange):
        backlog.receive(4, records(4, 1))


class Producers(RuleBasedStateMachine):
    """A producer process, its streams, and a store that keeps the contract of ``Store.commit``.

    Any number of streams of any epoch may be open; each has a link that loses what was not read when it is cut.
    The store is a dictionary of numbers; whatever happens, each number is applied once, in order, in an epoch that
    was the newest at that time.
    """

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.durable = 0
        self.applied = {}
        self.streams = []
        """Epoch, backlog, whether a batch of it is with the store."""

    @initialize()
    def start(self):
        self.epoch = 1
        self.connect()

    @rule(seldom=st.sampled_from([False] * 9 + [True]))
    def new_epoch(self, seldom):
        self.epoch += seldom
        self.connect()

    def connect(self):
        """Another stream of the present epoch; the ones before it may live on, half-open."""
        self.streams = [*self.streams[-2:], [self.epoch, Backlog(last_sequence=self.durable)]]

    @precondition(lambda self: len(self.streams) > 2)
    @rule(data=st.data())
    def cut(self, data):
        """A link breaks: its backlog is forgotten."""
        self.streams.remove(data.draw(st.sampled_from(self.streams)))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), back=st.sampled_from([0, 0, 0, -1, -2, -3, 1]), count=st.integers(1, 4))
    def receive(self, data, back, count):
        """A message: the next, a repeat, a partial repeat or one after a gap."""
        stream = data.draw(st.sampled_from(self.streams))
        backlog = stream[1]
        expected = backlog.received + 1
        first = max(1, expected + back)
        if first > expected:
            with pytest.raises(OutOfRange):
                backlog.receive(first, records(first, count))
            self.streams.remove(stream)
        else:
            taken = backlog.receive(first, records(first, count))
            assert (taken is Taken.REPEATED) == (first + count <= expected)
            assert backlog.received == max(expected - 1, first + count - 1)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), max_records=st.integers(1, 6), answered=st.sampled_from([True] * 5 + [False]))
    def commit(self, data, max_records, answered):
        """The store judges a batch; the answer may be lost with the link."""
        self.settle(data.draw(st.sampled_from(self.streams)), max_records, answered=answered)

    def settle(self, stream, max_records, *, answered):
        epoch, backlog = stream
        batch = backlog.take(max_records=max_records, max_bytes=1 << 20)
        if batch is None:
            return
        verdict = self.judge(epoch, batch)
        if not answered or verdict == "fenced":
            self.streams.remove(stream)
        elif isinstance(verdict, int):
            assert backlog.holds(verdict), "a gap in the store is never the stream's own doing"
            backlog.cut(verdict)
        else:
            backlog.applied()

    def judge(self, epoch, batch):
        """What ``Store.commit`` does with numbers."""
        if epoch != self.epoch:
            return "fenced"
        if batch.last_sequence <= self.durable:
            return "replayed"
        if batch.first_sequence != self.durable + 1:
            return self.durable + 1
        for sequence, record in enumerate(batch.records, batch.first_sequence):
            assert sequence not in self.applied
            self.applied[sequence] = (epoch, record)
        self.durable = batch.last_sequence
        return "applied"

    def teardown(self):
        """Left alone, every stream of the newest epoch brings what it has received to an end."""
        for stream in [stream for stream in self.streams if stream[0] == self.epoch]:
            backlog = stream[1]
            for _ in range(backlog.received - backlog.durable + 1):
                self.settle(stream, 3, answered=True)
            assert (backlog.durable, backlog.weight) == (backlog.received, 0)
            self.each_number_is_applied_once_and_in_order()

    @invariant()
    def each_number_is_applied_once_and_in_order(self):
        assert list(self.applied) == list(range(1, self.durable + 1))
        assert [record for _, record in self.applied.values()] == records(1, self.durable)
        epochs = [epoch for epoch, _ in self.applied.values()]
        assert epochs == sorted(epochs)

    @invariant()
    def streams_know_no_more_than_the_store(self):
        for _, backlog in self.streams:
            assert backlog.durable <= self.durable
            assert backlog.weight >= 0


TestProducers = Producers.TestCase
TestProducers.settings = settings(max_examples=100, stateful_step_count=60)
