"""The commit queue: everything that waits is committed together and shares one wait for the disk.

Callers put a finished ``Commit`` into the queue and wait for its verdict. One task takes whatever has gathered
while the last group was being written, hands it to the store in one call, tells the feed, then answers. A
caller that gives up only stops waiting (hazard F30): if its commit is still queued it is dropped, if it is
with the store it is carried out.

Where the store has several lanes, a group that takes long goes on while the next ones are written, of other
datasets: so whoever holds up one dataset, with a lock or a large session, holds up no other. The commits of a dataset
keep their order. A large group of one dataset is followed by the next one of that dataset as soon as the store has sent it.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from syncline_server.errors import ResourceExhausted, SynclineError, Unavailable
from syncline_server.model import Commit, CommitResult, SessionCommit
from syncline_server.notify.abc import Notifier
from syncline_server.store.abc import Contended, GroupResult, Store

MAX_GROUP_COMMITS: Final = 512
MAX_GROUP_BYTES: Final = 8 << 20
"""A group is held in memory by the store's thread and delays the first in it by its whole length."""
RETRY_AFTER_SECONDS: Final = 0.2

GATHER_SECONDS: Final = 0.003
GATHER_ROUNDS: Final = 3
GATHER_BELOW_BYTES: Final = 64 << 10
"""While many callers write a little each, a group costs 0.6 ms of processor time whatever its size (pages, sync,
hand-overs between threads) and 0.03 ms for each commit in it. So the queue may gather until all who were busy
with the last group have come back, for as long as it grows within ``GATHER_SECONDS``, ``GATHER_ROUNDS`` times. A
lone caller, and whoever brings much at once, waits for nothing."""

LANE_SECONDS: Final = 0.02
"""What takes longer goes on in a lane of its own. Nearly every group is done by then, and groups that others could
join while they wait are cheaper than many at once."""

GroupObserver = Callable[[Sequence[Commit], GroupResult], None]

_Entry = tuple[Commit, "asyncio.Future[CommitResult]"]


