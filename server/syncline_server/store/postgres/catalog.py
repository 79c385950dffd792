"""Datasets, sources and keys: functions on a connection, inside whatever transaction runs.

Whatever changes something that a commit depends on locks the dataset first.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from syncline_server.errors import AlreadyExists, FailedPrecondition, NotFound
from syncline_server.model import Dataset, Head, Key, RequestIdentity, Role, Source
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.requests import find_resource, remember_resource
from syncline_server.store.rows import (
    dataset_not_found,
    dataset_of,
    etag_mismatch,
    head_of,
    key_of,
    source_not_found,
    source_of,
)

DEFAULT_SOURCE: Final = "default"

_LOCK_HEADS: Final = "SELECT 1 FROM head WHERE dataset_number = ANY ($1) ORDER BY dataset_number FOR UPDATE"
_NEXT_VERSION: Final = "UPDATE head SET version = version + 1 WHERE dataset_number = $1"
_HEAD: Final = """
SELECT revision, commit_id, record_count, digest, commit_time_us, purge_revision, last_position
FROM head WHERE dataset_number = $1
"""

_DATASET: Final = """
SELECT d.number, d.dataset_id, d.incarnation, d.generation, d.identity_kind, d.key_fields, d.record_scope,
       d.schema, d.display_name, d.description, d.min_age_us, d.min_revisions, d.annotations,
       d.create_time_us, d.update_time_us,
       h.revision, h.commit_id, h.record_count, h.digest, h.commit_time_us, h.purge_revision, h.last_position
FROM dataset d JOIN head h ON h.dataset_number = d.number
"""
_DATASET_BY_ID: Final = _DATASET + "WHERE d.dataset_id = $1"
_DATASET_BY_NUMBER: Final = _DATASET + "WHERE d.number = $1"
_DATASETS_AFTER: Final = _DATASET + "WHERE d.dataset_id > $1 ORDER BY d.dataset_id LIMIT $2"
_DATASET_EXISTS: Final = "SELECT 1 FROM dataset WHERE dataset_id = $1"
_INSERT_DATASET: Final = """
INSERT INTO dataset (dataset_id, incarnation, generation, identity_kind, key_fields, record_scope, schema,
    display_name, description, min_age_us, min_revisions, annotations, create_time_us, update_time_us)
VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (dataset_id) DO NOTHING RETURNING number
"""
_INSERT_HEAD: Final = (
    "INSERT INTO head (dataset_number, commit_id, digest) VALUES ($1, $2, decode(repeat('00', 16), 'hex'))"
)
_UPDATE_DATASET: Final = """
UPDATE dataset SET generation = generation + 1, identity_kind = $2, key_fields = $3, schema = $4,
    display_name = $5, description = $6, min_age_us = $7, min_revisions = $8, annotations = $9, update_time_us = $10
WHERE number = $1
"""
_HOLDS_ENTRIES: Final = "SELECT EXISTS (SELECT 1 FROM entry WHERE dataset_number = $1)"
_END_SESSIONS: Final = """
WITH ended AS (
    DELETE FROM session WHERE source_number = $1 OR dataset_number = $2 RETURNING number)
INSERT INTO ended_session (number) SELECT number FROM ended
"""
_DELETE_DATASET: Final = "DELETE FROM dataset WHERE number = $1"
_MARK_DELETED: Final = "INSERT INTO deleted_dataset (number) VALUES ($1)"

_SOURCE: Final = """
SELECT s.number, s.dataset_number, d.dataset_id, s.source_id, s.generation, s.display_name, s.disabled,
       s.create_time_us, s.update_time_us, s.last_received_us, s.expect_every_us
FROM source s JOIN dataset d ON d.number = s.dataset_number
"""
_SOURCE_BY_ID: Final = _SOURCE + "WHERE d.dataset_id = $1 AND s.source_id = $2"
_SOURCE_BY_NUMBER: Final = _SOURCE + "WHERE s.number = $1"
_SOURCES_AFTER: Final = (
    _SOURCE + "WHERE s.dataset_number = $1 AND s.source_id > $2 ORDER BY s.source_id LIMIT $3"
)
_DATASET_OF_SOURCE: Final = "SELECT dataset_number FROM source WHERE number = $1"
_SOURCE_EXISTS: Final = "SELECT 1 FROM source WHERE dataset_number = $1 AND source_id = $2"
_INSERT_SOURCE: Final = """
INSERT INTO source (dataset_number, source_id, generation, display_name, disabled, create_time_us, update_time_us,
    last_received_us, expect_every_us)
VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8) RETURNING number
"""
_UPDATE_SOURCE: Final = """
UPDATE source SET generation = generation + 1, display_name = $2, disabled = $3, expect_every_us = $4,
    update_time_us = $5
WHERE number = $1
"""

_KEY: Final = """
SELECT k.key_id, k.secret_hash, k.role, d.dataset_id, s.source_id, k.source_number, k.patterns, k.display_name,
       k.generation, k.expire_time_us, k.create_time_us, k.last_used_us
FROM access_key k LEFT JOIN source s ON s.number = k.source_number
                  LEFT JOIN dataset d ON d.number = s.dataset_number
"""
_KEY_BY_ID: Final = _KEY + "WHERE k.key_id = $1"
_KEYS_AFTER: Final = _KEY + "WHERE k.key_id > $1 ORDER BY k.key_id LIMIT $2"
_LOCK_KEY: Final = "SELECT 1 FROM access_key WHERE key_id = $1 FOR UPDATE"
_INSERT_KEY: Final = """
INSERT INTO access_key (key_id, secret_hash, role, source_number, patterns, display_name, generation,
    expire_time_us, create_time_us, last_used_us)
VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8, $9)
"""
_UPDATE_KEY: Final = """
UPDATE access_key SET generation = generation + 1, display_name = $2, patterns = $3, expire_time_us = $4
WHERE key_id = $1
"""
_DELETE_KEY: Final = "DELETE FROM access_key WHERE key_id = $1"
# In the order of their ids, so that two nodes cannot wait for each other.
_TOUCH_KEYS: Final = """
WITH locked AS MATERIALIZED (
    SELECT a.key_id, u.time_us FROM unnest($1::text[], $2::bigint[]) u (key_id, time_us)
    JOIN access_key a ON a.key_id = u.key_id ORDER BY a.key_id FOR UPDATE OF a)
UPDATE access_key a SET last_used_us = greatest(a.last_used_us, l.time_us) FROM locked l WHERE a.key_id = l.key_id
"""


# -- datasets ---------------------------------------------------------------------------------------------


async def lock_datasets(connection: Connection, numbers: Iterable[int]) -> None:
    """Keep everybody else from changing these datasets until the transaction ends; those that are gone are passed over."""
    await connection.execute(_LOCK_HEADS, sorted(numbers))


async def next_version(connection: Connection, number: int) -> None:
    """Tell those who worked out a commit of this dataset, which is locked, to do so again."""
    await connection.execute(_NEXT_VERSION, number)


async def read_head(connection: Connection, number: int) -> Head:
    """Read the head. Raises NotFound."""
    row = await connection.fetchrow(_HEAD, number)
    if row is None:
        raise dataset_not_found()
    return head_of(row)


async def create_dataset(
    connection: Connection, dataset: Dataset, identity: RequestIdentity | None, *, now_us: int
) -> Dataset:
    """Store a dataset and its source ``default``."""
    if (made := await find_resource(connection, identity)) is not None:
        return await dataset_by_number(connection, int(made))
    number = None
    if await connection.fetchval(_DATASET_EXISTS, dataset.dataset_id) is None:
        number = await connection.fetchval(
            _INSERT_DATASET,
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
        )
    if number is None:
        raise AlreadyExists(
            "DATASET_EXISTS", f"dataset {dataset.dataset_id!r} exists already", dataset=dataset.dataset_id
        )
    await connection.execute(_INSERT_HEAD, number, dataset.incarnation[:8])
    created_us = dataset.create_time_us
    await connection.fetchval(
        _INSERT_SOURCE, number, DEFAULT_SOURCE, "", False, created_us, created_us, None, None
    )
    await remember_resource(connection, identity, str(number), now_us=now_us)
    return await dataset_by_number(connection, number)


async def dataset_by_id(connection: Connection, dataset_id: str) -> Dataset:
    """Read a dataset. Raises NotFound."""
    row = await connection.fetchrow(_DATASET_BY_ID, dataset_id)
    if row is None:
        raise dataset_not_found(dataset_id)
    return dataset_of(row)


async def dataset_by_number(connection: Connection, number: int) -> Dataset:
    """Read a dataset. Raises NotFound."""
    row = await connection.fetchrow(_DATASET_BY_NUMBER, number)
    if row is None:
        raise dataset_not_found()
    return dataset_of(row)


async def datasets_after(connection: Connection, after: str, limit: int) -> list[Dataset]:
    """Read datasets in the order of their ids."""
    return [dataset_of(row) for row in await connection.fetch(_DATASETS_AFTER, after, limit)]


async def update_dataset(
    connection: Connection,
    dataset: Dataset,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> Dataset:
    """Replace settings, the identity only while there are no records."""
    await lock_datasets(connection, [dataset.number])
    if await find_resource(connection, identity) is not None:
        return await dataset_by_number(connection, dataset.number)
    present = await expect_dataset(connection, dataset.number, expected_generation)
    if dataset.identity != present.identity and await connection.fetchval(_HOLDS_ENTRIES, dataset.number):
        raise FailedPrecondition(
            "IDENTITY_IN_USE",
            f"dataset {present.dataset_id!r} holds records or tombstones, whose ids come from its identity; "
            "ask to re-key it",
            dataset=present.dataset_id,
        )
    return await write_settings(connection, dataset, identity, now_us=now_us)


async def write_settings(
    connection: Connection, dataset: Dataset, identity: RequestIdentity | None, *, now_us: int
) -> Dataset:
    """Replace the settings of a dataset that is locked, one generation on."""
    await connection.execute(
        _UPDATE_DATASET,
        dataset.number,
        dataset.identity.kind,
        _encode(dataset.identity.key_fields),
        dataset.schema,
        dataset.display_name,
        dataset.description,
        dataset.retention.min_age_us,
        dataset.retention.min_revisions,
        _encode(dict(dataset.annotations)),
        dataset.update_time_us,
    )
    await next_version(connection, dataset.number)
    await remember_resource(connection, identity, str(dataset.number), now_us=now_us)
    return await dataset_by_number(connection, dataset.number)


async def delete_dataset(
    connection: Connection,
    number: int,
    expected_generation: int | None,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Remove a dataset at once; its records are unreachable from here on and removed by upkeep."""
    await lock_datasets(connection, [number])
    if await find_resource(connection, identity) is not None:
        return
    await expect_dataset(connection, number, expected_generation)
    await end_sessions(connection, dataset_number=number)
    await connection.execute(_DELETE_DATASET, number)
    await connection.execute(_MARK_DELETED, number)
    await remember_resource(connection, identity, str(number), now_us=now_us)


