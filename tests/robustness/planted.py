"""Faults planted into the server and into the SDK, to see that the checker catches them (T118).

``run_planted.py`` runs ``syncline-server`` with one of them. Nothing of this is in the product.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

SERVER: dict[str, Callable[[], None]] = {}
"""What each patch of the server does, by name."""

CLIENT: dict[str, Callable[[], Any]] = {}
"""A context manager that patches the SDK in this process, by name."""


def server(patch: Callable[[], None]) -> Callable[[], None]:
    SERVER[patch.__name__] = patch
    return patch


def client(patch: Callable[[], Any]) -> Callable[[], Any]:
    CLIENT[patch.__name__] = contextmanager(patch)
    return patch


def command(name: str) -> tuple[str, ...]:
    """What to put before the command that starts a server."""
    return (sys.executable, str(Path(__file__).with_name("run_planted.py").resolve()), name)


def stores() -> Sequence[Any]:
    """The classes of both stores."""
    from syncline_server.store.postgres.store import PostgresStore
    from syncline_server.store.sqlite.store import SqliteStore

    return (SqliteStore, PostgresStore)


# -- disturbances: legal, and no fault ----------------------------------------------------------------------


@server
def sound() -> None:
    """Nothing: the same entry, the product as it is."""


@server
def announcements_are_lost() -> None:
    """One commit in three is not announced. Wake-ups are hints, so this breaks no promise."""
    from syncline_server.notify.local import LocalNotifier

    announce, count = LocalNotifier.announce, itertools.count()

    def forgetful(self: Any, appended: Any) -> None:
        if next(count) % 3:
            announce(self, appended)

    LocalNotifier.announce = forgetful


# -- the feed -----------------------------------------------------------------------------------------------


@server
def revoked_keys_live_on() -> None:
    """Streams are let in by their key, and never asked for it again."""
    from syncline_server.rpc.calls import OpenStreams

    async def look_away(self: Any) -> None:
        del self

    OpenStreams.check_keys = look_away


@server
def watermark_checked_only_at_connect() -> None:
    """A token is held against the purge watermark when a stream begins, and no page after that (F1)."""
    from syncline_server.feed import tokens
    from syncline_server.feed.feed import Feed
    from syncline_server.model import ResetReason

    judge, decode, fresh = tokens.judge, Feed.decode, set()

    def at_connect(self: Any, token: bytes) -> Any:
        position = decode(self, token)
        if position is not None and position.complete:
            fresh.add(position)
        return position

    def once(position: Any, **facts: Any) -> Any:
        reason = judge(position, **facts)
        if reason is ResetReason.COMPACTED and position not in fresh:
            return None
        return reason

    Feed.decode = at_connect
    tokens.judge = once


@server
def head_read_in_a_second_transaction() -> None:
    """The page and the head that it claims to reach are of two snapshots (F3)."""
    for store in stores():

        async def torn(self: Any, dataset_number: int, *, _read: Any = store.read_changes, **how: Any) -> Any:
            page = await _read(self, dataset_number, **how)
            await asyncio.sleep(0.01)
            return replace(page, head=await self.read_head(dataset_number)) if page.complete else page

        store.read_changes = torn


@server
def checkpoint_at_the_cursor() -> None:
    """Every page ends in a checkpoint, at the revision of its last row (F3)."""
    from syncline_server.feed.frames import FrameMaker

    page_of = FrameMaker.page

    def hasty(self: Any, start: Any, page: Any) -> Any:
        frame = page_of(self, start, page)
        if page.complete:
            return frame
        head = replace(page.head, revision=page.last_revision)
        body = frame.body + self._encoder.checkpoint(head, token=self.token(frame.end))
        return replace(frame, body=body)

    FrameMaker.page = hasty


@server
def remove_only_what_matched() -> None:
    """Rows that do not match are passed over in pages of the store, as if the copy could not hold them (F5)."""
    from syncline_server.feed import filtered_channel

    select = filtered_channel.select

    def naive(selection: Any, changes: Any, base_revision: int, columns: Any) -> None:
        del base_revision
        select(selection, changes, 1 << 62, columns)

    filtered_channel.select = naive


@server
def ring_by_arrival() -> None:
    """The ring takes what comes as if it followed, where announcements may be lost (F11)."""
    announcements_are_lost()
    from syncline_server.feed.ring import Ring

    append = Ring.append

    def trusting(self: Any, appended: Any, **how: Any) -> None:
        if self.head is not None and appended.from_revision > self.head.revision:
            appended = replace(appended, from_revision=self.head.revision)
        append(self, appended, **how)

    Ring.append = trusting


@server
def bookmark_ahead_of_data() -> None:
    """The checkpoint of a group of commits is sent before its changes (F13)."""
    from syncline_server.feed.frames import FrameMaker

    def group(self: Any, start: Any, appended: Any, changes: Any, *, folded: Any = None) -> Any:
        frame = whole(self, start, appended, changes, folded=folded)
        mark = self.checkpoint(appended.head)
        return replace(frame, body=mark + frame.body[: -len(mark)])

    whole = FrameMaker.group
    FrameMaker.group = group


@server
def frame_sent_twice() -> None:
    """Now and then a frame is sent a second time."""
    from syncline_server.feed.subscription import Subscription

    take, count = Subscription._take, itertools.count(1)

    def twice(self: Any, frames: Any, now: float) -> Any:
        bodies = take(self, frames, now)
        return bodies if next(count) % 10 else [*bodies, *bodies]

    Subscription._take = twice


@server
def wake_up_lost() -> None:
    """Who waits is forgotten without being woken, two times in three."""
    from syncline_server.feed.channel import Channel

    wake, count = Channel.wake, itertools.count(1)

    def forgetful(self: Any) -> None:
        if next(count) % 3:
            self._waiters.clear()
        wake(self)

    Channel.wake = forgetful


@server
def stale_token_goes_on() -> None:
    """A token whose tombstones are gone is continued (F1)."""
    from syncline_server.feed import tokens
    from syncline_server.model import ResetReason

    judge = tokens.judge

    def generous(position: Any, **facts: Any) -> Any:
        reason = judge(position, **facts)
        return None if reason is ResetReason.COMPACTED else reason

    tokens.judge = generous


@server
def reset_without_need() -> None:
    """A resumed copy is now and then begun anew although it could go on."""
    from syncline_server.feed import tokens
    from syncline_server.model import ResetReason

    judge, count = tokens.judge, itertools.count(1)

    def timid(position: Any, **facts: Any) -> Any:
        return judge(position, **facts) or (ResetReason.HISTORY_CHANGED if next(count) % 10 == 0 else None)

    tokens.judge = timid


@server
def purge_not_contiguous() -> None:
    """Purge drops tombstones above the watermark that it sets (F17)."""
    from syncline_server.store.postgres import upkeep as postgres
    from syncline_server.store.sqlite import upkeep

    postgres._SET_WATERMARK = "UPDATE head SET purge_revision = greatest(0, $2::bigint - 1000), version = version + 1 WHERE dataset_number = $1"
    postgres._PURGE_REVISIONS = (
        "DELETE FROM revision WHERE dataset_number = $1 AND revision < $2::bigint - 1000"
    )
    upkeep._SET_WATERMARK = "UPDATE head SET purge_revision = max(0, ? - 1000) WHERE dataset_number = ?"
    upkeep._PURGE_REVISIONS = "DELETE FROM revision WHERE dataset_number = ? AND revision < ? - 1000"


# -- the store ----------------------------------------------------------------------------------------------


@server
def acknowledged_before_commit() -> None:
    """A group is answered when its rows are written; COMMIT follows a little later (F10)."""
    import threading

    from syncline_server.store.sqlite import writer

    transact = writer.Writer._transact

    class Lazy:
        """A connection whose COMMIT waits for the next transaction."""

        def __init__(self, plain: Any) -> None:
            self._plain = plain
            self._commits_later = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._plain, name)

        def execute(self, statement: str, *args: Any) -> Any:
            if statement == "COMMIT" and self._commits_later:
                return None
            self._commits_later = statement.startswith("INSERT INTO revision") or self._commits_later
            if statement == "BEGIN IMMEDIATE" and self._plain.in_transaction:
                self._plain.execute("COMMIT")
            return self._plain.execute(statement, *args)

    def hasty(self: Any, plain: Any, work: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        return transact(self, Lazy(plain), work)

    outside = writer.Writer._outside

    def settled(self: Any, plain: Any, work: Any) -> Any:
        if plain.in_transaction:
            plain.execute("COMMIT")
        return outside(self, plain, work)

    writer.Writer._transact = hasty
    writer.Writer._outside = settled


@server
def requests_remembered_in_another_transaction() -> None:
    """The answer to a request id is kept by the transaction after the one with its effect (F25)."""
    from syncline_server.store.sqlite import group

    remember, look_up, late = group.remember_answers, group.look_up, []

    def later(connection: Any, answers: Any, *, now_us: int) -> None:
        late.append((answers, now_us))

    def look_up_late(connection: Any, commits: Any) -> Any:
        while late:
            answers, now_us = late.pop()
            remember(connection, answers, now_us=now_us)
        return look_up(connection, commits)

    group.remember_answers = later
    group.look_up = look_up_late


@server
def numbers_moved_in_another_transaction() -> None:
    """A producer's high-water mark is moved by the transaction after the one with its readings (F25)."""
    from syncline_server.store.sqlite import group

    write, look_up, late = group.write_plan, group.look_up, []

    def write_without(connection: Any, plan: Any) -> None:
        producers = dict(plan.known.producers)
        plan.known.producers.clear()
        write(connection, plan)
        plan.known.producers.update(producers)
        late.extend((p.number, p.last_sequence, plan.now_us) for p in producers.values() if p.changed)

    def look_up_late(connection: Any, commits: Any) -> Any:
        for number, sequence, now_us in late:
            connection.execute(group._MOVE_PRODUCERS, (now_us, f'{{"{number}":{sequence}}}'))
        late.clear()
        return look_up(connection, commits)

    group.write_plan = write_without
    group.look_up = look_up_late


