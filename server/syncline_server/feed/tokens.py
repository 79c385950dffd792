"""Tokens: where a copy stands, and whether it may go on from there. Pure functions, no I/O.

A token is 102 bytes, big-endian::

    version 1 | store id 8 | incarnation 16 | filter fingerprint 8 | history id 8
    | cursor: revision 8, position 8 | flags 1 | base revision 8 | seen revision 8 | seen commit id 8
    | MAC 16 | CRC-32 4                                                     (of everything before each)

The MAC (BLAKE2b keyed with the secret of the store) keeps tokens from being mixed up or made up; it grants
nothing. The CRC tells a damaged token of a foreign store from a whole one, whose secret is not known here.

The rules are those that survived randomised models (``tests/server/test_token_models.py``); simpler ones let
copies diverge without a sign.
"""

import hmac
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from syncline_server.errors import InvalidArgument
from syncline_server.model import Head, Page, ResetReason

NO_FILTER: Final = bytes(8)
"""Filter fingerprint of a copy that holds everything."""

_VERSION: Final = 1
_COMPLETE: Final = 1
_BODY: Final = struct.Struct(">B8s16s8s8sQQBQQ8s")
_MAC_BYTES: Final = 16
_CRC: Final = struct.Struct(">I")
_PERSON: Final = b"syncline.token"
TOKEN_BYTES: Final = _BODY.size + _MAC_BYTES + _CRC.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a copy is a copy of."""

    store_id: bytes
    history_id: bytes
    """Of the process start that last read for this copy."""
    incarnation: bytes
    filter_fingerprint: bytes = NO_FILTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a copy stands. ``None`` in place of a position: it holds nothing yet."""

    origin: Origin
    revision: int
    """Everything up to (revision, position) has been sent."""
    position: int
    complete: bool
    """The copy equals the dataset at ``revision``; otherwise that commit may be going on."""
    base_revision: int
    """Head when the copy was started from nothing, or its last checkpoint: deletes up to it cannot
    concern this copy any more."""
    seen_revision: int
    """Newest head that any page was read at: nothing in the copy is newer."""
    seen_commit_id: bytes
    """Commit id of ``seen_revision``."""

    @property
    def covered_revision(self) -> int:
        """Tombstones up to here are not needed to go on."""
        return max(self.base_revision, self.revision if self.complete else self.revision - 1)


def at_head(origin: Origin, head: Head) -> Position:
    """Position of a copy that equals the dataset at ``head``."""
    return Position(
        origin=origin,
        revision=head.revision,
        position=head.last_position,
        complete=True,
        base_revision=head.revision,
        seen_revision=head.revision,
        seen_commit_id=head.commit_id,
    )


def advance(position: Position | None, page: Page, origin: Origin) -> Position:
    """Position after a page that was read after ``position`` and judged good."""
    if page.complete:
        return at_head(origin, page.head)
    if not page.changes:
        raise ValueError("a page without changes that is not complete leads nowhere")
    return Position(
        origin=origin,
        revision=page.last_revision,
        position=page.last_position,
        complete=False,
        base_revision=page.head.revision if position is None else position.base_revision,
        seen_revision=page.head.revision,
        seen_commit_id=page.head.commit_id,
    )


def pass_over(position: Position | None, page: Page, origin: Origin) -> Position:
    """Position after such a page for a copy of which it is not known what it holds there: never complete."""
    if not page.complete:
        return advance(position, page, origin)
    return Position(
        origin=origin,
        revision=page.head.revision,
        position=page.head.last_position,
        complete=False,
        base_revision=page.head.revision if position is None else position.base_revision,
        seen_revision=page.head.revision,
        seen_commit_id=page.head.commit_id,
    )


def folded(start: Position | None, end: Position, rows: int) -> int:
    """Changes between two positions that are not among the ``rows`` read, because newer ones replaced them.

    Each change takes one position. 0 as long as a first copy is inside what was there when it was begun.
    """
    if start is None or not (start.complete or start.revision > start.base_revision):
        return 0
    return end.position - start.position - rows


