"""A seeded simulation of the cores that do no I/O, the server's and the SDK's against each other (T119).

Two servers with rings of four frames serve one store; clients follow either of them over links that are slow and
break. Time is virtual: whatever takes time is an event in a queue, and one seed decides all of it, so any run can be
repeated. The bytes between them are those of the wire; the store is a table in memory, which is also the oracle.
"""

import copy as copying
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from support.feed_store import Table
from syncline._events import Order
from syncline.events import ChangeBatch, Reset
from syncline.replica._apply import Course, Verdict
from syncline.replica._memory import MemoryCopy
from syncline.v1.sync_service_pb2 import SubscribeResponse
from syncline_server.feed import tokens
from syncline_server.feed.channel import frame_of, judge_page
from syncline_server.feed.frames import Frame, FrameMaker
from syncline_server.feed.pages import PageCache, Shelf
from syncline_server.feed.progress import Progress
from syncline_server.feed.ring import FrameCache, Ring
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import Origin
from syncline_server.model import Appended, Head, Page
from syncline_server.rpc.frames import ProtobufEncoder

KEYS = "abcdefghij"
SECRET = b"s" * 32
STORE_ID = b"store-id"
DATASET = 1
SETTINGS = FeedSettings(page_changes=3, page_bytes=200, scan_page_bytes=200, message_bytes=600)
SECONDS = 4.5
"""Of virtual time in which anything may happen; then everybody may reach the head."""


