"""Field masks: which members stay, and that what stays keeps its bytes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.filter_model import NAMES, OBJECTS
from syncline_server.errors import InvalidArgument
from syncline_server.filters.selection import Row, parse_selection
from syncline_server.ingest.strict_json import parse

DATA = parse(
    '{"a":{"b":1,"c":{"d":2,"e":3}},"big":123456789012345678901234567890,"exp":1e22,"neg":-0.0,"one":1,"one_f":1.0,'
    '"list":[{"x":1}],"none":null,"odd name":{"é\\"":"\\u0001\\n/😀"},"tiny":5e-324}'.encode(),
    depth=64,
)[1]


def project(*paths, data=DATA):
    return parse_selection("", paths).project(Row("r", 1, 0, data))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["one"], b'{"one":1}'),
        (["one_f", "neg"], b'{"neg":-0.0,"one_f":1.0}'),
        (["big"], b'{"big":123456789012345678901234567890}'),
        (["exp", "tiny"], b'{"exp":1e22,"tiny":5e-324}'),
        (["none"], b'{"none":null}'),
        (["list"], b'{"list":[{"x":1}]}'),
        (["list.x"], b"{}"),
        (["a"], b'{"a":{"b":1,"c":{"d":2,"e":3}}}'),
        (["a.b"], b'{"a":{"b":1}}'),
        (["a.c.e", "a.b"], b'{"a":{"b":1,"c":{"e":3}}}'),
        (["a.c.e", "a.c"], b'{"a":{"c":{"d":2,"e":3}}}'),
        (["a.c", "a.c.e", "a.c"], b'{"a":{"c":{"d":2,"e":3}}}'),
        (["a.nothing", "one.x", "nothing"], b"{}"),
        (['"odd name"'], '{"odd name":{"é\\"":"\\u0001\\n/😀"}}'.encode()),
        (['\'odd name\'."é\\""'], '{"odd name":{"é\\"":"\\u0001\\n/😀"}}'.encode()),
    ],
)
def test_what_stays(paths, expected):
    assert project(*paths) == expected


def test_without_a_mask_the_bytes_are_the_records_own():
    row = Row("r", 1, 0, DATA)
    assert parse_selection("one = 1", ()).project(row) is row.data


@given(data=OBJECTS, names=st.lists(NAMES, max_size=4))
def test_members_keep_the_bytes_that_ingest_gave_them(data, names):
    """Integers of any size and the spelling of every double survive."""
    encode = msgspec.json.Encoder(order="deterministic").encode
    stored = parse(encode(data), depth=64)[1]
    masked = project(*(msgspec.json.encode(name).decode() for name in [*names, "nothing"]), data=stored)

    assert masked == encode({name: value for name, value in data.items() if name in names})
    assert parse(masked, depth=64)[1] == masked


@pytest.mark.parametrize(
    ("paths", "canonical"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["a.b", "a", "a.c"], ("a",)),
        (['"a"."b c"', "'x'"], ('a."b c"', "x")),
        (["and", "record_id"], ("and", "record_id")),
    ],
)
def test_t53_masks_that_mean_the_same_are_the_same(paths, canonical):
    assert parse_selection("", paths).mask_paths == canonical
    assert parse_selection("", paths) == parse_selection("", canonical)


@pytest.mark.parametrize(
    ("paths", "field", "words"),
    [
        (["a", ""], "read_mask.paths[1]", "expected the name of a field, found the end at position 0"),
        (["a."], "read_mask.paths[0]", "at position 2"),
        (["a..b"], "read_mask.paths[0]", "at position 2"),
        (["a b"], "read_mask.paths[0]", "expected '.' or the end, found ' ' at position 1"),
        (["a.*"], "read_mask.paths[0]", "found '*'"),
        (['"a'], "read_mask.paths[0]", "has no end"),
        (["a,b"], "read_mask.paths[0]", "found ','"),
        ([".".join("a" * 65)], "read_mask.paths[0]", "64 levels"),
        (["a" * 4_097], "read_mask", "4096 bytes"),
        (["a"] * 1_001, "read_mask", "1000 paths"),
    ],
)
def test_refused(paths, field, words):
    with pytest.raises(InvalidArgument, match="read_mask") as raised:
        parse_selection("", paths)
    assert raised.value.reason == "INVALID_REQUEST"
    [(named, problem)] = raised.value.fields
    assert named == field
    assert words in problem
