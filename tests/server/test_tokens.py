"""Tokens: form, damage, and every rule of the contract's section 3 as a table."""

import os
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncline_server.errors import InvalidArgument
from syncline_server.feed import tokens
from syncline_server.feed.tokens import Origin, Position
from syncline_server.model import Changes, Head, Page, ResetReason

STORE, SECRET, HISTORY = b"store-id", b"s" * 32, b"history1"
ORIGIN = Origin(store_id=STORE, history_id=HISTORY, incarnation=b"i" * 16)

u64 = st.integers(0, 2**64 - 1)
positions = st.builds(
    Position,
    origin=st.builds(
        Origin,
        store_id=st.just(STORE),
        history_id=st.binary(min_size=8, max_size=8),
        incarnation=st.binary(min_size=16, max_size=16),
        filter_fingerprint=st.binary(min_size=8, max_size=8),
    ),
    revision=u64,
    position=u64,
    complete=st.booleans(),
    base_revision=u64,
    seen_revision=u64,
    seen_commit_id=st.binary(min_size=8, max_size=8),
)


def decode(token):
    return tokens.decode(token, store_id=STORE, secret=SECRET)


def position(**fields):
    values = {
        "origin": ORIGIN,
        "revision": 5,
        "position": 50,
        "complete": False,
        "base_revision": 3,
        "seen_revision": 7,
        "seen_commit_id": b"commit-7",
    }
    return Position(**values | fields)


def judge(a_position, *, head=9, purged=0, seen_commit_id=b"commit-7", histories=(HISTORY,)):
    return tokens.judge(
        a_position,
        origin=ORIGIN,
        histories=histories,
        head=Head(revision=head, purge_revision=purged),
        seen_commit_id=seen_commit_id,
    )


@given(positions)
def test_t58_round_trip(a_position):
    token = tokens.encode(a_position, SECRET)
    assert len(token) == tokens.TOKEN_BYTES
    assert decode(token) == a_position


@given(positions, st.data())
def test_t58_every_changed_bit_is_noticed(a_position, data):
    token = bytearray(tokens.encode(a_position, SECRET))
    token[data.draw(st.integers(0, len(token) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidArgument, check=lambda e: e.reason == "TOKEN_INVALID"):
        decode(bytes(token))


@given(positions, st.integers(0, tokens.TOKEN_BYTES - 1), st.binary(min_size=1, max_size=8))
def test_t58_truncated_or_longer(a_position, length, tail):
    token = tokens.encode(a_position, SECRET)
    for wrong in (token[:length], token + tail):
        with pytest.raises(InvalidArgument):
            decode(wrong)


@given(st.binary(max_size=200))
def test_t58_random_bytes(token):
    with pytest.raises(InvalidArgument):
        decode(token)


@given(positions, st.integers(0, 255).filter(lambda version: version != 1))
def test_t58_unknown_version(a_position, version):
    signed = bytes([version]) + tokens.encode(a_position, SECRET)[1:-4]
    with pytest.raises(InvalidArgument, match="version"):
        decode(signed + zlib.crc32(signed).to_bytes(4, "big"))


@given(positions, st.integers(1, 84), st.integers(1, 255))
def test_t58_forged_with_a_good_checksum(a_position, index, change):
    """The CRC is no secret, the MAC is: no field can be changed by somebody who knows the format."""
    signed = bytearray(tokens.encode(a_position, SECRET)[:-4])
    signed[index if index > 8 else index + 8] ^= change
    with pytest.raises(InvalidArgument, match="not made by this server"):
        decode(bytes(signed) + zlib.crc32(signed).to_bytes(4, "big"))


def test_g13_token_of_another_store_is_no_error_but_a_reset():
    foreign = replace(ORIGIN, store_id=b"another!")
    token = tokens.encode(position(origin=foreign), os.urandom(32))
    assert (
        tokens.judge_origin(decode(token), origin=ORIGIN, histories=[HISTORY]) is ResetReason.HISTORY_CHANGED
    )


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        (ORIGIN, None),
        (replace(ORIGIN, history_id=b"unknown!"), ResetReason.HISTORY_CHANGED),
        (replace(ORIGIN, incarnation=b"j" * 16), ResetReason.DATASET_REPLACED),
        (replace(ORIGIN, filter_fingerprint=b"a filter"), ResetReason.FILTER_CHANGED),
    ],
)
def test_t53_token_of_another_thing(origin, reason):
    assert judge(position(origin=origin)) is reason


def test_g13_an_older_history_of_this_store_is_fine():
    old = replace(ORIGIN, history_id=b"history0")
    assert judge(position(origin=old), histories=[b"history0", HISTORY]) is None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"head": 7}, None),
        ({"head": 6, "seen_commit_id": None}, ResetReason.HISTORY_CHANGED),
        ({"seen_commit_id": b"another!"}, ResetReason.HISTORY_CHANGED),
        ({"seen_commit_id": b"another!", "purged": 7}, ResetReason.HISTORY_CHANGED),
        ({"seen_commit_id": None}, ResetReason.HISTORY_CHANGED),
        ({"purged": 4}, None),
        ({"purged": 5}, ResetReason.COMPACTED),
        ({"purged": 9, "seen_commit_id": None}, ResetReason.COMPACTED),
    ],
)
def test_g11_g13_facts_of_the_page(facts, reason):
    """The position stands inside revision 5, began at 3, has seen 7."""
    assert judge(position(), **facts) is reason


@pytest.mark.parametrize(
    ("fields", "covered"),
    [
        ({"revision": 5, "base_revision": 3, "complete": False}, 4),
        ({"revision": 5, "base_revision": 5, "complete": True}, 5),
        ({"revision": 5, "base_revision": 9, "complete": False}, 9),
    ],
)
def test_covered_revision(fields, covered):
    assert position(**fields).covered_revision == covered
    assert judge(position(**fields), purged=covered) is None
    assert judge(position(**fields), purged=covered + 1) is ResetReason.COMPACTED


def page(*, complete, head=9, last_revision=6, ids=("a",)):
    changes = Changes(record_ids=ids, data=[b"{}"] * len(ids), revisions=[6] * len(ids), commit_times_us=[0])
    return Page(
        changes=changes,
        last_position=60,
        last_revision=last_revision,
        complete=complete,
        head=Head(revision=head, commit_id=b"commit-9", last_position=90),
        seen_commit_id=b"commit-7",
    )


def test_advance_inside_a_scan_keeps_its_base():
    new = tokens.advance(position(), page(complete=False), ORIGIN)
    assert (new.revision, new.position, new.complete) == (6, 60, False)
    assert (new.base_revision, new.seen_revision, new.seen_commit_id) == (3, 9, b"commit-9")


def test_advance_from_nothing_begins_at_the_head():
    new = tokens.advance(None, page(complete=False), ORIGIN)
    assert (new.base_revision, new.covered_revision) == (9, 9)


def test_advance_to_the_head_is_a_checkpoint():
    new = tokens.advance(position(), page(complete=True), ORIGIN)
    assert new == tokens.at_head(ORIGIN, page(complete=True).head)
    assert (new.revision, new.position, new.complete, new.base_revision) == (9, 90, True, 9)


def test_advance_refuses_a_page_that_leads_nowhere():
    with pytest.raises(ValueError, match="leads nowhere"):
        tokens.advance(position(), page(complete=False, ids=()), ORIGIN)
