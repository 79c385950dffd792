"""The language of filters: what each form means, what is refused and where, what is the same in other words."""

import grpc
import pytest

from syncline.v1.update_feed_pb2 import Accepted
from syncline_server.errors import InvalidArgument
from syncline_server.filters.selection import CostClass, Row, parse_selection
from syncline_server.filters.syntax import Metadata, Path
from syncline_server.filters.terms import Terms
from syncline_server.rpc.status import refusal

DATA = (
    b'{"and":1,"at":"2026-11-22","big":9007199254740993,"empty":"","flag":true,"huge":123456789012345678901234567890,'
    b'"items":[{"sku":"a1","tags":["x"]},{"sku":"b2"},7],"map":{"k":1,"naive":null},"name":"EGLL","none":null,'
    b'"one":1,"place":{"floor":3,"room":"kitchen"},"record_id":"mine","tags":["red","green",5,true,null],'
    b'"temp":21.5,"zero":0.0,"\xc3\xa9t\xc3\xa9":"chaud"}'
)
ROW = Row("EGLL,~7", 41, 1_795_341_600_000_000, DATA)  # 2026-11-22T10:00:00Z


def matches(text):
    return parse_selection(text, ()).matches(ROW)


@pytest.mark.parametrize(
    "text",
    [
        # text
        "name = EGLL", "name='EGLL'", 'name = "EG*"', "name = EG*", "name != EGKK", 'name != "LF*"', 'empty = ""',
        "name > EGKK", 'name < "EGLLX"', 'été = "chaud"', '"été" = chaud', "at >= 2026-11-01", 'name = "\\u0045GLL"',
        # numbers
        "temp = 21.5", "temp > 21", "temp <= 2.15e1", "temp >= -5", "one = 1", "one = 1.0", "zero = 0", "zero = -0",
        "big = 9007199254740993", "big > 9007199254740992.0", "huge = 123456789012345678901234567890",
        "huge > 123456789012345678901234567889", "huge < 1e300",
        # true, false, null
        "flag = true", "flag != false", "none = null", "flag != null", "flag != 1", "one != true",
        # IN
        "name IN (EGKK, EGLL)", "temp in (1, 21.5)", "one IN (true, 1.0)", "none IN (null)", "NOT one IN (true, 2)",
        # is there
        "name:*", "none:*", "tags:*", "items.sku:*", "map.naive:*", "NOT nothing:*", "-items.nothing:*",
        # has
        "tags:red", 'tags:"gr*"', "tags:5", "tags:5.0", "tags:true", "tags:null", "map:k", 'map:"na*"', "name:EGLL",
        "items.sku:b2", 'items.sku:"b*"', "items.tags:x", "items:7", "place.floor:3",
        # the opposite of = where the field is there, arrays and objects included
        "tags != red", "map != k", "name != 5", "none != 5",
        # NOT is the opposite everywhere
        "NOT nothing = 5", "NOT nothing != 5", "-nothing > 5", "NOT NOT one = 1",
        # paths
        "place.room = kitchen", '"place"."room" = kitchen', "place.floor >= 3", '"and" = 1', '"record_id" = mine',
        # metadata
        'record_id = "EGLL,~7"', "record_id = EGLL*", "record_id >= EGLL", "revision = 41", "revision > 40.5",
        "update_time = 2026-11-22T10:00:00Z", "update_time = '2026-11-22T11:00:00.000000+01:00'",
        "update_time > 2026-11-22T09:59:59.999999Z", "update_time IN (2026-11-22T10:00:00Z)",
        # joined; OR binds tighter than AND
        "one = 1 AND temp > 20", "one = 2 OR temp > 20", "one=1 and (temp>30 or flag=true)",
        "NOT (one = 2 AND temp > 20)", "one = 1 AND one = 2 OR temp > 20", "-(one = 2)",
    ],
)  # fmt: skip
def test_matches(text):
    assert matches(text) is True


