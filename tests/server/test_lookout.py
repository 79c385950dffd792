"""How a node finds out by looking what other nodes did."""

import asyncio

import pytest
import structlog

from support.hints import Hints
from support.store_model import ModelStore
from support.store_values import Bench, HeldClock
from support.waiting import until
from syncline_server.catalog import lookout as module
from syncline_server.catalog.catalog import Catalog
from syncline_server.catalog.lookout import Lookout
from syncline_server.errors import Unavailable
from syncline_server.ingest.records import Limits, record_id_rule
from syncline_server.metrics import Metrics
from syncline_server.notify.abc import EVERYWHERE


class Home:
    """A lookout over a store that others write, and what it tells."""

    def __init__(self):
        self.clock = HeldClock()
        self.store = ModelStore(self.clock)
        self.store.clock = self.clock
        self.notifier = Hints()
        self.metrics = Metrics()
        self.catalog = Catalog(self.store, self.notifier, self.clock, record_id_rule=record_id_rule(Limits()))
        self.lookout = Lookout(self.store, self.catalog, self.notifier, self.metrics)
        self.known = {}
        """Revisions that the feed of this node has heard of."""
        self.gone = []
        self.looks = 0
        self.lookout.tell(noticed=self._notice, gone=self.gone.append)

    def _notice(self, heads):
        self.looks += 1
        return {n: self.known[n] for n in self.known if n in heads and heads[n].revision > self.known[n]}

    async def make(self, dataset_id):
        return await Bench.make(self.store, self.clock, dataset_id=dataset_id)


@pytest.fixture
def home():
    return Home()


async def test_what_is_new_is_told_and_what_is_gone(home):
    made = []
    first = await home.make("a")
    await home.lookout.look()
    home.catalog.listen(made.append)
    await home.lookout.look()
    assert made == [], "it was there before anybody asked"
    second = await home.make("b")
    await home.store.delete_dataset(first.dataset.number, expected_generation=None)
    again = await home.make("a")
    await home.lookout.look()
    assert home.gone == [first.dataset.number]
    assert sorted(each.number for each in made) == [second.dataset.number, again.dataset.number]
    await home.lookout.look()
    assert len(made) == 2
    assert len(home.gone) == 1


async def test_what_is_gone_is_not_in_the_cache_any_more(home):
    first = await home.make("a")
    assert (await home.catalog.dataset("a")).dataset.number == first.dataset.number
    await home.lookout.look()
    await home.store.delete_dataset(first.dataset.number, expected_generation=None)
    again = await home.make("a")
    assert (await home.catalog.dataset("a")).dataset.number == first.dataset.number
    await home.lookout.look()
    assert (await home.catalog.dataset("a")).dataset.number == again.dataset.number


async def test_lag_is_the_age_of_the_oldest_commit_that_nobody_had_noticed(home):
    bench = await home.make("a")
    other = await home.make("b")
    await bench.put(["x"])
    home.known = {bench.dataset.number: 1, other.dataset.number: 0}
    await home.lookout.look()
    assert home.lookout.lag_us == 0
    home.clock.pass_seconds(5)
    await bench.put(["y"])
    home.clock.pass_seconds(2)
    await bench.put(["z"])
    home.clock.pass_seconds(1)
    await home.lookout.look()
    assert home.lookout.lag_us == 3_000_000
    await other.put(["x"])
    home.known = {bench.dataset.number: 3, other.dataset.number: 0}
    home.clock.pass_seconds(1)
    await home.lookout.look()
    assert home.lookout.lag_us == 1_000_000
    home.known[other.dataset.number] = 1
    await home.lookout.look()
    assert home.lookout.lag_us == 0


async def test_many_datasets_are_looked_at_page_by_page(home, monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 3)
    monkeypatch.setattr(module, "_AGES", 2)
    benches = [await home.make(f"d{place}") for place in range(9)]
    for bench in benches:
        await bench.put(["x"])
        home.known[bench.dataset.number] = 0
        home.clock.pass_seconds(1)
    await home.lookout.look()
    assert home.lookout.lag_us == 9_000_000
    assert home.looks == 1


async def test_hints_bring_the_next_look_forward_and_no_more(home, monkeypatch):
    """T81: however many come, there is a pause between two looks."""
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.05)
    bench = await home.make("a")
    async with home.lookout.running():
        assert home.looks == 1, "before anything is served"
        home.notifier.hint({bench.dataset.number: 7})
        await asyncio.sleep(0.12)
        assert home.looks == 1, "of a dataset that is known, whoever follows it finds out"
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + 0.5:
            home.notifier.hint({bench.dataset.number + 1: 7})
            home.notifier.hint(EVERYWHERE)
            await asyncio.sleep(0)
        assert 2 <= home.looks <= 12
    assert home.notifier.hinted == []


async def test_it_looks_more_often_while_no_wake_up_comes_in(home, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(module, "DEAF_LOOK_SECONDS", 0.05)
    async with home.lookout.running():
        await asyncio.sleep(0.1)
        assert home.looks == 1
        home.notifier.hears = False
        home.notifier.hint(EVERYWHERE)
        await until(lambda: home.looks >= 4)


async def test_a_look_that_fails_is_told_and_the_next_one_comes(home, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.01)
    heads = home.store.list_heads
    troubles = [Unavailable("STORE_UNAVAILABLE", "away"), RuntimeError("a fault")]

    async def fail(**asked):
        if troubles:
            raise troubles.pop()
        return await heads(**asked)

    monkeypatch.setattr(home.store, "list_heads", fail)
    with structlog.testing.capture_logs() as events:
        async with home.lookout.running():
            home.notifier.hint(EVERYWHERE)
            await until(lambda: len(events) == 2)
            home.notifier.hint(EVERYWHERE)
            await until(lambda: home.looks)
    assert [event["event"] for event in events] == ["upkeep.failed"] * 2
    assert home.metrics.background_failures.labels("lookout")._value.get() == 2


async def test_a_dataset_that_is_made_and_deleted_while_it_is_told_of(home, monkeypatch):
    made = []
    home.catalog.listen(made.append)
    await home.make("a")
    heads = home.store.list_heads

    async def stale(**asked):
        return [(name + "x", *rest) for name, *rest in await heads(**asked)]

    monkeypatch.setattr(home.store, "list_heads", stale)
    await home.lookout.look()
    assert made == []
