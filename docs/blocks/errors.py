"""Reasons of errors: which there are from the server's docstring, what to do about them from here."""

import re
from pathlib import Path

from blocks.markdown import table
from syncline_server import errors
from syncline_server.rpc.status import CODES, RETRY_SECONDS

# What it means, what to do.
REASONS = {
    "INVALID_REQUEST": (
        "A field of the request is missing or wrong; the details name each.",
        "Mend the call.",
    ),
    "RECORD_INVALID": (
        "Records break the rules of JSON, of the key or of the schema. Up to 20 violations are in the details, all with `validate_only`.",
        "Mend the records, or push with `partial`.",
    ),
    "TOKEN_INVALID": (
        "The token is damaged, or of a version that this server does not know.",
        "Start from empty.",
    ),
    "PAGE_TOKEN_INVALID": ("The page token is damaged, or belongs to another list.", "Start the list again."),
    "LIMIT_EXCEEDED": (
        "Too many records, ids or bytes in a call; one record too large is `RECORD_INVALID`. Metadata: `limit`, `maximum`, `actual`.",
        "Split the call; `GetServerInfo` tells the limits.",
    ),
    "REQUEST_ID_REUSED": ("The request id was used for another request.", "A new id for each write."),
    "SCHEMA_INVALID": (
        "The schema is no JSON Schema 2020-12, refers to another document, or has a pattern that cannot be run in linear time.",
        "Mend the schema.",
    ),
    "FILTER_INVALID": (
        "The filter cannot be read. Metadata: `position`, in characters from 0; the message shows the place.",
        "Mend the filter; [filters](filters.md) has the grammar.",
    ),
    "KEY_MISSING": ("The call carries no key.", "Metadata `authorization: Bearer sl_…`."),
    "KEY_INVALID": (
        "The key is unknown, wrong, expired or revoked; these look the same.",
        "Get another key.",
    ),
    "PERMISSION_DENIED": (
        "The key may not do this. What does not exist looks the same.",
        "Use a key that may.",
    ),
    "SESSION_INVALID": (
        "The session is unknown, closed, expired, another's, or was rolled back because its source opened a new one.",
        "Open a session and start over; one loader for each source.",
    ),
    "DATASET_NOT_FOUND": ("There is no such dataset.", "Create it, or mend the name."),
    "SOURCE_NOT_FOUND": ("The dataset has no such source.", "Create it, or mend the name."),
    "KEY_NOT_FOUND": ("There is no such key.", "List the keys."),
    "RECORD_NOT_FOUND": ("There is no such record.", "Nothing, if it may be absent."),
    "REPLICA_NOT_FOUND": ("No replica has reported under this id.", "Ask GetUptake for the names."),
    "PRODUCER_NOT_FOUND": ("The source has no such producer.", "Opening a PushStream makes it."),
    "DATASET_EXISTS": ("The name is taken.", "Use it, or choose another."),
    "SOURCE_EXISTS": ("The name is taken.", "Use it, or choose another."),
    "SOURCE_DISABLED": ("The source is switched off; its data stays.", "Enable it."),
    "REQUEST_ID_EXPIRED": (
        "The time inside the request id is further back than answers are remembered, or too far ahead.",
        "Read what is there and decide; then a new id.",
    ),
    "IDENTITY_IN_USE": ("The dataset holds records, whose ids would change.", "Ask for a re-key."),
    "IDENTITY_NOT_ADDRESSABLE": (
        "Records of an APPEND dataset have no values that name them.",
        "Delete by id.",
    ),
    "MASS_DELETE": (
        "The commit would delete all of a source's records, or more than the guard allows. The session stays open.",
        "Look at the input. If it is right: `allow_mass_delete`.",
    ),
    "SESSION_INCOMPLETE": (
        "The commit names another number of calls than were accepted. The session stays open.",
        "Send what is missing (`GetSession` tells the number), then close.",
    ),
    "ETAG_MISMATCH": ("The settings were changed since they were read.", "Read, decide, try again."),
    "CONDITION_FAILED": (
        "An `if_revision` or `if_absent` did not hold; the details tell which.",
        "Read, decide, try again.",
    ),
    "SESSION_CONFLICT": (
        "Records that the commit would change were changed since the session was opened. The session stays open. Metadata: `conflicts`.",
        "Roll back, read what is there, start over; or open with another conflict policy.",
    ),
    "DATASET_CHANGED": ("The dataset's settings changed while the records were checked.", "Try again."),
    "LEASE_LOST": (
        "Upkeep on one node found that another had taken over. Metadata: `lease`. In logs only, no call ends with it.",
        "Nothing; the other node goes on.",
    ),
    "PRODUCER_FENCED": (
        "The producer was opened again since, with the `epoch` in the metadata, or it was forgotten.",
        "Only one process may write as a producer: end this one, or open it anew.",
    ),
    "SEQUENCE_GAP": (
        "A call of the session, or a reading of the producer, is missing before this one. Metadata: `expected`.",
        "Go on from there.",
    ),
    "OVERLOADED": ("More is waiting than the server takes.", "Wait as told, then try again."),
    "STORE_FULL": ("The disk is full. Reads and streams go on.", "Make room; nothing else to mend."),
    "TOO_MANY_SESSIONS": ("The server has as many open sessions as it takes.", "Close some, or wait."),
    "TOO_MANY_STREAMS": ("The key has as many open streams as it may.", "Close some, or another key."),
    "TOO_MANY_SUBSCRIPTIONS": ("The stream has as many subscriptions as it may.", "Open another stream."),
    "NOT_OFFERED": ("This version does not have it.", "See the list of what is not there yet."),
    "SHUTTING_DOWN": ("The server is being stopped.", "Connect again; the same request id."),
    "MOVED": ("The connection is to be made again, for load balancing.", "Connect again, at once."),
    "READER_STUCK": (
        "The client took nothing of its stream for too long, though its connection lives.",
        "Read faster, or in a task of its own; connect again with the last token.",
    ),
    "STORE_UNAVAILABLE": (
        "The store failed in the middle; what became of the write is unknown.",
        "The same request id again.",
    ),
    "REVISION_NOT_REACHED": ("The dataset has not come to `min_revision` within the deadline.", "Try again."),
}

_LISTED = re.compile(
    r"^ +\+-- (?P<kind>\w+) +(?P<first>[A-Z_, ]+)$|^ +\| +(?P<more>[A-Z_, ]+)$", re.MULTILINE
)


def listed() -> dict[str, list[str]]:
    """Reasons by the class of error, as the docstring of ``errors.py`` draws them."""
    found: dict[str, list[str]] = {}
    kind = ""
    for match in _LISTED.finditer(errors.__doc__ or ""):
        kind = match["kind"] or kind
        found.setdefault(kind, []).extend(re.findall(r"[A-Z_]+", match["first"] or match["more"]))
    return found


def reasons(_root: Path) -> str:
    rows = []
    for kind, names in listed().items():
        code = CODES[getattr(errors, kind)].name
        for name in names:
            meaning, remedy = REASONS[name]
            if name in RETRY_SECONDS:
                remedy += " The answer says when."
            rows.append((f"`{name}`", f"`{code}`", meaning, remedy))
    return table(("reason", "code", "meaning", "what to do"), rows)


def exceptions(_root: Path) -> str:
    from syncline import errors as client_errors

    tree = (client_errors.__doc__ or "").split("::\n", 1)[1].split("\n``except", 1)[0]
    return f"```text\n{tree.strip(chr(10))}\n```"
