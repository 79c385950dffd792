"""Everything that can go wrong, by what it means for the caller.

::

    SynclineError                      reason, message, code, metadata, retry_after_seconds
     +-- Rejected                      nothing was done, and a rejected write never appears later
     |    +-- InvalidArgument          the request is wrong and stays wrong; fields
     |    |    +-- InvalidRecords      RECORD_INVALID: violations
     |    |    +-- LimitExceeded       LIMIT_EXCEEDED
     |    |    +-- SchemaInvalid       SCHEMA_INVALID
     |    |    +-- TokenInvalid        TOKEN_INVALID
     |    +-- NotAuthenticated         KEY_MISSING, KEY_INVALID
     |    +-- PermissionDenied         PERMISSION_DENIED
     |    |    +-- SessionInvalid      SESSION_INVALID
     |    +-- NotFound                 DATASET_NOT_FOUND, SOURCE_NOT_FOUND, KEY_NOT_FOUND, RECORD_NOT_FOUND
     |    +-- AlreadyExists            DATASET_EXISTS, SOURCE_EXISTS
     |    +-- FailedPrecondition       REQUEST_ID_EXPIRED, IDENTITY_NOT_ADDRESSABLE, SESSION_INCOMPLETE
     |    |    +-- SourceDisabled      SOURCE_DISABLED
     |    |    +-- IdentityInUse       IDENTITY_IN_USE
     |    |    +-- MassDeleteRefused   MASS_DELETE
     |    |    +-- ProducerFenced      PRODUCER_FENCED
     |    +-- Aborted                  somebody was faster: DATASET_CHANGED
     |    |    +-- ConditionFailed     CONDITION_FAILED: violations
     |    |    +-- EtagMismatch        ETAG_MISMATCH
     |    |    +-- SessionConflict     SESSION_CONFLICT
     |    +-- OutOfRange               SEQUENCE_GAP
     |    +-- Overloaded               OVERLOADED, STORE_FULL, TOO_MANY_SESSIONS, TOO_MANY_STREAMS
     |    +-- NotOffered               NOT_OFFERED, and methods that the server does not know
     +-- OutcomeUnknown                it may have been done: only the same request id makes a retry safe
     |    +-- Unavailable              no server, no connection, shutting down, REVISION_NOT_REACHED
     |    +-- DeadlineExceeded         no answer in time (also a TimeoutError)
     |    +-- ServerError              a fault of the server, with an incident id for its log
     +-- FeedError                     found by this side while following a dataset
     |    +-- FeedBroken               events out of order, again and again
     |    +-- UnknownEvent             an event of a newer protocol: update this package
     |    +-- CopyDiverged             a checkpoint does not prove the copy
     +-- ReplicaError                  found by a replica
     |    +-- StaleData                the copy is not as new as was asked for (also a TimeoutError)
     |    +-- ReplicaStopped           it has stopped following; the cause tells why
     |    +-- ReplicaReadOnly          another process keeps its file
     |    +-- ReplicaUnusable          the file is something else, of another dataset, or damaged
     +-- SessionBroken                 an earlier call of the session failed halfway: it can only be rolled back
     +-- ProducerError                 found by this side while sending readings
     |    +-- RefusedReadings          readings that the server does not take: refused
     |    +-- OutboxFull               no room for another reading
     |    +-- ReadingsLeft             the producer was closed before all of its readings were durable
     |    +-- SpoolUnusable            in use by another process, of another producer, damaged
     +-- DecodeError                   a record does not fit the model
     +-- EncodeError                   an object has no exact JSON form (also a ValueError)

``except syncline.Rejected`` and ``except syncline.OutcomeUnknown`` are the two ends of a write that was not OK.
A reason never changes its meaning.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from syncline.models import RefusedReading, Violation


class SynclineError(Exception):
    """Base of all.

    ``reason`` is UPPER_SNAKE and stable, empty when there is none; ``code`` is the gRPC status in capitals,
    empty when the error was found on this side; ``metadata`` holds what the message mentions;
    ``retry_after_seconds`` is how long the server asks to wait before another try.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        violations: Sequence[Violation] = (),
        total_violations: int | None = None,
        fields: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.violations: tuple[Violation, ...] = tuple(violations)
        """What is wrong with which record: all of them, unless ``total_violations`` is greater."""
        self.total_violations = len(self.violations) if total_violations is None else total_violations
        self.fields: Mapping[str, str] = MappingProxyType(dict(fields or {}))
        """What is wrong with which field of the request."""
        self.retry_after_seconds = retry_after_seconds
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))

    def __str__(self) -> str:
        if not self.violations:
            return self.message
        shown = "".join(f"\n  {violation}" for violation in self.violations[:_SHOWN])
        more = max(self.total_violations, len(self.violations)) - _SHOWN
        return self.message + shown + (f"\n  … and {more} more in .violations" if more > 0 else "")


