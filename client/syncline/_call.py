"""Unary calls: deadline, retries with full jitter, typed errors.

Retried is what may be repeated without harm: every read, and every write, since each carries an identity that the
server recognises. What gRPC itself could retry is switched off.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc.aio

from syncline import errors
from syncline._status import is_connection_trouble, to_error
from syncline._transport import Endpoint
from syncline._wire import to_violations
from syncline.errors import InvalidRecords, SynclineError
from syncline.models import Violation
from syncline.names import new_request_id
from syncline.v1.server_service_pb2 import GetServerInfoRequest
from syncline.v1.server_service_pb2_grpc import ServerServiceStub

LOG: Final = logging.getLogger("syncline")

Response = TypeVar("Response")

DEFAULT_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a call is repeated."""

    attempts: int | None = 4
    """At most so many while the server has never answered; then, and with None, until the deadline."""
    first_seconds: float = 0.1
    """Upper bound of the first pause; doubled for each further one. The pause is drawn from zero up to it."""
    max_seconds: float = 2.0
    attempt_seconds: float = 30.0
    """A write that is not answered for so long, or for half of the time left, is asked for again."""

    def pause_seconds(self, failures: int) -> float:
        """A pause after so many failures in a row (1, 2, …): full jitter."""
        bound = min(self.max_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))
        return random.uniform(0, bound)  # noqa: S311 - not a secret


INTERACTIVE: Final = RetryPolicy()
"""Somebody waits: four attempts within the deadline, or more with a server that has answered before."""

PATIENT: Final = RetryPolicy(attempts=None)
"""Bulk work that should survive a restart of the server: attempts until the deadline."""

PATIENT_TIMEOUT_SECONDS: Final = 120.0
"""How long bulk work waits for a server that is away."""

LONG: Final = RetryPolicy(attempts=None, attempt_seconds=300.0)
"""One call whose work grows with the dataset: committing a session, deleting or re-keying a dataset."""

LONG_TIMEOUT_SECONDS: Final = 600.0


