"""Checking of records: identities, limits, and every error of every record (O-22, O-30…O-36, B-34, B-35)."""

import hashlib
import itertools
import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncline import names
from syncline_server.catalog.schema import ANYTHING, compile_schema
from syncline_server.errors import FailedPrecondition, InvalidArgument
from syncline_server.ids import UuidSequence
from syncline_server.ingest import records as module
from syncline_server.ingest.records import CheckedRecords, Limits, RecordReader, record_id_rule
from syncline_server.ingest.strict_json import parse
from syncline_server.model import Identity, IdentityKind, RecordScope, Violation

CONTENT = Identity(kind=IdentityKind.CONTENT)
APPEND = Identity(kind=IdentityKind.APPEND)


def key(*fields):
    return Identity(kind=IdentityKind.KEY, key_fields=fields)


DEFAULT_LIMITS = Limits()


def reader(identity=CONTENT, scope=RecordScope.SHARED, schema=ANYTHING, limits=DEFAULT_LIMITS, **more):
    return RecordReader(identity, scope, schema, limits, **more)


def post(*values):
    return [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]


def told(checked):
    return [(found.index, found.pointer, found.keyword) for found in checked.violations]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
KEY_VALUES = st.one_of(
    TEXT, st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.just("~,/")
)
OBJECTS = st.dictionaries(
    TEXT,
    st.recursive(st.none() | KEY_VALUES, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    max_size=4,
)


def typed(values):
    return tuple((type(value), repr(value)) for value in values)


# -- identity -------------------------------------------------------------------------------------------------


@given(st.tuples(KEY_VALUES, KEY_VALUES), TEXT, st.sampled_from(list(RecordScope)))
def test_key_ids_are_the_key_whatever_else_is_in_the_record(values, other, scope):
    """O-31, O-34: only the key fields matter, and they can be read back."""
    posted = post(
        {"a": values[0], "b": {"c": values[1]}, "z": other}, {"b": {"c": values[1]}, "a": values[0]}
    )
    checked = reader(key("a", "b.c"), scope).read(posted, "feed")
    assert not checked.violations
    assert checked.record_ids[0] == checked.record_ids[1]
    qualifier, read = names.parse_record_id(checked.record_ids[0])
    assert qualifier == ("feed" if scope is RecordScope.PER_SOURCE else None)
    assert typed(read) == typed(values)


@given(KEY_VALUES, KEY_VALUES)
def test_key_ids_of_one_field_are_injective(one, other):
    """T32. Covers the short cut for plain strings."""
    checked = reader(key("a")).read(post({"a": one}, {"a": other}), "feed")
    assert checked.record_ids == [names.encode_key([one]), names.encode_key([other])]
    assert (checked.record_ids[0] == checked.record_ids[1]) == (typed([one]) == typed([other]))


@given(OBJECTS, OBJECTS)
def test_content_ids_are_equal_exactly_when_canonical_bytes_are(one, other):
    """O-30."""
    checked = reader().read(post(one, other), "feed")
    assert (checked.record_ids[0] == checked.record_ids[1]) == (checked.data[0] == checked.data[1])
    for record_id, data in zip(checked.record_ids, checked.data, strict=True):
        assert record_id == hashlib.blake2b(data, digest_size=20).hexdigest()


def test_t34_content_tells_values_apart_that_compare_equal():
    values = [1, 1.0, True, "1", 0, 0.0, -0.0, False, None, "null", "", [], {}]
    checked = reader().read(post(*({"a": value} for value in values)), "feed")
    assert len(set(checked.record_ids)) == len(values)
    checked = reader(key("a")).read(post(*({"a": value} for value in values[:8])), "feed")
    assert checked.record_ids == ["~1", "~1.0", "~true", "1", "~0", "~0.0", "~-0.0", "~false"]


def test_append_ids_are_uuidv7_in_the_order_posted():
    now = 1_645_557_742_000_000
    append = reader(APPEND, uuids=UuidSequence(lambda: now))
    checked = append.read(post(*({"a": 1} for _ in range(500))), "feed")
    following = append.read(post({"a": 1}), "feed")
    record_ids = checked.record_ids + following.record_ids
    assert record_ids == sorted(set(record_ids))
    assert {uuid.UUID(record_id).version for record_id in record_ids} == {7}
    assert uuid.UUID(record_ids[0]).int >> 80 == now // 1_000


@pytest.mark.parametrize("identity", [CONTENT, APPEND, key("a")])
def test_b40_per_source_ids_never_meet(identity):
    per_source = reader(identity, RecordScope.PER_SOURCE)
    one, other = (per_source.read(post({"a": "x"}), source).record_ids[0] for source in ("s1", "s2"))
    assert one.startswith("s1/") and other.startswith("s2/")
    shared = reader(key("a")).read(post({"a": "s1/x"}), "s2").record_ids[0]
    assert "/" not in shared


@pytest.mark.parametrize(
    ("record", "pointer", "says"),
    [
        ({}, "/a", "missing"),
        ({"a": {}}, "/a/b~1~0", "missing"),
        ({"a": 1}, "/a", "must be an object, not a number"),
        ({"a": []}, "/a", "not an array"),
        ({"a": None}, "/a", "not null"),
        ({"a": {"b/~": None}}, "/a/b~1~0", "not null"),
        ({"a": {"b/~": [1]}}, "/a/b~1~0", "not an array"),
        ({"a": {"b/~": {}}}, "/a/b~1~0", "not an object"),
        ({"a": {"b/~": "x\0y"}}, "/a/b~1~0", "NUL"),
    ],
)
def test_t32_records_without_a_usable_key_are_refused(record, pointer, says):
    checked = reader(key("a.b/~")).read(post(record), "feed")
    assert told(checked) == [(0, pointer, "key")]
    assert says in checked.violations[0].message
    assert (checked.record_ids, checked.data, checked.hashes) == ([""], [b""], [b""])


def test_every_part_of_a_key_that_is_wrong_is_told():
    checked = reader(key("a", "b", "c.d")).read(post({"b": 1, "c": 2}), "feed")
    assert told(checked) == [(0, "/a", "key"), (0, "/c", "key")]


@pytest.mark.parametrize(
    ("value", "fits"), [("x" * 512, True), ("x" * 513, False), ("é" * 256, True), ("é" * 257, False)]
)
def test_t32_an_id_has_at_most_512_bytes(value, fits):
    assert bool(reader(key("a")).read(post({"a": value}), "feed").violations) is not fits
    longer = reader(key("a"), RecordScope.PER_SOURCE).read(post({"a": value}), "feed")
    assert told(longer) == [(0, "", "key")]
    assert "at most 512" in longer.violations[0].message


@given(OBJECTS)
def test_ids_for_deleting_and_rekeying_are_those_of_pushing(record):
    """O-34, O-36: a delete by values names the record that a push of the same values writes."""
    for identity in (CONTENT, key("a")):
        for scope in RecordScope:
            room = reader(identity, scope)
            pushed = room.read(post(record), "feed")
            meant = room.read_keys(post(record), "feed")
            assert meant.record_ids == pushed.record_ids
            assert told(meant) == told(pushed)
            if pushed.record_ids[0]:
                rule = record_id_rule(Limits())(identity, scope)
                assert rule(pushed.data[0], "feed") == pushed.record_ids[0]


def test_delete_by_values_does_not_ask_the_schema():
    strict = reader(key("a"), schema=compile_schema('{"required":["b"]}'))
    assert strict.read_keys(post({"a": "x"}), "feed").record_ids == ["x"]
    assert strict.read(post({"a": "x"}), "feed").record_ids == [""]


def test_append_records_cannot_be_named_by_values():
    with pytest.raises(FailedPrecondition) as refused:
        reader(APPEND).read_keys(post({"a": 1}), "feed")
    assert refused.value.reason == "IDENTITY_NOT_ADDRESSABLE"


def test_a_record_that_cannot_be_rekeyed_says_why():
    with pytest.raises(InvalidArgument) as refused:
        reader(key("a")).make_record_id(b'{"b":1}', "feed")
    assert refused.value.reason == "RECORD_INVALID"
    assert [found.pointer for found in refused.value.violations] == ["/a"]


# -- what is handed on -----------------------------------------------------------------------------------------


def test_data_is_canonical_and_hashed():
    checked = reader().read(post(b' {"b":1.50, "a":[ ] }'), "feed")
    assert checked.data == [b'{"a":[],"b":1.5}']
    assert checked.hashes == [hashlib.blake2b(b'{"a":[],"b":1.5}', digest_size=16).digest()]


@given(st.lists(OBJECTS, max_size=6), st.data())
def test_the_spelling_of_records_does_not_matter(values, data):
    """Covers the short cut for canonical records, and leaving it in the middle of a call."""
    spelled = [
        data.draw(st.sampled_from([json.dumps(v).encode(), parse(json.dumps(v).encode(), depth=64)[1]]))
        for v in values
    ]
    assert reader().read(spelled, "feed") == reader().read(post(*values), "feed")


# -- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["read", "read_keys", "check_size"])
def test_o28_limits_of_a_call_tell_themselves(read):
    small = reader(limits=Limits(records_per_call=2, bytes_per_call=20))
    arguments = () if read == "check_size" else ("feed",)
    getattr(small, read)(post({}, {}), *arguments)
    with pytest.raises(InvalidArgument) as refused:
        getattr(small, read)(post({}, {}, {}), *arguments)
    assert (refused.value.reason, refused.value.metadata) == (
        "LIMIT_EXCEEDED",
        {"limit": "records_per_call", "maximum": "2", "actual": "3"},
    )
    with pytest.raises(InvalidArgument) as refused:
        getattr(small, read)([b'{"a":"xxxxxxxxxxxxx"}'], *arguments)
    assert refused.value.metadata == {"limit": "bytes_per_call", "maximum": "20", "actual": "21"}


def test_a_record_is_weighed_as_posted_and_as_canonical_json():
    small = reader(limits=Limits(bytes_per_record=20))
    fits = b'{"a":"xxxxxxxxxxxx"}'
    spaced = b'{"a":"xxxxxxxxxxxx" }'
    checked = small.read([fits, spaced, b'{"a":1E9,"b":1E9}'], "feed")
    assert told(checked) == [(1, "", "size"), (2, "", "size")]
    assert [found.message for found in checked.violations] == [
        "the record has 21 bytes, at most 20 are allowed",
        "the record has 35 bytes, at most 20 are allowed",
    ]
    assert told(small.read_keys([spaced], "feed")) == [(0, "", "size")]


def test_depth_is_a_setting():
    shallow = reader(limits=Limits(depth=2))
    assert told(shallow.read(post({"a": {}}, {"a": {"b": {}}}), "feed")) == [(1, "/a/b", "depth")]


# -- all errors ------------------------------------------------------------------------------------------------

SCHEMA = compile_schema(
    json.dumps(
        {
            "type": "object",
            "required": ["id", "name"],
            "properties": {"id": {"type": "string"}, "n": {"type": "integer"}, "name": {"type": "string"}},
            "additionalProperties": False,
        }
    )
)


def test_t29_every_error_of_every_record_is_told():
    """B-34, B-35: index, pointer, keyword."""
    checked = reader(key("id"), schema=SCHEMA).read(
        post(
            {"id": "1", "name": "x"},
            {"n": 1.5, "extra": 1},
            b"{",
            {"id": "2", "name": "y"},
            {"id": ["3"], "name": 5},
        ),
        "feed",
    )
    assert checked.record_ids == ["1", "", "", "2", ""]
    assert [bool(data) for data in checked.data] == [True, False, False, True, False]
    assert [len(digest) for digest in checked.hashes] == [16, 0, 0, 16, 0]
    assert sorted(told(checked)) == [
        (1, "", "additionalProperties"),
        (1, "", "required"),
        (1, "", "required"),
        (1, "/id", "key"),
        (1, "/n", "type"),
        (2, "", "json"),
        (4, "/id", "key"),
        (4, "/id", "type"),
        (4, "/name", "type"),
    ]
    assert [found.index for found in checked.violations] == sorted(
        found.index for found in checked.violations
    )


def test_t29_one_bad_of_a_thousand_is_found():
    records = post(*({"id": f"{i}", "name": "x", "n": i} for i in range(1_000)))
    records[617] = b'{"id":"617","name":"x","n":"617"}'
    checked = reader(key("id"), schema=SCHEMA).read(records, "feed")
    assert told(checked) == [(617, "/n", "type")]
    assert checked.record_ids.count("") == 1


def test_when_too_much_is_wrong_each_bad_record_still_has_a_violation(monkeypatch):
    monkeypatch.setattr(module, "VIOLATIONS_PER_READ", 5)
    checked = reader(key("id"), schema=SCHEMA).read(post(*[{}] * 4, {"id": "1"}, b"{"), "feed")
    assert told(checked)[6:] == [(2, "/id", "key"), (3, "/id", "key"), (4, "", "size"), (5, "", "json")]


def test_explaining_ends_after_a_while():
    times = itertools.count(step=0.09)
    checked = reader(key("id"), schema=SCHEMA, monotonic=lambda: next(times)).read(post(*[{}] * 6), "feed")
    assert [found.index for found in checked.violations] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5]


