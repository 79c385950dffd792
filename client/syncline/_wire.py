"""Protobuf messages to public values and back. Everything here is a pure function."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from syncline import events, models
from syncline.names import parse_dataset_name, parse_source_name
from syncline.v1 import (
    dataset_pb2,
    feed_pb2,
    key_pb2,
    record_pb2,
    server_service_pb2,
    session_pb2,
    source_pb2,
    sync_service_pb2,
)

_IDENTITY_KINDS: Final[Mapping[int, Literal["key", "content", "append"]]] = {
    1: "key",
    2: "content",
    3: "append",
}
_SCOPES: Final[Mapping[int, models.Scope]] = {1: "shared", 2: "per_source"}
_ROLES: Final[Mapping[int, models.Role]] = {1: "admin", 2: "push", 3: "read"}
_MODES: Final[Mapping[int, models.SessionMode]] = {1: "stream", 2: "accrue", 3: "replace"}
_CONFLICT_POLICIES: Final[Mapping[int, models.ConflictPolicy]] = {1: "overwrite", 2: "keep_newer", 3: "abort"}


def _number(table: Mapping[int, str], value: str, what: str) -> Any:
    for number, name in table.items():
        if name == value:
            return number
    raise ValueError(f"{what} is one of {', '.join(map(repr, table.values()))}, not {value!r}")


def to_time(message: Any, field: str) -> datetime | None:
    """A timestamp field as an aware datetime, None when it is absent."""
    if not message.HasField(field):
        return None
    return cast("datetime", getattr(message, field).ToDatetime(tzinfo=UTC))


def required_time(message: Any, field: str) -> datetime:
    """A timestamp field that is always set, as an aware datetime."""
    return cast("datetime", getattr(message, field).ToDatetime(tzinfo=UTC))


def to_timestamp(time: datetime) -> Timestamp:
    """An aware datetime as a timestamp. Raises ValueError for a naive one, which would mean anything."""
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone: give one, as in datetime.now(UTC)")
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def to_duration(span: timedelta) -> Duration:
    """A timedelta as a duration."""
    duration = Duration()
    duration.FromTimedelta(span)
    return duration


def scope_number(scope: models.Scope) -> Any:
    """The number of a record scope. Raises ValueError."""
    return _number(_SCOPES, scope, "scope")


def role_number(role: models.Role) -> Any:
    """The number of a role. Raises ValueError."""
    return _number(_ROLES, role, "role")


def mode_number(mode: models.SessionMode) -> Any:
    """The number of a session mode. Raises ValueError."""
    return _number(_MODES, mode, "mode")


def conflict_policy_number(policy: models.ConflictPolicy) -> Any:
    """The number of a conflict policy. Raises ValueError."""
    return _number(_CONFLICT_POLICIES, policy, "on_conflict")


def from_identity(identity: models.Identity) -> dataset_pb2.Identity:
    """An identity for the wire."""
    kind = _number(_IDENTITY_KINDS, identity.kind, "identity.kind")
    return dataset_pb2.Identity(kind=kind, key_fields=identity.key_fields)


def from_retention(retention: models.Retention) -> dataset_pb2.Retention:
    """A retention for the wire."""
    return dataset_pb2.Retention(
        min_age=None if retention.min_age is None else to_duration(retention.min_age),
        min_revisions=retention.min_revisions or 0,
    )


def from_schema(schema: Mapping[str, Any] | str | None) -> str:
    """A schema as JSON text; text stays as it is."""
    if schema is None:
        return ""
    return schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()


def to_dataset(message: dataset_pb2.Dataset) -> models.DatasetInfo:
    """A dataset from the wire."""
    identity = models.Identity(
        _IDENTITY_KINDS.get(message.identity.kind, "content"), tuple(message.identity.key_fields)
    )
    retention = models.Retention(
        min_age=message.retention.min_age.ToTimedelta() if message.retention.HasField("min_age") else None,
        min_revisions=message.retention.min_revisions or None,
    )
    return models.DatasetInfo(
        dataset=parse_dataset_name(message.name),
        uid=message.uid,
        identity=identity,
        scope=_SCOPES.get(message.record_scope, "shared"),
        schema=msgspec.json.decode(message.schema) if message.schema else None,
        display_name=message.display_name,
        description=message.description,
        retention=retention,
        annotations=dict(message.annotations),
        revision=message.revision,
        record_count=message.record_count,
        digest=message.digest or bytes(16),
        purge_revision=message.purge_revision,
        create_time=required_time(message, "create_time"),
        update_time=required_time(message, "update_time"),
        commit_time=to_time(message, "commit_time"),
        etag=message.etag,
    )


def to_source(message: source_pb2.Source) -> models.SourceInfo:
    """A source from the wire."""
    dataset, source = parse_source_name(message.name)
    return models.SourceInfo(
        dataset=dataset,
        source=source,
        display_name=message.display_name,
        disabled=message.disabled,
        create_time=required_time(message, "create_time"),
        update_time=required_time(message, "update_time"),
        last_received_time=to_time(message, "last_received_time"),
        etag=message.etag,
        expect_every=message.expect_every.ToTimedelta() if message.HasField("expect_every") else None,
    )


def to_key(message: key_pb2.Key, secret: str = "") -> models.KeyInfo:
    """A key from the wire; an empty secret is None."""
    dataset, source = parse_source_name(message.source) if message.source else (None, None)
    return models.KeyInfo(
        key_id=message.name.removeprefix("keys/"),
        role=_ROLES.get(message.role, "read"),
        dataset=dataset,
        source=source,
        datasets=tuple(message.datasets),
        display_name=message.display_name,
        expire_time=to_time(message, "expire_time"),
        create_time=required_time(message, "create_time"),
        last_used_time=to_time(message, "last_used_time"),
        etag=message.etag,
        secret=secret or None,
    )


def to_server_info(message: server_service_pb2.GetServerInfoResponse) -> models.ServerInfo:
    """Server information from the wire."""
    limits = message.limits
    return models.ServerInfo(
        version=message.version,
        store=message.store,
        server_time=required_time(message, "server_time"),
        start_time=required_time(message, "start_time"),
        limits=models.Limits(
            records_per_call=limits.records_per_call,
            bytes_per_call=limits.bytes_per_call,
            bytes_per_record=limits.bytes_per_record,
            depth=limits.depth,
            bytes_per_record_id=limits.bytes_per_record_id,
        ),
        role=cast("models.Role", message.role),
        writable=message.writable,
    )


def to_node(message: server_service_pb2.Node) -> models.Node:
    """A node from the wire."""
    return models.Node(
        name=message.name,
        node_id=message.node_id,
        addresses=tuple(message.addresses),
        version=message.version,
        start_time=required_time(message, "start_time"),
        report_time=required_time(message, "report_time"),
        lag=message.lag.ToTimedelta(),
        silent=message.silent,
        this_node=message.this_node,
    )


def to_session(message: session_pb2.Session) -> models.SessionInfo:
    """A session from the wire."""
    return models.SessionInfo(
        session_id=message.session_id,
        mode=_MODES.get(message.mode, "stream"),
        calls=message.calls,
        records=message.records,
        allow_mass_delete=message.allow_mass_delete,
        create_time=required_time(message, "create_time"),
        expire_time=to_time(message, "expire_time"),
        conflict_policy=_CONFLICT_POLICIES.get(message.conflict_policy, "overwrite"),
        base_revision=message.base_revision,
    )


def to_violations(messages: Sequence[record_pb2.RecordViolation]) -> tuple[models.Violation, ...]:
    """Violations from the wire."""
    return tuple(
        models.Violation(index=m.index, pointer=m.pointer, keyword=m.keyword, message=m.message)
        for m in messages
    )


def to_record(message: record_pb2.Record, decode: Any) -> events.Record[Any]:
    """A record from the wire."""
    return events.Record(
        record_id=message.record_id,
        json=message.data,
        revision=message.revision,
        source=parse_source_name(message.source)[1],
        create_time=required_time(message, "create_time"),
        update_time=required_time(message, "update_time"),
        _decode=decode,
    )


def to_checkpoint(message: feed_pb2.Checkpoint) -> events.Checkpoint:
    """A checkpoint from the wire."""
    return events.Checkpoint(
        revision=message.revision,
        record_count=message.record_count,
        digest=message.digest,
        commit_time=to_time(message, "commit_time"),
        token=message.token,
        going_away=message.going_away,
    )


def to_batch(message: feed_pb2.Changes, *, previous_token: bytes, decode: Any) -> events.ChangeBatch[Any]:
    """A batch of changes from the wire."""
    return events.ChangeBatch(
        record_ids=list(message.record_ids),
        json=list(message.data),
        revisions=list(message.revisions),
        commit_times_us=list(message.commit_times_us),
        kinds=list(message.kinds),
        reasons=list(message.reasons),
        from_revision=message.from_revision,
        to_revision=message.to_revision,
        partial=message.partial,
        previous_token=previous_token,
        token=message.token or previous_token,
        decode=decode,
        folded=message.folded,
    )


def to_head(message: sync_service_pb2.DatasetHead) -> models.DatasetHead:
    """Where a dataset stands, from the wire."""
    return models.DatasetHead(
        dataset=parse_dataset_name(message.dataset),
        uid=message.uid,
        revision=message.revision,
        record_count=message.record_count,
        digest=message.digest or bytes(16),
        commit_time=to_time(message, "commit_time"),
    )


def to_uptake(message: sync_service_pb2.GetUptakeResponse) -> models.Uptake:
    """Who has a revision, from the wire."""
    return models.Uptake(
        revision=message.revision,
        head_revision=message.head_revision,
        replica_count=message.replica_count,
        reached_count=message.reached_count,
        replicas=tuple(
            models.ReplicaUptake(
                replica_id=replica.replica_id,
                revision=replica.revision,
                report_time=to_time(replica, "report_time"),
                behind_since=to_time(replica, "behind_since"),
                connected=replica.connected,
                holds_purge=replica.holds_purge,
            )
            for replica in message.replicas
        ),
    )
