"""T52, T63: everything that can happen to filtered copies, in any order, on the real feed with a ring of four frames."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, precondition, rule

from support.feed_filter_world import SELECTIONS, SIMPLER_RULES, VALUES, FilterWorld, removing_by

KEYS = ["a", "ab", "b", "c", "d"]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.sampled_from(VALUES))), min_size=1
)


WORLDS = [{}, {"narrow": 0}, {"narrow": 1 << 40}, {"filter_members": 3}]
"""Cold starts by members or by scan as it fits, all by members, none; and more members than may be kept."""


class FilterModel(RuleBasedStateMachine):
    """T52, T47: hypothesis chooses, and shrinks what fails."""

    followers = Bundle("followers")

    @initialize(kind=st.sampled_from(WORLDS))
    def begin(self, kind):
        self.world = FilterWorld(**kind)
        self.world.__enter__()

    def teardown(self):
        self.world.__exit__()

    @rule(actions=ACTIONS, announced=st.booleans(), carried=st.booleans())
    def write(self, actions, announced, carried):
        self.world.write(actions, announced=announced, carried=carried)

    @rule(data=st.data())
    def purge(self, data):
        head = self.world.table.head
        self.world.purge(data.draw(st.integers(head.purge_revision, head.revision)))

    @rule()
    def restart(self):
        self.world.restart()

    @rule()
    def drop(self):
        self.world.drop()

    @rule()
    def drop_frames(self):
        self.world.drop_frames()

    @rule()
    def look(self):
        self.world.look()

    @rule(turns=st.integers(1, 10))
    def spin(self, turns):
        self.world.spin(turns)

    @rule(target=followers, selection=st.sampled_from(SELECTIONS))
    def come(self, selection):
        return self.world.come(selection)

    @precondition(lambda self: self.world.tokens)
    @rule(target=followers, data=st.data())
    def come_with_a_token(self, data):
        return self.world.come_with(data.draw(st.sampled_from(self.world.tokens)))

    @rule(follower=consumes(followers))
    def leave_for_good(self, follower):
        self.world.leave(follower)
        self.world.followers.remove(follower)

    @rule(follower=followers)
    def break_off(self, follower):
        self.world.leave(follower)

    @rule(follower=followers, due=st.booleans())
    def poll(self, follower, due):
        self.world.poll(follower, due=due)

    @rule(follower=followers)
    def reach_the_head(self, follower):
        self.world.reach_the_head(follower)


TestFilterModel = FilterModel.TestCase
TestFilterModel.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def run(seed, rule=None, steps=120):
    """The same, chosen by a seed."""
    choose = random.Random(seed)
    kind = choose.choice(WORLDS)
    weights = {
        "write": 10,
        "poll": 30,
        "spin": 20,
        "break": 2,
        "come with": 2,
        "purge": 1,
        "drop frames": 1,
        "drop": 0.3,
        "look": 2,
        "restart": 0.3,
        "head": 1,
    }
    with FilterWorld(**kind) as world:
        for selection in choose.sample(SELECTIONS, 3):
            world.come(selection)
        if rule is not None:
            with removing_by(rule, world):
                drive(world, choose, weights, steps)
        else:
            drive(world, choose, weights, steps)


def drive(world, choose, weights, steps):
    for _ in range(steps):
        follower = choose.choice(world.followers)
        match choose.choices(list(weights), list(weights.values()))[0]:
            case "write":
                keys = choose.sample(KEYS, choose.randint(1, 4))
                world.write(
                    [(key, choose.choice([None, *VALUES])) for key in keys],
                    announced=choose.random() < 0.8,
                    carried=choose.random() < 0.8,
                )
            case "poll":
                world.poll(follower, due=choose.random() < 0.2)
            case "spin":
                world.spin(choose.randint(1, 6))
            case "break":
                world.leave(follower)
            case "come with" if world.tokens:
                world.come_with(choose.choice(world.tokens))
            case "purge":
                head = world.table.head
                world.purge(choose.randint(head.purge_revision, head.revision))
            case "drop frames":
                world.drop_frames()
            case "drop":
                world.drop()
            case "look":
                world.look()
            case "restart":
                world.restart()
            case "head":
                world.reach_the_head(follower)
    for follower in world.followers:
        world.reach_the_head(follower)


def test_t52_t63_histories():
    for seed in range(60):
        run(seed)


@pytest.mark.parametrize("rule", SIMPLER_RULES)
def test_t48_f5_simpler_rules_about_removes_diverge(rule):
    """M14: what the histories are worth, and why a change that does not match is always sent as a remove."""
    with pytest.raises(AssertionError):
        for seed in range(300):
            run(seed, rule)
