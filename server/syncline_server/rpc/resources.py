"""Datasets, sources and keys as messages: what a request sets, and what an answer shows.

An update takes the fields that its mask names: absent, all that are set; ``*``, all, unset ones becoming their
defaults; otherwise those named. Fields that the server sets may be named and are passed over.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from syncline.names import dataset_name, parse_source_name, source_name
from syncline.v1 import dataset_pb2, key_pb2, source_pb2
from syncline_server.errors import Unimplemented
from syncline_server.model import Dataset, Identity, IdentityKind, Key, RecordScope, Retention, Role, Source
from syncline_server.rpc.convert import Problems, duration, duration_us, enum_of, time_us, timestamp
from syncline_server.rpc.frames import digest_bytes

Settings = dict[str, object]
"""By the names of the model."""

MIN_EXPECT_US: Final = 1_000_000
MAX_EXPECT_US: Final = 366 * 86_400_000_000

_Take = Callable[[Any, Settings, Problems], None]

# -- what requests set ------------------------------------------------------------------------------------


def _plain(name: str, as_name: str = "", convert: Callable[[Any], object] = lambda value: value) -> _Take:
    def take(message: Any, settings: Settings, problems: Problems) -> None:
        del problems
        settings[as_name or name] = convert(getattr(message, name))

    return take


def _take_identity(message: dataset_pb2.Dataset, settings: Settings, problems: Problems) -> None:
    kind = enum_of(IdentityKind, message.identity.kind, problems, "identity.kind")
    settings["identity"] = Identity(
        kind=kind or IdentityKind.CONTENT, key_fields=tuple(message.identity.key_fields)
    )


def _take_scope(message: dataset_pb2.Dataset, settings: Settings, problems: Problems) -> None:
    scope = enum_of(RecordScope, message.record_scope, problems, "record_scope")
    settings["record_scope"] = scope or RecordScope.SHARED


def _take_retention(message: dataset_pb2.Dataset, settings: Settings, problems: Problems) -> None:
    del problems
    kept = message.retention
    settings["retention"] = Retention(
        min_age_us=duration_us(kept.min_age) if kept.HasField("min_age") else None,
        min_revisions=kept.min_revisions or None,
    )


def _take_kind(message: source_pb2.Source, settings: Settings, problems: Problems) -> None:
    del settings
    if message.kind in {source_pb2.Source.KIND_HTTP, source_pb2.Source.KIND_FILE}:
        raise Unimplemented("NOT_OFFERED", "this version has no sources that pull; make a PUSH source")
    if message.kind not in {source_pb2.Source.KIND_UNSPECIFIED, source_pb2.Source.KIND_PUSH}:
        problems.add("source.kind", f"is {message.kind}, which this server does not know")


def _take_expectation(message: source_pb2.Source, settings: Settings, problems: Problems) -> None:
    expected = message.expect_every
    settings["expect_every_us"] = duration_us(expected) if message.HasField("expect_every") else None
    if message.HasField("expect_every") and not MIN_EXPECT_US <= duration_us(expected) <= MAX_EXPECT_US:
        problems.add("source.expect_every", "must be from 1 s to 366 days")


def _take_role(message: key_pb2.Key, settings: Settings, problems: Problems) -> None:
    settings["role"] = enum_of(Role, message.role, problems, "key.role")


def _take_source(message: key_pb2.Key, settings: Settings, problems: Problems) -> None:
    try:
        settings["dataset_id"], settings["source_id"] = parse_source_name(message.source)
    except ValueError as error:
        problems.add("key.source", f"is {error}")


def _take_expiry(message: key_pb2.Key, settings: Settings, problems: Problems) -> None:
    del problems
    settings["expire_time_us"] = time_us(message.expire_time) if message.HasField("expire_time") else None


DATASET_FIELDS: Final[Mapping[str, _Take]] = {
    "display_name": _plain("display_name"),
    "description": _plain("description"),
    "identity": _take_identity,
    "record_scope": _take_scope,
    "schema": _plain("schema"),
    "retention": _take_retention,
    "annotations": _plain("annotations", convert=dict),
}
SOURCE_FIELDS: Final[Mapping[str, _Take]] = {
    "kind": _take_kind,
    "display_name": _plain("display_name"),
    "disabled": _plain("disabled"),
    "expect_every": _take_expectation,
}
KEY_FIELDS: Final[Mapping[str, _Take]] = {
    "role": _take_role,
    "source": _take_source,
    "datasets": _plain("datasets", "patterns", tuple),
    "display_name": _plain("display_name"),
    "expire_time": _take_expiry,
}
_IMMUTABLE: Final = frozenset({"record_scope", "kind", "role", "source"})


def settings_of(message: Message, fields: Mapping[str, _Take], problems: Problems) -> Settings:
    """What a new resource is to be like: all that is set."""
    settings: Settings = {}
    for name, take in fields.items():
        if _is_set(message, name):
            take(message, settings, problems)
    return settings


def changes_of(
    message: Message, mask: FieldMask | None, fields: Mapping[str, _Take], problems: Problems
) -> Settings:
    """What an update is to change; what is wrong with the mask is noted."""
    if mask is None or not mask.paths:
        return settings_of(message, fields, problems)
    settings: Settings = {}
    known = message.DESCRIPTOR.fields_by_name
    for path in fields if "*" in mask.paths else mask.paths:
        if path in fields:
            if path not in _IMMUTABLE or _is_set(message, path):
                fields[path](message, settings, problems)
        elif path.partition(".")[0] in fields:
            problems.add("update_mask", f"has {path[:80]!r}: name the whole field")
        elif path not in known:
            problems.add("update_mask", f"has {path[:80]!r}, which is no field")
    return settings


def _is_set(message: Message, name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name[name]
    return message.HasField(name) if field.has_presence else bool(getattr(message, name))


# -- what answers show ------------------------------------------------------------------------------------


def dataset_out(dataset: Dataset) -> dataset_pb2.Dataset:
    """A dataset as a message."""
    head, kept = dataset.head, dataset.retention
    return dataset_pb2.Dataset(
        name=dataset_name(dataset.dataset_id),
        uid=str(uuid.UUID(bytes=dataset.incarnation)),
        display_name=dataset.display_name,
        description=dataset.description,
        identity=dataset_pb2.Identity(
            kind=dataset_pb2.Identity.Kind.ValueType(dataset.identity.kind),
            key_fields=dataset.identity.key_fields,
        ),
        record_scope=dataset_pb2.RecordScope.ValueType(dataset.record_scope),
        schema=dataset.schema,
        retention=dataset_pb2.Retention(
            min_age=None if kept.min_age_us is None else duration(kept.min_age_us),
            min_revisions=kept.min_revisions or 0,
        ),
        annotations=dataset.annotations,
        revision=head.revision,
        record_count=head.record_count,
        digest=digest_bytes(head),
        purge_revision=head.purge_revision,
        create_time=timestamp(dataset.create_time_us),
        update_time=timestamp(dataset.update_time_us),
        etag=dataset.etag,
        commit_time=timestamp(head.commit_time_us) if head.revision else None,
    )


def source_out(source: Source) -> source_pb2.Source:
    """A source as a message."""
    return source_pb2.Source(
        name=source_name(source.dataset_id, source.source_id),
        kind=source_pb2.Source.KIND_PUSH,
        display_name=source.display_name,
        disabled=source.disabled,
        create_time=timestamp(source.create_time_us),
        update_time=timestamp(source.update_time_us),
        last_received_time=timestamp(source.last_received_us),
        etag=source.etag,
        expect_every=None if source.expect_every_us is None else duration(source.expect_every_us),
    )


def key_out(key: Key) -> key_pb2.Key:
    """A key as a message; without a name while there is none (validate_only)."""
    return key_pb2.Key(
        name=f"keys/{key.key_id}" if key.key_id else "",
        role=key_pb2.Key.Role.ValueType(key.role),
        source=source_name(key.dataset_id, key.source_id) if key.role is Role.PUSH else "",
        datasets=key.patterns,
        display_name=key.display_name,
        expire_time=timestamp(key.expire_time_us),
        create_time=timestamp(key.create_time_us),
        last_used_time=timestamp(key.last_used_us),
        etag=key.etag if key.key_id else "",
    )