class Caller:
    """Makes calls for one client."""

    __slots__ = ("_answered", "_clock_offset_ms", "_endpoint", "_metadata", "_server", "timeout_seconds")

    def __init__(self, endpoint: Endpoint, server: ServerServiceStub, *, timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._server = server
        self._metadata = endpoint.metadata()
        self._clock_offset_ms = 0
        self._answered = False
        """A server that was there is worth waiting for: it is being restarted. A wrong address is told at once."""
        self.timeout_seconds = timeout_seconds

    @property
    def endpoint(self) -> Endpoint:
        """Where the calls go."""
        return self._endpoint

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return self._metadata

    def new_request_id(self) -> str:
        """A fresh identity for a write, by the server's clock where ours is known to be wrong."""
        if self._clock_offset_ms:
            return new_request_id(time.time_ns() // 1_000_000 + self._clock_offset_ms)
        return new_request_id()

    async def read(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Make a call without effects. Raises SynclineError."""
        timeout = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            response = await method(request, timeout=timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            failure = to_error(error, self._endpoint)
        else:
            self._answered = True
            return response
        return await self._retry(
            method, request, failure, INTERACTIVE, deadline=_now() + timeout, write=False
        )

    async def write(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        timeout_seconds: float | None = None,
        policy: RetryPolicy = INTERACTIVE,
    ) -> Any:
        """Make a call with effects; ``request.request_id``, where it has one and it is empty, is filled in.

        Raises SynclineError; OutcomeUnknown when neither success nor refusal was heard of.
        """
        if not request.request_id:
            request.request_id = self.new_request_id()
        return await self.write_identified(method, request, timeout_seconds=timeout_seconds, policy=policy)

    async def write_identified(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        timeout_seconds: float | None = None,
        policy: RetryPolicy = INTERACTIVE,
    ) -> Any:
        """Make a call with effects whose request already holds what makes it recognisable."""
        timeout = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = _now() + timeout
        try:
            response = await method(request, timeout=_share(timeout, policy), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            failure = to_error(error, self._endpoint)
        else:
            self._answered = True
            return response
        if is_clock_trouble(failure):
            # A fresh id is safe only because this was the first attempt: an older one might have had effect.
            await self._learn_clock(failure)
            request.request_id = self.new_request_id()
            return await self._retry(method, request, None, policy, deadline=deadline, write=True)
        return await self._retry(method, request, failure, policy, deadline=deadline, write=True)

    async def _retry(
        self,
        method: Callable[..., Any],
        request: Any,
        failure: SynclineError | None,
        policy: RetryPolicy,
        *,
        deadline: float,
        write: bool,
    ) -> Any:
        """Go on after ``failure``, or without one make the next attempt at once."""
        attempts = 1
        doubt: SynclineError | None = None  # an earlier attempt that may have had its effect
        while True:
            pause = 0.0
            if failure is not None:
                if write and isinstance(failure, errors.OutcomeUnknown):
                    doubt = failure
                if not _may_repeat(failure, write=write):
                    raise _in_doubt(failure, doubt)
                pause = max(policy.pause_seconds(attempts), self._told_pause_seconds(failure))
                limit = None if self._answered else policy.attempts
                exhausted = limit is not None and attempts >= limit
                if exhausted or _now() + pause >= deadline:
                    failure.add_note(f"gave up after {attempts} attempts")
                    raise _in_doubt(failure, doubt)
                LOG.debug("attempt %d failed, next in %.3f s: %s", attempts, pause, failure.message)
                await asyncio.sleep(pause)
            remaining = max(deadline - _now(), 0.001)
            try:
                response = await method(
                    request,
                    timeout=_share(remaining, policy) if write else remaining,
                    metadata=self._metadata,
                )
            except grpc.aio.AioRpcError as error:
                failure = to_error(error, self._endpoint)
                attempts += 1
            else:
                self._answered = True
                return response

    def _told_pause_seconds(self, failure: SynclineError) -> float:
        """How long the server asks to wait: a server that goes away asks it of those that have no other."""
        if self._endpoint.route.count > 1 and failure.reason == "SHUTTING_DOWN":
            return 0.0
        return failure.retry_after_seconds or 0.0

    async def _learn_clock(self, failure: SynclineError) -> None:
        """Take over the server's clock, since it finds that a fresh request id is not of today."""
        told = failure.metadata.get("server_time_ms", "")
        if told.isdigit():
            server_ms = int(told)
        else:
            info = await self.read(self._server.GetServerInfo, GetServerInfoRequest())
            server_ms = info.server_time.ToMilliseconds()
        self._clock_offset_ms = server_ms - time.time_ns() // 1_000_000
        LOG.warning(
            "this machine's clock is %.0f s off the server's; request ids are made with the server's",
            -self._clock_offset_ms / 1000,
        )


async def complete_violations(
    error: InvalidRecords, validate: Callable[[], Awaitable[Any]], *, offset: int = 0
) -> None:
    """Fetch the violations that a refusal had no room for, by ``validate``, the same call with ``validate_only``.

    ``offset`` is added to every index.
    """
    if error.total_violations > len(error.violations):
        try:
            response = await validate()
        except SynclineError as failure:
            LOG.debug("the other violations could not be read: %s", failure.message)
        else:
            if len(response.violations) > len(error.violations):
                error.violations = to_violations(response.violations)
                error.total_violations = max(error.total_violations, len(error.violations))
    error.violations = move_violations(error.violations, offset)


def move_violations(violations: Sequence[Violation], offset: int) -> tuple[Violation, ...]:
    """The same, counted from ``offset`` rows before."""
    if not offset:
        return tuple(violations)
    return tuple(
        Violation(index=v.index + offset, pointer=v.pointer, keyword=v.keyword, message=v.message)
        for v in violations
    )


def is_clock_trouble(failure: SynclineError) -> bool:
    """Whether the server finds the time inside a request id too far from its own."""
    return failure.reason == "REQUEST_ID_EXPIRED" or (
        failure.reason == "INVALID_REQUEST" and "request_id" in failure.fields
    )


def _may_repeat(failure: SynclineError, *, write: bool) -> bool:
    if is_connection_trouble(failure):
        return True
    if isinstance(failure, errors.DeadlineExceeded):
        return write  # a lost answer; a read that found no time will find none
    if isinstance(failure, errors.Overloaded):
        return failure.retry_after_seconds is not None
    # Refused because the settings changed between check and commit; with a revision it was carried out.
    return failure.reason == "DATASET_CHANGED" and "revision" not in failure.metadata


def _in_doubt(failure: SynclineError, doubt: SynclineError | None) -> SynclineError:
    """What to raise for a write's last failure, where an earlier attempt may have had its effect.

    These refusals are made before the server looks for what the earlier attempt did, and say nothing about it.
    """
    before_looking = errors.Overloaded | errors.NotAuthenticated | errors.PermissionDenied
    if doubt is None or not isinstance(failure, before_looking) or isinstance(failure, errors.SessionInvalid):
        return failure
    doubt.add_note(f"a later attempt was refused: {failure.message}")
    doubt.__cause__ = failure
    return doubt


def _share(remaining_seconds: float, policy: RetryPolicy) -> float:
    """Time for one attempt of a write: half of what is left, so that a lost answer leaves room to ask again."""
    if remaining_seconds < 1.0:
        return remaining_seconds
    return max(1.0, min(remaining_seconds / 2, policy.attempt_seconds))


def _now() -> float:
    return asyncio.get_running_loop().time()