def test_t104_others_get_a_turn_after_each_record_that_takes_long_and_before_it_is_described():
    """However many of them are in a call: never two between two turns."""
    now = 0.0

    class Slow(type(ANYTHING)):
        light_bytes = 1 << 20
        accepts_everything = False

        def __init__(self):
            pass

        def is_valid(self, value):
            return self.take(value["n"] % 2 == 0)

        def violations(self, value, index, *, data):
            return self.take([Violation(index=index, pointer="/n", keyword="multipleOf", message="odd")])

        def refusal(self, data):
            return ""

        def take(self, answer):
            nonlocal now
            now += 0.04
            return answer

    checked = CheckedRecords(record_ids=[], data=[], hashes=[], violations=[])
    slow = reader(schema=Slow(), monotonic=lambda: now)
    turns = [0.0]
    for _ in slow.read_in_turns(post(*({"n": n} for n in range(5))), "feed", checked):
        turns.append(now)
    turns.append(now)
    assert [round(after - before, 3) for before, after in itertools.pairwise(turns)] == [0.04] * 7
    assert told(checked) == [(1, "/n", "multipleOf"), (3, "/n", "multipleOf")]
    assert [bool(record_id) for record_id in checked.record_ids] == [True, False, True, False, True]


def test_quick_records_are_read_in_one_turn():
    turns = reader(monotonic=lambda: 0.0).read_in_turns(
        post(*[{}] * 1_000), "feed", CheckedRecords(record_ids=[], data=[], hashes=[], violations=[])
    )
    assert list(turns) == []


def test_t104_a_record_too_large_for_its_schema_is_refused():
    schema = compile_schema(
        json.dumps(
            {"items": {}, "properties": {"a": {"items": {"anyOf": [{"const": i} for i in range(900)]}}}}
        )
    )
    heavy = {"a": [-1] * 10_000}
    checked = reader(schema=schema).read(post(heavy, {"a": [1]}, {"a": [-1]}), "feed")
    assert told(checked)[0] == (0, "", "size")
    assert checked.record_ids[0] == "" and checked.record_ids[1] != ""
