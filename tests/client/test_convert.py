"""Models to JSON and back (T34: what Python calls equal is not; integers survive)."""

import dataclasses
import datetime
import enum
import json
import math
import uuid
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import syncline
from syncline._convert import Codec


@dataclasses.dataclass
class Data:
    b: int
    a: str | None = None


class Struct(msgspec.Struct):
    b: int
    a: str | None = None


class Typed(TypedDict):
    b: int
    a: str | None


class Model(pydantic.BaseModel):
    b: int
    a: str | None = pydantic.Field(None, alias="A")


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("model", "value", "text"),
    [
        (None, {"b": 1, "a": None}, b'{"a":null,"b":1}'),
        (Data, Data(1), b'{"a":null,"b":1}'),
        (Struct, Struct(1), b'{"a":null,"b":1}'),
        (Typed, {"b": 1, "a": None}, b'{"a":null,"b":1}'),
        (Model, Model(b=1), b'{"A":null,"b":1}'),
    ],
    ids=["dict", "dataclass", "struct", "typed dict", "pydantic"],
)
def test_models(model: Any, value: Any, text: bytes) -> None:
    codec: Codec[Any] = Codec(model)

    assert codec.encode(value) == text
    assert codec.decode(text) == value
    with pytest.raises(syncline.DecodeError):
        codec.decode(b'{"b":"x"}' if model else b"{")


def test_plain_dicts_are_taken_beside_a_model() -> None:
    for model in (Data, Struct, Typed, Model):
        assert Codec(model).encode({"z": 1, "a": 2}) == b'{"a":2,"z":1}'


def test_json_text_goes_as_it_is() -> None:
    """Only the server sees duplicate keys and the like."""
    assert Codec(None).encode(b'{"a":1,"a":2}') == b'{"a":1,"a":2}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: [x], lambda x: {"c": x}, lambda x: ({"c": [x]},)],
    ids=["plain", "list", "dict", "deep"],
)
def test_nan_is_refused_wherever_it_hides(number: float, wrap: Any) -> None:
    """The encoder underneath would write null, silently."""
    with pytest.raises(syncline.EncodeError, match="NaN"):
        Codec(None).encode({"b": wrap(number), "a": None})


@dataclasses.dataclass
class Reading:
    value: float


class Outer(msgspec.Struct):
    inner: Reading


def test_nan_is_refused_inside_models() -> None:
    for value in (Reading(math.nan), Outer(Reading(math.nan))):
        with pytest.raises(syncline.EncodeError, match="NaN"):
            Codec(type(value)).encode(value)
    assert Codec(Reading).encode(Reading(1.5)) == b'{"value":1.5}'


@pytest.mark.parametrize(
    "value",
    [[1], "x", 5, None, {"a": object()}, {"a": "\ud800"}, {1j: 1}],
    ids=["list", "text", "number", "none", "object", "surrogate", "complex key"],
)
def test_what_is_no_record(value: Any) -> None:
    with pytest.raises(syncline.EncodeError):
        Codec(None).encode(value)


def test_position_is_told() -> None:
    with pytest.raises(syncline.EncodeError, match=r"records\[2\]"):
        Codec(None).encode_all([{}, {}, 3, {}])


def test_usual_types() -> None:
    value = {
        "day": datetime.date(2026, 1, 2),
        "id": uuid.UUID(int=1),
        "colour": Colour.RED,
        "set": {1},
    }

    assert json.loads(Codec(None).encode(value)) == {
        "day": "2026-01-02",
        "id": str(uuid.UUID(int=1)),
        "colour": "red",
        "set": [1],
    }


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON))
def test_round_trip_is_exact(value: dict[str, Any]) -> None:
    """Integers of any size, 1 and 1.0 and true apart."""
    codec: Codec[Any] = Codec(None)
    text = codec.encode(value)

    assert repr(codec.decode(text)) == repr(_sorted(value))
    assert codec.encode(codec.decode(text)) == text


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: key.encode())}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
