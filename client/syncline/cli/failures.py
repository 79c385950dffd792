"""Errors of the SDK and of the system, as exit code, message and next step."""

from collections.abc import Mapping
from typing import Final

import syncline
from syncline.cli.exits import CommandError, ExitCode, Failure
from syncline.cli.files import FileError

_CODES: Final[tuple[tuple[type[syncline.SynclineError], ExitCode], ...]] = (
    # The first that fits.
    (syncline.InvalidRecords, ExitCode.REFUSED),
    (syncline.LimitExceeded, ExitCode.REFUSED),
    (syncline.MassDeleteRefused, ExitCode.REFUSED),
    (syncline.ConditionFailed, ExitCode.REFUSED),
    (syncline.SourceDisabled, ExitCode.REFUSED),
    (syncline.NotAuthenticated, ExitCode.NOT_ALLOWED),
    (syncline.PermissionDenied, ExitCode.NOT_ALLOWED),
    (syncline.NotFound, ExitCode.NOT_FOUND),
    (syncline.InvalidArgument, ExitCode.USAGE),
    (syncline.AlreadyExists, ExitCode.CONFLICT),
    (syncline.IdentityInUse, ExitCode.CONFLICT),
    (syncline.Aborted, ExitCode.CONFLICT),
    (syncline.Overloaded, ExitCode.UNAVAILABLE),
    (syncline.Unavailable, ExitCode.UNAVAILABLE),
    (syncline.DeadlineExceeded, ExitCode.UNAVAILABLE),
    (syncline.SynclineError, ExitCode.ERROR),
)

_SHOWN_VIOLATIONS: Final = 20

_FIRST_CLAUSE: Final = frozenset({"MASS_DELETE", "STORE_UNAVAILABLE"})
"""Reasons whose message goes on with advice for programs; the hint below says it for this command."""

_HINTS: Final[Mapping[str, str]] = {
    "DATASET_NOT_FOUND": "`syncline dataset list` shows what is there, `syncline dataset create NAME` makes one.",
    "SOURCE_NOT_FOUND": "`syncline source list DATASET` shows what is there, `syncline source create DATASET NAME` makes one.",
    "KEY_NOT_FOUND": "`syncline key list` shows what is there.",
    "MASS_DELETE": "nothing was changed; if that is what you want, say so with --allow-mass-delete.",
    "SESSION_CONFLICT": "nothing was changed; look at the input and push again, or choose another --on-conflict.",
    "SOURCE_DISABLED": "`syncline source enable DATASET SOURCE` opens it again.",
    "IDENTITY_NOT_ADDRESSABLE": "delete by id: `syncline delete DATASET --id ID`.",
    "SESSION_INVALID": "somebody else may have opened a session on the same source: give each loader its own.",
    "TOKEN_INVALID": "the token file is damaged: remove it to begin again from nothing.",
    "STORE_UNAVAILABLE": "the server is there, its store is not; running this again is safe.",
    "STORE_FULL": "make room on the server's disk; nothing that was acknowledged is lost.",
}

IN_OPTIONS: Final[Mapping[str, str]] = {
    "pass key=… to connect()": "pass --key",
    "the argument `key`": "--key",
    "load() and sessions split their rows by themselves": "use a smaller --batch",
    "pass rekey=True": "use --rekey",
    "pass tls=Tls(ca=…) with": "use --ca with",
    "pass tls=Tls(server_name=…)": "use the name in the certificate as --server",
    "pass tls=Tls(certificate=…, private_key=…)": "use --cert and --cert-key",
    "leave out tls=False": "use --tls",
    "leave out tls=": "leave out --tls and --ca",
    "pass tls=True": "use --tls",
    "pass insecure=True": "use --insecure",
}
"""What the SDK advises in terms of its arguments, in terms of this command's options. In this order."""


def in_options(message: str) -> str:
    """A message of the SDK with the command's options in place of the SDK's arguments."""
    for phrase, option in IN_OPTIONS.items():
        message = message.replace(phrase, option)
    return message


def failure_of(error: Exception) -> Failure:
    """What to tell about an error, and the exit code for it."""
    match error:
        case CommandError():
            return Failure(code=error.code, message=error.message, hint=error.hint)
        case FileError():
            return Failure(
                code=ExitCode.USAGE, message=f"line {error.line:,}: {error.message}", reason="FILE"
            )
        case syncline.SynclineError():
            return _sdk_failure(error)
        case OSError():
            return Failure(code=ExitCode.ERROR, message=_system_message(error))
        case ValueError():
            return Failure(code=ExitCode.USAGE, message=str(error))
        case _:
            return Failure(
                code=ExitCode.ERROR,
                message=f"{type(error).__name__}: {error}",
                hint="this is a fault of the command itself; --debug shows where.",
            )


def _sdk_failure(error: syncline.SynclineError) -> Failure:
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    shown = error.violations[:_SHOWN_VIOLATIONS]
    details = [f"{violation.pointer or 'record'}: {violation.message}" for violation in shown]
    hidden = error.total_violations - len(shown)
    if hidden > 0:
        details.append(f"… and {hidden:,} more")
    details += [
        told for name, text in error.fields.items() if (told := f"{name}: {text}") not in error.message
    ]
    message = in_options(error.message)
    if error.reason in _FIRST_CLAUSE:
        message = message.partition(";")[0]
    return Failure(
        code=code,
        message=message,
        reason=error.reason,
        hint=_HINTS.get(error.reason, ""),
        details=details,
    )


def _system_message(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text
