"""Filters as a test thinks of them: random ones, how they may be written, and what they mean, all done plainly.

A filter is a tuple: ``("compare", path, operator, value)``, ``("prefix", path, operator, text)``, ``("in", path,
values)``, ``("exists", path)``, ``("has", path, value)``, ``("has prefix", path, text)``, ``("not", filter)``,
``("and", filters)``, ``("or", filters)``. A path is a tuple of names, or the name of metadata as a string.
"""

import json
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

from hypothesis import strategies as st

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ORDERED = ("<", "<=", ">", ">=")

# Common values stand several times, so that filters and records often speak of the same.
NAMES = st.sampled_from(
    ["a"] * 12 + ["b"] * 4 + ["c d", "é", "record_id", "and", "In", "source", "x-y", "*", "null", 'q"\\']
)
TEXTS = st.sampled_from(
    ["a"] * 8
    + ["ab"] * 3
    + ["", "abc", "b", "é", "z", "😀", "\uffff", "*", "a*", "a b", 'q"\\\n', "1", "true"]
)
NUMBERS = st.sampled_from(
    [0, 1, 1, 1.0, 1.0, -0.0] * 2 + [2, -1, 0.5, 1e22, 10**22, 10**22 + 1, 2**53 + 1, 2.0**53, 10**400, 1e300]
)
SCALARS = st.one_of(TEXTS, NUMBERS, st.booleans(), st.none())

_VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    ),
)
OBJECTS = st.dictionaries(NAMES, _VALUES, min_size=1, max_size=4)
PATHS = st.tuples(NAMES) | st.lists(NAMES, min_size=1, max_size=3).map(tuple)
TIMES_US = st.integers(-3, 3).map(lambda n: 1_700_000_000_000_000 + n)


def _conditions():
    operators = st.sampled_from(["=", "!=", *ORDERED])
    equality = st.sampled_from(["=", "!="])
    beginnings = TEXTS.filter(bool)
    return st.one_of(
        st.tuples(st.just("compare"), PATHS, equality, SCALARS),
        st.tuples(st.just("compare"), PATHS, operators, TEXTS | NUMBERS),
        st.tuples(st.just("compare"), st.just("record_id"), operators, TEXTS),
        st.tuples(st.just("compare"), st.just("revision"), operators, NUMBERS),
        st.tuples(st.just("compare"), st.just("update_time"), operators, TIMES_US),
        st.tuples(st.just("prefix"), PATHS | st.just("record_id"), equality, beginnings),
        st.tuples(st.just("in"), PATHS, st.lists(SCALARS, min_size=1, max_size=4).map(tuple)),
        st.tuples(st.just("in"), st.just("record_id"), st.lists(TEXTS, min_size=1, max_size=4).map(tuple)),
        st.tuples(st.just("exists"), PATHS),
        st.tuples(st.just("has"), PATHS, SCALARS),
        st.tuples(st.just("has prefix"), PATHS, beginnings),
    )


FILTERS = st.recursive(
    _conditions(),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


_ONE_FIELD = st.one_of(
    st.tuples(st.just("compare"), st.just(("a",)), st.just("="), SCALARS),
    st.tuples(st.just("prefix"), st.just(("a",)), st.just("="), TEXTS.filter(bool)),
    st.tuples(st.just("in"), st.just(("a",)), st.lists(SCALARS, min_size=1, max_size=4).map(tuple)),
)
EASILY_FOUND = st.recursive(
    _ONE_FIELD,
    lambda inner: st.tuples(
        st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)
    ),
    max_leaves=3,
)
"""Filters of one field that hash look-ups find."""


# -- records that a filter speaks of --------------------------------------------------------------------


def mentioned(tree):
    """Each (path, value) that a filter compares."""
    what, *rest = tree
    if what == "not":
        yield from mentioned(rest[0])
    elif what in {"and", "or"}:
        for part in rest[0]:
            yield from mentioned(part)
    elif what == "in":
        yield from ((rest[0], value) for value in rest[1])
    else:
        yield rest[0], rest[-1] if len(rest) > 1 else None


def planted(tree, record, random):
    """The record, changed so that most of what the filter compares is there, or nearly."""
    record_id, revision, update_time_us, data = record
    for path, value in mentioned(tree):
        if random.random() < 0.3:
            continue
        if path == "record_id":
            record_id = random.choice([value, value + "x", value[:-1]]) or record_id
        elif not isinstance(path, str):
            data = _with(data, path, random.choice(_neighbours(value)), random)
    return record_id, revision, update_time_us, data


def _neighbours(value):
    """The value, what could be taken for it, and what holds it."""
    near = [value, value, value, [value], ["?", value], [[value]], None]
    if isinstance(value, str):
        near += [value + "x", value + "x", value[:-1], {value: 1}, {value + "x": 1}]
    if isinstance(value, bool):
        near += [int(value), float(value), str(value).lower()]
    elif isinstance(value, int | float):
        near += [value + 1, str(value)]
        near += [float(value)] if abs(value) < 1e300 else []
        near += [bool(value), bool(value)] if value in {0, 1} else []
    return near


def _with(data, path, value, random):
    name, *inner = path
    if inner:
        below = data.get(name)
        value = _with(below if isinstance(below, dict) else {}, inner, value, random)
        value = random.choice([value, value, value, [value], [7, value]])
    return {**data, name: value}


# -- what it means ----------------------------------------------------------------------------------------