async def end_sessions(connection: Connection, *, source_number: int = 0, dataset_number: int = 0) -> None:
    """Remove the open sessions of a source or of a dataset; upkeep removes what they staged."""
    await connection.execute(_END_SESSIONS, source_number, dataset_number)


async def expect_dataset(connection: Connection, number: int, generation: int | None) -> Dataset:
    """Read a dataset that must have this generation. Raises NotFound, Aborted(ETAG_MISMATCH)."""
    present = await dataset_by_number(connection, number)
    if generation not in (None, present.generation):
        raise etag_mismatch(present.etag)
    return present


# -- sources ----------------------------------------------------------------------------------------------


async def lock_dataset_of_source(connection: Connection, source_number: int) -> None:
    """Lock the dataset that a source belongs to, if there is one."""
    number = await connection.fetchval(_DATASET_OF_SOURCE, source_number)
    if number is not None:
        await lock_datasets(connection, [number])


async def create_source(
    connection: Connection, source: Source, identity: RequestIdentity | None, *, now_us: int
) -> Source:
    """Store a source of the dataset with the number given."""
    await lock_datasets(connection, [source.dataset_number])
    if (made := await find_resource(connection, identity)) is not None:
        return await source_by_number(connection, int(made))
    dataset = await dataset_by_number(connection, source.dataset_number)
    if await connection.fetchval(_SOURCE_EXISTS, dataset.number, source.source_id) is not None:
        raise AlreadyExists(
            "SOURCE_EXISTS",
            f"source {source.source_id!r} of dataset {dataset.dataset_id!r} exists already",
            dataset=dataset.dataset_id,
            source=source.source_id,
        )
    number = await connection.fetchval(
        _INSERT_SOURCE,
        dataset.number,
        source.source_id,
        source.display_name,
        source.disabled,
        source.create_time_us,
        source.update_time_us,
        source.last_received_us,
        source.expect_every_us,
    )
    await remember_resource(connection, identity, str(number), now_us=now_us)
    return await source_by_number(connection, number)


async def source_by_id(connection: Connection, dataset_id: str, source_id: str) -> Source:
    """Read a source. Raises NotFound."""
    row = await connection.fetchrow(_SOURCE_BY_ID, dataset_id, source_id)
    if row is None:
        await dataset_by_id(connection, dataset_id)
        raise source_not_found(dataset_id, source_id)
    return source_of(row)