@pytest.mark.parametrize(
    "text",
    [
        "name = egll", 'name = "EGL"', 'name = "EGLL\\*"', "name = LF*", 'name != "EG*"',
        "temp = '21.5'", "temp > '2'", "name > 5", "one = true", "flag = 1", "zero = false", "one = '1'",
        "big = 9007199254740992", "huge = 123456789012345678901234567890.0",
        "none = 0", "none < 5", "none = ''", "flag IN (1, 'true')", "one IN (true)",
        # a field that is not there
        "nothing = null", "nothing = 5", "nothing != 5", "nothing IN (null)", 'nothing != "a*"', "nothing:*",
        "place.nothing != 1", "name.inner != 1", "nothing < 5", "nothing > 5", "nothing:5",
        # arrays and objects equal nothing
        "tags = red", "tags = null", "tags IN (red)", "place = 3", "tags > 1", 'tags = "r*"', "place:3", "map:7",
        # = leads through objects only
        "items.sku = a1", "items.sku != a1",
        "tags:blue", "tags:1", "tags:false", "items.sku:c3", "items.nothing:*",
        "one = 1 AND temp > 30", "NOT one = 1", "one = 2 OR temp > 30",
        "one = 2 AND temp > 20 OR one = 1", "record_id = mine", "revision < 41", "update_time < 2026-11-22T10:00:00Z",
    ],
)  # fmt: skip
def test_does_not_match(text):
    assert matches(text) is False


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("name", 4, "expected = != < <= > >= : or IN"),
        ("name = ", 7, "expected a value, found the end"),
        ("name = New York", 11, "stands in quotes"),
        ("name == EGLL", 6, "expected a value, found '='"),
        ("one = 1 AND", 11, "expected the name of a field, found the end"),
        ("one = 1 OR OR two = 2", 11, "expected a field, found OR"),
        ("(one = 1", 8, "expected AND, OR or ')'"),
        ("one = 1)", 7, "expected AND, OR or the end"),
        ("one = 1 && two = 2", 8, "expected AND, OR or the end"),
        ("a. = 1", 2, "expected the name of a field"),
        ("a .b = 1", 2, "expected = != <"),
        ('name = "x', 7, "has no end"),
        (r'name = "\q"', 8, r"\q is not an escape"),
        (r'name = "\ud800"', 8, "half of a surrogate pair"),
        (r'name = "\u12"', 8, "four hexadecimal digits"),
        ("name = E*L", 8, "only at the end of a text"),
        ('name = "E*L"', 9, "only at the end of a text"),
        ("name = *", 7, "field:*"),
        ("name > EG*", 5, "compared by = and != only"),
        ("name IN (EG*)", 9, "IN takes no prefixes"),
        ("one IN 1", 7, "expected '(' after IN"),
        ("one IN ()", 8, "expected a value"),
        ("one IN (1 2)", 10, "expected ',' or ')'"),
        ("one NOT IN (1)", 4, "expected = != <"),
        ("flag = True", 7, "write true"),
        ("name = not", 7, "word of the language"),
        ("temp > 10kg", 7, "neither a number nor a word"),
        ("temp > 007", 7, "neither a number nor a word"),
        ("temp > 21,5", 9, "expected AND, OR or the end"),
        ("temp > 1e999", 7, "too large for a double"),
        ("temp = 1*", 7, "only text has prefixes"),
        ("flag > true", 7, "no order"),
        ("none <= null", 8, "no order"),
        ("true = 1", 0, "expected a field, found true"),
        ("source = roof", 0, "not filterable"),
        ("one = 1 AND create_time > 5", 12, "not filterable"),
        ("record_id = 5", 12, "record_id is text"),
        ("record_id.x = 5", 0, "record_id has no fields"),
        ("record_id:*", 0, "always there"),
        ("revision = '5'", 11, "revision is a number"),
        ("update_time > 2026-11-22", 14, "RFC 3339"),
        ("update_time > 2026-02-30T10:00:00Z", 14, "no such time"),
        ("update_time > 0001-01-01T00:00:00+23:00", 14, "no such time"),
        ("update_time > 2026-11-22T10:00:00.0000001Z", 14, "microsecond"),
        ("update_time = 2026*", 14, "only text has prefixes"),
        ("update_time = '2026*'", 14, "RFC 3339"),
        ("a:**", 2, "only at the end of a text"),
        ("a = 1;", 5, "expected AND, OR or the end"),
    ],
)  # fmt: skip
def test_refused_with_its_position(text, position, words):
    with pytest.raises(InvalidArgument) as raised:
        parse_selection(text, ())
    error = raised.value
    assert error.reason == "FILTER_INVALID"
    assert (int(error.metadata["position"]), error.fields[0][0]) == (position, "filter")
    assert words in error.message