def holds(tree, record_id, revision, update_time_us, data):
    """Whether the record matches."""
    what, *rest = tree
    if what == "not":
        return not holds(rest[0], record_id, revision, update_time_us, data)
    if what in {"and", "or"}:
        results = [holds(part, record_id, revision, update_time_us, data) for part in rest[0]]
        return all(results) if what == "and" else any(results)
    path = rest[0]
    metadata = {"record_id": record_id, "revision": revision, "update_time": update_time_us}
    if what in {"exists", "has", "has prefix"}:
        found = list(reached([data], path))
        if what == "exists":
            return bool(found)
        inside = [v for value in found for v in (value if isinstance(value, list | dict) else [value])]
        test = equal if what == "has" else begins
        return any(test(value, rest[1]) for value in inside)
    found = [metadata[path]] if isinstance(path, str) else list(straight(data, path))
    if not found:
        return False
    value = found[0]
    if what == "in":
        return any(equal(value, wanted) for wanted in rest[1])
    operator, wanted = rest[1:]
    if what == "prefix":
        return begins(value, wanted) is (operator == "=")
    if operator in {"=", "!="}:
        return equal(value, wanted) is (operator == "=")
    if kind(value) != kind(wanted):
        return False
    less, same = order(value) < order(wanted), order(value) == order(wanted)
    return {"<": less, "<=": less or same, ">": not less and not same, ">=": not less}[operator]


def kind(value):
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__


def order(value):
    return value.encode() if isinstance(value, str) else Fraction(value)


def equal(value, wanted):
    if kind(value) != kind(wanted):
        return False
    return order(value) == order(wanted) if kind(value) in {"number", "str"} else value == wanted


def begins(value, text):
    return isinstance(value, str) and value.encode().startswith(text.encode())


def straight(data, path):
    """The value at a path through objects, if there is one."""
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return
        data = data[name]
    yield data


def reached(values, path):
    """The values at a path that also leads through arrays, to each of their objects."""
    for value in values:
        if not path:
            yield value
        elif isinstance(value, dict) and path[0] in value:
            member = value[path[0]]
            inner = member if isinstance(member, list) and len(path) > 1 else [member]
            yield from reached(inner, path[1:])


# -- how it may be written --------------------------------------------------------------------------------


def written(tree, random):
    """One of the ways to write it."""
    text = _written(tree, random)
    return f"{_space(random)}{text}{_space(random)}"


def _written(tree, random):
    what, *rest = tree
    if what == "not":
        negation = random.choice(["-", "- ", _keyword("not", random) + " ", _keyword("not", random) + "\n"])
        return f"{negation}{_inner(rest[0], random)}"
    if what in {"and", "or"}:
        parts = [_inner(part, random) for part in rest[0]]
        random.shuffle(parts)
        return f" {_keyword(what, random)}\t".join(parts)
    path = _path(rest[0], random)
    if what == "exists":
        return f"{path}{_space(random)}:{_space(random)}*"
    if what == "in":
        values = [_value(rest[0], value, random) for value in rest[1]] * random.choice([1, 1, 2])
        random.shuffle(values)
        return f"{path} {_keyword('in', random)}{_space(random)}({_space(random)}{', '.join(values)})"
    if what in {"has", "has prefix"}:
        value = _value(rest[0], rest[1], random, star=what == "has prefix")
        return f"{path}{_space(random)}:{_space(random)}{value}"
    operator, value = rest[1:]
    return f"{path}{_space(random)}{operator}{_space(random)}{_value(rest[0], value, random, star=what == 'prefix')}"


def _inner(tree, random):
    text = _written(tree, random)
    if tree[0] in {"and", "or"} or random.random() < 0.1:
        return f"({_space(random)}{text}{_space(random)})"
    return text


def _space(random):
    return random.choice(["", "", " ", "\n", " \t"])


def _keyword(word, random):
    return random.choice([word.upper(), word.upper(), word, word.title()])


def _path(path, random):
    if isinstance(path, str):
        return path
    return ".".join(_name(name, first=not index, random=random) for index, name in enumerate(path))


def _name(name, *, first, random):
    plain = name in {"a", "b", "é", "x-y"} or (
        not first and name in {"record_id", "and", "In", "source", "null"}
    )
    return name if plain and random.random() < 0.7 else _quoted(name, random)


def _quoted(text, random, *, star=None):
    """In quotes; ``star`` None: a star is nothing special, otherwise whether one follows that is."""
    written_text = json.dumps(text, ensure_ascii=random.random() < 0.5)[1:-1]
    if star is not None:
        written_text = written_text.replace("*", "\\*")
    if random.random() < 0.3:
        written_text = written_text.replace('\\"', '"').replace("'", "\\'")
        return f"'{written_text}{'*' if star else ''}'"
    return f'"{written_text}{"*" if star else ""}"'


def _value(path, value, random, *, star=False):
    if path == "update_time":
        return _time(value, random)
    if isinstance(value, str):
        if value in {"a", "ab", "abc", "b", "é", "z"} and random.random() < 0.5:
            return value + ("*" if star else "")
        return _quoted(value, random, star=star)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    spellings = [str(value)]
    if value == 1:
        spellings += ["1", "1.0", "1e0", "0.1E+1", "100e-2"]
    if value == 0:
        spellings += ["0", "-0", "0.0", "0e7"]
    if value == 10**22:
        spellings += ["1e22", "1" + "0" * 22]
    return random.choice(spellings)


def _time(time_us, random):
    zone = timezone(timedelta(minutes=random.choice([0, 60, -210])))
    text = (EPOCH + timedelta(microseconds=time_us)).astimezone(zone).isoformat(timespec="microseconds")
    text = random.choice([text, text.replace("+00:00", "Z"), text.replace("T", "t")])
    return random.choice([text, f'"{text}"'])
