"""The demo on two nodes over one PostgreSQL: `make demo STORE=postgres`.

PostgreSQL is one of the demo's own, and goes with it. What is pushed on node A is followed on node B; a node is killed
in the middle of a load, each is restarted in turn, and PostgreSQL itself is crashed. Meanwhile a sensor and an editor
go on writing. At the end producer, follower and both nodes are proven equal by digest.
"""

import asyncio
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import syncline
from examples.demo_airports import (
    CALL,
    CALLS_BEFORE_KILL,
    SCHEMA,
    Edition,
    digest_of,
    edit,
    editions,
    killed_load,
    load,
)
from examples.demo_parts import Follower, Server, console, run_program, tell
from examples.local_postgres import LocalPostgres

PUSHES = 100
READING_SECONDS = 0.002
"""Between two readings of the sensor."""


async def demo() -> None:
    """Run the demo and print the figures."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="syncline-demo-")))
        postgres = await stack.enter_async_context(running_postgres())
        a, b = (
            Server(directory / name, store=postgres.dsn(), node=f"node {name.upper()}") for name in ("a", "b")
        )
        for node in (a, b):
            await stack.enter_async_context(node.running())
        console.print(
            f"nodes A at {a.address} and B at {b.address}, PostgreSQL in {postgres.directory}", soft_wrap=True
        )
        key = a.admin_key
        both = await stack.enter_async_context(syncline.connect([a.address, b.address], key=key))
        at_a = await stack.enter_async_context(syncline.connect(a.address, key=key))
        at_b = await stack.enter_async_context(syncline.connect(b.address, key=key))
        await both.create_dataset("airports", identity=syncline.by_key("icao"), schema=SCHEMA)
        await both.create_dataset("readings", identity=syncline.append())
        follower = await stack.enter_async_context(Follower(b.address, key).running())

        edition = await loads(both, at_a, at_b, a, follower)
        async with Writers.at_work(both, edition, directory / "sensor-17.db") as writers:
            await rolling_restart(writers, (a, b))
            await crash(writers, postgres)
        await proof(writers, at_a, at_b, follower)
        await check(postgres.dsn())


@asynccontextmanager
async def running_postgres() -> AsyncIterator[LocalPostgres]:
    """A PostgreSQL of the demo's own while the block lasts. For root it runs as another user, to whom its directory goes."""
    with tempfile.TemporaryDirectory(prefix="syncline-demo-pg-") as directory:
        postgres = LocalPostgres(Path(directory))
        try:
            await in_thread(postgres.make)
            await in_thread(postgres.start)
            yield postgres
        finally:
            await in_thread(postgres.stop)


