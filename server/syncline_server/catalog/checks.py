"""What the settings of datasets, sources and keys must be like.

Each check returns what is wrong as pairs (field, description), so that a request is told everything at once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from syncline.names import ID_PATTERN
from syncline_server.errors import Aborted, InvalidArgument
from syncline_server.model import Dataset, Identity, IdentityKind, Key, Retention, Source

DISPLAY_NAME_CHARACTERS: Final = 200
DESCRIPTION_CHARACTERS: Final = 4_000
ANNOTATIONS: Final = 64
ANNOTATION_KEY_CHARACTERS: Final = 63
ANNOTATION_VALUE_CHARACTERS: Final = 1_024
KEY_FIELDS: Final = 8
KEY_FIELD_CHARACTERS: Final = 200
PATTERNS: Final = 100
RETAINED_REVISIONS: Final = 1_000_000_000

Problems = list[tuple[str, str]]

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PREFIX: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_ID_RULE: Final = (
    "must be 1 to 63 lower-case letters, digits, '-', '_' or '.', "
    "beginning with a letter and ending with a letter or digit"
)
_ANY_GENERATION: Final = -1


def refuse(problems: Problems) -> None:
    """Raise InvalidArgument(INVALID_REQUEST) when there are any."""
    if problems:
        field, description = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidArgument("INVALID_REQUEST", f"{field}: {description}{more}", fields=problems)


def check_id(field: str, value: str) -> Problems:
    """Ids of datasets and sources."""
    return [] if ID_PATTERN.fullmatch(value) else [(field, _ID_RULE)]


def check_display_name(value: str) -> Problems:
    """Titles stand in lists and logs: one line."""
    if len(value) > DISPLAY_NAME_CHARACTERS:
        return [("display_name", f"must have at most {DISPLAY_NAME_CHARACTERS} characters")]
    if _CONTROLS.search(value):
        return [("display_name", "must not hold control characters or line ends")]
    return []


def check_description(value: str) -> Problems:
    """Any text but NUL, which not every store can keep."""
    if len(value) > DESCRIPTION_CHARACTERS:
        return [("description", f"must have at most {DESCRIPTION_CHARACTERS} characters")]
    return [("description", "must not hold NUL")] if "\0" in value else []


def check_annotations(value: Mapping[str, str]) -> Problems:
    """Notes of the caller."""
    problems: Problems = []
    if len(value) > ANNOTATIONS:
        problems.append(("annotations", f"must have at most {ANNOTATIONS} entries"))
    for key, text in value.items():
        if not 1 <= len(key) <= ANNOTATION_KEY_CHARACTERS or _CONTROLS.search(key):
            problems.append(
                (
                    "annotations",
                    f"keys have 1 to {ANNOTATION_KEY_CHARACTERS} characters, none of them a control",
                )
            )
        if len(text) > ANNOTATION_VALUE_CHARACTERS or "\0" in text:
            problems.append(
                (
                    "annotations",
                    f"values have at most {ANNOTATION_VALUE_CHARACTERS} characters, none of them NUL",
                )
            )
    return problems[:10]


def check_identity(value: Identity) -> Problems:
    """Key fields belong to KEY, and to it alone."""
    fields = value.key_fields
    if value.kind is not IdentityKind.KEY:
        return [("identity.key_fields", f"must be empty for {value.kind.name}")] if fields else []
    if not 1 <= len(fields) <= KEY_FIELDS:
        return [("identity.key_fields", f"must have 1 to {KEY_FIELDS} fields for KEY")]
    problems: Problems = []
    for index, field in enumerate(fields):
        if not all(field.split(".")):
            problems.append((f"identity.key_fields[{index}]", "must be member names, joined by dots"))
        elif len(field) > KEY_FIELD_CHARACTERS or "\0" in field:
            problems.append(
                (
                    f"identity.key_fields[{index}]",
                    f"must have at most {KEY_FIELD_CHARACTERS} characters and no NUL",
                )
            )
        elif field in fields[:index]:
            problems.append((f"identity.key_fields[{index}]", "is there twice"))
    return problems


def check_retention(value: Retention) -> Problems:
    """None stands for the server's setting."""
    problems: Problems = []
    if value.min_age_us is not None and value.min_age_us < 0:
        problems.append(("retention.min_age", "must not be negative"))
    if value.min_revisions is not None and not 0 <= value.min_revisions <= RETAINED_REVISIONS:
        problems.append(("retention.min_revisions", f"must be 0 to {RETAINED_REVISIONS}"))
    return problems


def check_patterns(value: Sequence[str]) -> Problems:
    """Datasets that a READ key may read."""
    if not 1 <= len(value) <= PATTERNS:
        return [("datasets", f"must have 1 to {PATTERNS} entries for READ")]
    return [
        (f"datasets[{index}]", "must be a dataset id, or the beginning of one and '*'")
        for index, pattern in enumerate(value)
        if not (
            (pattern == "*" or _PREFIX.fullmatch(pattern[:-1]))
            if pattern.endswith("*")
            else ID_PATTERN.fullmatch(pattern)
        )
    ]


def check_changes(changes: Iterable[str], *, allowed: Iterable[str], fixed: Iterable[str]) -> Problems:
    """Names of the fields that an update wants to set."""
    allowed, fixed = frozenset(allowed), frozenset(fixed)
    return [
        (name, "cannot be changed" if name in fixed else "is not a field that can be set")
        for name in changes
        if name not in allowed
    ]


def expected_generation(etag: str, resource: Dataset | Source | Key) -> int:
    """The generation that an etag names; one that is none of this resource's names a generation it never has.

    The store compares it inside its transaction, after it has looked for a retried request: that is why a
    wrong etag is not refused here.
    """
    prefix, _, generation = etag.strip('"').rpartition("-")
    if (
        prefix == resource.etag.strip('"').rpartition("-")[0]
        and generation.isascii()
        and generation.isdigit()
    ):
        return int(generation[:18])
    return _ANY_GENERATION


def refuse_other_etag(etag: str, resource: Dataset | Source | Key) -> None:
    """Raise Aborted(ETAG_MISMATCH) unless the etag is empty or the resource's. For validate_only."""
    if etag and expected_generation(etag, resource) != resource.generation:
        raise Aborted(
            "ETAG_MISMATCH", "it was changed in the meantime: read it again, decide again", etag=resource.etag
        )