async def source_by_number(connection: Connection, number: int) -> Source:
    """Read a source. Raises NotFound."""
    row = await connection.fetchrow(_SOURCE_BY_NUMBER, number)
    if row is None:
        raise NotFound("SOURCE_NOT_FOUND", "the source was deleted")
    return source_of(row)


async def sources_after(connection: Connection, dataset_id: str, after: str, limit: int) -> list[Source]:
    """Read sources of a dataset in the order of their ids. Raises NotFound."""
    number = (await dataset_by_id(connection, dataset_id)).number
    return [source_of(row) for row in await connection.fetch(_SOURCES_AFTER, number, after, limit)]


async def update_source(
    connection: Connection,
    source: Source,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> Source:
    """Replace settings of a source."""
    await lock_dataset_of_source(connection, source.number)
    if await find_resource(connection, identity) is None:
        present = await expect_source(connection, source.number, expected_generation)
        await connection.execute(
            _UPDATE_SOURCE,
            source.number,
            source.display_name,
            source.disabled,
            source.expect_every_us,
            source.update_time_us,
        )
        await next_version(connection, present.dataset_number)
        await remember_resource(connection, identity, str(source.number), now_us=now_us)
    return await source_by_number(connection, source.number)


async def expect_source(connection: Connection, number: int, generation: int | None) -> Source:
    """Read a source that must have this generation. Raises NotFound, Aborted(ETAG_MISMATCH)."""
    present = await source_by_number(connection, number)
    if generation not in (None, present.generation):
        raise etag_mismatch(present.etag)
    return present


# -- keys -------------------------------------------------------------------------------------------------


async def create_key(
    connection: Connection, key: Key, identity: RequestIdentity | None, *, now_us: int
) -> Key:
    """Store a key."""
    if (made := await find_resource(connection, identity)) is not None:
        return await key_by_id(connection, made)
    if key.role is Role.PUSH:
        await lock_dataset_of_source(connection, key.source_number)
        await source_by_number(connection, key.source_number)
    await connection.execute(
        _INSERT_KEY,
        key.key_id,
        key.secret_hash,
        key.role,
        key.source_number if key.role is Role.PUSH else None,
        _encode(key.patterns),
        key.display_name,
        key.expire_time_us,
        key.create_time_us,
        key.last_used_us,
    )
    await remember_resource(connection, identity, key.key_id, now_us=now_us)
    return await key_by_id(connection, key.key_id)


async def key_by_id(connection: Connection, key_id: str) -> Key:
    """Read a key. Raises NotFound."""
    row = await connection.fetchrow(_KEY_BY_ID, key_id)
    if row is None:
        raise NotFound("KEY_NOT_FOUND", f"key {key_id!r} does not exist", key=key_id)
    return key_of(row)


async def keys_after(connection: Connection, after: str, limit: int) -> list[Key]:
    """Read keys in the order of their ids."""
    return [key_of(row) for row in await connection.fetch(_KEYS_AFTER, after, limit)]


async def update_key(
    connection: Connection,
    key: Key,
    expected_generation: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> Key:
    """Replace title, patterns and expiry of a key."""
    if await find_resource(connection, identity) is None:
        await _expect_key(connection, key.key_id, expected_generation)
        await connection.execute(
            _UPDATE_KEY, key.key_id, key.display_name, _encode(key.patterns), key.expire_time_us
        )
        await remember_resource(connection, identity, key.key_id, now_us=now_us)
    return await key_by_id(connection, key.key_id)


async def delete_key(
    connection: Connection,
    key_id: str,
    expected_generation: int | None,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Remove a key."""
    if await find_resource(connection, identity) is not None:
        return
    await _expect_key(connection, key_id, expected_generation)
    await connection.execute(_DELETE_KEY, key_id)
    await remember_resource(connection, identity, key_id, now_us=now_us)


async def touch_keys(connection: Connection, last_used_us: dict[str, int]) -> None:
    """Record when keys were last used."""
    await connection.execute(_TOUCH_KEYS, list(last_used_us), list(last_used_us.values()))


async def _expect_key(connection: Connection, key_id: str, generation: int | None) -> None:
    await connection.execute(_LOCK_KEY, key_id)
    present = await key_by_id(connection, key_id)
    if generation not in (None, present.generation):
        raise etag_mismatch(present.etag)


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
