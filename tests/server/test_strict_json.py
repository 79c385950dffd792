"""T33: every value is refused or comes back byte for byte; T34: equal canonical bytes mean unchanged.

The oracle is the standard library's parser with strict hooks, which shares no code with jiter and msgspec.
"""

import json
import math
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syncline_server.ingest.strict_json import Refused, parse, parse_canonical

DEPTH = 64

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**300), max_value=10**300),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.sampled_from(["null", "\x00", "\\u0000", "nul", "\null", "😀", "\u2028", "\ufeff", "\x7f"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)
SPELLINGS = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "sort_keys": st.booleans(),
        "indent": st.sampled_from([None, 0, 3]),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r\n:")]),
    }
)


class OracleRefused(Exception):
    pass


def oracle(raw: bytes):
    """What strict parsing gives. Raises OracleRefused."""

    def no_constant(name):
        raise OracleRefused(name)

    def finite(text):
        value = float(text)
        if math.isinf(value):
            raise OracleRefused(text)
        return value

    def members(pairs):
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names) or any("\0" in name for name in names):
            raise OracleRefused(names)
        return dict(pairs)

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, parse_constant=no_constant, parse_float=finite, object_pairs_hook=members)
    except (ValueError, RecursionError) as error:
        raise OracleRefused(error) from error
    if (
        not isinstance(value, dict)
        or height(value) > DEPTH
        or any("\ud800" <= c <= "\udfff" for c in texts(value))
    ):
        raise OracleRefused("not an object, too deep, or a lone surrogate")
    return value


def height(value):
    level, count = [value], 0
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        count += 1
        level = [m for inner in level for m in (inner.values() if isinstance(inner, dict) else inner)]
    return count


def texts(value):
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(key + texts(member) for key, member in value.items())
    return "".join(map(texts, value)) if isinstance(value, list) else ""


def exact(value):
    """Tells what == does not: 1 from 1.0 and True, 0.0 from -0.0; ignores only the order of members."""
    if isinstance(value, dict):
        return {key: exact(member) for key, member in value.items()}
    if isinstance(value, list):
        return [exact(member) for member in value]
    return (type(value).__name__, struct.pack("d", value) if isinstance(value, float) else value)


def attempt(raw: bytes):
    try:
        return parse(raw, depth=DEPTH)
    except Refused:
        return None


def agree_with_oracle(raw: bytes):
    found = attempt(raw)
    try:
        expected = oracle(raw)
    except OracleRefused:
        assert found is None
        return
    assert found is not None
    value, canonical = found
    assert exact(value) == exact(expected)
    assert exact(oracle(canonical)) == exact(expected)


@given(OBJECTS, SPELLINGS)
def test_t33_every_object_survives_exactly_however_it_is_spelled(value, spelling):
    raw = json.dumps(value, **spelling).encode()
    if any("\0" in name for name in names_in(value)):
        assert attempt(raw) is None
        return
    agree_with_oracle(raw)
    canonical = parse(raw, depth=DEPTH)[1]
    assert canonical == parse(json.dumps(value).encode(), depth=DEPTH)[1]
    assert parse(canonical, depth=DEPTH)[1] == canonical


def names_in(value):
    if isinstance(value, dict):
        return [*value, *(name for member in value.values() for name in names_in(member))]
    return [name for member in value for name in names_in(member)] if isinstance(value, list) else []


@given(
    OBJECTS,
    SPELLINGS,
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=2), st.integers(0, 3)), max_size=3),
)
@example({"a": 1}, {}, [(0.99, b"e999", 0)])
@example({"a": 1, "b": 2}, {}, [(0.6, b"a", 1)])
def test_t33_broken_texts_are_judged_as_by_the_oracle(value, spelling, breaks):
    raw = json.dumps(value, **spelling).encode()
    for place, put, cut in breaks:
        at = int(place * len(raw))
        raw = raw[:at] + put + raw[at + cut :]
    agree_with_oracle(raw)


@given(st.binary(max_size=40))
def test_t33_bytes_are_judged_as_by_the_oracle(raw):
    agree_with_oracle(raw)
    agree_with_oracle(b'{"a":' + raw + b"}")
    agree_with_oracle(b'{"a":"' + raw + b'"}')


