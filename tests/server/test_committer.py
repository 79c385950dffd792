"""The commit queue: grouping, verdicts, overload, callers that give up, clean stop."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncline_server.errors import Aborted, ResourceExhausted, Unavailable
from syncline_server.ingest import committer as committer_module
from syncline_server.ingest.committer import Committer
from syncline_server.model import Appended, Commit, CommitResult, Deletes, Head, SessionCommit
from syncline_server.notify.local import LocalNotifier
from syncline_server.store.abc import Contended, GroupResult


class GatedStore:
    """Records the groups that it is given; each waits until it is let through."""

    commit_lanes = 1

    def __init__(self):
        self.groups = []
        self.gate = asyncio.Event()
        self.verdicts = {}
        self.failure = None

    async def commit(self, commits, *, carry_changes=10_000, sent=None):
        self.groups.append([c.key_id for c in commits])
        await self.gate.wait()
        if self.failure:
            raise self.failure
        results = [
            self.verdicts.get(c.key_id) or CommitResult(revision=i + 1, changed=True, statuses=b"")
            for i, c in enumerate(commits)
        ]
        appended = Appended(dataset_number=1, from_revision=0, head=Head(revision=len(commits)), changes=None)
        return GroupResult(results=results, appended=[appended], transaction_seconds=0.0, sync_seconds=0.0)


def commit(name, size=100):
    return Commit(
        dataset_number=1,
        generation=1,
        source_number=1,
        write=Deletes(record_ids=["x"]),
        key_id=name,
        size_bytes=size,
    )


async def queue(committer, *names, size=100):
    tasks = [asyncio.create_task(committer.commit(commit(name, size))) for name in names]
    while committer.queued_commits < len(names):
        await asyncio.sleep(0)
    return tasks


@pytest.fixture
def store():
    return GatedStore()


@pytest.fixture
def notifier():
    return LocalNotifier()


async def blocked(committer, store):
    """Put one commit into the store's hands, so that what follows gathers in the queue."""
    first = asyncio.create_task(committer.commit(commit("first")))
    while not store.groups:
        await asyncio.sleep(0)
    return first


async def test_commits_that_wait_become_one_group(store, notifier):
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b", "c")
        store.gate.set()
        results = await asyncio.gather(first, *tasks)

    assert store.groups == [["first"], ["a", "b", "c"]]
    assert [r.revision for r in results] == [1, 1, 2, 3]


async def test_a_group_waits_for_those_of_the_last_one_and_no_longer(store, notifier, monkeypatch):
    """The timer never ends here, so what brings a group about is that everybody is there, or that one is enough."""
    monkeypatch.setattr(committer_module, "GATHER_SECONDS", 3_600)
    everybody = ["a", "b", "c", "first"]
    committer = Committer(store, notifier)
    async with asyncio.timeout(10), committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b", "c")
        store.gate.set()
        await first
        await asyncio.gather(*tasks, committer.commit(commit("first")))
        early = await queue(committer, "a", "b", "c")
        for _ in range(10):
            await asyncio.sleep(0)
        assert store.groups == [["first"], everybody]
        await asyncio.gather(*early, committer.commit(commit("first")))
        await committer.commit(commit("large", committer_module.GATHER_BELOW_BYTES))
        await committer.commit(commit("alone"))

    assert store.groups == [["first"], everybody, everybody, ["large"], ["alone"]]


async def test_who_does_not_come_back_is_not_waited_for(store, notifier, monkeypatch):
    monkeypatch.setattr(committer_module, "GATHER_SECONDS", 0.001)
    committer = Committer(store, notifier)
    async with asyncio.timeout(10), committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b", "c")
        store.gate.set()
        await asyncio.gather(first, *tasks)
        await committer.commit(commit("a"))

    assert store.groups == [["first"], ["a", "b", "c"], ["a"]]


async def test_each_commit_gets_its_own_verdict(store, notifier):
    store.verdicts["b"] = Aborted("CONDITION_FAILED", "no")
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b", "c")
        store.gate.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(r) for r in results] == [CommitResult, Aborted, CommitResult]


async def test_feed_hears_before_the_callers_do_and_only_after_the_store(store, notifier):
    order = []
    notifier.listen(lambda appended: order.append(("announced", appended.head.revision)))
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        first.add_done_callback(lambda _: order.append(("answered", 1)))
        assert order == []
        store.gate.set()
        await first
        await asyncio.sleep(0)

    assert order == [("announced", 1), ("answered", 1)]


