"""pg_*: the same server on PostgreSQL, beside its SQLite store and beside PostgreSQL without a server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial

from bench.figures.live import CONNECTIONS, LatencyRound, Plan
from bench.figures.push import CALLERS, BulkRound, CallersRound
from bench.figures.sync import copier
from bench.followers import running_followers
from bench.machine import cpu_seconds
from bench.measure import (
    Figure,
    Outcome,
    Room,
    Stopwatch,
    at_least,
    at_most,
    interleaved,
    medians,
    quiet_collector,
)
from bench.records import Item, make_item, shuffled_items
from bench.systems.base import CALL_RECORDS, IN_FLIGHT, Client, Running
from bench.systems.postgres import (
    Floor,
    Node,
    Postgres,
    bare,
    facts,
    require,
    running_nodes,
    running_postgres,
)
from bench.systems.stubs import StubChannel
from bench.systems.syncline import Syncline

DATASETS = 50
COLD_STARTS = 10
APART_SECONDS = 0.1
"""Between the beginnings of two cold starts that do not begin together."""
_COLLECTION = "postgres"


@contextlib.asynccontextmanager
async def _postgres(room: Room) -> AsyncIterator[Postgres]:
    """A server, announced. Raises Unavailable."""
    require()
    room.say("starting postgres")
    async with running_postgres(room.directory.parent) as postgres:
        room.systems["postgres"] = await facts(postgres.dsn())
        yield postgres


async def _on_sqlite(stack: contextlib.AsyncExitStack, room: Room, *, page_cache: bool = True) -> Client:
    """The SDK on a server of its own with SQLite."""
    room.say("starting syncline on SQLite")
    system = Syncline(page_cache=page_cache)
    running = await stack.enter_async_context(system.serve(room.directory))
    return await stack.enter_async_context(system.connect(running.address))


def _figure(name: str, what: str, unit: str, samples: Mapping[str, Sequence[float]]) -> Figure:
    return Figure(
        name=name,
        what=what,
        unit=unit,
        better="lower" if unit == "ms" else "higher",
        values=medians(samples),
        samples=samples,
    )


# -- writing ------------------------------------------------------------------------------------------------


async def measure_push(room: Room) -> Outcome:
    """Bulk and single pushes, and single ones spread over datasets."""
    items = [make_item(number) for number in range(room.pick(50_000, 10_000))]
    async with contextlib.AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(_postgres(room))
        floor = await stack.enter_async_context(bare(postgres))
        (node,) = await stack.enter_async_context(running_nodes(postgres, room.directory, 1))
        ours = await stack.enter_async_context(Syncline().connect(node.running.address))
        on_sqlite = await _on_sqlite(stack, room)
        with quiet_collector():
            bulk = await interleaved(
                room.pick(3, 2),
                {
                    "syncline": BulkRound(ours, items),
                    "syncline_sqlite": BulkRound(on_sqlite, items),
                    "pg_floor": lambda number: _floor_round(floor, f"floor-{number}", items, 1),
                    "parallel_floor": lambda number: _floor_round(floor, f"bulk-{number}", items, IN_FLIGHT),
                },
            )
        for client in (ours, on_sqlite):
            await client.create("single")
        for number in range(DATASETS):
            await ours.create(f"single-{number}")
        seconds = room.pick(1_000, 600) / 1_000
        single = await interleaved(
            room.pick(4, 2),
            {
                "syncline": CallersRound(partial(ours.push_one, "single"), seconds),
                "syncline_sqlite": CallersRound(partial(on_sqlite.push_one, "single"), seconds),
                "datasets": CallersRound(_spread(ours), seconds),
            },
        )
    spread = single.pop("datasets")
    figures = [
        _figure(
            "pg_push_bulk",
            f"{len(items):,} new records, in order, {CALL_RECORDS:,} a call, {IN_FLIGHT} in flight; pg_floor: "
            "asyncpg, unnest upserts, no server, one after the other; parallel_floor: 4 in flight",
            "records/s",
            bulk,
        ),
        _figure("pg_push_single", f"{CALLERS} callers, a record a call, one dataset", "calls/s", single),
        _figure(
            "pg_commits",
            f"the same over {DATASETS} datasets",
            "calls/s",
            {"syncline": spread, "one_dataset": single["syncline"]},
        ),
    ]
    pushed, singles = figures[0].values, figures[1].values
    needed = [
        *at_least("pg_push_bulk: at least 0.6 times pg_floor", pushed["syncline"], pushed["pg_floor"], 0.6),
        *at_least(
            "pg_push_single: at least 0.8 times SQLite", singles["syncline"], singles["syncline_sqlite"], 0.8
        ),
    ]
    return Outcome(figures=figures, requirements=needed)


async def _floor_round(floor: Floor, collection: str, items: list[Item], in_flight: int) -> float:
    watch = Stopwatch()
    await floor.push_bulk(collection, items, in_flight=in_flight)
    return len(items) / watch.seconds


def _spread(client: Client) -> Callable[[Item], Awaitable[None]]:
    """Push each record into the next dataset."""
    number = 0

    async def push(item: Item) -> None:
        nonlocal number
        number = (number + 1) % DATASETS
        await client.push_one(f"single-{number}", item)

    return push


# -- copying ------------------------------------------------------------------------------------------------


async def measure_sync(room: Room) -> Outcome:
    """Copies from nothing: one after the other, and ten at a time."""
    items = shuffled_items(room.pick(200_000, 30_000))
    async with contextlib.AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(_postgres(room))
        floor = await stack.enter_async_context(bare(postgres))
        first, second = await stack.enter_async_context(
            running_nodes(postgres, room.directory, 2, page_cache=False)
        )
        ours = await stack.enter_async_context(Syncline().connect(first.running.address))
        on_sqlite = await _on_sqlite(stack, room, page_cache=False)
        await floor.push_bulk(_COLLECTION, items)
        await floor.settle()
        for client in (ours, on_sqlite):
            await client.create(_COLLECTION)
            await client.push_bulk(_COLLECTION, items)
        with quiet_collector():
            cold = await interleaved(
                room.pick(5, 3),
                {
                    "syncline": copier(ours, _COLLECTION, len(items)),
                    "syncline_sqlite": copier(on_sqlite, _COLLECTION, len(items)),
                    "pg_scan": copier(floor, _COLLECTION, len(items)),
                },
            )
        starts = await _cold_starts(room, postgres, second, ours)
    figure = _figure(
        "pg_sync_cold",
        f"{len(items):,} records into a dict; pg_scan: asyncpg, a keyset scan, {CALL_RECORDS:,} a page, no server",
        "records/s",
        cold,
    )
    values = figure.values
    database = starts[0].values
    needed = [
        *at_least("pg_sync_cold: at least 0.7 times pg_scan", values["syncline"], values["pg_scan"], 0.7),
        *(
            at_most(f"pg_cold_starts_database: {what} ÷ one", database[name] / database["one"], 2.0)
            for name, what in (("syncline", "ten at once"), ("apart", "ten one by one"))
        ),
    ]
    return Outcome(figures=[figure, *starts], requirements=needed)


async def _cold_starts(room: Room, postgres: Postgres, node: Node, client: Client) -> list[Figure]:
    """Processor time of the database, and of it with the server, for one copy, for ten, and for ten one by one."""
    items = shuffled_items(30_000)  # more than is kept for each dataset that is followed
    rounds: dict[str, _ColdStarts] = {}
    async with contextlib.AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(node.system.connect_stubs(node.running.address))
            for _ in range(COLD_STARTS)
        ]
        for name, count, apart in (
            ("syncline", COLD_STARTS, 0.0),
            ("apart", COLD_STARTS, APART_SECONDS),
            ("one", 1, 0.0),
        ):
            rounds[name] = _ColdStarts(postgres, node.running, readers[:count], apart, name)
        number_of_rounds = room.pick(2, 1)
        for one in rounds.values():
            # Each round has a dataset of its own: pages that another one left would help it.
            for number in range(number_of_rounds):
                await client.create(one.collection(number))
                await client.push_bulk(one.collection(number), items)
        await asyncio.gather(
            *(reader.copy(_COLLECTION) for reader in readers)
        )  # connections are warm afterwards
        together = await interleaved(number_of_rounds, rounds)
    what = (
        f"processor time of {{}}, {len(items):,} records: {COLD_STARTS} copies from nothing at once; apart: "
        f"{APART_SECONDS:g} s between them"
    )
    database = {name: one.database_ms for name, one in rounds.items()}
    return [
        _figure("pg_cold_starts_database", what.format("PostgreSQL"), "ms", database),
        _figure("pg_cold_starts", what.format("PostgreSQL and the server"), "ms", together),
    ]


class _ColdStarts:
    """Copies that begin at once, or a little after each other; returns processor time in ms."""

    def __init__(
        self,
        postgres: Postgres,
        server: Running,
        readers: Sequence[StubChannel],
        apart_seconds: float,
        name: str,
    ) -> None:
        self._postgres = postgres
        self._server = server
        self._readers = readers
        self._apart_seconds = apart_seconds
        self._name = name
        self.database_ms: list[float] = []

    def collection(self, number: int) -> str:
        """What is copied in a round."""
        return f"cold-{self._name}-{number}"

    async def __call__(self, number: int) -> float:
        server, database = cpu_seconds(self._server.pid), self._postgres.cpu_seconds()
        async with asyncio.TaskGroup() as tasks:
            for place, reader in enumerate(self._readers):
                tasks.create_task(self._copy(reader, self.collection(number), place * self._apart_seconds))
        self.database_ms.append(self._postgres.cpu_seconds_since(database) * 1_000)
        return self.database_ms[-1] + (cpu_seconds(self._server.pid) - server) * 1_000

    @staticmethod
    async def _copy(reader: StubChannel, collection: str, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        await reader.copy(collection)


# -- following ----------------------------------------------------------------------------------------------


async def measure_live(room: Room) -> Outcome:
    """Time from a write on one node to its delivery by another, and by the same."""
    plan = Plan(each=1, writes=room.pick(100, 30), rounds=room.pick(3, 2), pause_seconds=0.01)
    async with contextlib.AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(_postgres(room))
        first, second = await stack.enter_async_context(running_nodes(postgres, room.directory, 2))
        client = await stack.enter_async_context(first.system.connect(first.running.address))
        rounds: dict[str, LatencyRound] = {}
        for name, node in (("syncline", second), ("same_node", first)):
            await client.create(name)
            followers = await stack.enter_async_context(
                running_followers(
                    node.system.name, node.running.address, name, streams=CONNECTIONS, clients=CONNECTIONS
                )
            )
            rounds[name] = LatencyRound(client, followers, plan, collection=name)
            await rounds[name](0)  # connections and caches are warm afterwards
            rounds[name].p99.clear()
        p50 = await interleaved(plan.rounds, rounds)
    p99 = {name: one.p99 for name, one in rounds.items()}
    what = f"percentile, a write on one node to each of {plan.subscribers} subscribers of another, UpdateFeed"
    return Outcome(
        figures=[
            _figure("pg_live_p50", f"50th {what}", "ms", p50),
            _figure("pg_live_p99", f"99th {what}", "ms", p99),
        ]
    )
