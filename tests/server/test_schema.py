"""Schemas: what they check, what is told, and T104: what would reach out or run away is refused or cheap."""

import json
import socket
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncline_server.catalog.pattern_cost import pattern_cost
from syncline_server.catalog.schema import ANYTHING, VIOLATIONS_PER_RECORD, compile_schema
from syncline_server.catalog.schema_cost import MAX_EVALUATIONS, examine
from syncline_server.errors import InvalidArgument


def compiled(schema):
    return compile_schema(schema if isinstance(schema, str) else json.dumps(schema))


def refused(schema) -> str:
    with pytest.raises(InvalidArgument) as error:
        compiled(schema)
    assert error.value.reason == "SCHEMA_INVALID"
    assert [field for field, _ in error.value.fields] == ["schema"]
    assert len(error.value.message) <= 600 and error.value.message.isprintable()
    return error.value.message


def told(schema, value):
    data = json.dumps(value, separators=(",", ":")).encode()
    return [(found.pointer, found.keyword) for found in compiled(schema).violations(value, 7, data=data)]


def fits(schema, value) -> bool:
    checker = compiled(schema)
    data = json.dumps(value, separators=(",", ":")).encode()
    valid = not checker.refusal(data) and checker.is_valid(value)
    if checker.is_valid(value):
        assert checker.violations(value, 0, data=data) == []
    return valid


# -- what it checks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  \n", "{}", " { } "])
def test_no_schema_accepts_every_object_at_no_cost(text):
    checker = compile_schema(text)
    assert checker is ANYTHING
    assert (
        checker.accepts_everything
        and checker.is_valid({"a": 1})
        and not checker.violations({}, 0, data=b"{}")
    )


def test_violations_have_index_pointer_keyword_and_message():
    """B-35."""
    schema = {
        "properties": {"a/b": {"properties": {"c~": {"items": {"type": "integer"}}}}},
        "required": ["x"],
    }
    value = {"a/b": {"c~": [1, "two", 3, None]}}
    found = compiled(schema).violations(value, 7, data=json.dumps(value).encode())
    assert sorted((v.index, v.pointer, v.keyword, v.message) for v in found) == [
        (7, "", "required", '"x" is a required property'),
        (7, "/a~1b/c~0/1", "type", '"two" is not of type "integer"'),
        (7, "/a~1b/c~0/3", "type", 'null is not of type "integer"'),
    ]


@pytest.mark.parametrize(
    ("schema", "good", "bad", "keyword"),
    [
        ({"additionalProperties": False, "properties": {"a": {}}}, {"a": 1}, {"b": 1}, "additionalProperties"),
        ({"properties": {"a": {"format": "date-time"}}}, {"a": "2026-01-01T00:00:00Z"}, {"a": "x"}, "format"),
        ({"properties": {"a": {"format": "no-such-format"}}, "required": ["a"]}, {"a": "x"}, {}, "required"),
        ({"properties": {"a": {"pattern": r"^\d+$"}}}, {"a": "12"}, {"a": "٣"}, "pattern"),
        ({"properties": {"a": {"enum": [1, "x"]}}}, {"a": 1}, {"a": 2}, "enum"),
        ({"properties": {"a": {"const": True}}}, {"a": True}, {"a": 1}, "const"),
        ({"properties": {"a": {"maximum": 10**30}}}, {"a": 10**30}, {"a": 10**30 + 1}, "maximum"),
        ({"properties": {"a": {"multipleOf": 7}}}, {"a": 7 * 10**40}, {"a": 7 * 10**40 + 1}, "multipleOf"),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, 10**20]}, {"a": [10**20, 10**20]}, "uniqueItems"),
        ({"$defs": {"t": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/t"}}}, {"a": "x"}, {"a": 1}, "type"),
        ({"$defs": {"t": {"$anchor": "t", "type": "null"}}, "properties": {"a": {"$ref": "#t"}}}, {"a": None}, {"a": 1}, "type"),
        ({"$defs": {"a/b": {"type": "null"}}, "properties": {"a": {"$ref": "#/$defs/a~1b"}}}, {"a": None}, {"a": 1}, "type"),
        ({"$defs": {"a b": {"type": "null"}}, "properties": {"a": {"$ref": "#/$defs/a%20b"}}}, {"a": None}, {"a": 1}, "type"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["b"]}, {"b": 1, "a": {"b": 1}}, {"b": 1, "a": {}}, "required"),
        ({"properties": {"$ref": {"type": "string"}}}, {"$ref": "http://x"}, {"$ref": 1}, "type"),
        ({"$id": "https://example.com/s", "$schema": "https://json-schema.org/draft/2020-12/schema", "maxProperties": 0}, {}, {"a": 1}, "maxProperties"),
    ],
)  # fmt: skip
def test_what_schemas_check(schema, good, bad, keyword):
    assert fits(schema, good)
    assert not fits(schema, bad)
    assert [found[1] for found in told(schema, bad)] == [keyword]