async def test_f30_a_caller_that_gives_up_in_the_queue_is_dropped(store, notifier):
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        gone, stays = await queue(committer, "gone", "stays")
        gone.cancel()
        await asyncio.wait([gone])
        store.gate.set()
        await asyncio.gather(first, stays)

    assert store.groups == [["first"], ["stays"]]
    assert committer.queued_bytes == 0


async def test_f30_a_caller_that_gives_up_with_the_store_does_not_stop_the_group(store, notifier):
    announced = []
    notifier.listen(announced.append)
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        first.cancel()
        await asyncio.wait([first])
        store.gate.set()
        after = await committer.commit(commit("after"))

    assert after.revision == 1
    assert len(announced) == 2


async def test_g18_a_full_queue_refuses_with_a_retry_hint(store, notifier):
    committer = Committer(store, notifier, max_queue_bytes=250)
    async with committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b")
        with pytest.raises(ResourceExhausted) as refused:
            await committer.commit(commit("c"))
        store.gate.set()
        await asyncio.gather(first, *tasks)

    assert refused.value.reason == "OVERLOADED"
    assert refused.value.retry_after_seconds > 0
    assert ["c"] not in store.groups


async def test_groups_are_bounded_in_bytes(store, notifier, monkeypatch):
    monkeypatch.setattr(committer_module, "MAX_GROUP_BYTES", 250)
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b", "c", "large", "d")
        store.gate.set()
        await asyncio.gather(first, *tasks)

    assert store.groups == [["first"], ["a", "b"], ["c", "large"], ["d"]]


async def test_a_failed_group_fails_all_its_callers_and_the_queue_lives_on(store, notifier):
    store.failure = Unavailable("STORE_UNAVAILABLE", "the disk is gone")
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b")
        store.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        store.failure = None
        after = await committer.commit(commit("after"))

    assert [type(r) for r in results] == [Unavailable] * 3
    assert after.revision == 1


async def test_g20_stopping_writes_what_waits_and_refuses_what_comes(store, notifier):
    committer = Committer(store, notifier)
    async with committer.running():
        first = await blocked(committer, store)
        tasks = await queue(committer, "a", "b")
        committer.close()
        with pytest.raises(Unavailable) as refused:
            await committer.commit(commit("late"))
        store.gate.set()

    assert refused.value.reason == "SHUTTING_DOWN"
    assert [r.changed for r in await asyncio.gather(first, *tasks)] == [True] * 3


# -- lanes ----------------------------------------------------------------------------------------------------


class LanedStore:
    """Groups of a dataset that is stuck wait until it is let go; each behind those of its datasets that were sent."""

    commit_lanes = 2

    def __init__(self):
        self.stuck = set()
        self.sent = {}
        self.moved = asyncio.Condition()
        self.started = []
        self.done = []
        self.on_their_way = 0
        self.most_on_their_way = 0

    async def commit(self, commits, *, carry_changes=10_000, sent=None):
        numbers = {c.dataset_number for c in commits}
        if len(numbers) > 1 and numbers & self.stuck:
            raise Contended
        for number in numbers & self.sent.keys():
            await self.sent[number].wait()
        ended = asyncio.Event()
        if sent is not None and len(numbers) == 1:
            self.sent[min(numbers)] = ended
            sent()
        self.started.append([c.key_id for c in commits])
        self.on_their_way += 1
        self.most_on_their_way = max(self.most_on_their_way, self.on_their_way)
        try:
            async with self.moved:
                await self.moved.wait_for(lambda: not numbers & self.stuck)
        finally:
            self.on_their_way -= 1
            ended.set()
        self.done += [c.key_id for c in commits]
        results = [CommitResult(revision=1, changed=True, statuses=b"") for _ in commits]
        return GroupResult(results=results, appended=[], transaction_seconds=0.0, sync_seconds=0.0)

    async def let_go(self, number):
        async with self.moved:
            self.stuck.discard(number)
            self.moved.notify_all()


def of(number, name, write=None, size=100):
    return replace(commit(name, size), dataset_number=number, write=write or Deletes(record_ids=["x"]))


