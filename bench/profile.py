"""Where the server spends its time: ``python -m bench.profile [WORKLOAD …] [--seconds 8] [--postgres]``.

With py-spy on this machine (``pip install py-spy``) all threads are sampled, twice: once for what is on a CPU,
C code included, once for who holds the GIL. Without it cProfile counts the calls of the main thread. The lists
go to the standard output and to ``build/profile-WORKLOAD.txt``.
"""

import argparse
import asyncio
import contextlib
import io
import pstats
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench import loops, machine
from bench.figures import sensor
from bench.followers import running_followers
from bench.measure import work_directory
from bench.processes import stop
from bench.records import make_item, shuffled_items
from bench.systems.base import Running
from bench.systems.stubs import SynclineFeed
from bench.systems.syncline import Syncline, SynclineClient

if TYPE_CHECKING:
    from bench.systems.postgres import Postgres

OUTPUT = Path("build")
SAMPLES_PER_SECOND = 200
WARM_UP_SECONDS = 1.0
TOP = 40
BATCH = 20_000
_ADDRESS = re.compile(r"0x[0-9a-f]+")

Workload = Callable[
    [SynclineClient, Running, contextlib.AsyncExitStack], Awaitable[Callable[[], Awaitable[int]]]
]
"""Prepares, with what has to be closed on the stack, and gives what is repeated while the server is watched; that returns the number of records."""


