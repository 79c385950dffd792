"""Two stores, or a store and the reference model, side by side: any sequence of operations has the same outcome in both.

A machine for hypothesis; the tests that run it say which two.
"""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from support.store_values import BACKENDS, Bench, HeldClock, deletes, request, upserts
from syncline_server.errors import SynclineError
from syncline_server.model import (
    Condition,
    ConflictPolicy,
    Identity,
    IdentityKind,
    MassDeleteGuard,
    Page,
    ProducerWrite,
    RecordScope,
    SessionMode,
    Upserts,
)

IDS = st.sampled_from(["a", "b", "B", "d", "_", "%", "é", "e\u0301", "\uff5e", "\U0001f600"])
"""Also such as a locale, a pattern, a normal form or UTF-16 would order or take for one another (hazard F54)."""
VALUES = st.integers(1, 3)
RECORDS = st.dictionaries(IDS, VALUES, max_size=6)
CONDITIONS = st.one_of(
    st.just(Condition(if_absent=True)), st.builds(Condition, if_revision=st.integers(1, 12))
)
WHO = st.sampled_from([0, 1])
PRODUCERS = st.sampled_from(["p", "P_"])


@st.composite
def writes(draw: Any) -> Any:
    if draw(st.booleans()):
        return deletes(*draw(st.lists(IDS, unique=True, max_size=4)))
    records = draw(RECORDS)
    conditions = {}
    if records and draw(st.booleans()):
        conditions = draw(st.dictionaries(st.integers(0, len(records) - 1), CONDITIONS, max_size=2))
    return upserts(records, conditions=conditions)