async def in_thread(work: Callable[[], None]) -> None:
    """Do it beside the loop, and to its end: what has half begun could not be undone."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def loads(
    both: syncline.Client, at_a: syncline.Client, at_b: syncline.Client, a: Server, follower: Follower
) -> Edition:
    """Three editions: two by node A, the third by both while A is killed. Returns what the producer holds then."""
    first, second, third = editions()
    console.print("   everything is pushed on node A; the second process follows on node B")
    await load(at_a.dataset("airports"), follower, first)
    await edit(at_a.dataset("airports"), follower, second)
    live = await latencies(at_a, at_b)
    tell(
        f"{PUSHES} single pushes on A, seen on B",
        f"{statistics.median(live) * 1000:.1f} ms from the call to the follower (median)",
    )

    console.print("3. third edition, sent to both in turn; SIGKILL to node A in the middle")

    async def kill() -> None:
        await a.stop(signal.SIGKILL)

    finished = await killed_load(both.dataset("airports"), third, kill)
    await follower.reach(finished.result.revision)
    tell(
        "third edition",
        f"{finished.result.updated:,} updated, {finished.result.unchanged:,} unchanged; "
        f"node A killed at record {CALLS_BEFORE_KILL * CALL:,}",
    )
    tell("the call under way", f"answered by node B {finished.answered_seconds * 1000:.0f} ms after the kill")
    await a.start()
    return third


async def latencies(at_a: syncline.Client, at_b: syncline.Client) -> list[float]:
    """Seconds from a push on one node until a subscriber of the other has it."""
    await at_a.create_dataset("live", identity=syncline.by_key("n"))
    took = []
    async with at_b.dataset("live").changes() as changes:
        await anext(changes)
        for number in range(PUSHES):
            began = time.perf_counter()
            pushed = asyncio.create_task(at_a.dataset("live").push([{"n": number}]))
            async for event in changes:
                if isinstance(event, syncline.Put):
                    break
            took.append(time.perf_counter() - began)
            await pushed
    return took


@dataclass(slots=True, kw_only=True)
class Writers:
    """An editor who changes one airport at a time, and a sensor; they go on whatever happens to the nodes."""

    edition: Edition
    """What the airports are, by what was acknowledged."""
    pushes: list[float] = field(default_factory=list)
    """Seconds that each took."""
    readings: int = 0
    _pushed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def at_work(
        cls, client: syncline.Client, edition: Edition, spool: Path
    ) -> AsyncIterator["Writers"]:
        """They write while the block lasts; at its end everything is acknowledged."""
        writers = cls(edition=edition)
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(writers._edit(client.dataset("airports"), done))
            tasks.create_task(writers._sense(client.dataset("readings"), spool, done))
            yield writers
            done.set()

    async def _edit(self, airports: syncline.Dataset, done: asyncio.Event) -> None:
        for number, icao in enumerate(cycle(tuple(self.edition))):
            if done.is_set():
                return
            edited = {**self.edition[icao], "edit": number}
            began = time.perf_counter()
            await airports.push([edited])
            self.pushes.append(time.perf_counter() - began)
            self.edition[icao] = edited
            self._pushed.set()

    async def _sense(self, readings: syncline.Dataset, spool: Path, done: asyncio.Event) -> None:
        async with readings.producer("sensor-17", spool=spool) as producer:
            while not done.is_set():
                await producer.send({"sensor": 17, "number": self.readings, "celsius": 21.5})
                self.readings += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(READING_SECONDS):
                        await done.wait()
            await producer.flush()

    async def write_on(self) -> float:
        """Wait for a push that begins from now on; the longest since the last call took so many seconds."""
        for _ in range(2):  # the first one may have begun before
            self._pushed.clear()
            await self._pushed.wait()
        longest, self.pushes[:] = max(self.pushes), []
        return longest


async def rolling_restart(writers: Writers, nodes: tuple[Server, ...]) -> None:
    """Scene 4: each node goes and comes back while the other one serves."""
    console.print("4. a rolling restart, while an editor pushes and a sensor sends")
    await writers.write_on()
    for node in nodes:
        began = time.perf_counter()
        await node.stop(signal.SIGTERM)
        await node.start()
        took = time.perf_counter() - began
        longest = await writers.write_on()
        tell(f"{node.node} restarted", f"in {took:.2f} s; the slowest push took {longest * 1000:.0f} ms")


async def crash(writers: Writers, postgres: LocalPostgres) -> None:
    """Scene 5: the database itself goes down as in a crash."""
    console.print("5. PostgreSQL is stopped `immediate`, which is a crash, and started again")
    began = time.perf_counter()
    await in_thread(lambda: postgres.stop("immediate"))
    await in_thread(postgres.start)
    took = time.perf_counter() - began
    longest = await writers.write_on()
    tell("PostgreSQL restarted", f"in {took:.2f} s; the slowest push took {longest:.2f} s, none failed")


async def proof(writers: Writers, at_a: syncline.Client, at_b: syncline.Client, follower: Follower) -> None:
    """Scene 6: the same everywhere, and each reading once."""
    console.print("6. prove that all are equal")
    info_a, info_b = [await client.get_dataset("airports") for client in (at_a, at_b)]
    seen = await follower.reach(info_a.revision)
    recomputed = await digest_of(at_b.dataset("airports"), writers.edition)
    assert info_a.digest.hex() == info_b.digest.hex() == seen["digest"] == recomputed
    assert info_a.revision == info_b.revision == seen["revision"]
    assert seen["resets"] == 0
    tell("digest of A, B, follower and producer", f"{recomputed} (equal)")
    tell("records", f"{info_a.record_count:,} at revision {info_a.revision:,}; the follower was never reset")
    numbers = sorted([record.data["number"] async for record in at_a.dataset("readings").records()])
    assert numbers == list(range(writers.readings))
    tell("readings of the sensor", f"{len(numbers):,}: nothing lost, nothing twice")


async def check(store: str) -> None:
    """Have the store itself read everything and prove it, while the nodes run."""
    fsck = await run_program("syncline_server", "fsck", environment={"SYNCLINE_STORE": store})
    printed, _ = await fsck.communicate()
    assert fsck.returncode == 0, printed.decode()
    tell("syncline-server fsck", printed.decode().splitlines()[-1])
