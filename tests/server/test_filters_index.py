"""Many selections, one look-up: counted, not timed."""

import pytest

from syncline_server.filters.index import SelectionIndex
from syncline_server.filters.selection import Row, Selection, parse_selection


@pytest.fixture
def evaluations(monkeypatch):
    """Canonical texts of the filters that are tested, in order."""
    tested = []
    matches = Selection.matches

    def counted(self, row):
        tested.append(self.filter)
        return matches(self, row)

    monkeypatch.setattr(Selection, "matches", counted)
    return tested


def index_of(*filters):
    index = SelectionIndex()
    for text in filters:
        index.add(parse_selection(text, ()), text)
    return index


def row(data, record_id="r"):
    return Row(record_id, 1, 0, data)


def test_a_thousand_values_cost_one_evaluation_a_change(evaluations):
    index = index_of(*(f'sensor = "s{number}"' for number in range(1_000)))

    for number in range(50):
        assert index.matching(row(b'{"sensor":"s%d"}' % number)) == [f'sensor = "s{number}"']

    assert evaluations == [f'sensor = "s{number}"' for number in range(50)]


@pytest.mark.parametrize("data", [b"{}", b'{"sensor":["s1"]}', b'{"sensor":{"s1":1}}', b'{"sensor":17}'])
def test_a_change_that_concerns_nobody_costs_no_evaluation(evaluations, data):
    index = index_of(*(f'sensor = "s{number}"' for number in range(1_000)))

    assert index.matching(row(data)) == []
    assert evaluations == []


def test_in_and_prefixes_and_ids_are_found_the_same_way(evaluations):
    index = index_of(
        *(f"n IN ({number}, {number + 1})" for number in range(0, 1_000, 2)),
        *(f'code = "{number:03}*"' for number in range(1_000)),
        *(f'record_id = "id{number}"' for number in range(1_000)),
    )

    found = index.matching(row(b'{"code":"123-4","n":7}', record_id="id5"))

    assert sorted(found) == ['code = "123*"', "n IN (6, 7)", 'record_id = "id5"']
    assert len(evaluations) == 3


def test_the_same_filter_is_tested_once_for_all_who_have_it(evaluations):
    index = SelectionIndex()
    for number in range(100):
        spelling = "temp > 20 AND kind = x" if number % 2 else "kind = 'x' and (temp > 2e1)"
        index.add(parse_selection(spelling, ()), number)

    assert index.matching(row(b'{"kind":"x","temp":21}')) == list(range(100))
    assert len(evaluations) == len(index) == 1


def test_true_is_not_looked_up_as_1():
    index = index_of("a = 1", "a = true", "a = '1'", "a = null", "a = 0", "a = false")

    assert index.candidates(row(b'{"a":true}')) == ["a = true"]
    assert index.candidates(row(b'{"a":1}')) == index.candidates(row(b'{"a":1.0}')) == ["a = 1"]
    assert index.candidates(row(b'{"a":"1"}')) == ["a = '1'"]
    assert index.candidates(row(b'{"a":null}')) == ["a = null"]
    assert index.candidates(row(b'{"a":-0.0}')) == ["a = 0"]


def test_prefixes_longer_than_what_is_looked_up():
    """However long they are, a text costs at most 64 look-ups."""
    common = "x" * 64
    index = index_of(*(f'a = "{common}{end}*"' for end in ("", "a", "ab", "b")))

    assert len(index.candidates(row(b'{"a":"%s"}' % common.encode()))) == 4
    assert index.matching(row(b'{"a":"%sac"}' % common.encode())) == [f'a = "{common}*"', f'a = "{common}a*"']
    for end in ("", "a", "ab", "b"):
        index.remove(parse_selection(f'a = "{common}{end}*"', ()), f'a = "{common}{end}*"')
    assert index.candidates(row(b'{"a":"%sac"}' % common.encode())) == []


def test_a_payload_counts_once_and_goes_once():
    index, selection = SelectionIndex(), parse_selection("a = 1", ())
    index.add(selection, "p")
    index.add(selection, "p")
    index.remove(selection, "p")

    assert (len(index), index.candidates(row(b'{"a":1}'))) == (0, [])
    with pytest.raises(KeyError):
        index.remove(selection, "p")


def test_a_mask_alone_matches_everything():
    index = SelectionIndex()
    index.add(parse_selection("", ["a"]), "masked")

    assert index.matching(row(b'{"b":1}')) == ["masked"]


def test_a_record_is_parsed_once_for_all():
    index = index_of("a = 1", "b > 2", "c:*")
    one = row(b'{"a":1,"b":3,"c":0}')

    assert len(index.matching(one)) == 3
    assert one.value is one.value
    by_id = row(b"not looked at", record_id="r")
    assert index_of("record_id = r AND revision < 5").matching(by_id) == ["record_id = r AND revision < 5"]
