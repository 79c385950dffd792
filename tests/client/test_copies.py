"""Digest and Copy: what a checkpoint proves (G7)."""

import random
from hashlib import blake2b
from typing import Any

import pytest

import syncline
from support.scripted_server import changes, checkpoint, reset
from syncline._events import Order


def events(*wire: Any) -> list[Any]:
    order = Order(b"", bytes)
    return [order.accept(event) for event in wire]


A, B = ("a", b'{"v":1}', 1), ("b", b'{"v":2}', 2)


def test_digest_is_what_the_contract_says() -> None:
    """Sum modulo 2^128 of BLAKE2b-128(id, 0x00, revision, BLAKE2b-128(data)), computed here by hand."""

    def entry(record_id: bytes, revision: int, data: bytes) -> int:
        inner = blake2b(data, digest_size=16).digest()
        outer = blake2b(record_id + b"\0" + revision.to_bytes(8, "big") + inner, digest_size=16)
        return int.from_bytes(outer.digest(), "big")

    digest = syncline.Digest()
    digest.put("é", 7, b"{}")
    digest.put("b", 1 << 40, b'{"v":2}')

    expected = (entry("é".encode(), 7, b"{}") + entry(b"b", 1 << 40, b'{"v":2}')) % (1 << 128)
    assert digest.value == expected.to_bytes(16, "big")


def test_digest_does_not_depend_on_the_way() -> None:
    chance = random.Random(7)
    digest = syncline.Digest()
    live: dict[str, tuple[int, bytes]] = {}
    for revision in range(1, 2_000):
        record_id = f"k{chance.randrange(50)}"
        if chance.random() < 0.3:
            live.pop(record_id, None)
            digest.remove(record_id)
        else:
            live[record_id] = (revision, b"%d" % chance.randrange(3))
            digest.put(record_id, *live[record_id])
    again = syncline.Digest()
    for record_id in sorted(live, reverse=True):
        again.put(record_id, *live[record_id])

    assert digest.value == again.value
    assert len(digest) == len(again) == len(live)
    digest.clear()
    assert (len(digest), digest.value) == (0, bytes(16))


def test_digest_matches_only_the_same_copy() -> None:
    (exact,) = events(checkpoint(0))[-1:]
    digest = syncline.Digest()
    assert digest.matches(exact)
    digest.put("a", 1, b"{}")
    assert not digest.matches(exact)


def test_copy_changes_only_at_checkpoints() -> None:
    """A commit is seen entirely or not at all (G1), from the first one on."""
    copy: syncline.Copy[Any] = syncline.Copy()
    put_a, first, batch, second = events(
        changes(0, 1, [A]),
        checkpoint(1, [A]),
        changes(1, 2, [B, ("a", None, 2)]),
        checkpoint(2, [B]),
    )

    copy.apply(put_a)
    assert (list(copy), copy.is_complete, copy.token) == ([], False, b"")
    copy.apply(first)
    assert (dict(copy), copy.revision, copy.token) == ({"a": b'{"v":1}'}, 1, b"c1")
    for event in batch:
        copy.apply(event)
    assert list(copy) == ["a"]
    copy.apply(second)
    assert (dict(copy), copy.digest == second.digest) == ({"b": b'{"v":2}'}, True)
    assert copy.event("b").revision == 2
    with pytest.raises(KeyError):
        copy["a"]


def test_t61_copy_keeps_the_old_content_during_a_reset() -> None:
    """F61: a reset shows no empty copy; the new one comes whole."""
    copy: syncline.Copy[Any] = syncline.Copy()
    first, exact, again, half, anew, rest, done = events(
        changes(0, 1, [A]),
        checkpoint(1, [A]),
        reset(),
        changes(0, 5, [("half", b"{}", 5)]),
        reset(),
        changes(0, 2, [B]),
        checkpoint(2, [B]),
    )

    for event in (first, exact, again, half, anew, rest):
        copy.apply(event)
    assert list(copy) == ["a"]
    copy.apply(done)
    assert list(copy) == ["b"]


def test_g7_g11_a_feed_left_in_the_middle_of_a_batch_is_gone_on_with_from_before_it() -> None:
    """The second feed passes checkpoints that are older than what the first one had begun to tell."""
    copy: syncline.Copy[Any] = syncline.Copy()
    newer_a, newer_b = ("a", b'{"v":5}', 5), ("b", b'{"v":4}', 4)
    first, exact, batch = events(
        changes(0, 1, [A]), checkpoint(1, [A]), changes(1, 5, [("c", None, 3), newer_b, newer_a])
    )
    second = events(
        changes(0, 1, [A]),
        checkpoint(1, [A]),
        *(changes(1, 2, [B, ("c", b"{}", 2)]), checkpoint(2, [A, B, ("c", b"{}", 2)])),
        *(changes(2, 3, [("c", None, 3)]), checkpoint(3, [A, B])),
        *(changes(3, 4, [newer_b]), checkpoint(4, [A, newer_b])),
        *(changes(4, 5, [newer_a]), checkpoint(5, [newer_a, newer_b])),
    )

    for event in (first, exact, *list(batch)):
        copy.apply(event)
    for event in second[2:]:
        copy.apply(event)
    assert dict(copy) == {"a": b'{"v":5}', "b": b'{"v":4}'}


@pytest.mark.parametrize(
    "wrong",
    [
        checkpoint(1, []),
        checkpoint(1, [A], record_count=2),
        checkpoint(1, [("a", b'{"v":2}', 1)]),
        checkpoint(1, [("a", b'{"v":1}', 2)]),
        checkpoint(1, [("A", b'{"v":1}', 1)]),
    ],
    ids=["missing", "count", "bytes", "revision", "id"],
)
def test_g7_copy_that_is_not_exact_is_found(wrong: Any) -> None:
    copy: syncline.Copy[Any] = syncline.Copy()
    batch, exact = events(changes(0, 1, [A]), wrong)
    copy.apply(batch)

    with pytest.raises(syncline.CopyDiverged, match="begin again"):
        copy.apply(exact)