def test_the_message_points_at_the_place():
    with pytest.raises(InvalidArgument) as raised:
        parse_selection('room = "kitchen"\nAND temperature > 21,5 AND humidity < 40 AND hall = 1', ())
    assert raised.value.message.splitlines() == [
        "filter: expected AND, OR or the end, found ','; text of several words stands in quotes (at position 37)",
        '..."kitchen"\N{MIDDLE DOT}AND temperature > 21,5 AND humidity < 40 AND hall ',
        "                                 ^",
    ]


def test_values_of_an_in_and_conditions_with_a_colon_are_bounded():
    assert len(parse_selection(f"a IN ({','.join(map(str, range(1_000)))})", ()).terms.values) == 1_000
    with pytest.raises(InvalidArgument, match="IN takes at most 1000 values"):
        parse_selection(f"a IN ({','.join(['1'] * 1_001)})", ())
    assert parse_selection(" OR ".join(f"t:{number}" for number in range(32)), ()).matches(ROW) is False
    with pytest.raises(InvalidArgument, match="at most 32 conditions") as raised:
        parse_selection(" OR ".join(["t:1"] * 33), ())
    assert raised.value.metadata["position"] == str(32 * len("t:1 OR "))


def test_an_error_fits_into_a_status():
    with pytest.raises(InvalidArgument) as raised:
        parse_selection("a = 1 AND " + "\x07😀" * 500, ())
    told = refusal(raised.value)
    assert told.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(told.details) < 1_000
    assert "\x07" not in told.message


@pytest.mark.parametrize(
    ("texts", "canonical"),
    [
        (["a=1", " a  =  1.0 ", "(((a = 1e0)))", '"a" = 1', "a IN (1)", "a IN (1, 1.0)", "NOT NOT a=1"], "a = 1"),
        (["a=x and b=y", "b=y AND a=x", "(a='x') AND (b=y AND a=x)"], 'a = "x" AND b = "y"'),
        (["a=1 or a=2", "a IN (2, 1)", "a=2 OR (a=1 OR a=2.0)", "a in (1,2,2)"], "a IN (1, 2)"),
        (["a=1 OR b=2 AND c=3", "(b=2 or a=1) AND c=3"], "a = 1 OR b = 2 AND c = 3"),
        (["a=1 OR (b=2 AND c=3)", "(c=3 and b=2) OR a=1"], "a = 1 OR (b = 2 AND c = 3)"),
        (["-a=1", "not a = 1"], "NOT a = 1"),
        (["-(a=1 b:*)".replace(" ", " AND ")], "NOT (a = 1 AND b:*)"),
        (["f=1e22", "f=1" + "0" * 22], "f = 1e+22"),
        (["f=1" + "0" * 21 + "1"], "f = 1" + "0" * 21 + "1"),
        (["a=x*", "a = 'x*'"], 'a = "x*"'),
        ([r'a="x\*"', r"a='x\u002a'"], r'a = "x\*"'),
        (["update_time>2026-11-22T10:00:00Z", "update_time > '2026-11-22t12:30:00.0+02:30'"],
         'update_time > "2026-11-22T10:00:00.000000Z"'),
        (['"record_id" = x'], '"record_id" = "x"'),
        (["record_id = x"], 'record_id = "x"'),
        ([r'"a b"."\"" : 1'], r'"a b"."\"":1'),
    ],
)  # fmt: skip
def test_t53_what_means_the_same_is_the_same(texts, canonical):
    selections = {parse_selection(text, ()) for text in [*texts, canonical]}
    assert {selection.filter for selection in selections} == {canonical}
    assert len({selection.fingerprint for selection in selections}) == 1