async def test_t83_a_dataset_that_is_held_up_holds_up_no_other(notifier):
    """T83: also when they were in one group; and its own commits keep their order."""
    store = LanedStore()
    committer = Committer(store, notifier)
    async with committer.running():
        store.stuck.add(1)
        first = [committer.submit(of(n, name)) for n, name in ((1, "a1"), (2, "b1"), (1, "a2"), (3, "c1"))]
        await asyncio.gather(first[1], first[3])
        for turn in range(5):
            late = committer.submit(of(1, f"a{turn + 3}"))
            await asyncio.gather(
                committer.submit(of(2, f"b{turn + 2}")), committer.submit(of(3, f"c{turn + 2}"))
            )
            assert not late.done()
        assert committer.queued_commits == 5, "those wait that came behind"
        await store.let_go(1)
        await first[2]
    assert [name for name in store.done if name.startswith("a")] == [f"a{n}" for n in range(1, 8)]
    assert [name for name in store.done if name.startswith("b")] == [f"b{n}" for n in range(1, 7)]
    assert committer.queued_commits == committer.queued_bytes == 0


async def test_no_more_groups_are_on_their_way_than_there_are_lanes(notifier):
    store = LanedStore()
    committer = Committer(store, notifier)
    async with committer.running():
        store.stuck |= {1, 2, 3}
        verdicts = []
        for number in (1, 2, 3, 1, 4):
            verdicts.append(committer.submit(of(number, f"{number}")))
            await asyncio.sleep(3 * committer_module.LANE_SECONDS)
        assert store.started == [["1"], ["2"]]
        for number in (2, 1, 3):
            await store.let_go(number)
        await asyncio.gather(*verdicts)
        assert store.most_on_their_way == 2
    assert sorted(store.done) == ["1", "1", "2", "3", "4"]


async def test_a_large_group_is_followed_as_soon_as_it_was_sent(notifier):
    """By one group of its dataset; what is small stands aside, to be written with others."""
    large = committer_module.GATHER_BELOW_BYTES
    store = LanedStore()
    committer = Committer(store, notifier)
    async with committer.running():
        store.stuck |= {1, 2}
        verdicts = [committer.submit(of(1, "a", size=large))]
        while not store.started:
            await asyncio.sleep(0)
        verdicts.append(committer.submit(of(1, "b", size=large)))
        await asyncio.sleep(3 * committer_module.LANE_SECONDS)
        verdicts.append(committer.submit(of(1, "c", size=large)))
        await asyncio.sleep(3 * committer_module.LANE_SECONDS)
        assert store.started == [["a"]], "the store has b already, and lets it wait for a"
        assert committer.queued_commits == 1
        await store.let_go(1)
        await asyncio.gather(*verdicts)
        small = committer.submit(of(2, "d"))
        while ["d"] not in store.started:
            await asyncio.sleep(0)
        behind = committer.submit(of(2, "e"))
        await asyncio.sleep(3 * committer_module.LANE_SECONDS)
        assert committer.queued_commits == 1
        await store.let_go(2)
        await asyncio.gather(small, behind)
    assert store.done == ["a", "b", "c", "d", "e"]


async def test_a_session_is_committed_apart(notifier):
    """What may take long shares its group with nobody, and what comes behind it in its dataset waits."""
    store = LanedStore()
    committer = Committer(store, notifier)
    session = SessionCommit(session_id="s", calls=1, guard=None)
    async with committer.running():
        writes = [of(1, "a"), of(2, "b"), of(1, "close", session), of(1, "behind"), of(2, "c")]
        await asyncio.gather(*map(committer.submit, writes))
    assert ["close"] in store.started
    assert [name for name in store.done if name in {"a", "close", "behind"}] == ["a", "close", "behind"]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["commit", "large", "stick", "free", "wait"]), st.integers(1, 4)),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_lanes_keep_the_order_of_each_dataset(steps):
    async def run():
        store = LanedStore()
        committer = Committer(store, LocalNotifier())
        sent, verdicts = [], []
        async with committer.running():
            for place, (what, number) in enumerate(steps):
                if what in {"commit", "large"}:
                    sent.append((number, f"{number}-{place}"))
                    size = committer_module.GATHER_BELOW_BYTES if what == "large" else 100
                    verdicts.append(committer.submit(of(*sent[-1], size=size)))
                elif what == "stick":
                    store.stuck.add(number)
                elif what == "free":
                    await store.let_go(number)
                else:
                    await asyncio.sleep(0.0005)
            for number in list(store.stuck):
                await store.let_go(number)
        assert all(verdict.done() for verdict in verdicts), "leaving waits for all of them"
        for number in range(1, 5):
            names = [name for of_dataset, name in sent if of_dataset == number]
            assert [name for name in store.done if name in names] == names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(committer_module, "LANE_SECONDS", 0.0002)
        asyncio.run(run())
