"""T119: the cores of server and SDK under a seeded scheduler with virtual time; each seed can be run again by itself."""

import pytest

from robustness.simulation import FAULTY_CLIENTS, FAULTY_SERVERS, Client, Server, simulate
from syncline._events import FeedViolation

pytestmark = pytest.mark.only_store("sqlite", reason="no store is involved")

SEEDS = 200
MANY_SEEDS = 20_000
FAULTY = [(server, Client) for server in FAULTY_SERVERS] + [(Server, client) for client in FAULTY_CLIENTS]


def test_t119_two_hundred_seeds():
    """G7, G8, G11, G12, G13: whatever is lost, late, restarted, purged or restored, copies stay exact."""
    for seed in range(SEEDS):
        simulate(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_t119_twenty_thousand_seeds():
    for seed in range(SEEDS, MANY_SEEDS):
        simulate(seed)


@pytest.mark.parametrize(("server", "client"), FAULTY, ids=lambda kind: kind.__name__)
def test_t118_a_rule_left_out_is_noticed(server, client):
    with pytest.raises((AssertionError, FeedViolation, ValueError)):
        for seed in range(SEEDS):
            simulate(seed, server=server, client=client)


def test_a_seed_repeats_itself():
    first, second = simulate(7), simulate(7)
    assert first.table.live() == second.table.live()
    assert next(first.number) == next(second.number)
