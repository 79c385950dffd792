"""Datasets, sources and keys: functions on a connection, inside whatever transaction runs."""

import sqlite3
from typing import Any, Final

import msgspec

from syncline_server.errors import AlreadyExists, FailedPrecondition, NotFound
from syncline_server.model import (
    Dataset,
    Key,
    RequestIdentity,
    Role,
    Source,
)
from syncline_server.store.rows import (
    dataset_not_found,
    dataset_of,
    etag_mismatch,
    key_of,
    source_not_found,
    source_of,
)
from syncline_server.store.sqlite.requests import find_resource, remember_resource

DEFAULT_SOURCE: Final = "default"

_DATASET: Final = """
SELECT d.number, d.dataset_id, d.incarnation, d.generation, d.identity_kind, d.key_fields, d.record_scope,
       d.schema, d.display_name, d.description, d.min_age_us, d.min_revisions, d.annotations,
       d.create_time_us, d.update_time_us,
       h.revision, h.commit_id, h.record_count, h.digest, h.commit_time_us, h.purge_revision, h.last_position
FROM dataset d JOIN head h ON h.dataset_number = d.number
"""
_DATASET_BY_ID: Final = _DATASET + "WHERE d.dataset_id = ?"
_DATASET_BY_NUMBER: Final = _DATASET + "WHERE d.number = ?"
_DATASETS_AFTER: Final = _DATASET + "WHERE d.dataset_id > ? ORDER BY d.dataset_id LIMIT ?"
_INSERT_DATASET: Final = """
INSERT INTO dataset (dataset_id, incarnation, generation, identity_kind, key_fields, record_scope, schema,
    display_name, description, min_age_us, min_revisions, annotations, create_time_us, update_time_us)
VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_HEAD: Final = "INSERT INTO head (dataset_number, commit_id, digest) VALUES (?, ?, zeroblob(16))"
_UPDATE_DATASET: Final = """
UPDATE dataset SET generation = generation + 1, identity_kind = ?, key_fields = ?, schema = ?,
    display_name = ?, description = ?, min_age_us = ?, min_revisions = ?, annotations = ?, update_time_us = ?
WHERE number = ?
"""
_HOLDS_ENTRIES: Final = "SELECT EXISTS (SELECT 1 FROM entry WHERE dataset_number = ?)"
_DELETE_DATASET: Final = "DELETE FROM dataset WHERE number = ?"
_MARK_DELETED: Final = "INSERT INTO deleted_dataset (number) VALUES (?)"

_SOURCE: Final = """
SELECT s.number, s.dataset_number, d.dataset_id, s.source_id, s.generation, s.display_name, s.disabled,
       s.create_time_us, s.update_time_us, s.last_received_us, s.expect_every_us
FROM source s JOIN dataset d ON d.number = s.dataset_number
"""
_SOURCE_BY_ID: Final = _SOURCE + "WHERE d.dataset_id = ? AND s.source_id = ?"
_SOURCE_BY_NUMBER: Final = _SOURCE + "WHERE s.number = ?"
_SOURCES_AFTER: Final = (
    _SOURCE + "WHERE s.dataset_number = ? AND s.source_id > ? ORDER BY s.source_id LIMIT ?"
)
_INSERT_SOURCE: Final = """
INSERT INTO source (dataset_number, source_id, generation, display_name, disabled, create_time_us, update_time_us,
    last_received_us, expect_every_us)
VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?)
"""
_UPDATE_SOURCE: Final = """
UPDATE source SET generation = generation + 1, display_name = ?, disabled = ?, expect_every_us = ?,
    update_time_us = ?
WHERE number = ?
"""

_KEY: Final = """
SELECT k.key_id, k.secret_hash, k.role, d.dataset_id, s.source_id, k.source_number, k.patterns, k.display_name,
       k.generation, k.expire_time_us, k.create_time_us, k.last_used_us
