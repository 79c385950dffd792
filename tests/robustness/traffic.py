"""All clients of a run together, the fault schedule against them, and the judgement at the end."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import syncline
from robustness.clients import Run
from robustness.history import DatasetLog, History, View
from robustness.promises import judge
from robustness.promises_feed import last_looks
from robustness.readers import FOLLOWING, Reader, follow_copy, keep_mirror, keep_replica
from robustness.recorder import Recorder, recorder_of
from robustness.sensors import Clone, Gauge, Sensor
from robustness.subscribers import FeedStream, Pager, PrefixStream, Subscriber
from robustness.writers import SessionWriter, Writer
from support.server_process import ServerProcess

KEYS = [f"k{n:03d}" for n in range(40)]
CATCH_UP_SECONDS = 15.0
CHECKPOINT_SECONDS = 0.5

TINY = {
    "SYNCLINE_PAGE_CHANGES": "5",
    "SYNCLINE_PAGE_BYTES": "2000",
    "SYNCLINE_RING_BYTES": "4000",
    "SYNCLINE_CREDIT_BYTES": "2000",
    "SYNCLINE_CHECKPOINT_SECONDS": f"{CHECKPOINT_SECONDS}",
    "SYNCLINE_RETENTION_SECONDS": "0",
    "SYNCLINE_RETENTION_REVISIONS": "20",
    "SYNCLINE_PURGE_SECONDS": "0.2",
    "SYNCLINE_SHUTDOWN_SECONDS": "3",
}
"""Settings that make everything overflow, run out and expire all the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """How many of each kind of client."""

    writers: int = 3
    sessions: int = 1
    swaps: int = 1
    sensors: int = 1
    clones: int = 1
    gauges: int = 1
    """Producers of the SDK."""
    subscribers: Sequence[tuple[str, str]] = (("things", "all"), ("things", "red"), ("items", "large"))
    pagers: Sequence[tuple[str, str]] = (("things", "all"), ("things", "two"))
    streams: Sequence[Sequence[tuple[str, str, str]]] = (
        (
            ("things", "all", "latest"),
            ("things", "red", "max_rate"),
            ("items", "all", "on_checkpoint"),
            ("log", "all", "latest"),
            ("things", "none", "latest"),
            ("items", "red masked", "latest"),
        ),
    )
    """Of each UpdateFeed stream: dataset, selection and mode of its subscriptions."""
    prefixes: Sequence[tuple[str, str]] = (("all", "latest"),)
    """Of each subscription to all datasets: selection and mode."""
    copies: Sequence[tuple[str, str]] = (("things", "all"), ("things", "two"))
    replicas: Sequence[tuple[str, str]] = (("things", "all"), ("items", "red"))
    mirrors: Sequence[str] = ("all",)
    """Selection of each; they need a directory."""
    readers: int = 1
    guests: int = 0
    """Subscribers of ``things`` with read keys of their own; see ``Traffic.revoke``."""
    keys: Sequence[str] = tuple(KEYS)


PLAIN = Crowd(
    writers=4,
    sessions=0,
    swaps=0,
    sensors=0,
    clones=0,
    gauges=0,
    subscribers=(("things", "all"), ("items", "all")),
    pagers=(),
    streams=(),
    prefixes=(),
    copies=(("things", "all"),),
    replicas=(),
    mirrors=(),
    readers=0,
)
"""Writers and plain subscribers."""

DATASETS = ("things", "items", "log")


