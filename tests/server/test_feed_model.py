"""T47: everything that can happen to a dataset and its copies, in any order; the table in memory is the oracle."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from support.feed_world import CACHE_BYTES, FAULTY, World
from syncline_server.feed.pages import OVERHEAD_BYTES
from syncline_server.feed.tokens import NO_FILTER

KEYS = "abcdefg"
DATA = [b"1", b"2", b"3" * 40]
IDS = st.sampled_from(KEYS)
ACTIONS = st.lists(st.tuples(IDS, st.one_of(st.none(), st.sampled_from(DATA))), min_size=1)


class FeedModel(RuleBasedStateMachine):
    """T47: hypothesis chooses, and shrinks what fails."""

    followers = Bundle("followers")

    def __init__(self):
        super().__init__()
        self.world = World()

    @rule(actions=ACTIONS, announced=st.booleans())
    def write(self, actions, announced):
        self.world.write(actions, announced=announced)

    @rule(kept=st.dictionaries(IDS, st.sampled_from(DATA)))
    def replace(self, kept):
        self.world.replace(kept)

    @rule(data=st.data())
    def purge(self, data):
        head = self.world.table.head
        self.world.purge(data.draw(st.integers(head.purge_revision, head.revision)))

    @rule()
    def keep_a_backup(self):
        self.world.keep_a_backup()

    @precondition(lambda self: self.world.backup)
    @rule()
    def restore(self):
        self.world.restore()

    @rule()
    def restart(self):
        self.world.restart()

    @rule()
    def create_again(self):
        self.world.create()

    @rule(fingerprint=st.sampled_from([NO_FILTER, b"a filter"]))
    def change_filter(self, fingerprint):
        self.world.change_filter(fingerprint)

    @rule(target=followers)
    def come(self):
        return self.world.come()

    @rule(follower=consumes(followers))
    def leave_for_good(self, follower):
        self.world.followers.remove(follower)

    @rule(follower=followers)
    def break_off(self, follower):
        follower.progress = None

    @rule(follower=followers, steps=st.integers(1, 4))
    def go_on(self, follower, steps):
        for _ in range(steps):
            self.world.step(follower)

    @rule(follower=followers)
    def reach_the_head(self, follower):
        self.world.reach_the_head(follower)

    @invariant()
    def memory_is_bounded(self):
        assert self.world.ring.size_bytes <= CACHE_BYTES
        assert self.world.shared.size_bytes <= CACHE_BYTES
        assert self.world.pages.size_bytes <= CACHE_BYTES + 4 * OVERHEAD_BYTES


TestFeedModel = FeedModel.TestCase
TestFeedModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def run(world_class, seed, steps=80):
    """The same, chosen by a seed: quick enough for thousands of runs."""
    choose = random.Random(seed)
    world = world_class()
    followers = [world.come() for _ in range(3)]
    weights = {
        "write": 8,
        "step": 16,
        "break": 2,
        "purge": 2,
        "backup": 1,
        "restore": 1,
        "restart": 0.3,
        "head": 2,
    }
    for _ in range(steps):
        follower = choose.choice(followers)
        match choose.choices(list(weights), list(weights.values()))[0]:
            case "write":
                keys = choose.sample(KEYS, choose.randint(1, 4))
                actions = [(key, choose.choice([None, *DATA])) for key in keys]
                world.write(actions, announced=choose.random() < 0.8)
            case "step":
                world.step(follower)
            case "break":
                follower.progress = None
            case "purge":
                head = world.table.head
                world.purge(choose.randint(head.purge_revision, head.revision))
            case "backup":
                world.keep_a_backup()
            case "restore" if world.backup:
                world.restore()
            case "restart":
                world.restart()
            case "head":
                world.reach_the_head(follower)
    for follower in followers:
        world.reach_the_head(follower)


def test_t47_a_thousand_histories():
    for seed in range(1_000):
        run(World, seed)


@pytest.mark.parametrize("faulty", FAULTY, ids=lambda faulty: faulty.__name__)
def test_t118_seeded_faults_are_caught(faulty):
    """What the histories are worth: each of these rules left out is found."""
    with pytest.raises(AssertionError):
        for seed in range(1_000):
            run(faulty, seed)