def test_t107_messages_show_values_shortened_and_escaped():
    schema = {"properties": {"a": {"type": "integer"}, "b": {"maxLength": 1}, "c": {"type": "null"}}}
    value = {"a": "x\x1b[31m\n\u202e" * 1_000, "b": "y" * 100_000, "c": {"z": list(range(10_000))}}
    for data in (b"{}", b"{" * 2_000):  # listed, and sketched as a larger record is
        found = compiled(schema).violations(value, 0, data=data)
        assert len(found) == 3
        for violation in found:
            assert violation.message.isprintable() and len(violation.message) < 700
            assert violation.message.endswith(('"integer"', '"null"', "characters", "character"))
    found = compiled(schema).violations(value, 0, data=b"{}")
    assert [len(violation.message) < 300 for violation in found] == [True] * 3
    assert "the object" in found[2].message


def test_at_most_a_hundred_violations_of_a_record_are_told():
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    for count in (300, 3_000):
        assert len(told(schema, {"a": [1] * count})) == VIOLATIONS_PER_RECORD


def test_a_large_record_is_described_in_less_detail():
    schema = {"properties": {"a": {"items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}
    assert told(schema, {"a": [1]}) == [("/a/0", "anyOf")]
    sketched = told(schema, {"a": ["x"] * 2_000 + [1]})
    assert ("/a/2000", "type") in sketched
    assert told(schema, {"a": ["x"] * 40_000 + [1]}) == [("", "size")]


# -- what is refused at registration -----------------------------------------------------------------------------


def chain(levels):
    """A billion laughs: every definition uses the next one twice."""
    last = {f"x{levels}": {"type": "object"}}
    return {f"x{i}": {"allOf": [{"$ref": f"#/$defs/x{i + 1}"}] * 2} for i in range(levels)} | last


def nested(keyword, levels):
    schema = {"type": "object"}
    for _ in range(levels):
        schema = {"allOf": [schema], keyword: {"type": "object"}}
    return schema


DOUBLING = {
    "$defs": {
        "n": {
            "anyOf": [
                {"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["z"]},
                {"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["y"]},
            ]
        }
    },
    "$ref": "#/$defs/n",
}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "not JSON"),
        ('{"a":1,"a":2}', "duplicate"),
        ('{"const":NaN}', "not JSON"),
        ("[]", "not a JSON object"),
        ("true", "not a JSON object"),
        ('"x"', "not a JSON object"),
        ({"type": "nonsense"}, "at /type"),
        ({"properties": []}, "at /properties"),
        ({"minimum": "x"}, "at /minimum"),
        ({"required": [1]}, "at /required/0"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, "2020-12"),
        ({"properties": {"a": {"$schema": "http://example.com/own"}}}, "2020-12"),
        ({"properties": {"a": {"$id": "http://example.com/a"}}}, "$id"),
        ({"$ref": "other.json"}, "leaves the schema"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "leaves the schema"),
        ({"$ref": "file:///etc/passwd"}, "leaves the schema"),
        ({"$ref": 5}, "leaves the schema"),
        ({"$dynamicRef": "http://example.com/x#m"}, "leaves the schema"),
        ({"properties": {"a": {"items": {"$ref": "#/$defs/missing"}}}}, "leads to nothing"),
        ({"$ref": "#/properties/a/0", "properties": {"a": [1]}}, ""),
        ({"$ref": "#missing"}, "leads to nothing"),
        ({"$defs": {"a": {"$anchor": "x"}, "b": {"$anchor": "x"}}, "$ref": "#x"}, "twice"),
        ({"$ref": "#"}, "without end"),
        ({"anyOf": [{"type": "string"}, {"$ref": "#"}]}, "without end"),
        ({"not": {"$ref": "#"}}, "without end"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "without end"),
        ({"pattern": "(?=x)"}, "look-around"),
        ({"patternProperties": {r"(a)\1": {}}}, "back references"),
        ({"pattern": "(x"}, "regex"),
        ({"pattern": "(a{100}){100}"}, "states"),
        ({"pattern": "a[ab]{1000}c"}, "states"),
        ({"patternProperties": {"[ab]*a[ab]{300}$": {}}}, "states"),
        ({"pattern": "^.{1,2000}$"}, "states"),
        ({"$defs": chain(40), "$ref": "#/$defs/x0"}, "too costly"),
        ({"$defs": chain(40), "properties": {"a": {"items": {"$ref": "#/$defs/x0"}}}}, "too costly"),
        (DOUBLING, "too costly"),
        (nested("unevaluatedProperties", 14), "too costly"),
        (nested("unevaluatedItems", 14), "too costly"),
        ({"anyOf": [{"const": i} for i in range(2_000)]}, "too costly"),
        ({"anyOf": [{"const": i} for i in range(100_000)]}, "at most 65536"),
        ({"patternProperties": {f"^x{i}": {"type": "string"} for i in range(1_100)}}, "too costly"),
        ({"patternProperties": {f"^x{i}": True for i in range(1_100)}}, "too costly"),
        (json.dumps({"description": "x" * 1_000_000}), "at most 65536"),
        ({"description": "é" * 40_000}, "at most 65536"),
    ],
)  # fmt: skip
def test_t104_refused_at_registration(schema, says):
    started = time.perf_counter()
    assert says in refused(schema)
    assert time.perf_counter() - started < 5


def test_t104_no_reference_is_ever_fetched():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for schema in (
            {"$ref": f"{base}/x"},
            {"$schema": f"{base}/meta"},
            {"$id": f"{base}/root", "$ref": "x"},
            {"$id": f"{base}/root", "properties": {"a": {"$ref": f"{base}/root#/x"}}},
            {"$defs": {"a": {"$id": f"{base}/a", "$ref": "b"}}},
            {"$dynamicRef": f"{base}/x#y"},
            {"allOf": [{"then": {"$ref": f"{base}/x"}}]},
            {"dependentSchemas": {"a": {"$ref": f"{base}/x"}}},
            {"unknownKeyword": {"$ref": f"{base}/x"}, "$ref": "#/unknownKeyword"},
        ):
            refused(schema)
        assert compiled({"$id": f"{base}/root", "enum": [{"$ref": f"{base}/x"}]}).is_valid(
            {"$ref": f"{base}/x"}
        )
        assert compiled({"unknownKeyword": {"$ref": f"{base}/x"}, "type": "object"}).is_valid({})
        with pytest.raises(BlockingIOError):
            listener.accept()


# -- what is accepted is cheap -----------------------------------------------------------------------------------

TREE = {
    "$defs": {
        "e": {
            "oneOf": [
                {"type": "number"},
                {"properties": {"l": {"title": "left", "$ref": "#/$defs/e"}, "r": {"$ref": "#/$defs/e"}}, "type": "object"},
            ]
        }
    },
    "$ref": "#/$defs/e",
}  # fmt: skip
WIDE = {
    "properties": {f"p{i}": {"type": "string", "maxLength": 50} for i in range(500)},
    "required": [f"p{i}" for i in range(500)],
    "additionalProperties": False,
}


def deep(levels, **leaf):
    value = leaf
    for _ in range(levels):
        value = {"a": value}
    return value


CHEAP = {
    "nested repetition": ({"properties": {"a": {"pattern": "(a+)+$"}}}, {"a": "a" * 1_000_000 + "!"}),
    "evil e-mail": ({"properties": {"a": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}}}, {"a": "a" * 100_000}),
    "unique objects": (
        {"properties": {"a": {"uniqueItems": True}}},
        {"a": [{"x": i, "y": [i]} for i in range(20_000)]},
    ),
    "unique numbers": ({"properties": {"a": {"uniqueItems": True}}}, {"a": list(range(150_000))}),
    "unique big integers": (
        {"properties": {"a": {"uniqueItems": True}}},
        {"a": [10**30 + i for i in range(30_000)]},
    ),
    "multiples": ({"properties": {"a": {"items": {"multipleOf": 0.1}}}}, {"a": [10**4000] * 200}),
    "many branches, many items": (
        {"properties": {"a": {"items": {"anyOf": [{"const": i} for i in range(900)]}}}},
        {"a": [-1] * 100_000},
    ),
    "many branches": (
        {"properties": {"a": {"items": {"anyOf": [{"const": i} for i in range(900)]}}}},
        {"a": [-1] * 2_000},
    ),
    "long enum": ({"properties": {"a": {"items": {"enum": list(range(4_000))}}}}, {"a": [-1] * 100_000}),
    "long required": (
        {"properties": {"a": {"items": {"required": [f"x{i}" for i in range(3_000)]}}}},
        {"a": [{}] * 100_000},
    ),
    "long dependentRequired": (
        {"items": {}, "dependentRequired": {f"x{i}": ["y"] for i in range(2_000)}},
        {f"x{i}": 1 for i in range(2_000)},
    ),
    "many patterns": (
        {"patternProperties": {f"x{i}": {} for i in range(300)}},
        {f"k{i}": 1 for i in range(5_000)},
    ),
    "contains": ({"properties": {"a": {"contains": {"type": "string"}}}}, {"a": [1] * 300_000}),
    "recursive": (
        {
            "$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["z"]}},
            "$ref": "#/$defs/n",
        },
        deep(63),
    ),
    "tree": (TREE, {"l": {"l": 1, "r": "x"}, "r": {"l": {}, "r": []}}),
    "wide": (WIDE, {f"q{i}": "x" * 60 for i in range(1_000)}),
    "unevaluated": (nested("unevaluatedProperties", 4), {str(i): {} for i in range(1_000)}),
}


def test_ordinary_schemas_are_far_from_the_bounds():
    for schema in (
        TREE,
        WIDE,
        {"oneOf": [{"properties": {"kind": {"const": i}, "x": {}}} for i in range(50)]},
    ):
        cost = examine(schema)
        assert cost.evaluations * 4 < MAX_EVALUATIONS
        assert not compiled(schema).refusal(json.dumps({"x": [1] * 1_000}).encode())


@pytest.mark.parametrize(
    ("schema", "evaluations", "entries"),
    [
        ({"type": "object"}, 1, 0),
        ({"properties": {"a": {}, "b": {}, "c": {}}, "required": ["a", "b"]}, 1, 2),
        ({"allOf": [{}, {}, {}]}, 4, 0),
        ({"properties": {"a": {"anyOf": [{}, {}]}, "b": {"anyOf": [{}]}}}, 3, 0),
        ({"properties": {"a": {}}, "additionalProperties": {}}, 1, 0),
        ({"properties": {"a": {}}, "patternProperties": {"a": {}, "^b": {}}}, 3, 0),
        ({"prefixItems": [{}, {}], "items": {}}, 1, 0),
        ({"prefixItems": [{}], "contains": {}}, 2, 0),
        ({"if": {}, "then": {}, "else": {}, "not": {}}, 5, 0),
        ({"dependentSchemas": {"a": {}, "b": {}}}, 3, 0),
        ({"propertyNames": {"anyOf": [{}, {}]}}, 3, 0),
        ({"allOf": [{}], "unevaluatedProperties": False}, 4, 0),
        ({"enum": list(range(160))}, 11, 0),
        ({"enum": [[i] for i in range(160)]}, 161, 0),
        (TREE, 4, 0),
    ],
)  # fmt: skip
def test_how_evaluations_are_counted(schema, evaluations, entries):
    cost = examine(schema)
    assert (cost.evaluations, cost.entries) == (evaluations, entries)


SUBSCHEMAS = st.recursive(
    st.sampled_from([{}, True, {"type": "object"}, {"$ref": "#/$defs/d"}, {"required": ["q"]}]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"allOf": several}),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(
            lambda members: {"properties": members}
        ),
        inner.map(lambda member: {"additionalProperties": member}),
        inner.map(lambda member: {"patternProperties": {"^[ab]$": member}}),
    ),
    max_leaves=12,
)