def test_t53_fingerprints_are_their_own():
    filters = [
        "a=1", "a=true", "a='1'", "a:1", "a!=1", "NOT a=1", "a='1*'", r"a='1\*'", "a IN (1,true)", "a.b=1", '"a.b"=1',
        "a=null", "a:*", "record_id='1'", "'record_id'='1'", "a=1 AND b=1", "a=1 OR b=1", "a=1 OR b=1 AND c=1",
        "a=1 OR (b=1 AND c=1)", "a=9007199254740993", "a=9007199254740992",
    ]  # fmt: skip
    masks = [["a"], ["a", "b"], ["a.b"], ['"a.b"'], ["ab"]]
    selections = [parse_selection(text, ()) for text in filters]
    selections += [parse_selection(text, mask) for text in ("", "a=1") for mask in masks]
    fingerprints = {selection.fingerprint for selection in selections}

    assert len(fingerprints) == len(set(selections)) == len(filters) + 2 * len(masks)
    assert all(len(fingerprint) == 8 and any(fingerprint) for fingerprint in fingerprints)


def test_nothing_is_selected_by_nothing():
    assert parse_selection("", ()) is None
    assert parse_selection(" \n\t", ["*"]) is None
    assert parse_selection("", ["*", "a"]) is None


def test_a_selection_is_compiled_once():
    assert parse_selection("a = 1", ["b"]) is parse_selection("a = 1", ["b"])


def test_a_long_selection_is_not_kept():
    text = " OR ".join(f"a = {number}" for number in range(100))
    first, second = parse_selection(text, ()), parse_selection(text, ())
    assert first is not second
    assert first == second


# -- cost classes -----------------------------------------------------------------------------------------

A = Path(names=("a",))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a = 1", Terms(path=A, values=(1,))),
        ("a IN (x, 1, true)", Terms(path=A, values=("x", 1, True))),
        ('a = "x*"', Terms(path=A, prefixes=("x",))),
        ("record_id = EG*", Terms(path=Path(metadata=Metadata.RECORD_ID), prefixes=("EG",))),
        ("a.b = 1", Terms(path=Path(names=("a", "b")), values=(1,))),
        # a conjunct decides, the most selective one
        ("a = 1 AND b > 5 AND NOT c = 3", Terms(path=A, values=(1,))),
        ("b IN (1, 2) AND c = 'x*' AND a = 1", Terms(path=A, values=(1,))),
        ("b = 'x*' AND a IN (1, 2)", Terms(path=A, values=(1, 2))),
        # an OR of the same field
        ("a = 1 OR a = 2 OR a IN (3)", Terms(path=A, values=(1, 2, 3))),
        ("a = 'x*' OR a = 'y*' OR a = 'xy*'", Terms(path=A, prefixes=("x", "y"))),
        ("a = 'x*' OR a = z", Terms(path=A, prefixes=("x", "z"))),
        ("(a = 1 AND b = 1) OR (a = 2 AND c = 2)", Terms(path=A, values=(1, 2))),
    ],
)
def test_indexed(text, terms):
    selection = parse_selection(text, ())
    assert (selection.terms, selection.cost_class) == (terms, CostClass.INDEXED)


@pytest.mark.parametrize(
    "text",
    ["a != 1", "a > 1", "NOT a = 1", "a:1", "a:*", "a = 1 OR b = 2", "a = 1 OR a > 5", "a = 'x*' OR a = 1",
     "a = 'x*' OR a = ''", "revision = 1", "update_time = 2026-11-22T10:00:00Z", 'a != "x*"'],
)  # fmt: skip
def test_scanned(text):
    selection = parse_selection(text, ())
    assert (selection.terms, selection.cost_class) == (None, CostClass.SCANNED)


def test_a_mask_alone_has_no_cost_class():
    selection = parse_selection("", ["a"])
    assert (selection.cost_class, selection.has_filter, selection.has_mask) == (
        CostClass.UNFILTERED,
        False,
        True,
    )


def test_the_numbers_of_cost_classes_are_those_of_the_protocol():
    assert [member.value for member in CostClass] == [
        Accepted.COST_CLASS_UNSPECIFIED,
        Accepted.COST_CLASS_INDEXED,
        Accepted.COST_CLASS_SCANNED,
    ]