@server
def clones_not_fenced() -> None:
    """Readings of an older epoch are taken, with whatever numbers they have (F26)."""
    from syncline_server.ingest.producers import ProducerStreams
    from syncline_server.store.plan import Plan

    check = Plan._check_producer

    def lenient(self: Any, commit: Any, write: Any) -> Any:
        producer = self.known.producers[write.producer_number]
        if producer.epoch == write.epoch:
            return check(self, commit, write)
        return replace(producer, last_sequence=write.first_sequence - 1)

    Plan._check_producer = lenient
    ProducerStreams._fence_older = lambda self, producer: None


@server
def late_close_accepted() -> None:
    """The close of a session that was superseded ends the one that its source has open now (F23)."""
    from syncline_server.errors import PermissionDenied
    from syncline_server.ingest.sessions import Sessions

    close = Sessions.close

    async def lenient(self: Any, *where: Any, calls: Any, identity: Any = None, **how: Any) -> Any:
        try:
            return await close(self, *where, calls=calls, identity=identity, **how)
        except PermissionDenied:
            principal, dataset_id, source_id, _ = where
            target = await self._write_path.target(principal, dataset_id, source_id)
            for session_id, line in self._lines.items():
                if line.session.source_number == target.source.number:
                    where = (principal, dataset_id, source_id, session_id)
                    session = await self._store.get_session(session_id, source_number=target.source.number)
                    return await close(self, *where, calls=session.calls, identity=identity, **how)
            raise

    Sessions.close = lenient