class Committer:
    """Queues commits and writes them in groups. ``running`` owns its task."""

    def __init__(
        self,
        store: Store,
        notifier: Notifier,
        *,
        max_queue_bytes: int = 64 << 20,
        observe: GroupObserver | None = None,
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._max_queue_bytes = max_queue_bytes
        self._observe = observe
        self._lanes = store.commit_lanes
        self._writing: set[asyncio.Task[None]] = set()
        """Groups that are on their way, where there are several lanes."""
        self._aside: dict[int, deque[_Entry]] = {}
        """Commits that wait for one of the same dataset that is on its way, by dataset."""
        self._contended: set[int] = set()
        """Datasets whose last group failed: nobody else shares one with them."""
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._busy = 1
        """Commits of the last group, and those that came while it was written."""
        self._enough = 1
        """Commits in the queue at which it need not grow any more."""
        self._wake = asyncio.Event()
        self._closed = True
        self._loop: asyncio.AbstractEventLoop

    @property
    def queued_commits(self) -> int:
        """Number of commits that wait."""
        return len(self._queue) + sum(map(len, self._aside.values()))

    @property
    def queued_bytes(self) -> int:
        """Weight of the commits that wait."""
        return self._queued_bytes

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take commits while the block lasts; on leaving, refuse new ones and finish those that wait."""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        writer = asyncio.create_task(self._write_groups(), name="committer")
        try:
            yield
        finally:
            self.close()
            await writer

    def close(self) -> None:
        """Refuse commits from now on. Those in the queue are still written."""
        self._closed = True
        self._wake.set()

    async def commit(self, commit: Commit) -> CommitResult:
        """Queue a commit and wait for its verdict.

        Raises what the store raises for this commit, ResourceExhausted(OVERLOADED) when the queue is full, and
        Unavailable(SHUTTING_DOWN).
        """
        return await self.submit(commit)

    def submit(self, commit: Commit) -> "asyncio.Future[CommitResult]":
        """Queue a commit and return its verdict to come. Cancel it to drop a commit that is still in the queue.

        Raises ResourceExhausted(OVERLOADED), Unavailable(SHUTTING_DOWN).
        """
        if self._closed:
            raise Unavailable("SHUTTING_DOWN", "the server is shutting down", retry_after_seconds=1)
        if self._queued_bytes and self._queued_bytes + commit.size_bytes > self._max_queue_bytes:
            raise ResourceExhausted(
                "OVERLOADED",
                f"{self._queued_bytes} bytes of commits wait for the disk already; nothing was done",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        # The loop was asked for once: until Python 3.12 ``get_running_loop`` costs a system call.
        verdict: asyncio.Future[CommitResult] = self._loop.create_future()
        self._queued_bytes += commit.size_bytes
        if self._aside and commit.dataset_number in self._aside:
            self._aside[commit.dataset_number].append((commit, verdict))
            return verdict
        self._queue.append((commit, verdict))
        if self._is_enough():
            self._wake.set()
        return verdict

    async def _write_groups(self) -> None:
        while True:
            if not self._queue or len(self._writing) >= self._lanes:
                if self._closed and not self._queue and not self._writing:
                    return
                self._enough = 1
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._gather()
            group = self._take_group()
            if group and self._lanes == 1:
                await self._write(group)
                self._busy = len(group) + len(self._queue)
            elif group:
                await self._send(group)

    async def _send(self, group: list[_Entry]) -> None:
        """Have a group written, and wait for it no longer than is good; what comes for its datasets stands aside."""
        for commit, _ in group:
            self._aside[commit.dataset_number] = deque()  # being there is what counts
        left = [entry for entry in self._queue if entry[0].dataset_number in self._aside]
        if left:
            self._queue = deque(entry for entry in self._queue if entry[0].dataset_number not in self._aside)
            for entry in left:
                self._aside[entry[0].dataset_number].append(entry)
        released = self._loop.create_future()
        task = asyncio.create_task(self._write_lane(group, released), name="commit lane")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        task.add_done_callback(lambda _: self._wake.set())
        await asyncio.wait([task, released], timeout=LANE_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def _write_lane(self, group: list[_Entry], released: "asyncio.Future[None]") -> None:
        apart: defaultdict[int, list[_Entry]] = defaultdict(list)
        try:
            await self._write(group, lambda: self._release(group, released))
        except Contended:
            for entry in group:
                apart[entry[0].dataset_number].append(entry)
            await asyncio.gather(
                *(self._write_lane(part, self._loop.create_future()) for part in apart.values())
            )
        finally:
            if not apart:
                self._release(group, released)
                self._busy = len(group) + len(self._queue)

    def _release(self, group: list[_Entry], released: "asyncio.Future[None]") -> None:
        """Let those come that stood aside: they were there before what is in the queue."""
        if released.done():
            return
        released.set_result(None)
        for number in {commit.dataset_number for commit, _ in group}:
            self._queue.extendleft(reversed(self._aside.pop(number)))
        self._wake.set()

    async def _gather(self) -> None:
        """Let the queue grow, when there are others who will add to it."""
        self._enough = min(self._busy, MAX_GROUP_COMMITS)
        for _ in range(GATHER_ROUNDS):
            waiting = len(self._queue)
            if self._is_enough() or self._closed:
                return
            self._wake.clear()
            timer = self._loop.call_later(GATHER_SECONDS, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            if len(self._queue) == waiting:
                return

    def _is_enough(self) -> bool:
        return len(self._queue) >= self._enough or self._queued_bytes >= GATHER_BELOW_BYTES

    def _take_group(self) -> list[_Entry]:
        group: list[_Entry] = []
        size = 0
        while self._queue and len(group) < MAX_GROUP_COMMITS:
            commit, verdict = self._queue[0]
            if group and (
                size + commit.size_bytes > MAX_GROUP_BYTES or self._keep_apart(group[0][0], commit)
            ):
                break
            self._queue.popleft()
            self._queued_bytes -= commit.size_bytes
            if verdict.done():  # its caller has gone, and nothing has been done for it yet
                continue
            size += commit.size_bytes
            group.append((commit, verdict))
        return group

    def _keep_apart(self, first: Commit, second: Commit) -> bool:
        """Whether two commits must not share a group. One lane takes everything."""
        if self._lanes == 1:
            return False
        if isinstance(first.write, SessionCommit) or isinstance(second.write, SessionCommit):
            return True
        numbers = {first.dataset_number, second.dataset_number}
        return len(numbers) > 1 and not self._contended.isdisjoint(numbers)

    async def _write(self, group: list[_Entry], sent: Callable[[], None] | None = None) -> None:
        """Write a group and tell what became of it. Raises Contended."""
        commits = [commit for commit, _ in group]
        numbers = {commit.dataset_number for commit in commits}
        try:
            # Small ones are cheaper in large groups than one behind the other.
            large = sum(commit.size_bytes for commit in commits) >= GATHER_BELOW_BYTES
            written = await self._store.commit(commits, sent=sent if large else None)
        except Contended:
            raise
        except Exception as error:  # noqa: BLE001 - every caller gets it, and the queue must live on
            self._contended |= numbers
            for _, verdict in group:
                _fail(verdict, error)
            return
        self._contended -= numbers
        for appended in written.appended:
            self._notifier.announce(appended)
        for (_, verdict), result in zip(group, written.results, strict=True):
            if isinstance(result, SynclineError):
                _fail(verdict, result)
            elif not verdict.done():
                verdict.set_result(result)
        if self._observe is not None:
            self._observe(commits, written)


def _fail(verdict: "asyncio.Future[CommitResult]", error: Exception) -> None:
    if not verdict.done():
        verdict.set_exception(error)