async def push_bulk(
    client: SynclineClient, _running: Running, _stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """New records, 1,000 a call, 4 in flight."""
    items = shuffled_items(BATCH * 4)
    round_number = 0

    async def push() -> int:
        nonlocal round_number
        part = round_number % 4
        if part == 0:
            await client.create(f"bulk-{round_number}")
        collection = f"bulk-{round_number - part}"
        round_number += 1
        await client.push_bulk(collection, items[part * BATCH : (part + 1) * BATCH])
        return BATCH

    return push


async def push_single(
    client: SynclineClient, _running: Running, _stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """A record a call from 50 callers."""
    await client.create("single")
    next_number = 0

    async def caller() -> None:
        nonlocal next_number
        for _ in range(20):
            next_number += 1
            await client.push_one("single", make_item(next_number))

    async def push() -> int:
        await asyncio.gather(*(caller() for _ in range(50)))
        return 1_000

    return push


async def sync_cold(
    client: SynclineClient, _running: Running, _stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """Copies of 100,000 records."""
    await client.create("cold")
    await client.push_bulk("cold", shuffled_items(100_000))

    async def copy() -> int:
        return len(await client.copy("cold"))

    return copy


async def replace(
    client: SynclineClient, _running: Running, _stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """Replace sessions of 100,000 records, 100 of them changed."""
    await client.create("large")
    edition = 0

    async def load() -> int:
        nonlocal edition
        edition += 1
        await client.replace(
            "large", (make_item(n, edition if n % 1_000 == edition % 1_000 else 0) for n in range(100_000))
        )
        return 100_000

    await load()
    return load


async def fanout_bulk(
    client: SynclineClient, running: Running, stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """New records, 1,000 a call, to 20 subscribers."""
    await client.create("fanout")
    followers = await stack.enter_async_context(
        running_followers("syncline_feed", running.address, "fanout", streams=20, clients=20)
    )
    filled = 0

    async def fill() -> int:
        nonlocal filled
        items = [make_item(filled + number) for number in range(BATCH)]
        filled += BATCH
        await followers.ask("arrival", 20 * BATCH)
        await client.push_bulk("fanout", items)
        await followers.arrival_ns()
        return 20 * BATCH

    return fill


async def live(
    client: SynclineClient, running: Running, stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """One record after the other, to 20 subscribers."""
    await client.create("live")
    followers = await stack.enter_async_context(
        running_followers("syncline_feed", running.address, "live", streams=20, clients=20)
    )
    written = 0

    async def write() -> int:
        nonlocal written
        await followers.ask("arrival", 20 * 100)
        for _ in range(100):
            written += 1
            await client.push_one("live", make_item(written))
        await followers.arrival_ns()
        return 100

    return write


async def sensor_stream(
    client: SynclineClient, running: Running, stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[int]]:
    """100 producers, a reading a message."""
    await client.create("sensors")
    streams = await sensor.open_producers(stack, SynclineFeed(), running.address, "sensors")
    messages = sensor.Round(streams, messages=50, size=1)

    async def send() -> int:
        await messages(0)
        return 50 * len(streams)

    return send


WORKLOADS: Mapping[str, Workload] = {
    "push_bulk": push_bulk,
    "sync_cold": sync_cold,
    "push_single": push_single,
    "replace": replace,
    "fanout_bulk": fanout_bulk,
    "live": live,
    "sensor_stream": sensor_stream,
}


async def _repeat(work: Callable[[], Awaitable[int]], seconds: float) -> float:
    """Work for at least so long; returns records a second."""
    start, records = time.monotonic(), 0
    while time.monotonic() < start + seconds:
        records += await work()
    return records / (time.monotonic() - start)


@contextlib.asynccontextmanager
async def _prepared(
    name: str, directory: Path, postgres: "Postgres | None", prefix: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Running, Callable[[], Awaitable[int]]]]:
    """A server, and the workload ready to go."""
    store = ""
    if postgres is not None:
        postgres.execute(f"CREATE DATABASE profile_{name}")
        store = postgres.dsn(f"profile_{name}")
    system = Syncline(command_prefix=prefix, store=store, page_cache=False)
    async with system.serve(directory) as running, contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(system.connect_sdk(running.address))
        work = await WORKLOADS[name](client, running, stack)
        await _repeat(work, WARM_UP_SECONDS)
        yield running, work


# -- py-spy ----------------------------------------------------------------------------------------------------


async def _sampled(name: str, directory: Path, postgres: "Postgres | None", spy: str, seconds: float) -> str:
    async with _prepared(name, directory, postgres) as (running, work):
        cpu, rate = await _sample(spy, running.pid, directory / "cpu", seconds, work, "--native")
        gil, _ = await _sample(spy, running.pid, directory / "gil", seconds, work, "--gil", "--nonblocking")
        used, begun = machine.cpu_seconds(running.pid), time.monotonic()
        database = {} if postgres is None else postgres.cpu_seconds()
        unwatched = await _repeat(work, seconds / 2)
        records = unwatched * (time.monotonic() - begun)
        used_us = (machine.cpu_seconds(running.pid) - used) * 1e6 / records
        database_us = 0.0 if postgres is None else postgres.cpu_seconds_since(database) * 1e6 / records
    return "\n".join(
        [
            (
                f"{name}: {unwatched:,.0f} records/s unwatched, {rate:,.0f} while watched; "
                f"{used_us:.1f} µs of the server's CPU a record, {database_us:.1f} µs of PostgreSQL's"
            ),
            "",
            "== Busy, C code included. Percent of the time sampled: a full core is 100.",
            _top_lists(cpu, seconds),
            "== Holds the GIL. Above 90 in sum the interpreter itself is the limit.",
            _top_lists(gil, seconds),
        ]
    )


async def _sample(
    spy: str, pid: int, output: Path, seconds: float, work: Callable[[], Awaitable[int]], *options: str
) -> tuple[str, float]:
    arguments = f"record --pid {pid} --format raw --threads --nolineno --rate {SAMPLES_PER_SECOND} --duration {seconds:.0f}"
    process = await asyncio.create_subprocess_exec(
        spy,
        *arguments.split(),
        "--output",
        str(output),
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        rate = await _repeat(work, seconds + 0.5)
        said, _ = await process.communicate()
    finally:
        await asyncio.shield(stop(process))
    if process.returncode:
        raise RuntimeError(f"py-spy failed:\n{said.decode(errors='replace')}")
    return output.read_text(), rate


def _top_lists(raw: str, seconds: float) -> str:
    """The folded stacks as lists: threads, own time, time with callees in Python code."""
    threads: Counter[str] = Counter()
    waits: Counter[str] = Counter()
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in raw.splitlines():
        folded, _, text = line.rpartition(" ")
        thread, *frames = (_ADDRESS.sub("", frame).strip() for frame in folded.split(";"))
        if not frames:
            continue  # a thread that was just starting or ending
        count = int(text)
        if (wait := _wait(frames)) is not None:
            waits[f"{thread}: {wait}"] += count
            continue
        threads[thread] += count
        own[frames[-1]] += count
        for frame in {frame for frame in frames if ".py)" in frame}:
            total[frame] += count
    samples = seconds * SAMPLES_PER_SECOND
    lists = {"threads": threads, "waits": waits, "own time": own, "with callees": total}
    return "\n".join(_list(title, counts, samples) for title, counts in lists.items() if counts)


def _wait(frames: list[str]) -> str | None:
    """What a thread that is not on a CPU waits for: py-spy takes one that waits in C code for a busy one."""
    stack = " ".join(frames[-8:])
    if "_queue_SimpleQueue_get" in stack or "_poll_wrapper" in stack or "epoll" in frames[-1]:
        return "work"
    if "pthread_cond_" in " ".join(frames[-2:]) and "signal" not in frames[-1]:
        return "the GIL"  # nothing else here waits on a condition
    return "the disk" if "fdatasync" in frames[-1] else None


def _list(title: str, counts: Counter[str], samples: float) -> str:
    lines = [f"{100 * count / samples:6.1f}  {name}" for name, count in counts.most_common(TOP)]
    return "\n".join([f"-- {title}", *lines, ""])


# -- cProfile --------------------------------------------------------------------------------------------------


async def _counted(name: str, directory: Path, postgres: "Postgres | None", seconds: float) -> str:
    output = directory / "cprofile"
    prefix = (sys.executable, "-m", "cProfile", "-o", str(output))
    async with _prepared(name, directory, postgres, prefix) as (_, work):
        rate = await _repeat(work, seconds)
    text = io.StringIO()
    stats = pstats.Stats(str(output), stream=text)
    text.write(f"{name}: {rate:,.0f} records/s under cProfile, main thread only\n")
    stats.sort_stats("tottime").print_stats(TOP)
    stats.sort_stats("cumulative").print_stats(TOP)
    return text.getvalue()


# -- the command -----------------------------------------------------------------------------------------------


def _py_spy() -> str | None:
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


async def main() -> None:
    """Profile each of the workloads that were named."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    names = list(WORKLOADS)
    parser.add_argument("workload", nargs="*", help=f"{', '.join(names)}; default: push_bulk sync_cold")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--cprofile", action="store_true", help="cProfile although py-spy is there")
    parser.add_argument("--postgres", action="store_true", help="with its store in PostgreSQL")
    arguments = parser.parse_args()
    if unknown := set(arguments.workload).difference(names):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    spy = None if arguments.cprofile else _py_spy()
    OUTPUT.mkdir(exist_ok=True)
    for name in arguments.workload or ["push_bulk", "sync_cold"]:
        async with contextlib.AsyncExitStack() as stack:
            directory = stack.enter_context(work_directory(machine.disk_directory()))
            postgres = None
            if arguments.postgres:
                from bench.systems.postgres import running_postgres

                postgres = await stack.enter_async_context(running_postgres(directory.parent))
            if spy is None:
                text = await _counted(name, directory, postgres, arguments.seconds)
            else:
                text = await _sampled(name, directory, postgres, spy, arguments.seconds)
        path = OUTPUT / f"profile-{name}.txt"
        path.write_text(text)
        print(text)
        print(f"written to {path}")


if __name__ == "__main__":
    loops.run(main())
