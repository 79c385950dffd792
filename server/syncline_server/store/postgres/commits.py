"""Groups of commits, each with at most one behind it that is worked out while it is written.

Working a group out takes Python about as long as writing it takes PostgreSQL. So once a group of one dataset has been
sent, the next one of that dataset is looked up and planned on top of what the first one will have done. It is sent when
the first one is known to have been written exactly so; otherwise it is worked out anew.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import asyncpg

from syncline_server import failpoints
from syncline_server.errors import SynclineError, Unavailable
from syncline_server.model import Commit, CommitResult, SessionCommit
from syncline_server.store.abc import Contended, GroupResult
from syncline_server.store.carried import Carried
from syncline_server.store.plan import parts_of
from syncline_server.store.postgres import catalog, group, sessions
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.database import Database

LOCKED_GROUPS: Final = 16
"""After another node was faster, so many groups are worked out under the lock at once."""

_Done = tuple[group.Judged, float]
"""A group, and the time of the call that wrote it and waited for the disk."""


@dataclass(slots=True, kw_only=True)
class _Turn:
    """A group of one dataset, from when it was sent until it has ended."""

    judged: group.Judged | None = None
    is_as_judged: "asyncio.Future[bool]"
    """Set at its end: whether it was written at once, and so as it was worked out."""


class Commits:
    """Writes groups of commits: one at a time of each dataset, or two where the first one has called ``sent``."""

    def __init__(self, database: Database, random_bytes: Callable[[int], bytes]) -> None:
        self._database = database
        self._random_bytes = random_bytes
        self._locked_groups = 0
        self._turns: dict[int, _Turn] = {}
        """The group that was sent last, by dataset."""

    async def commit(
        self, commits: Sequence[Commit], carry_changes: int, sent: Callable[[], None] | None
    ) -> GroupResult:
        """See Store."""
        carried = Carried(carry_changes)
        results: list[CommitResult | SynclineError] = []
        started, sync_seconds = time.monotonic(), 0.0
        parts = list(parts_of(commits))
        for part in parts:
            try:
                if isinstance(part[0].write, SessionCommit):
                    results += await self._commit_session(part[0], carried, carry_changes)
                else:
                    last = sent if len(parts) == 1 else None
                    verdicts, seconds = await self._commit_group(part, carried, last, is_first=not results)
                    results += verdicts
                    sync_seconds += seconds
            except SynclineError as error:
                if not results:
                    raise
                results += [error] * (len(commits) - len(results))
                break
        return GroupResult(
            results=results,
            appended=carried.appended(),
            transaction_seconds=time.monotonic() - started,
            sync_seconds=sync_seconds,
        )

    async def _commit_session(
        self, commit: Commit, carried: Carried, carry_changes: int
    ) -> list[CommitResult | SynclineError]:
        await self._let_pass({commit.dataset_number})
        return await self._database.transact(
            sessions.commit_session,
            commit,
            carried,
            carry_changes,
            held_us=self._database.held_us,
            random_bytes=self._random_bytes,
        )

    async def _commit_group(
        self, commits: Sequence[Commit], carried: Carried, sent: Callable[[], None] | None, *, is_first: bool
    ) -> tuple[list[CommitResult | SynclineError], float]:
        """Verdicts, and the time of the call that writes and waits for the disk. Raises Contended."""
        failpoints.hit("commit.before")
        numbers = {commit.dataset_number for commit in commits}
        impatient = is_first and len(numbers) > 1
        try:
            if len(numbers) == 1:
                judged, seconds = await self._commit_in_turn(numbers.pop(), commits, sent)
            else:
                await self._let_pass(numbers, impatient=impatient)
                judged, seconds = await self._write(commits, impatient=impatient)
        except Unavailable as error:
            if impatient and isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                raise Contended from error
            raise
        failpoints.hit("commit.after")
        judged.carry(carried)
        return judged.results, seconds

    async def _let_pass(self, numbers: set[int], *, impatient: bool = False) -> None:
        """Wait until no group is under way of any of these datasets. Raises Contended."""
        ahead = [self._turns[number].is_as_judged for number in numbers & self._turns.keys()]
        if ahead:
            _, late = await asyncio.wait(ahead, timeout=group.IMPATIENT_MS / 1000 if impatient else None)
            if late:
                raise Contended

    async def _commit_in_turn(
        self, number: int, commits: Sequence[Commit], sent: Callable[[], None] | None
    ) -> _Done:
        """Write a group of one dataset behind the one that is under way; let the next one come when it is sent."""
        ahead = self._turns.get(number)
        if sent is None:
            return await self._write(commits, ahead)
        turn = _Turn(is_as_judged=asyncio.get_running_loop().create_future())
        done: _Done | None = None

        def send(judged: group.Judged) -> None:
            turn.judged = judged
            self._turns[number] = turn
            sent()

        try:
            done = await self._write(commits, ahead, send)
            return done
        finally:
            turn.is_as_judged.set_result(done is not None and done[0] is turn.judged)
            if self._turns.get(number) is turn:
                del self._turns[number]

    async def _write(
        self,
        commits: Sequence[Commit],
        ahead: _Turn | None = None,
        send: Callable[[group.Judged], None] | None = None,
        *,
        impatient: bool = False,
    ) -> _Done:
        done: _Done | None = None
        if self._locked_groups:
            self._locked_groups -= 1
        else:
            # A request id that another node uses at this moment, on another dataset, shows under the locks.
            with suppress(asyncpg.UniqueViolationError):
                done = await self._look_and_write(commits, ahead, send, impatient=impatient)
        if done is None:
            if ahead is not None:
                await asyncio.wait([ahead.is_as_judged])
            done = await self._database.transact(self._lock_and_write, commits, impatient=impatient)
        return done

    async def _look_and_write(
        self,
        commits: Sequence[Commit],
        ahead: _Turn | None,
        send: Callable[[group.Judged], None] | None,
        *,
        impatient: bool,
    ) -> _Done | None:
        """Work the group out without locks; None when something changed meanwhile."""
        async with self._database.writing() as connection:
            judged = await self._judge(connection, commits, ahead)
            if ahead is None:
                return await self._apply(connection, judged, send, impatient=impatient)
        # The connection is of use to others meanwhile.
        await asyncio.wait([ahead.is_as_judged])
        if not ahead.is_as_judged.result():
            return None
        async with self._database.writing() as connection:
            return await self._apply(connection, judged, send, impatient=impatient)

    async def _judge(
        self, connection: Connection, commits: Sequence[Commit], ahead: _Turn | None = None
    ) -> group.Judged:
        return await group.judge_group(
            connection,
            commits,
            before=None if ahead is None else ahead.judged,
            held_us=self._database.held_us,
            random_bytes=self._random_bytes,
        )

    async def _apply(
        self,
        connection: Connection,
        judged: group.Judged,
        send: Callable[[group.Judged], None] | None = None,
        *,
        impatient: bool = False,
    ) -> _Done | None:
        if judged.arguments is None:
            return judged, 0.0
        started = time.monotonic()
        if send is not None:
            send(judged)
        if not await group.apply(connection, judged, impatient=impatient):
            self._locked_groups = LOCKED_GROUPS
            return None
        return judged, time.monotonic() - started

    async def _lock_and_write(
        self, connection: Connection, commits: Sequence[Commit], *, impatient: bool
    ) -> _Done:
        """The same with the datasets locked from the look on, which always comes to an end."""
        if impatient:
            await group.be_impatient(connection)
        await catalog.lock_datasets(connection, {commit.dataset_number for commit in commits})
        done = await self._apply(connection, await self._judge(connection, commits))
        assert done is not None, "nobody else can change a dataset that is locked"
        return done