def judge_origin(position: Position, *, origin: Origin, histories: Collection[bytes]) -> ResetReason | None:
    """Why a copy of another thing cannot be continued here; what can be told without a read."""
    theirs = position.origin
    if theirs.store_id != origin.store_id or theirs.history_id not in histories:
        return ResetReason.HISTORY_CHANGED
    if theirs.incarnation != origin.incarnation:
        return ResetReason.DATASET_REPLACED
    if theirs.filter_fingerprint != origin.filter_fingerprint:
        return ResetReason.FILTER_CHANGED
    return None


def judge(
    position: Position,
    *,
    origin: Origin,
    histories: Collection[bytes],
    head: Head,
    seen_commit_id: bytes | None,
) -> ResetReason | None:
    """Why a copy cannot be continued, or None. To be asked of every page, with the facts of its snapshot.

    ``seen_commit_id`` is what the store has for ``position.seen_revision``. The store must be its own primary:
    one that only follows another may lag, and has to ask there before a position ahead of it is condemned.
    """
    reason = judge_origin(position, origin=origin, histories=histories)
    if reason is not None:
        return reason
    if position.seen_revision > head.revision:
        return ResetReason.HISTORY_CHANGED
    if seen_commit_id is not None and seen_commit_id != position.seen_commit_id:
        return ResetReason.HISTORY_CHANGED
    if position.covered_revision < head.purge_revision:
        return ResetReason.COMPACTED
    # Commit ids are kept from the watermark on, so one that is missing here never was.
    return None if seen_commit_id is not None else ResetReason.HISTORY_CHANGED


def rebase(position: Position, origin: Origin) -> Position:
    """Return the same position, known to be good in this process."""
    return replace(position, origin=origin)


def encode(position: Position, secret: bytes) -> bytes:
    """Token of a position."""
    origin = position.origin
    body = _BODY.pack(
        _VERSION,
        origin.store_id,
        origin.incarnation,
        origin.filter_fingerprint,
        origin.history_id,
        position.revision,
        position.position,
        _COMPLETE if position.complete else 0,
        position.base_revision,
        position.seen_revision,
        position.seen_commit_id,
    )
    signed = body + _mac(body, secret)
    return signed + _CRC.pack(zlib.crc32(signed))


def decode(token: bytes, *, store_id: bytes, secret: bytes) -> Position:
    """Position in a token. Raises InvalidArgument(TOKEN_INVALID).

    A whole token of another store is decoded unverified: ``judge_origin`` refuses it before anything in it is used.
    """
    if not token or token[0] != _VERSION:
        raise _invalid("its version is not known to this server")
    if len(token) != TOKEN_BYTES:
        raise _invalid("its length is wrong")
    signed = token[: -_CRC.size]
    if _CRC.unpack(token[-_CRC.size :])[0] != zlib.crc32(signed):
        raise _invalid("it is damaged")
    (_, token_store, incarnation, fingerprint, history, revision, position, flags, base, seen, commit_id) = (
        _BODY.unpack_from(signed)
    )
    mac = signed[_BODY.size :]
    if token_store == store_id and not hmac.compare_digest(mac, _mac(signed[: _BODY.size], secret)):
        raise _invalid("it was not made by this server")
    if flags & ~_COMPLETE:
        raise _invalid("its version is not known to this server")
    return Position(
        origin=Origin(
            store_id=token_store, history_id=history, incarnation=incarnation, filter_fingerprint=fingerprint
        ),
        revision=revision,
        position=position,
        complete=flags == _COMPLETE,
        base_revision=base,
        seen_revision=seen,
        seen_commit_id=commit_id,
    )


def _mac(body: bytes, secret: bytes) -> bytes:
    return blake2b(body, digest_size=_MAC_BYTES, key=secret, person=_PERSON).digest()


def _invalid(why: str) -> InvalidArgument:
    return InvalidArgument(
        "TOKEN_INVALID",
        f"the token cannot be used: {why}; start again with an empty one",
        fields=[("token", why)],
    )
