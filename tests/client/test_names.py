"""Names and ids that both sides agree on.

T32: which keys are accepted. The record ids of a key are injective and reversible; they are what people read,
store and compare, so the table of examples below is part of the contract.
"""

import math
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syncline import names

STRINGS = st.text(st.characters(exclude_categories=["Cs"]))
AWKWARD = st.text(st.sampled_from("~,/esuctf01-. \x00\x1f\x7f\x9fé€😀"), max_size=8)
VALUES = st.one_of(
    STRINGS,
    AWKWARD,
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
)
KEYS = st.lists(VALUES, min_size=1, max_size=8).map(tuple)


def typed(values):
    """Tells 1 from 1.0 and True, and 0.0 from -0.0, which == does not."""
    return tuple((type(value), repr(value)) for value in values)


@given(KEYS)
@example(("~e",))
@example(("",))
@example(("", ""))
@example(("~true",))
@example((True,))
@example(("a,b",))
@example(("a", "b"))
@example((-0.0, 0.0, 0))
@example((1e16, 10**16))
@example((10**4299,))
def test_t32_a_key_can_be_read_back_from_its_record_id(values):
    record_id = names.encode_key(values)
    qualifier, read = names.parse_record_id(record_id)
    assert qualifier is None
    assert typed(read) == typed(values)
    assert names.parse_record_id(f"feed/{record_id}") == ("feed", read)


@given(KEYS, KEYS)
def test_t32_different_keys_have_different_record_ids(one, other):
    assert (names.encode_key(one) == names.encode_key(other)) == (typed(one) == typed(other))


@given(KEYS)
def test_t32_a_record_id_holds_nothing_that_breaks_lines_or_paths(values):
    record_id = names.encode_key(values)
    assert "/" not in record_id
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in record_id)
    assert record_id != ""


@pytest.mark.parametrize(
    ("values", "record_id"),
    [
        (("EGLL",), "EGLL"),
        (("978-0060589462",), "978-0060589462"),
        (("London Heathrow",), "London Heathrow"),
        (("..",), ".."),
        (("../x",), "..~sx"),
        (("a", "b"), "a,b"),
        (("a,b",), "a~cb"),
        (("~",), "~~"),
        (("",), "~e"),
        (("", ""), "~e,~e"),
        (("1",), "1"),
        ((1,), "~1"),
        ((1.0,), "~1.0"),
        ((True,), "~true"),
        (("true",), "true"),
        (("\n",), "~u000a"),
        (("\x85",), "~u0085"),
        (("é",), "é"),
        (("e\u0301",), "e\u0301"),
        (("\u202eabc",), "\u202eabc"),
        (("😀",), "😀"),
        ((2**64, "x"), "~18446744073709551616,x"),
        ((-0.5,), "~-0.5"),
    ],
)
def test_t32_table_of_record_ids(values, record_id):
    assert names.encode_key(values) == record_id
    assert typed(names.parse_record_id(record_id)[1]) == typed(values)


@pytest.mark.parametrize(
    "values", [(), ("\ud800",), ("a", "\udfff"), (math.nan,), (math.inf,), (1, -math.inf)]
)
def test_t32_what_json_cannot_write_is_no_key(values):
    with pytest.raises(ValueError):
        names.encode_key(values)


@pytest.mark.parametrize(
    "record_id",
    [
        "",
        "~",
        "a,",
        ",a",
        "~x",
        "~u00e9",
        "~u000A",
        "~01",
        "~1.50",
        "~tru",
        "~null",
        "a~",
        "a\nb",
        "/a",
        "A/b",
        "a/b/c",
    ],
)
def test_t32_what_encode_key_never_makes_is_refused(record_id):
    with pytest.raises(ValueError):
        names.parse_record_id(record_id)


@given(STRINGS)
def test_t32_every_text_is_read_or_refused(text):
    try:
        _, values = names.parse_record_id(text)
    except ValueError:
        return
    assert names.encode_key(values) == text.rpartition("/")[2]


@pytest.mark.parametrize("name", ["a", "books", "a-b_c.d", "a0", "a" * 63])
def test_resource_names_are_read_back(name):
    assert names.parse_dataset_name(names.dataset_name(name)) == name
    assert names.parse_source_name(names.source_name(name, "feed")) == (name, "feed")
    assert names.parse_source_name(names.source_name("books", name)) == ("books", name)


@pytest.mark.parametrize(
    "name", ["", "A", "0a", "a.", "a-", "-a", ".a", "a" * 64, "a b", "a/b", "ä", "a\n", "..", "a\x00"]
)
def test_ids_outside_of_the_rule_are_refused(name):
    with pytest.raises(ValueError):
        names.parse_dataset_name(f"datasets/{name}")
    with pytest.raises(ValueError):
        names.parse_source_name(f"datasets/books/sources/{name}")


@pytest.mark.parametrize(
    "name",
    ["books", "dataset/books", "datasets", "datasets/", "datasets/a/sources", "datasets/a/sources/b/c"],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError):
        names.parse_dataset_name(name)
    with pytest.raises(ValueError):
        names.parse_source_name(name)


def test_a_refused_name_is_shown_shortened():
    with pytest.raises(ValueError) as raised:
        names.parse_dataset_name("x" * 10_000)
    assert len(str(raised.value)) < 200


@given(st.integers(min_value=0, max_value=2**48 - 1))
def test_request_ids_are_uuidv7_and_tell_their_time(now_ms):
    request_id = names.new_request_id(now_ms)
    parsed = uuid.UUID(request_id)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert names.request_id_time_ms(request_id) == now_ms


def test_request_ids_differ():
    assert len({names.new_request_id(0) for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize(
    "request_id",
    [
        "",
        "x",
        str(uuid.UUID(int=0)),
        "c232ab00-9414-4dec-a3fe-fe0b6f1c0a5d",
        "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
    ],
)
def test_what_is_no_uuidv7_is_refused(request_id):
    with pytest.raises(ValueError):
        names.request_id_time_ms(request_id)


def test_the_example_of_rfc_9562():
    """RFC 9562, appendix A.6."""
    assert names.request_id_time_ms("017F22E2-79B0-7CC3-98C4-DC0C0C07398F") == 0x017F22E279B0