FROM access_key k LEFT JOIN source s ON s.number = k.source_number
                  LEFT JOIN dataset d ON d.number = s.dataset_number
"""
_KEY_BY_ID: Final = _KEY + "WHERE k.key_id = ?"
_KEYS_AFTER: Final = _KEY + "WHERE k.key_id > ? ORDER BY k.key_id LIMIT ?"
_INSERT_KEY: Final = """
INSERT INTO access_key (key_id, secret_hash, role, source_number, patterns, display_name, generation,
    expire_time_us, create_time_us, last_used_us)
VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?)
"""
_UPDATE_KEY: Final = """
UPDATE access_key SET generation = generation + 1, display_name = ?, patterns = ?, expire_time_us = ?
WHERE key_id = ?
"""
_DELETE_KEY: Final = "DELETE FROM access_key WHERE key_id = ?"
_TOUCH_KEYS: Final = """
UPDATE access_key SET last_used_us = max(ifnull(last_used_us, 0), k.value)
FROM json_each(?) k WHERE access_key.key_id = k.key
"""


# -- datasets ---------------------------------------------------------------------------------------------


def create_dataset(
    connection: sqlite3.Connection, dataset: Dataset, identity: RequestIdentity | None, *, now_us: int
) -> Dataset:
    """Store a dataset and its source ``default``."""
    if (made := find_resource(connection, identity)) is not None:
        return dataset_by_number(connection, int(made))
    if connection.execute(_DATASET_BY_ID, (dataset.dataset_id,)).fetchone() is not None:
        raise AlreadyExists(
            "DATASET_EXISTS", f"dataset {dataset.dataset_id!r} exists already", dataset=dataset.dataset_id
        )
    number = _new_number(
        connection.execute(
            _INSERT_DATASET,
            (
                dataset.dataset_id,
                dataset.incarnation,
                dataset.identity.kind,
                _encode(dataset.identity.key_fields),
                dataset.record_scope,
                dataset.schema,
                dataset.display_name,
                dataset.description,
                dataset.retention.min_age_us,
                dataset.retention.min_revisions,
                _encode(dict(dataset.annotations)),
                dataset.create_time_us,
                dataset.update_time_us,
            ),
        )
    )
    connection.execute(_INSERT_HEAD, (number, dataset.incarnation[:8]))
    created_us = dataset.create_time_us
    connection.execute(
        _INSERT_SOURCE, (number, DEFAULT_SOURCE, "", False, created_us, created_us, None, None)
    )
    remember_resource(connection, identity, str(number), now_us=now_us)
    return dataset_by_number(connection, number)


def dataset_by_id(connection: sqlite3.Connection, dataset_id: str) -> Dataset:
    """Read a dataset. Raises NotFound."""
    row = connection.execute(_DATASET_BY_ID, (dataset_id,)).fetchone()
    if row is None:
        raise dataset_not_found(dataset_id)
    return dataset_of(row)


def dataset_by_number(connection: sqlite3.Connection, number: int) -> Dataset:
    """Read a dataset. Raises NotFound."""
    row = connection.execute(_DATASET_BY_NUMBER, (number,)).fetchone()
    if row is None:
        raise dataset_not_found()
    return dataset_of(row)


def datasets_after(connection: sqlite3.Connection, after: str, limit: int) -> list[Dataset]:
    """Read datasets in the order of their ids."""
    return [dataset_of(row) for row in connection.execute(_DATASETS_AFTER, (after, limit)).fetchall()]


def update_dataset(
    connection: sqlite3.Connection,
    dataset: Dataset,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> Dataset:
    """Replace settings, the identity only while there are no records."""
    if find_resource(connection, identity) is not None:
        return dataset_by_number(connection, dataset.number)
    present = expect_dataset(connection, dataset.number, expected_generation)
    if dataset.identity != present.identity and holds_entries(connection, dataset.number):
        raise FailedPrecondition(
            "IDENTITY_IN_USE",
            f"dataset {present.dataset_id!r} holds records or tombstones, whose ids come from its identity; "
            "ask to re-key it",
            dataset=present.dataset_id,
        )
    return write_settings(connection, dataset, identity, now_us=now_us)


def write_settings(
    connection: sqlite3.Connection, dataset: Dataset, identity: RequestIdentity | None, *, now_us: int
) -> Dataset:
    """Replace the settings of a dataset, one generation on."""
    connection.execute(
        _UPDATE_DATASET,
        (
            dataset.identity.kind,
            _encode(dataset.identity.key_fields),
            dataset.schema,
            dataset.display_name,
            dataset.description,
            dataset.retention.min_age_us,
            dataset.retention.min_revisions,
            _encode(dict(dataset.annotations)),
            dataset.update_time_us,
            dataset.number,
        ),
    )
    remember_resource(connection, identity, str(dataset.number), now_us=now_us)
    return dataset_by_number(connection, dataset.number)


def delete_dataset(
    connection: sqlite3.Connection,
    number: int,
    expected_generation: int | None,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Remove a dataset at once; its records are unreachable from here on and removed by upkeep."""
    if find_resource(connection, identity) is not None:
        return
    expect_dataset(connection, number, expected_generation)
    connection.execute(_DELETE_DATASET, (number,))
    connection.execute(_MARK_DELETED, (number,))
    remember_resource(connection, identity, str(number), now_us=now_us)


