"""Digest of a dataset: the sum, modulo 2**128, of one hash for each live record.

The hash is BLAKE2b-128 over record id (UTF-8), a zero byte, revision (8 bytes, big-endian) and the
BLAKE2b-128 of the data. A sum can be kept up to date by adding and taking away.
"""

from collections.abc import Iterable
from hashlib import blake2b


def record_digest(record_id: str, revision: int, value_hash: bytes) -> int:
    """The term of one live record."""
    return digest_sum(((record_id, revision, value_hash),))


def digest_sum(records: Iterable[tuple[str, int, bytes]]) -> int:
    """Sum of the terms of (record id, revision, hash of the data); not yet reduced."""
    from_bytes = int.from_bytes
    middle, last = b"", -1
    total = 0
    for record_id, revision, value_hash in records:
        if revision != last:  # those of one commit share it
            middle, last = b"\0" + revision.to_bytes(8, "big"), revision
        term = blake2b(record_id.encode() + middle + value_hash, digest_size=16)
        total += from_bytes(term.digest(), "big")
    return total