@given(SUBSCHEMAS, SUBSCHEMAS)
@settings(max_examples=60, deadline=None)
def test_t104_no_accepted_schema_keeps_the_processor_busy(root, definition):
    """Recursive schemas that pass describe a record of full depth in time, whatever they are made of."""
    schema = {"allOf": [root], "$defs": {"d": definition}}
    try:
        checker = compiled(schema)
    except InvalidArgument:
        return
    for value in (deep(63), deep(30, b=deep(30))):
        data = json.dumps(value).encode()
        started = time.perf_counter()
        if not checker.refusal(data):
            checker.violations(value, 0, data=data)
        assert time.perf_counter() - started < 2


# -- patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 0),
        ("^$", 0),
        ("abc", 3),
        (r"^\d{4}-\d{2}$", 7),
        (r"[a-z\]{9}]", 1),
        (r"[]{9}]", 1),
        (r"a\{9}", 4),
        (r"\p{Lu}\x{41}\u{1F600}", 3),
        ("(ab){3}", 6),
        ("^(?:(a{3}b){2}|c){4}$", 36),
        ("(?P<year>[0-9]{4})", 4),
        ("a{0}", 1),
        ("a{2,}", 2),
        ("a{,5}", 5),
        ("a+b*c?", 3),
    ],
)
def test_states_of_patterns(pattern, states):
    assert pattern_cost(pattern).states == states


@given(st.text(st.sampled_from("ab(){}[]^$|*+?.,\\0129-:<>Pp"), max_size=30))
def test_every_text_is_counted_or_refused(pattern):
    try:
        assert pattern_cost(pattern).states >= 0
    except ValueError as error:
        assert "states" in str(error)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(string.ascii_letters))
def test_repetitions_multiply(inner, outer, letter):
    try:
        assert pattern_cost(f"^(?:{letter}{{{inner}}}){{{outer}}}$").states == inner * outer
    except ValueError:
        assert inner * outer > 1_000