class Machine(RuleBasedStateMachine):
    """Does everything twice and compares: verdicts, errors, pages, order, digests."""

    pair = ("model", "sqlite")
    """Which two. The second is closed and opened again now and then."""
    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.backends = [BACKENDS[name](Path(self.directory.name)) for name in self.pair]
        self.clock = HeldClock()
        for backend in self.backends:
            backend.clock = self.clock
        self.openings: list[Any] = []
        self.benches: list[list[Bench]] = []
        self.count = 0

    def both(self, question: Any) -> Any:
        """Ask both; the answers, or the errors' reasons, must be equal."""
        answers = [self.runner.run(self.outcome(question, benches)) for benches in self.benches]
        assert answers[0] == answers[1], _difference(*answers)
        return answers[0]

    async def outcome(self, question: Any, benches: list[Bench]) -> Any:
        try:
            return await question(benches)
        except SynclineError as error:
            return self.plain(error)

    def plain(self, result: Any) -> Any:
        """What must be equal of a verdict. The model has no words of its own."""
        if not isinstance(result, SynclineError):
            return result
        failed = [(v.index, v.keyword) for v in getattr(result, "violations", ())]
        return type(result).__name__, result.reason, failed, result.metadata.get("expected")

    def encoded(self, start: Page | None, page: Page) -> Any:
        """What is compared of a page beside its changes."""
        return ()

    @initialize(scope=st.sampled_from(list(RecordScope)), append=st.booleans())
    def begin(self, scope: RecordScope, append: bool) -> None:
        identity = Identity(kind=IdentityKind.APPEND if append else IdentityKind.KEY)
        incarnation = b"i" * 16
        for backend in self.backends:
            opening = backend.open()
            store = self.runner.run(opening.__aenter__())
            self.openings.append(opening)

            async def make(store: Any = store) -> list[Bench]:
                bench = await Bench.make(
                    store, self.clock, record_scope=scope, identity=identity, incarnation=incarnation
                )
                return [bench, await bench.second_source()]

            self.benches.append(self.runner.run(make()))

    @rule(
        group=st.lists(
            st.tuples(WHO, writes(), st.booleans(), st.booleans(), st.none() | st.sampled_from("xyz")),
            min_size=1,
            max_size=4,
        ),
        carry=st.sampled_from([0, 2, 100]),
    )
    def commit(self, group: list[Any], carry: int) -> None:
        async def question(benches: list[Bench]) -> Any:
            commits = [
                benches[who].commit(
                    write,
                    partial=partial,
                    dry_run=dry_run,
                    identity=request(name, repr(write).encode()) if name else None,
                )
                for who, write, partial, dry_run, name in group
            ]
            done = await benches[0].store.commit(commits, carry_changes=carry)
            return [self.plain(r) for r in done.results], [_told(a) for a in done.appended]

        self.both(question)

    @rule(
        groups=st.lists(
            st.lists(st.tuples(WHO, writes(), st.none() | st.sampled_from("xyz")), min_size=1, max_size=3),
            min_size=2,
            max_size=4,
        )
    )
    def commit_in_turn(self, groups: list[Any]) -> None:
        """Groups one behind the other, each given to the store as soon as it takes one."""

        async def question(benches: list[Bench]) -> Any:
            tasks = []
            for group in groups:
                commits = [
                    benches[who].commit(write, identity=request(name, repr(write).encode()) if name else None)
                    for who, write, name in group
                ]
                sent = asyncio.Event()
                tasks.append(asyncio.create_task(benches[0].store.commit(commits, sent=sent.set)))
                until = asyncio.create_task(sent.wait())
                await asyncio.wait([tasks[-1], until], return_when=asyncio.FIRST_COMPLETED)
                until.cancel()
            done = [await task for task in tasks]
            return [([self.plain(r) for r in one.results], [_told(a) for a in one.appended]) for one in done]

        self.both(question)

    @rule(seconds=st.sampled_from([-5, 0, 1, 3_600]))
    def pass_time(self, seconds: int) -> None:
        self.clock.pass_seconds(seconds)

    @rule(
        target=names,
        who=WHO,
        mode=st.sampled_from(list(SessionMode)),
        policy=st.sampled_from(list(ConflictPolicy)),
    )
    def open(self, who: int, mode: SessionMode, policy: ConflictPolicy) -> Any:
        self.count += 1
        name = f"s{self.count}"

        async def question(benches: list[Bench]) -> Any:
            return await benches[who].open(mode, session_id=name, conflict_policy=policy)

        self.both(question)
        return multiple((who, name))

    @rule(session=names, write=writes(), sequence=st.integers(0, 3))
    def stage(self, session: Any, write: Any, sequence: int) -> None:
        who, name = session

        async def question(benches: list[Bench]) -> Any:
            bench = benches[who]
            return await bench.store.stage(
                name,
                _unconditional(write),
                source_number=bench.source.number,
                sequence=sequence,
            )

        self.both(question)

    @rule(session=names, write=writes(), sequence=st.integers(0, 3))
    def call(self, session: Any, write: Any, sequence: int) -> None:
        who, name = session

        async def question(benches: list[Bench]) -> Any:
            return self.plain(await benches[who].write(write, session_id=name, sequence=sequence))

        self.both(question)

    @rule(session=names, guarded=st.booleans(), dry_run=st.booleans(), more=st.integers(-1, 1))
    def close(self, session: Any, guarded: bool, dry_run: bool, more: int) -> None:
        who, name = session

        async def question(benches: list[Bench]) -> Any:
            bench = benches[who]
            found = await bench.store.get_session(name, source_number=bench.source.number)
            guard = MassDeleteGuard(above_records=2) if guarded else None
            return await bench.close(found, found.calls + more * (more > 0), guard, dry_run=dry_run)

        self.both(question)

    @rule(session=names)
    def discard(self, session: Any) -> None:
        who, name = session

        async def question(benches: list[Bench]) -> Any:
            bench = benches[who]
            await bench.store.discard_session(name, source_number=bench.source.number)

        self.both(question)

    @rule(who=WHO, name=PRODUCERS, epoch=st.sampled_from([None, None, -1, 0, 1]), dry_run=st.booleans())
    def open_producer(self, who: int, name: str, epoch: int | None, dry_run: bool) -> None:
        """None: the next epoch; else one beside the newest."""

        async def question(benches: list[Bench]) -> Any:
            bench = benches[who]
            number, asked = bench.source.number, 0
            if epoch is not None:
                asked = (await bench.store.get_producer(number, name)).epoch + epoch
            opened, came_to = await bench.store.open_producer(
                number, name, epoch=asked, previous_epoch=max(0, asked - 1), dry_run=dry_run
            )
            return replace(opened, number=0), came_to

        self.both(question)

    @rule(
        who=WHO,
        name=PRODUCERS,
        older=st.sampled_from([0, 0, 0, 1]),
        begin=st.integers(-2, 1),
        length=st.integers(1, 3),
        write=writes(),
    )
    def send(self, who: int, name: str, older: int, begin: int, length: int, write: Any) -> None:
        async def question(benches: list[Bench]) -> Any:
            bench = benches[who]
            known = await bench.store.get_producer(bench.source.number, name)
            first = max(1, known.last_sequence + 1 + begin)
            numbers = ProducerWrite(
                producer_number=known.number,
                epoch=known.epoch - older,
                first_sequence=first,
                last_sequence=first + length - 1,
            )
            return self.plain(await bench.write(_unconditional(write), producer=numbers))

        self.both(question)

    @rule(who=WHO, name=PRODUCERS)
    def delete_producer(self, who: int, name: str) -> None:
        async def question(benches: list[Bench]) -> Any:
            await benches[who].store.delete_producer(benches[who].source.number, name)

        self.both(question)

    @rule(seconds=st.integers(-20, 1), revisions=st.integers(0, 3), cap=st.integers(1, 3))
    def purge(self, seconds: int, revisions: int, cap: int) -> None:
        before_us = self.clock.us + seconds * 1_000_000

        async def question(benches: list[Bench]) -> Any:
            return await benches[0].store.purge(
                benches[0].dataset.number, before_us=before_us, min_revisions=revisions, max_tombstones=cap
            )

        self.both(question)

    @rule(names_=st.dictionaries(IDS, IDS), other=st.booleans())
    def rekey(self, names_: dict[str, str], other: bool) -> None:
        def make_record_id(data: bytes, source_id: str) -> str:
            old = data.decode().split('"')[3]
            return names_.get(old, old)

        kind = IdentityKind.CONTENT if other else IdentityKind.KEY

        async def question(benches: list[Bench]) -> Any:
            bench = benches[0]
            changed, appended = await bench.store.rekey(
                replace(bench.dataset, identity=Identity(kind=kind)),
                make_record_id,
                expected_generation=bench.dataset.generation,
            )
            for one in benches:
                one.dataset = changed
            return changed.generation, changed.identity, appended and _told(appended)

        self.both(question)

    @rule(who=WHO)
    def drop_source(self, who: int) -> None:
        """The source goes with its records, and another comes under its name."""

        async def question(benches: list[Bench]) -> Any:
            bench = benches[who]
            appended = await bench.store.delete_source(bench.source, expected_generation=None)
            benches[who] = await bench.second_source(bench.source.source_id)
            return appended and _told(appended)

        self.both(question)

    @rule()
    def reopen(self) -> None:
        """Close and open again: nothing but the history changes."""
        self.runner.run(self.openings[1].__aexit__(None, None, None))
        self.openings[1] = self.backends[1].open()
        store = self.runner.run(self.openings[1].__aenter__())
        for bench in self.benches[1]:
            bench.store = store

    @invariant()
    def looks_the_same(self) -> None:
        if not self.benches:
            return

        async def question(benches: list[Bench]) -> Any:
            bench = benches[0]
            pages: list[Any] = []
            before, after = None, 0
            while True:
                page = await bench.page(after, max_changes=3, max_bytes=60)
                pages.append((page.changes, page.last_position, page.last_revision, page.complete))
                pages.append(self.encoded(before, page))
                before, after = page, page.last_position
                if page.complete:
                    break
            head = page.head
            known = [
                (await bench.page(head.last_position, seen_revision=r)).seen_commit_id is not None
                for r in range(head.revision + 2)
            ]
            number = bench.dataset.number
            listed = await bench.store.list_records(number, after="", limit=5, max_bytes=100)
            found, left, revision = await bench.store.get_records(
                number, ["d", "a", "é", "none"], max_bytes=40
            )
            named = await bench.store.read_named_changes(
                number, ["e\u0301", "%", "B", "none"], after=1, through_revision=9, max_bytes=60
            )
            return (
                pages,
                replace(head, commit_id=b""),
                known,
                listed,
                sorted((r.record_id, r) for r in found),
                list(left),
                revision,
                (named.changes, named.last_position, named.last_revision, named.complete),
                await bench.store.list_entries(number, after="B", through="\uff5e", limit=4),
                await bench.store.count_entries(number, after="_"),
                await bench.store.revision_times(number, [1, 3]),
                [
                    replace(producer, number=0)
                    for one in benches
                    for producer in await one.store.list_producers(one.source.number, limit=9)
                ],
                await bench.store.list_sources("books", limit=9),
                await bench.store.count_sessions(),
            )

        self.both(question)

    def teardown(self) -> None:
        for opening in self.openings:
            self.runner.run(opening.__aexit__(None, None, None))
        self.runner.close()
        for backend in self.backends:
            backend.check()
        self.directory.cleanup()


def _unconditional(write: Any) -> Any:
    return replace(write, conditions={}) if isinstance(write, Upserts) else write


def _difference(one: Any, other: Any) -> str:
    """Where they differ, when they are of several parts."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list) and len(one) == len(other):
        return "; ".join(_difference(*pair) for pair in zip(one, other, strict=True) if pair[0] != pair[1])
    return f"{one!r} != {other!r}"


def _told(appended: Any) -> Any:
    return replace(appended, head=replace(appended.head, commit_id=b""))


def run(pair: tuple[str, str], *, examples: int, machine: type[Machine] = Machine) -> None:
    """Have hypothesis try as many lists of 30 steps."""
    run_state_machine_as_test(
        type("Bound", (machine,), {"pair": pair}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
