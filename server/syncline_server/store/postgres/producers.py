"""Producers: who numbers their writes, and how far each epoch of theirs came.

A producer that is forgotten leaves its row behind, with the last sequence -1, so that none of its epochs is given
out again, whatever the clock does meanwhile.
"""

from dataclasses import replace
from typing import Final

from syncline_server.errors import NotFound
from syncline_server.model import Producer, RequestIdentity
from syncline_server.store.plan import producer_fenced, source_disabled
from syncline_server.store.postgres.catalog import lock_dataset_of_source, next_version, source_by_number
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.requests import find_resource, remember_resource
from syncline_server.store.rows import producer_of

FORGOTTEN: Final = -1
"""Last sequence of a producer that was forgotten."""

_PRODUCER: Final = """
SELECT p.number, p.source_number, d.dataset_id, s.source_id, p.producer_id, p.epoch, p.last_sequence,
       p.create_time_us, p.open_time_us, p.last_received_us
FROM producer p JOIN source s ON s.number = p.source_number JOIN dataset d ON d.number = s.dataset_number
"""
_BY_ID: Final = _PRODUCER + "WHERE p.source_number = $1 AND p.producer_id = $2"
_AFTER: Final = (
    _PRODUCER + "WHERE p.source_number = $1 AND p.producer_id > $2 AND p.last_sequence >= 0 "
    "ORDER BY p.producer_id LIMIT $3"
)
_INSERT: Final = """
INSERT INTO producer (source_number, producer_id, epoch, create_time_us, open_time_us) VALUES ($1, $2, $3, $4, $4)
"""
_BEGIN_EPOCH: Final = "UPDATE producer SET epoch = $1, open_time_us = $2 WHERE number = $3"
_INSERT_EPOCH: Final = (
    "INSERT INTO producer_epoch (producer_number, epoch, base_sequence) VALUES ($1, $2, $3)"
)
_CAME_TO: Final = """
SELECT EXISTS (SELECT 1 FROM producer_epoch WHERE producer_number = $1 AND epoch = $2),
       (SELECT base_sequence FROM producer_epoch WHERE producer_number = $1 AND epoch > $2 ORDER BY epoch LIMIT 1)
"""
_DELETE: Final = "DELETE FROM producer WHERE number = $1"
_DELETE_EPOCHS: Final = "DELETE FROM producer_epoch WHERE producer_number = $1"
_FORGET: Final = "UPDATE producer SET last_sequence = -1, last_received_us = NULL WHERE number = $1"


async def open_producer(
    connection: Connection,
    source_number: int,
    producer_id: str,
    *,
    epoch: int,
    previous_epoch: int,
    dry_run: bool,
    identity: RequestIdentity | None,
    now_us: int,
) -> tuple[Producer, int]:
    """Open a producer with its present epoch or, with ``epoch`` 0, the next one."""
    await lock_dataset_of_source(connection, source_number)
    if not epoch and not dry_run and (begun := await find_resource(connection, identity)) is not None:
        epoch = int(begun)
    source = await source_by_number(connection, source_number)
    if source.disabled:
        raise source_disabled(source.source_id)
    row = await connection.fetchrow(_BY_ID, source_number, producer_id)
    present = None if row is None or row[6] == FORGOTTEN else producer_of(row)
    if epoch:
        if present is None or present.epoch != epoch:
            raise producer_fenced(producer_id, 0 if present is None else present.epoch)
        return present, await _came_to(connection, present, previous_epoch)
    used = 0 if row is None else row[5]
    next_epoch = max(now_us // 1_000, used + 1)
    if dry_run:
        came_to = 0 if present is None else await _came_to(connection, present, previous_epoch)
        planned = present or Producer(
            number=0,
            source_number=source_number,
            dataset_id=source.dataset_id,
            source_id=source.source_id,
            producer_id=producer_id,
            epoch=0,
            last_sequence=0,
            create_time_us=now_us,
            open_time_us=now_us,
        )
        return replace(planned, epoch=next_epoch, open_time_us=now_us), came_to
    if present is None:
        if row is not None:
            await connection.execute(_DELETE, row[0])
        await connection.execute(_INSERT, source_number, producer_id, next_epoch, now_us)
    else:
        await connection.execute(_BEGIN_EPOCH, next_epoch, now_us, present.number)
    await next_version(connection, source.dataset_number)
    opened = await producer_by_id(connection, source_number, producer_id)
    await connection.execute(_INSERT_EPOCH, opened.number, next_epoch, opened.last_sequence)
    await remember_resource(connection, identity, str(next_epoch), now_us=now_us)
    return opened, await _came_to(connection, opened, previous_epoch)


async def _came_to(connection: Connection, producer: Producer, epoch: int) -> int:
    """Last sequence that became durable in an epoch or before it: where the one after it began."""
    if not epoch:
        return 0
    known, base_of_next = await connection.fetchrow(_CAME_TO, producer.number, epoch)
    if not known:
        return 0
    return producer.last_sequence if base_of_next is None else int(base_of_next)


async def producer_by_id(connection: Connection, source_number: int, producer_id: str) -> Producer:
    """Read a producer. Raises NotFound."""
    row = await connection.fetchrow(_BY_ID, source_number, producer_id)
    if row is None or row[6] == FORGOTTEN:
        raise NotFound("PRODUCER_NOT_FOUND", f"producer {producer_id!r} does not exist", producer=producer_id)
    return producer_of(row)


async def producers_after(
    connection: Connection, source_number: int, after: str, limit: int
) -> list[Producer]:
    """Read producers of a source in the order of their ids."""
    return [producer_of(row) for row in await connection.fetch(_AFTER, source_number, after, limit)]


async def delete_producer(
    connection: Connection,
    source_number: int,
    producer_id: str,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> None:
    """Forget a producer but for the epochs that it used up."""
    await lock_dataset_of_source(connection, source_number)
    if await find_resource(connection, identity) is not None:
        return
    producer = await producer_by_id(connection, source_number, producer_id)
    await connection.execute(_DELETE_EPOCHS, producer.number)
    await connection.execute(_FORGET, producer.number)
    source = await source_by_number(connection, source_number)
    await next_version(connection, source.dataset_number)
    await remember_resource(connection, identity, producer_id, now_us=now_us)