class Traffic:
    """The clients at work on one store."""

    def __init__(
        self, run: Run, server: ServerProcess, client: syncline.Client, crowd: Crowd, recorder: Recorder
    ) -> None:
        self.run = run
        self.history = run.history
        self.server = server
        self.client = client
        self.crowd = crowd
        self.recorder = recorder
        self.judged: dict[str, list[str]] = {}
        self.catch_up_seconds = CATCH_UP_SECONDS
        """When the faults are over all come to their end within this."""
        self._guests: dict[str, View] = {}
        self._writing: list[asyncio.Task[None]] = []
        self._following: list[asyncio.Task[None]] = []

    @classmethod
    @asynccontextmanager
    async def on(
        cls,
        server: ServerProcess,
        *,
        seed: int,
        crowd: Crowd | None = None,
        addresses: Sequence[str] = (),
        all_hop: bool = False,
        recorder: Recorder | None = None,
        replica_directory: Path | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> AsyncIterator["Traffic"]:
        """Make the datasets, begin to record and to work; on leaving stop. ``finish`` judges.

        ``addresses``: those of the proxy, or of the nodes, that the clients are to use; ``server`` is one of them, and
        with ``all_hop`` nobody keeps to one. With a ``replica_directory``
        replicas, mirrors and spools are files in it.
        """
        asyncio.get_running_loop().set_debug(
            False
        )  # which would cost these thousands of tasks more than they do
        history = History(seed=seed, checkpoint_seconds=checkpoint_seconds)
        crowd = crowd or Crowd()
        addresses = addresses or [server.address]
        recorder = recorder or recorder_of(server)
        await asyncio.to_thread(recorder.install)
        async with server.client() as admin:
            for dataset in DATASETS:
                # In a log the same reading a second time is a second record; under a key it would be no change.
                identity = syncline.append() if dataset == "log" else syncline.by_key("id")
                await admin.create_dataset(dataset, identity=identity)
                for n in range(max(crowd.sessions, crowd.swaps)):
                    await admin.create_source(dataset, f"feed-{n}")
                    await admin.create_source(dataset, f"swap-{n}")
        async with (
            Run(history, addresses, server.key, seed=seed, all_hop=all_hop) as run,
            syncline.connect(addresses, key=server.key) as client,
        ):
            client.connection.updates._options = FOLLOWING
            traffic = cls(run, server, client, crowd, recorder)
            await traffic._begin(replica_directory)
            try:
                yield traffic
            finally:
                await traffic._end()

    async def _begin(self, replica_directory: Path | None) -> None:
        run, crowd, keys = self.run, self.crowd, list(self.crowd.keys)
        for n in range(crowd.writers):
            dataset = "items" if n % 3 == 2 else "things"
            self._write(Writer(run, await run.wire(), f"writer {n}", dataset, keys).work())
        for n in range(crowd.sessions):
            writer = SessionWriter(run, await run.wire(), f"session {n}", "things", keys, source=f"feed-{n}")
            self._write(writer.work())
        for n in range(crowd.swaps):
            writer = SessionWriter(
                run, await run.wire(), f"swap {n}", "things", keys, source=f"swap-{n}", replaces=True
            )
            self._write(writer.work())
        for n in range(crowd.sensors):
            self._write(Sensor(run, await run.wire(), f"sensor-{n}", "log").work())
        for n in range(crowd.clones):
            self._write(Clone(run, await run.wire(), f"sensor-{n}", "log").work())
        for n in range(crowd.gauges):
            spool = replica_directory and replica_directory / f"spool-{n}.db"
            self._write(Gauge(run, self.client, f"gauge-{n}", "log", spool).work())
        for n in range(crowd.guests):
            key = await self.client.create_key("read", dataset="things")
            view = View(name=f"guest {n}", dataset="things")
            self.history.guests.append(view)
            self._guests[key.key_id] = view
            wire = (await run.wire()).as_key(key.secret)
            self._follow(Subscriber(run, wire, view).follow())
        for n in range(crowd.readers):
            self._write(Reader(run, await run.wire(), f"reader {n}", "things", keys).work())
        for kind, places in ((Subscriber, crowd.subscribers), (Pager, crowd.pagers)):
            for n, (dataset, selection) in enumerate(places):
                mode = "pages" if kind is Pager else "latest"
                view = self._view(f"{kind.__name__.lower()} {n}", dataset, selection, mode)
                self._follow(kind(run, await run.wire(), view).follow())
        for n, places in enumerate(crowd.streams):
            views = [
                self._view(f"stream {n}/{i}", dataset, selection, mode)
                for i, (dataset, selection, mode) in enumerate(places)
            ]
            self._follow(FeedStream(run, await run.wire(), f"stream {n}", views).follow())
        for n, (selection, mode) in enumerate(crowd.prefixes):
            views = [self._view(f"prefix {n}", dataset, selection, mode) for dataset in DATASETS]
            self._follow(PrefixStream(run, await run.wire(), f"prefix {n}", views).follow())
        for n, (dataset, selection) in enumerate(crowd.copies):
            self._follow(follow_copy(run, self.client, f"copy {n}", dataset, selection))
        for n, (dataset, selection) in enumerate(crowd.replicas):
            path = replica_directory and replica_directory / f"replica-{n}.db"
            self._follow(keep_replica(run, self.client, f"replica {n}", dataset, selection, path))
        for n, selection in enumerate(crowd.mirrors if replica_directory else ()):
            directory = replica_directory / f"mirror-{n}"
            self._follow(keep_mirror(run, self.client, f"mirror {n}", selection, directory))

    def _view(self, name: str, dataset: str, selection: str, mode: str = "latest") -> View:
        return self.history.view(
            f"{name} ({dataset}, {selection}, {mode})", dataset, selection=selection, mode=mode
        )

    def _write(self, work: Coroutine[Any, Any, None]) -> None:
        self._writing.append(asyncio.create_task(work, name=f"{work.__qualname__} {len(self._writing)}"))

    def _follow(self, work: Coroutine[Any, Any, None]) -> None:
        self._following.append(asyncio.create_task(work, name=f"{work.__qualname__} {len(self._following)}"))

    async def revoke(self, *, within_seconds: float) -> None:
        """Take the guests' keys, and wait until they must have noticed."""
        self.history.revocation_seconds = within_seconds
        for key_id, view in self._guests.items():
            await self.client.delete_key(key_id)
            view.revoked = time.monotonic()
        await asyncio.sleep(within_seconds + CHECKPOINT_SECONDS * 2)  # time to hear what it must not

    # -- waiting ------------------------------------------------------------------------------------------

    async def acknowledged(self, count: int) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted = len(self.history.acknowledged()) + count
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while len(self.history.acknowledged()) < wanted:
                self.see_that_all_live()
                await asyncio.sleep(0.01)

    def see_that_all_live(self) -> None:
        """Raise what a client has ended with."""
        for task in (*self._writing, *self._following):
            if task.done() and not task.cancelled():
                task.result()

    @property
    def resets(self) -> list[str]:
        """Reasons of all resets that views were sent."""
        return [
            frame.reason
            for view in self.history.views
            for frame in view.frames
            if hasattr(frame, "reason") and type(frame).__name__ == "Reset"
        ]

    # -- the end ------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """The faults are over: stop writing, and see every follower reach the head and get a checkpoint more."""
        self.run.is_calm = True
        self.history.calm_since = time.monotonic()
        self.run.stopping.set()
        await asyncio.wait(self._writing, timeout=self.catch_up_seconds)
        async with self.server.client() as client:
            for dataset in DATASETS:
                info = await client.get_dataset(dataset)
                log = self.history.datasets.setdefault(dataset, DatasetLog())
                log.head, log.count, log.digest = info.revision, info.record_count, info.digest
                log.final = {
                    record.record_id: (record.revision, record.json)
                    async for record in client.dataset(dataset).records()
                }
        await self._all_at_the_head()
        self.history.ended = time.monotonic()

    async def _all_at_the_head(self) -> None:
        """Wait for it; who is not there in the end is told by the validators."""
        deadline = time.monotonic() + self.catch_up_seconds
        while time.monotonic() < deadline and not (
            all(map(self._is_there, self.history.views)) and all(self._copies_are_there())
        ):
            await asyncio.sleep(0.05)

    def _copies_are_there(self) -> Iterator[bool]:
        return (head <= revision for _, _, revision, head in last_looks(self.history))

    def _is_there(self, view: View) -> bool:
        last = view.frames[-1] if view.frames else None
        return getattr(last, "revision", None) == self.history.datasets[view.dataset].head

    async def finish(self) -> History:
        """``settle``, and hold everything against the promises. Raises AssertionError."""
        await self.settle()
        self.judge()
        assert not self.judged, told(self.judged)
        return self.history

    def judge(self) -> dict[str, list[str]]:
        """Violations by promise."""
        for task in (*self._writing, *self._following):
            if task in self._writing and not task.done():
                self.history.complaints.append(f"{task.get_name()} does not come to its end")
            elif task.done() and not task.cancelled() and (error := task.exception()) is not None:
                self.history.complaints.append(f"{task.get_name()} ended with {error!r}")
        self.recorder.collect(self.history)
        self.judged = judge(self.history)
        return self.judged

    async def _end(self) -> None:
        self.run.leaving.set()
        self.run.stopping.set()
        for task in (*self._writing, *self._following):
            task.cancel()
        await asyncio.gather(*self._writing, *self._following, return_exceptions=True)


def told(judged: dict[str, list[str]]) -> str:
    """Violations in a few lines."""
    return "\n".join(
        f"{promise}: {len(found)} violations\n  " + "\n  ".join(text[:300] for text in found[:4])
        for promise, found in judged.items()
    )