@given(OBJECTS, OBJECTS)
def test_t34_equal_canonical_bytes_mean_equal_values(one, other):
    texts = [attempt(json.dumps(value).encode()) for value in (one, other)]
    if None not in texts:
        assert (texts[0][1] == texts[1][1]) == (exact(one) == exact(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1.0"), ("1", "true"), ("0", "false"), ("0.0", "-0.0"), ("1", '"1"'), ("null", '"null"')],
)
def test_t34_values_that_compare_equal_are_different(one, other):
    """Hazard F16."""
    assert (
        parse(b'{"a":%s}' % one.encode(), depth=DEPTH)[1]
        != parse(b'{"a":%s}' % other.encode(), depth=DEPTH)[1]
    )


REFUSED = {
    "NaN": (b'{"a":NaN}', "json", ""),
    "Infinity": (b'{"a":Infinity}', "json", ""),
    "-Infinity": (b'{"a":-Infinity}', "json", ""),
    "overflow": (b'{"a":[1,{"b":1e400}]}', "json", "/a/1/b"),
    "negative overflow": (b'{"a":-1e400}', "json", "/a"),
    "overflow beside null": (b'{"a":null,"b":1e400,"c":"null"}', "json", "/b"),
    "overflow in digits": (b'{"a":' + b"9" * 400 + b".0}", "json", "/a"),
    "4301 digits": (b'{"a":' + b"1" * 4301 + b"}", "json", ""),
    "10000 digits": (b'{"a":' + b"1" * 10_000 + b"}", "json", ""),
    "duplicate name": (b'{"a":1,"a":1}', "json", ""),
    "duplicate name, escaped": (b'{"a":1,"\\u0061":2}', "json", ""),
    "duplicate name, inside": (b'{"x":[{"a":1,"a":2}]}', "json", ""),
    "byte order mark": (b'\xef\xbb\xbf{"a":1}', "json", ""),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "json", ""),
    "invalid UTF-8": (b'{"a":"\xff"}', "json", ""),
    "overlong UTF-8": (b'{"a":"\xc0\x80"}', "json", ""),
    "surrogate in UTF-8": (b'{"a":"\xed\xa0\x80"}', "json", ""),
    "above U+10FFFF": (b'{"a":"\xf4\x90\x80\x80"}', "json", ""),
    "lone surrogate": (b'{"a":"\\ud800"}', "json", ""),
    "lone low surrogate": (b'{"a":"\\udc00"}', "json", ""),
    "half a pair": (b'{"a":"\\ud800\\u0041"}', "json", ""),
    "lone surrogate in a name": (b'{"\\ud800":1}', "json", ""),
    "NUL in a name": (b'{"a\\u0000b":1}', "json", ""),
    "NUL in a name, inside": (b'{"x":{"y":{"\\u0000":1}}}', "json", "/x/y"),
    "raw NUL": (b'{"a":"\x00"}', "json", ""),
    "raw line end": (b'{"a":"\n"}', "json", ""),
    "leading zero": (b'{"a":01}', "json", ""),
    "plus": (b'{"a":+1}', "json", ""),
    "point without digits": (b'{"a":1.}', "json", ""),
    "hexadecimal": (b'{"a":0x1}', "json", ""),
    "comma at the end": (b'{"a":1,}', "json", ""),
    "single quotes": (b"{'a':1}", "json", ""),
    "comment": (b'{"a":1/**/}', "json", ""),
    "something behind": (b'{"a":1}{}', "json", ""),
    "NUL behind": (b'{"a":1}\x00', "json", ""),
    "nothing": (b"", "json", ""),
    "white space": (b" \n", "json", ""),
    "array": (b"[{}]", "json", ""),
    "string": (b'"{}"', "json", ""),
    "number": (b"1", "json", ""),
    "null": (b"null", "json", ""),
    "unfinished": (b'{"a":', "json", ""),
    "depth 65": (b'{"a":' * 64 + b"{}" + b"}" * 64, "depth", "/a" * 64),
    "depth 65 in arrays": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "depth", "/a" + "/0" * 63),
    "depth 10000": (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "depth", ""),
    "depth 1000000": (b'{"a":' + b"[" * 1_000_000, "depth", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_t33_refused(name):
    raw, keyword, pointer = REFUSED[name]
    with pytest.raises(Refused) as refused:
        parse(raw, depth=DEPTH)
    assert (refused.value.keyword, refused.value.pointer) == (keyword, pointer)
    assert refused.value.message
    try:
        assert parse_canonical(raw, depth=DEPTH) is None
    except Refused as again:
        assert again.keyword == keyword


ACCEPTED = {
    b"{}": b"{}",
    b' {\t"b" : [ 1 , 2 ] ,\r\n"a":{ } } ': b'{"a":{},"b":[1,2]}',
    b'{"a":9007199254740993}': b'{"a":9007199254740993}',
    b'{"a":-18446744073709551617}': b'{"a":-18446744073709551617}',
    b'{"a":' + b"1" * 4300 + b"}": b'{"a":' + b"1" * 4300 + b"}",
    b'{"a":-0}': b'{"a":0}',
    b'{"a":-0.0}': b'{"a":-0.0}',
    b'{"a":1E2}': b'{"a":100.0}',
    b'{"a":0.1000000000000000055511151231257827}': b'{"a":0.1}',
    b'{"a":1e-400}': b'{"a":0.0}',
    b'{"a":5e-324,"b":1.7976931348623157e308}': b'{"a":5e-324,"b":1.7976931348623157e308}',
    b'{"a":"\\u0000\\u001f\\u007f\\/\\u00e9"}': b'{"a":"\\u0000\\u001f\x7f/\xc3\xa9"}',
    b'{"a":"\\ud83d\\ude00"}': b'{"a":"\xf0\x9f\x98\x80"}',
    b'{"a":"\\u006eull","b":null}': b'{"a":"null","b":null}',
    b'{"\xef\xbf\xbf":1,"\xf0\x90\x80\x80":2,"z":3,"":4}': b'{"":4,"z":3,"\xef\xbf\xbf":1,"\xf0\x90\x80\x80":2}',
    b'{"a":' * 63 + b"{}" + b"}" * 63: b'{"a":' * 63 + b"{}" + b"}" * 63,
    b'{"a":"' + b"[{" * 200 + b'"}': b'{"a":"' + b"[{" * 200 + b'"}',
}


@pytest.mark.parametrize("raw", ACCEPTED)
def test_t33_accepted(raw):
    value, canonical = parse(raw, depth=DEPTH)
    assert canonical == ACCEPTED[raw]
    assert exact(value) == exact(oracle(raw))


def test_t33_a_string_of_ten_megabytes_comes_back_exactly():
    raw = b'{"a":"' + "é😀x".encode() * 1_500_000 + b'"}'
    assert parse(raw, depth=DEPTH)[1] == raw


@given(OBJECTS, SPELLINGS)
def test_t33_the_short_cut_for_canonical_texts_judges_the_same(value, spelling):
    raw = json.dumps(value, **spelling).encode()
    found = attempt(raw)
    if found is None:
        return
    parsed, canonical = found
    assert exact(parse_canonical(canonical, depth=DEPTH)) == exact(parsed)
    assert (parse_canonical(raw, depth=DEPTH) is not None) == (raw == canonical)


def test_t107_messages_hold_no_control_characters():
    for raw in (
        b'{"a\\u001b[31m":1,"a\\u001b[31m":2}',
        b'{"\\u202eb":{"\\n":1e400}}',
        '{"\u2028":1,"\u2028":1}'.encode(),
    ):
        with pytest.raises(Refused) as refused:
            parse(raw, depth=DEPTH)
        told = refused.value.message + refused.value.pointer
        assert told.isprintable() and len(told) < 400


def test_t107_long_names_are_shortened():
    with pytest.raises(Refused) as refused:
        parse(b'{"%s":1,"%s":2}' % (b"x" * 100_000, b"x" * 100_000), depth=DEPTH)
    assert len(refused.value.message) < 200
    assert refused.value.message.endswith("line 1 column 200010")
    with pytest.raises(Refused) as refused:
        parse(b'{"%s":1e400}' % (b"x" * 100_000), depth=DEPTH)
    assert len(refused.value.pointer) <= 200
