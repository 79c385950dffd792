"""Values from rows of a database, and what is said when there is no such row. Every backend selects columns in this order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from syncline_server.errors import Aborted, NotFound
from syncline_server.model import (
    ConflictPolicy,
    Dataset,
    Head,
    Identity,
    IdentityKind,
    Key,
    Lease,
    Node,
    Producer,
    RecordScope,
    Replica,
    Retention,
    Role,
    Session,
    SessionMode,
    Source,
)
from syncline_server.store.plan import DatasetState


def dataset_not_found(dataset_id: str = "") -> NotFound:
    """There is no such dataset."""
    if dataset_id:
        return NotFound("DATASET_NOT_FOUND", f"dataset {dataset_id!r} does not exist", dataset=dataset_id)
    return NotFound("DATASET_NOT_FOUND", "the dataset was deleted")


def dataset_state(row: Sequence[Any]) -> DatasetState:
    """A dataset as a transaction finds it, from a row whose bytes are hexadecimal."""
    head = Head(
        revision=row[5],
        commit_id=bytes.fromhex(row[6]),
        record_count=row[7],
        digest=int(row[8], 16),
        commit_time_us=row[9],
        purge_revision=row[10],
        last_position=row[11],
    )
    return DatasetState(
        number=row[0],
        generation=row[1],
        incarnation=bytes.fromhex(row[2]),
        scope=RecordScope(row[3]),
        identity_kind=IdentityKind(row[4]),
        head=head,
        first_head=head,
    )


def source_not_found(dataset_id: str, source_id: str) -> NotFound:
    """The dataset has no such source."""
    return NotFound(
        "SOURCE_NOT_FOUND",
        f"source {source_id!r} of dataset {dataset_id!r} does not exist",
        dataset=dataset_id,
        source=source_id,
    )


def etag_mismatch(etag: str) -> Aborted:
    """Somebody changed it meanwhile."""
    return Aborted("ETAG_MISMATCH", f"it was changed meanwhile; the etag is {etag} now", etag=etag)


def lease_lost(lease: Lease) -> Aborted:
    """Another holder has it, or had it since."""
    return Aborted(
        "LEASE_LOST", f"the lease {lease.name!r} went to another node; nothing was done", lease=lease.name
    )


def head_of(row: Sequence[Any]) -> Head:
    """Head from (revision, commit id, count, digest, commit time, purge revision, last position)."""
    return Head(
        revision=row[0],
        commit_id=row[1],
        record_count=row[2],
        digest=int.from_bytes(row[3], "big"),
        commit_time_us=row[4],
        purge_revision=row[5],
        last_position=row[6],
    )


def dataset_of(row: Sequence[Any]) -> Dataset:
    """Dataset from its columns in the order of the fields, the head's at the end."""
    return Dataset(
        number=row[0],
        dataset_id=row[1],
        incarnation=row[2],
        generation=row[3],
        identity=Identity(kind=IdentityKind(row[4]), key_fields=tuple(msgspec.json.decode(row[5]))),
        record_scope=RecordScope(row[6]),
        schema=row[7],
        display_name=row[8],
        description=row[9],
        retention=Retention(min_age_us=row[10], min_revisions=row[11]),
        annotations=msgspec.json.decode(row[12], type=dict[str, str]),
        create_time_us=row[13],
        update_time_us=row[14],
        head=head_of(row[15:22]),
    )


def source_of(row: Sequence[Any]) -> Source:
    """Source from its columns in the order of the fields."""
    return Source(
        number=row[0],
        dataset_number=row[1],
        dataset_id=row[2],
        source_id=row[3],
        generation=row[4],
        display_name=row[5],
        disabled=bool(row[6]),
        create_time_us=row[7],
        update_time_us=row[8],
        last_received_us=row[9],
        expect_every_us=row[10],
    )


def key_of(row: Sequence[Any]) -> Key:
    """Key from its columns in the order of the fields, the dataset's and source's only for PUSH."""
    key = Key(
        key_id=row[0],
        secret_hash=row[1],
        role=Role(row[2]),
        patterns=tuple(msgspec.json.decode(row[6])),
        display_name=row[7],
        generation=row[8],
        expire_time_us=row[9],
        create_time_us=row[10],
        last_used_us=row[11],
    )
    if key.role is not Role.PUSH:
        return key
    return replace(key, dataset_id=row[3], source_id=row[4], source_number=row[5])


def producer_of(row: Sequence[Any]) -> Producer:
    """Producer from its columns in the order of the fields."""
    return Producer(
        number=row[0],
        source_number=row[1],
        dataset_id=row[2],
        source_id=row[3],
        producer_id=row[4],
        epoch=row[5],
        last_sequence=row[6],
        create_time_us=row[7],
        open_time_us=row[8],
        last_received_us=row[9],
    )


def replica_of(row: Sequence[Any]) -> Replica:
    """Replica from its columns in the order of the fields."""
    return Replica(
        dataset_number=row[0], replica_id=row[1], key_id=row[2], revision=row[3], report_time_us=row[4]
    )


def node_of(row: Sequence[Any]) -> Node:
    """Node from its columns in the order of the fields."""
    return Node(
        node_id=row[0],
        name=row[1],
        addresses=tuple(msgspec.json.decode(row[2])),
        version=row[3],
        start_time_us=row[4],
        report_time_us=row[5],
        lag_us=row[6],
    )


def session_of(row: Sequence[Any]) -> Session:
    """Session from its columns in the order of the fields."""
    return Session(
        session_id=row[0],
        dataset_number=row[1],
        source_number=row[2],
        mode=SessionMode(row[3]),
        allow_mass_delete=bool(row[4]),
        idle_timeout_us=row[5],
        create_time_us=row[6],
        active_time_us=row[7],
        calls=row[8],
        records=row[9],
        conflict_policy=ConflictPolicy(row[10]),
        base_revision=row[11],
    )
