"""Everything that can go wrong, in the words of the contract.

::

    SynclineError                    code, reason, metadata
     +-- InvalidArgument             INVALID_REQUEST, RECORD_INVALID, TOKEN_INVALID, PAGE_TOKEN_INVALID,
     |                               LIMIT_EXCEEDED, REQUEST_ID_REUSED, SCHEMA_INVALID, FILTER_INVALID
     +-- Unauthenticated             KEY_MISSING, KEY_INVALID
     +-- PermissionDenied            PERMISSION_DENIED, SESSION_INVALID
     +-- NotFound                    DATASET_NOT_FOUND, SOURCE_NOT_FOUND, KEY_NOT_FOUND, RECORD_NOT_FOUND,
     |                               PRODUCER_NOT_FOUND, REPLICA_NOT_FOUND
     +-- AlreadyExists               DATASET_EXISTS, SOURCE_EXISTS
     +-- FailedPrecondition          SOURCE_DISABLED, REQUEST_ID_EXPIRED, IDENTITY_IN_USE,
     |                               IDENTITY_NOT_ADDRESSABLE, MASS_DELETE, SESSION_INCOMPLETE,
     |                               PRODUCER_FENCED
     +-- Aborted                     ETAG_MISMATCH, CONDITION_FAILED, DATASET_CHANGED, SESSION_CONFLICT,
     |                               LEASE_LOST
     +-- OutOfRange                  SEQUENCE_GAP
     +-- ResourceExhausted           OVERLOADED, STORE_FULL, TOO_MANY_SESSIONS, TOO_MANY_STREAMS,
     |                               TOO_MANY_SUBSCRIPTIONS
     +-- Unimplemented               NOT_OFFERED
     +-- Unavailable                 SHUTTING_DOWN, MOVED, STORE_UNAVAILABLE, REVISION_NOT_REACHED, READER_STUCK

All but Unavailable say that nothing was done (guarantee G4). A reason never changes its meaning, and a
metadata key, once published, stays. ``rpc/status.py`` turns these into ``google.rpc.Status``, in one table.
"""

from collections.abc import Mapping, Sequence

from syncline_server.model import Violation


class SynclineError(Exception):
    """Base of all; ``reason`` is UPPER_SNAKE and stable, ``metadata`` holds what the message mentions."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        **metadata: str | int | float,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}


class InvalidArgument(SynclineError):
    """The request is wrong and will stay wrong. ``fields`` names each wrong field with a description."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        fields: Sequence[tuple[str, str]] = (),
        violations: Sequence[Violation] = (),
        total_violations: int | None = None,
        **metadata: str | int | float,
    ) -> None:
        super().__init__(reason, message, retry_after_seconds=None, **metadata)
        self.fields = tuple(fields)
        self.violations = tuple(violations)
        self.total_violations = len(self.violations) if total_violations is None else total_violations


class Unauthenticated(SynclineError):
    """No key, or one that is unknown, wrong, expired or revoked; these four look the same."""


class PermissionDenied(SynclineError):
    """The key may not do this, or the session is not one that it may use."""


class NotFound(SynclineError):
    """It is not there."""


class AlreadyExists(SynclineError):
    """It is there already."""


class FailedPrecondition(SynclineError):
    """Something else must change first."""


class Aborted(SynclineError):
    """Somebody was faster: read again, decide again. ``violations`` tells the failed conditions."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        **metadata: str | int | float,
    ) -> None:
        super().__init__(reason, message, retry_after_seconds=None, **metadata)
        self.violations = tuple(violations)


class OutOfRange(SynclineError):
    """A number that cannot come next."""


class ResourceExhausted(SynclineError):
    """There is no room now; nothing was done."""


class Unimplemented(SynclineError):
    """This version does not offer it."""


class Unavailable(SynclineError):
    """It is not known whether anything was done: retry with the same request id."""
