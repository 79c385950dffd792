"""Filters against a plain model of them: random filters, spelt at random, over random records."""

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from support.filter_model import EASILY_FOUND, FILTERS, OBJECTS, TEXTS, TIMES_US, holds, planted, written
from syncline_server.errors import InvalidArgument
from syncline_server.filters.canonical import canonical, text_of
from syncline_server.filters.index import SelectionIndex
from syncline_server.filters.parser import parse
from syncline_server.filters.selection import CostClass, Row, Selection, parse_selection

canonical_bytes = msgspec.json.Encoder(order="deterministic").encode

RECORDS = st.tuples(TEXTS.filter(bool), st.sampled_from([1, 2, 2**53 + 1]), TIMES_US, OBJECTS)
RANDOM = st.randoms(use_true_random=False)


def row_of(record):
    record_id, revision, update_time_us, data = record
    return Row(record_id, revision, update_time_us, canonical_bytes(data))


def selection_of(tree, random):
    return Selection(canonical(parse(written(tree, random))), ())


@settings(max_examples=400)
@given(tree=FILTERS, records=st.lists(RECORDS, min_size=1, max_size=5), random=RANDOM)
def test_a_filter_means_what_the_model_says(tree, records, random):
    selection = selection_of(tree, random)
    for record in (planted(tree, record, random) for record in records):
        assert selection.matches(row_of(record)) is holds(tree, *record)


@settings(max_examples=300)
@given(tree=FILTERS, random=RANDOM)
def test_t53_the_canonical_text_reads_as_the_same_filter(tree, random):
    first, second = selection_of(tree, random), selection_of(tree, random)
    again = Selection(canonical(parse(first.filter)), ())

    assert first.fingerprint == second.fingerprint == again.fingerprint
    assert again.filter == first.filter
    assert (again, again.terms) == (first, first.terms)


@settings(max_examples=100)
@given(trees=st.tuples(FILTERS, FILTERS), record=RECORDS, random=RANDOM)
def test_t53_filters_that_differ_somewhere_have_different_fingerprints(trees, record, random):
    """The other way round there is no need: filters that always agree may be told apart."""
    first, second = (selection_of(tree, random) for tree in trees)
    row = row_of(record)
    assume(first.matches(row) is not second.matches(row))

    assert first.fingerprint != second.fingerprint
    assert first != second


@settings(max_examples=200)
@given(
    trees=st.lists(EASILY_FOUND | EASILY_FOUND | FILTERS, max_size=8),
    records=st.lists(RECORDS, max_size=8),
    random=RANDOM,
)
def test_the_index_misses_nothing(trees, records, random):
    index = SelectionIndex()
    selections = [selection_of(tree, random) for tree in trees]
    for number, selection in enumerate(selections):
        index.add(selection, number)
    gone = set(random.sample(range(len(trees)), len(trees) // 3))
    for number in gone:
        index.remove(selections[number], number)

    for record in records:
        row = row_of(planted(random.choice(trees), record, random) if trees else record)
        candidates = index.candidates(row)
        expected = {n for n, selection in enumerate(selections) if n not in gone and selection.matches(row)}
        assert len(candidates) == len(set(candidates))
        assert set(index.matching(row)) == expected <= set(candidates)
        scanned = {n for n, s in enumerate(selections) if s.cost_class is CostClass.SCANNED}
        assert scanned - gone <= set(candidates)

    for number in set(range(len(trees))) - gone:
        index.remove(selections[number], number)
    assert not index._entries and not index._fields and not index._scanned


WORDS = st.sampled_from(
    ["a", "AND", "OR", "NOT", "IN", "-", "(", ")", ",", "=", "!=", "<", ">=", ":", "*", ".", '"', "'", "\\", "\\u",
     "d83d", "1", "1e999", "-0", "true", "record_id", "revision", "update_time", "source", "2026-11-22T10:00:00Z",
     " ", "\n", "\0", "\ud800", "é", "😀", "[", "{", "`", "1" * 400]
)  # fmt: skip


@settings(max_examples=1_500)
@given(st.one_of(st.lists(WORDS, max_size=25).map("".join), st.text(max_size=60)))
@example("a" * 4_097)
@example("é" * 2_049)
@example("(" * 4_096)
@example("NOT " * 1_024)
@example("-" * 4_096)
@example("a." * 2_047 + "a:*")
@example("a IN (" + "1," * 2_000 + "1)")
@example("a=" + "9" * 4_000)
@example("a=1e-999")
def test_t105_random_text_is_a_filter_or_is_refused(text):
    try:
        selection = parse_selection(text, ())
    except InvalidArgument as error:
        assert error.reason == "FILTER_INVALID"
        assert 0 <= int(error.metadata["position"]) <= len(text)
        assert error.fields[0][0] == "filter"
        assert len(error.message) < 400
    else:
        if selection is not None:
            selection.matches(Row("a", 1, 0, b'{"a":"1"}'))
            assert text_of(canonical(parse(selection.filter))) == selection.filter


@given(st.lists(st.one_of(st.lists(WORDS, max_size=6).map("".join), st.text(max_size=9)), max_size=4))
def test_t105_random_masks_are_masks_or_are_refused(paths):
    try:
        selection = parse_selection("", paths)
    except InvalidArgument as error:
        assert error.reason == "INVALID_REQUEST"
        assert error.fields[0][0].startswith("read_mask")
    else:
        if selection is not None:
            selection.project(Row("a", 1, 0, b'{"a":{"1":[]}}'))
            assert parse_selection("", selection.mask_paths) == selection


@pytest.mark.parametrize("depth", [32, 33])
def test_t105_depth_is_bounded(depth):
    text = "(" * (depth - 1) + "NOT a = 1" + ")" * (depth - 1)
    if depth <= 32:
        assert parse_selection(text, ()).filter == "NOT a = 1"
    else:
        with pytest.raises(InvalidArgument, match="nested deeper than 32"):
            parse_selection(text, ())