def expect_dataset(connection: sqlite3.Connection, number: int, generation: int | None) -> Dataset:
    """Read a dataset that must have this generation. Raises NotFound, Aborted(ETAG_MISMATCH)."""
    present = dataset_by_number(connection, number)
    if generation not in (None, present.generation):
        raise etag_mismatch(present.etag)
    return present


def holds_entries(connection: sqlite3.Connection, number: int) -> bool:
    """Whether a dataset has a live record or a tombstone."""
    return bool(connection.execute(_HOLDS_ENTRIES, (number,)).fetchone()[0])


# -- sources ----------------------------------------------------------------------------------------------


def create_source(
    connection: sqlite3.Connection, source: Source, identity: RequestIdentity | None, *, now_us: int
) -> Source:
    """Store a source of the dataset with the number given."""
    if (made := find_resource(connection, identity)) is not None:
        return source_by_number(connection, int(made))
    dataset = dataset_by_number(connection, source.dataset_number)
    if connection.execute(_SOURCE_BY_ID, (dataset.dataset_id, source.source_id)).fetchone() is not None:
        raise AlreadyExists(
            "SOURCE_EXISTS",
            f"source {source.source_id!r} of dataset {dataset.dataset_id!r} exists already",
            dataset=dataset.dataset_id,
            source=source.source_id,
        )
    number = _new_number(
        connection.execute(
            _INSERT_SOURCE,
            (
                dataset.number,
                source.source_id,
                source.display_name,
                source.disabled,
                source.create_time_us,
                source.update_time_us,
                source.last_received_us,
                source.expect_every_us,
            ),
        )
    )
    remember_resource(connection, identity, str(number), now_us=now_us)
    return source_by_number(connection, number)


def source_by_id(connection: sqlite3.Connection, dataset_id: str, source_id: str) -> Source:
    """Read a source. Raises NotFound."""
    row = connection.execute(_SOURCE_BY_ID, (dataset_id, source_id)).fetchone()
    if row is None:
        dataset_by_id(connection, dataset_id)
        raise source_not_found(dataset_id, source_id)
    return source_of(row)


def source_by_number(connection: sqlite3.Connection, number: int) -> Source:
    """Read a source. Raises NotFound."""
    row = connection.execute(_SOURCE_BY_NUMBER, (number,)).fetchone()
    if row is None:
        raise NotFound("SOURCE_NOT_FOUND", "the source was deleted")
    return source_of(row)