def run_through(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the core waited for something")


class World:
    """The store, the clock, and whatever is going to happen."""

    def __init__(self, seed: int, *, server: "type[Server]", client: "type[Client]") -> None:
        self.choose = random.Random(seed)
        self.now = 0.0
        self.number = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.histories: list[bytes] = []
        self.incarnation = self.choose.randbytes(16)
        self.table = Table(head=Head(commit_id=self.incarnation[:8]), commit_ids={0: self.incarnation[:8]})
        self.backup: tuple[Table, list[bytes]] | None = None
        self.servers = [server(self), server(self)]
        self.clients = [client(self, self.choose.choice(self.servers)) for _ in range(4)]
        self.is_calm = False

    def now_us(self) -> int:
        """See Clock."""
        return int(self.now * 1e6)

    def monotonic(self) -> float:
        """See Clock."""
        return self.now

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Something happens later, about then."""
        at = self.now + seconds * self.choose.uniform(0.5, 1.5)
        heapq.heappush(self._queue, (at, next(self.number), what))

    def run(self) -> None:
        """All of it. Raises AssertionError for what is not as promised."""
        for begin in (self.write, self.purge, self.disturb, *(client.connect for client in self.clients)):
            self.after(0.01, begin)
        while self._queue and self.now < SECONDS:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.is_calm = True
        for client in self.clients:
            client.reach_the_head()

    # -- the store ----------------------------------------------------------------------------------------

    def write(self) -> None:
        """A commit, or several as one group; each server hears of it in its own time, or never."""
        before = self.table.head
        for _ in range(self.choose.choice([1, 1, 1, 3])):
            keys = self.choose.sample(KEYS, self.choose.randint(1, 4))
            self.table.commit([(key, self.choose.choice([None, b"1", b"2", b"3" * 40])) for key in keys])
        if self.table.head != before:
            appended = Appended(
                dataset_number=DATASET,
                from_revision=before.revision,
                head=self.table.head,
                changes=self.table.changes(before.last_position),
            )
            for server in self.servers:
                if self.choose.random() < 0.9:
                    server.will_hear(appended)
        if not self.is_calm:
            self.after(0.03, self.write)

    def purge(self) -> None:
        """Tombstones go."""
        head = self.table.head
        self.table.purge(self.choose.randint(head.purge_revision, head.revision))
        self.after(0.3, self.purge)

    def disturb(self) -> None:
        """Something breaks."""
        match self.choose.choice(["cut", "cut", "client", "server", "keep", "restore"]):
            case "cut":
                self.choose.choice(self.clients).cut()
            case "client":
                self.choose.choice(self.clients).crash()
            case "server":
                self.choose.choice(self.servers).restart()
            case "keep":
                self.backup = (copying.deepcopy(self.table), list(self.histories))
            case "restore" if self.backup and self.choose.random() < 0.3:
                table, histories = self.backup
                self.table, self.histories = copying.deepcopy(table), list(histories)
                for server in self.servers:
                    server.restart()
        self.after(0.15, self.disturb)


class Server:
    """A process that serves the store: rings and the streams' positions, all of it lost when it ends."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.restart()

    def restart(self) -> None:
        """A new process on the store as it is."""
        world = self.world
        self.generation = next(world.number)
        history = world.choose.randbytes(8)
        world.histories.append(history)
        origin = Origin(store_id=STORE_ID, history_id=history, incarnation=world.incarnation)
        self.maker = FrameMaker(ProtobufEncoder(), origin, SECRET)
        self.ring = Ring(self.maker, max_bytes=2_000, max_frames=4, max_frame_bytes=700)
        self.shared = FrameCache(max_bytes=2_000, max_frames=4)
        self.pages = PageCache(world, max_bytes=8 << 10, seconds=1.0)
        self.shelf = Shelf(self.shared, self.pages, DATASET)
        self.known_revision = 0
        for client in getattr(world, "clients", ()):
            if client.server is self:
                client.cut()

    def will_hear(self, appended: Appended) -> None:
        """An announcement is under way, perhaps overtaken by later ones."""
        generation = self.generation

        def hear() -> None:
            if generation == self.generation:
                self.hear(appended)

        self.world.after(self.world.choose.choice([0.001, 0.02, 0.2]), hear)

    def hear(self, appended: Appended) -> None:
        """Feed the ring."""
        self.ring.append(appended)
        self.known_revision = max(self.known_revision, appended.head.revision)

    def read(self, progress: Progress) -> Page:
        """A page, in a snapshot of its own."""
        start = progress.position
        after, seen = (start.position, start.seen_revision) if start else (0, 0)
        return self.world.table.page(after, progress.page_changes, progress.page_bytes, seen)

    def frame(self, progress: Progress, page: Page) -> Frame:
        """What a page is sent as."""
        start = progress.position
        frame = frame_of(self.maker, start, page, judge_page(self.maker, start, page, self.world.histories))
        if frame.reset is None and frame.start != frame.end:
            self.shared.add(frame)
        self.pages.purged(DATASET, page.head.purge_revision)
        self.pages.add(DATASET, frame)
        if self.ring.head is None:
            self.ring.skip_to(page.head)
        return frame


class Client:
    """A replica in memory on a link of its own."""

    def __init__(self, world: World, server: Server) -> None:
        self.world = world
        self.server = server
        self.connection = 0
        self.copy: MemoryCopy[Any] = MemoryCopy(is_filtered=False)
        self.begin()

    # -- the SDK's side -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A process with what the one before it made durable."""
        self.course = Course(is_complete=self.copy.point.is_complete)
        self.order = Order(self.copy.resume, bytes)
        if not self.copy.point.is_complete:
            run_through(self.copy.begin())

    def crash(self) -> None:
        """The process ends: what was not proven is gone."""
        self.cut()
        self.copy._new, self.copy._waiting = None, {}
        self.begin()

    def take(self, message: bytes) -> None:
        """Handle a message as the loop of a replica does."""
        for event in SubscribeResponse.FromString(message).events:
            part = self.order.accept(event)  # a contradiction is raised: nothing here may cause one
            if isinstance(part, ChangeBatch):
                run_through(self.copy.add(part, part.token))
            elif isinstance(part, Reset):
                self.reset(part)
            else:
                tally = run_through(self.copy.settle(part, want_changes=False))
                assert self.course.judge(part, tally) is Verdict.SHOW, "G7: a copy that is not exact"

    def reset(self, reset: Reset) -> None:
        """A new copy begins."""
        self.course.reset()
        run_through(self.copy.begin())

    # -- the server's side --------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open a stream to either server, from the SDK's token."""
        if self.connection:
            return
        self.connection = next(self.world.number) + 1
        self.server = self.world.choose.choice(self.world.servers)
        self.under_way: deque[bytes] = deque()
        if (reset := self.order.reconnect()) is not None:
            self.reset(reset)
        token = self.order.resume
        position = tokens.decode(token, store_id=STORE_ID, secret=SECRET) if token else None
        self.progress = Progress(position, settings=SETTINGS, floor_revision=self.server.known_revision)
        self.server_step()

    def cut(self) -> None:
        """The link breaks; what is under way is lost."""
        self.connection = 0
        self.world.after(0.05, self.connect)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Something happens on this connection, if it still stands."""
        connection = self.connection

        def happen() -> None:
            if connection == self.connection:
                what()

        self.world.after(seconds, happen)

    def server_step(self) -> None:
        """The server sends what follows, reads it, or waits."""
        progress, server = self.progress, self.server
        frames = progress.ready(server.ring, server.shelf)
        if frames:
            self.send(frames)
        elif progress.must_read(server.known_revision):
            progress.confirm()
            page = server.read(progress)
            self.later(self.world.choose.choice([0.001, 0.03]), lambda: self.send_page(page))
            return
        elif self.world.choose.random() < 0.2:  # a look at the heads
            server.known_revision = max(server.known_revision, self.world.table.head.revision)
        self.later(self.world.choose.choice([0.005, 0.1]), self.server_step)

    def send_page(self, page: Page) -> None:
        """A page was read a while ago."""
        self.send([self.server.frame(self.progress, page)])
        self.later(0.005, self.server_step)

    def send(self, frames: list[Frame]) -> None:
        """Messages are under way, in order."""
        for frame in frames:
            self.progress.take(frame)
            self.under_way.append(frame.body)
            self.later(self.world.choose.choice([0.002, 0.05]), self.arrive)

    def arrive(self) -> None:
        """The oldest message that is under way arrives."""
        self.take(self.under_way.popleft())

    # -- the end ------------------------------------------------------------------------------------------

    def reach_the_head(self) -> None:
        """Undisturbed, a bounded number of messages makes the copy exact."""
        world, server = self.world, self.server
        self.crash()
        token = self.order.resume
        position = tokens.decode(token, store_id=STORE_ID, secret=SECRET) if token else None
        progress = Progress(position, settings=SETTINGS, floor_revision=world.table.head.revision)
        for _ in range(10 + 2 * len(world.table.rows)):
            frames = progress.ready(server.ring, server.shelf)
            if not frames:
                progress.confirm()
                frames = [server.frame(progress, server.read(progress))]
            for frame in frames:
                progress.take(frame)
                self.take(frame.body)
            if progress.is_exact and progress.position.revision == world.table.head.revision:
                break
        held = {put.record_id: (put.revision, put.json) for put in self.copy.records()}
        assert held == world.table.live(), "G7: not what the store holds"


# -- rules left out, which the simulation must notice ------------------------------------------------------


class RingByArrival(Server):
    """Takes announcements as if each followed the one before."""

    def hear(self, appended: Appended) -> None:
        if self.ring.head is not None and appended.from_revision > self.ring.head.revision:
            appended = replace(appended, from_revision=self.ring.head.revision)
        super().hear(appended)


class JudgesAtConnectOnly(Server):
    """Holds no page but the first of a stream against watermark and history."""

    def frame(self, progress: Progress, page: Page) -> Frame:
        if getattr(progress.position, "complete", True):
            return super().frame(progress, page)
        return self.maker.page(progress.position, page)


class TwoSnapshots(Server):
    """Reads the head after the page."""

    def frame(self, progress: Progress, page: Page) -> Frame:
        return super().frame(progress, replace(page, head=self.world.table.head) if page.complete else page)


class ForgetsPurges(Server):
    """Goes on below the watermark."""

    def frame(self, progress: Progress, page: Page) -> Frame:
        start = progress.position
        if start is not None and start.covered_revision < page.head.purge_revision:
            page = replace(
                page, seen_commit_id=start.seen_commit_id, head=replace(page.head, purge_revision=0)
            )
        return super().frame(progress, page)


class ResetIgnored(Client):
    """Goes on with what it has."""

    def reset(self, reset: Reset) -> None:
        del reset


class TokenBeforeData(Client):
    """Keeps the token of a batch that is not applied when the process ends."""

    def crash(self) -> None:
        token = self.order.resume
        super().crash()
        self.order = Order(token, bytes)


class SentTwice(Client):
    """Its link delivers some messages twice."""

    def arrive(self) -> None:
        message = self.under_way[0]
        super().arrive()
        if self.world.choose.random() < 0.05:
            self.take(message)


FAULTY_SERVERS = (RingByArrival, JudgesAtConnectOnly, TwoSnapshots, ForgetsPurges)
FAULTY_CLIENTS = (ResetIgnored, TokenBeforeData, SentTwice)


def simulate(seed: int, *, server: type[Server] = Server, client: type[Client] = Client) -> World:
    """One run. Raises AssertionError or FeedViolation."""
    world = World(seed, server=server, client=client)
    world.run()
    return world
