"""What belongs to a call while it lasts: who makes it, and which streams are open.

Handlers ask ``caller()`` and, in streams, tell ``allow_while`` under which condition they may go on.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

from syncline_server.errors import (
    PermissionDenied,
    ResourceExhausted,
    SynclineError,
    Unauthenticated,
    Unavailable,
)
from syncline_server.model import Principal

WRITE_SECONDS: Final = 300.0
"""Default of how long a client may take nothing of what is sent to it."""

Authenticate = Callable[[str], Awaitable[Principal]]
"""Secret to principal; raises Unauthenticated. Answers may be some seconds old."""

StillAllowed = Callable[[Principal], bool]


class Call:
    """A call and its caller."""

    __slots__ = ("principal", "secret", "still_allowed", "writing_since")

    def __init__(self, principal: Principal, secret: str) -> None:
        self.principal = principal
        self.secret = secret
        self.still_allowed: StillAllowed | None = None
        self.writing_since: float | None = None
        """When the write under way was begun, on the loop's clock."""


_call: Final[ContextVar[Call]] = ContextVar("syncline_call")


def enter_call(call: Call) -> None:
    """Make this the call of the current task. gRPC runs every call in a task of its own."""
    _call.set(call)


def caller() -> Principal:
    """Who makes the current call."""
    return _call.get().principal


def allow_while(condition: StillAllowed) -> None:
    """Let the current stream go on only while this holds for its key, whose rights can change."""
    _call.get().still_allowed = condition


class _OpenStream:
    """A stream, and the way to end it from outside."""

    __slots__ = ("call", "ended_by", "scope")

    def __init__(self, call: Call, scope: asyncio.Timeout) -> None:
        self.call = call
        self.scope = scope
        self.ended_by: SynclineError | None = None

    def end(self, reason: SynclineError) -> None:
        if self.ended_by is None and not self.scope.expired():
            self.ended_by = reason
            self.scope.reschedule(asyncio.get_running_loop().time())


class OpenStreams:
    """All streams that are open: how many a key may have, and whether their keys are still good."""

    def __init__(
        self, authenticate: Authenticate, *, per_key: int, write_seconds: float = WRITE_SECONDS
    ) -> None:
        self._authenticate = authenticate
        self._per_key = per_key
        self._write_seconds = write_seconds
        self._count: Counter[str] = Counter()
        self._by_secret: defaultdict[str, set[_OpenStream]] = defaultdict(set)

    def __len__(self) -> int:
        return self._count.total()

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[None]:
        """Count the stream while the block lasts; end the block with the error when its key is refused.

        Raises ResourceExhausted(TOO_MANY_STREAMS). Must be left in the task that entered it.
        """
        key_id = call.principal.key_id
        if self._count[key_id] >= self._per_key:
            raise ResourceExhausted(
                "TOO_MANY_STREAMS",
                f"this key has {self._per_key} open streams, which is the most it may have",
                maximum=self._per_key,
            )
        self._count[key_id] += 1
        stream = None
        try:
            async with asyncio.timeout(None) as scope:
                stream = _OpenStream(call, scope)
                self._by_secret[call.secret].add(stream)
                yield
        except TimeoutError:
            if stream is None or stream.ended_by is None:
                raise
            raise stream.ended_by from None
        finally:
            self._forget(call, stream)

    def _forget(self, call: Call, stream: _OpenStream | None) -> None:
        key_id = call.principal.key_id
        self._count[key_id] -= 1
        if not self._count[key_id]:
            del self._count[key_id]
        streams = self._by_secret[call.secret]
        if stream is not None:
            streams.discard(stream)
        if not streams:
            del self._by_secret[call.secret]

    async def check_keys(self) -> None:
        """Look once whether the keys of all open streams are still good, and end those whose key is not.

        A store that cannot be read gives no verdict: revoking needs it too, so nothing is missed.
        """
        for secret, streams in tuple(self._by_secret.items()):
            try:
                principal = await self._authenticate(secret)
            except Unauthenticated as error:
                for stream in tuple(streams):
                    stream.end(error)
                continue
            for stream in tuple(streams):
                if stream.call.still_allowed is not None and not stream.call.still_allowed(principal):
                    stream.end(
                        PermissionDenied("PERMISSION_DENIED", "this key may not read the dataset any more")
                    )

    async def check_writes(self) -> None:
        """End the streams whose clients have taken nothing for too long, though their connections live (hazard F33)."""
        begun_before = asyncio.get_running_loop().time() - self._write_seconds
        for streams in tuple(self._by_secret.values()):
            for stream in tuple(streams):
                since = stream.call.writing_since
                if since is not None and since < begun_before:
                    stream.end(
                        Unavailable(
                            "READER_STUCK",
                            f"nothing was taken of this stream for {self._write_seconds:g} s; connect again and go on "
                            "from the last token",
                        )
                    )