def sources_after(connection: sqlite3.Connection, dataset_id: str, after: str, limit: int) -> list[Source]:
    """Read sources of a dataset in the order of their ids. Raises NotFound."""
    number = dataset_by_id(connection, dataset_id).number
    return [source_of(row) for row in connection.execute(_SOURCES_AFTER, (number, after, limit)).fetchall()]


def update_source(
    connection: sqlite3.Connection,
    source: Source,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> Source:
    """Replace settings of a source."""
    if find_resource(connection, identity) is None:
        expect_source(connection, source.number, expected_generation)
        connection.execute(
            _UPDATE_SOURCE,
            (
                source.display_name,
                source.disabled,
                source.expect_every_us,
                source.update_time_us,
                source.number,
            ),
        )
        remember_resource(connection, identity, str(source.number), now_us=now_us)
    return source_by_number(connection, source.number)


def expect_source(connection: sqlite3.Connection, number: int, generation: int | None) -> Source:
    """Read a source that must have this generation. Raises NotFound, Aborted(ETAG_MISMATCH)."""
    present = source_by_number(connection, number)
    if generation not in (None, present.generation):
        raise etag_mismatch(present.etag)
    return present


# -- keys -------------------------------------------------------------------------------------------------


def create_key(
    connection: sqlite3.Connection, key: Key, identity: RequestIdentity | None, *, now_us: int
) -> Key:
    """Store a key."""
    if (made := find_resource(connection, identity)) is not None:
        return key_by_id(connection, made)
    if key.role is Role.PUSH:
        source_by_number(connection, key.source_number)
    connection.execute(
        _INSERT_KEY,
        (
            key.key_id,
            key.secret_hash,
            key.role,
            key.source_number if key.role is Role.PUSH else None,
            _encode(key.patterns),
            key.display_name,
            key.expire_time_us,
            key.create_time_us,
            key.last_used_us,
        ),
    )
    remember_resource(connection, identity, key.key_id, now_us=now_us)
    return key_by_id(connection, key.key_id)


def key_by_id(connection: sqlite3.Connection, key_id: str) -> Key:
    """Read a key. Raises NotFound."""
    row = connection.execute(_KEY_BY_ID, (key_id,)).fetchone()
    if row is None:
        raise NotFound("KEY_NOT_FOUND", f"key {key_id!r} does not exist", key=key_id)
    return key_of(row)


def keys_after(connection: sqlite3.Connection, after: str, limit: int) -> list[Key]:
    """Read keys in the order of their ids."""
    return [key_of(row) for row in connection.execute(_KEYS_AFTER, (after, limit)).fetchall()]


def update_key(
    connection: sqlite3.Connection,
    key: Key,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> Key:
    """Replace title, patterns and expiry of a key."""
    if find_resource(connection, identity) is None:
        _expect_key(connection, key.key_id, expected_generation)
        connection.execute(
            _UPDATE_KEY, (key.display_name, _encode(key.patterns), key.expire_time_us, key.key_id)
        )
        remember_resource(connection, identity, key.key_id, now_us=now_us)
    return key_by_id(connection, key.key_id)


def delete_key(
    connection: sqlite3.Connection,
    key_id: str,
    expected_generation: int | None,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Remove a key."""
    if find_resource(connection, identity) is not None:
        return
    _expect_key(connection, key_id, expected_generation)
    connection.execute(_DELETE_KEY, (key_id,))
    remember_resource(connection, identity, key_id, now_us=now_us)


def touch_keys(connection: sqlite3.Connection, last_used_us: dict[str, int]) -> None:
    """Record when keys were last used."""
    connection.execute(_TOUCH_KEYS, (_encode(last_used_us),))


def _expect_key(connection: sqlite3.Connection, key_id: str, generation: int | None) -> None:
    present = key_by_id(connection, key_id)
    if generation not in (None, present.generation):
        raise etag_mismatch(present.etag)


# -- rows -------------------------------------------------------------------------------------------------


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _new_number(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