_SHOWN = 10
"""Violations in the text of an error."""


class Rejected(SynclineError):
    """Nothing was done."""


class InvalidArgument(Rejected):
    """The request is wrong and will stay wrong; ``fields`` names each wrong field."""


class InvalidRecords(InvalidArgument):
    """Records were refused, and with them the whole call; ``violations`` has every error of every record."""


class LimitExceeded(InvalidArgument):
    """Too much in one call, or one record that is too large; ``metadata`` has limit, maximum and actual."""


class SchemaInvalid(InvalidArgument):
    """The JSON Schema of a dataset cannot be used."""


class TokenInvalid(InvalidArgument):
    """The token is damaged, or not one of this service."""


class NotAuthenticated(Rejected):
    """No key, or one that is unknown, wrong, expired or revoked."""


class PermissionDenied(Rejected):
    """The key may not do this. What does not exist looks the same to those without rights."""


class SessionInvalid(PermissionDenied):
    """The session is closed, expired, or was superseded by a newer one of the same source."""


class NotFound(Rejected):
    """It is not there."""


class AlreadyExists(Rejected):
    """It is there already."""


class FailedPrecondition(Rejected):
    """Something else must change first."""


class SourceDisabled(FailedPrecondition):
    """The source is switched off; its data stays."""


class IdentityInUse(FailedPrecondition):
    """The dataset holds records: its identity changes only with ``rekey=True``."""


class MassDeleteRefused(FailedPrecondition):
    """The commit would delete more than the guard allows; open the session with ``allow_mass_delete=True``."""


class ProducerFenced(FailedPrecondition):
    """The same producer was started somewhere else, and only the newest start may send."""


class Aborted(Rejected):
    """Somebody was faster: read again, decide again."""


class ConditionFailed(Aborted):
    """An ``IfRevision`` or ``IfAbsent`` did not hold; ``violations`` tells which."""


class EtagMismatch(Aborted):
    """The settings were changed since they were read."""


class SessionConflict(Aborted):
    """Records that the commit would change were changed since the session was opened; it is still open."""


class OutOfRange(Rejected):
    """A number that cannot come next."""


class Overloaded(Rejected):
    """There is no room now; nothing was done."""


class NotOffered(Rejected):
    """This version of the server does not offer it."""


class OutcomeUnknown(SynclineError):
    """It may have been done or not."""


class Unavailable(OutcomeUnknown):
    """No server answered, or it cannot serve now."""


class DeadlineExceeded(OutcomeUnknown, TimeoutError):
    """No answer came in time."""


class ServerError(OutcomeUnknown):
    """A fault of the server; its log knows the incident named in the message."""


class FeedError(SynclineError):
    """A feed cannot be followed any more. No token after the last good event has been handed out."""


class FeedBroken(FeedError):
    """The server sent events that do not continue each other, again and again."""


class UnknownEvent(FeedError):
    """An event of a kind that this version of the package does not know; skipping it could lose data."""


class CopyDiverged(FeedError):
    """Count or digest of a copy is not what the checkpoint says: begin again without a token."""


class ReplicaError(SynclineError):
    """A replica cannot do what it was asked for."""


class StaleData(ReplicaError, TimeoutError):
    """The copy was not brought up to what was asked for in time; what it holds is true of an earlier moment."""


class ReplicaStopped(ReplicaError):
    """The replica does not follow its dataset any more; ``__cause__`` tells why. What it holds can still be read."""


class ReplicaReadOnly(ReplicaError):
    """Another process brings the file up to date, and only there it can be done."""


class ReplicaUnusable(ReplicaError):
    """The file is not a replica, is of another dataset or of a newer version of this package, or is damaged."""


class SessionBroken(SynclineError):
    """A call of this session failed halfway, so its content is not known: it can only be rolled back."""


class ProducerError(SynclineError):
    """A producer cannot do what it was told."""


class RefusedReadings(ProducerError):
    """The server does not take some readings, and never will; ``refused`` has them with what is wrong."""

    def __init__(self, message: str, refused: Sequence[RefusedReading] = (), *, total: int = 0) -> None:
        super().__init__(message, violations=[one for reading in refused for one in reading.violations])
        self.refused: tuple[RefusedReading, ...] = tuple(refused)
        """The first of them."""
        self.total = total
        """How many there were."""


class OutboxFull(ProducerError):
    """There is no room for another reading, which was not taken."""


class ReadingsLeft(ProducerError):
    """The producer was closed before all of its readings were durable; those of a spool are still in it."""


class SpoolUnusable(ProducerError):
    """The file cannot be this producer's spool: another process uses it, it is another's, or it is damaged."""


class DecodeError(SynclineError):
    """A record does not fit the model; its bytes are in ``.json`` of the event or record."""


class EncodeError(SynclineError, ValueError):
    """An object has no exact JSON form."""