@server
def reads_from_a_cache() -> None:
    """Records are answered from what was read up to half a second ago (G14)."""
    for store, name in itertools.product(stores(), ("get_records", "list_records")):
        read = getattr(store, name)
        kept: dict[Any, tuple[float, Any]] = {}

        async def cached(self: Any, *args: Any, _read: Any = read, _kept: Any = kept, **how: Any) -> Any:
            what = repr((args, how))
            if what not in _kept or time.monotonic() - _kept[what][0] > 0.5:
                _kept[what] = (time.monotonic(), await _read(self, *args, **how))
            return _kept[what][1]

        setattr(store, name, cached)


# -- the SDK ------------------------------------------------------------------------------------------------


@client
def token_before_data() -> Iterator[None]:
    """The feed's token is that after the batch as soon as its first event was handed out (F61)."""
    from syncline.events import ChangeBatch
    from syncline.feed import ChangeFeed

    step = ChangeFeed._next_part

    async def hasty(self: Any) -> Any:
        part = await step(self)
        if isinstance(part, ChangeBatch):
            part.previous_token = part.token
        return part

    with mock.patch.object(ChangeFeed, "_next_part", hasty):
        yield


@client
def reset_ignored() -> Iterator[None]:
    """A copy goes on with what it has when it is told to begin anew (F61)."""
    from syncline import Copy, Reset

    apply = Copy.apply

    def deaf(self: Any, event: Any) -> None:
        if not isinstance(event, Reset):
            apply(self, event)

    with mock.patch.object(Copy, "apply", deaf):
        yield


@client
def duplicate_applied_twice() -> Iterator[None]:
    """A replica counts the changes of some batches twice."""
    from syncline._digest import Tally

    add, count = Tally.add, itertools.count(1)

    def twice(self: Any, entries: Any) -> None:
        add(self, entries)
        if entries and next(count) % 5 == 0:
            add(self, entries)

    with mock.patch.object(Tally, "add", twice):
        yield
