"""Between models and JSON.

A model is a dataclass, a ``msgspec.Struct``, a ``TypedDict``, a pydantic model, or None for plain dicts.
Encoding is exact or an EncodeError; keys come out sorted, so that the server finds the bytes canonical already.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from syncline.errors import DecodeError, EncodeError

T = TypeVar("T")

_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_PLAIN: Final = msgspec.json.Decoder()


class Codec(Generic[T]):
    """Encodes what a user pushes, and decodes what a user reads, for one model."""

    __slots__ = ("decode", "encode")

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], T]

    def __init__(self, model: type[T] | None) -> None:
        if model is None:
            self.encode = _encode
            self.decode = cast("Callable[[bytes], T]", _decode_with(_PLAIN.decode, "an object"))
        elif hasattr(model, "__pydantic_validator__"):
            self.encode = _encode_pydantic
            validate = model.model_validate_json  # type: ignore[attr-defined]
            self.decode = _decode_with(validate, model.__name__)
        else:
            self.encode = _encode
            self.decode = _decode_with(msgspec.json.Decoder(model).decode, _name(model))

    def encode_all(self, records: Iterable[Any]) -> list[bytes]:
        """Encode a list of records. Raises EncodeError naming the position."""
        encoded: list[bytes] = []
        encode = self.encode
        try:
            for record in records:
                encoded.append(encode(record))  # noqa: PERF401 - the except below needs to know how far it came
        except EncodeError as error:
            raise EncodeError(f"records[{len(encoded)}]: {error.message}") from error.__cause__
        return encoded


def _encode(record: Any) -> bytes:
    if isinstance(record, bytes):
        return record  # JSON text already; the server checks it
    try:
        data = _ENCODER.encode(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(f"{_shorten(record)} has no exact JSON form: {error}") from error
    if not data.startswith(b"{"):
        raise EncodeError(f"a record is an object, not {_shorten(record)}")
    # msgspec writes NaN and infinities as null. Only a record with a null in its text can hide one.
    if b"null" in data and _has_nan(record):
        raise EncodeError(f"NaN and infinity have no JSON form: {_shorten(record)}")
    return data


def _encode_pydantic(record: Any) -> bytes:
    if hasattr(record, "__pydantic_serializer__"):
        return _encode(record.model_dump(mode="json", by_alias=True))
    return _encode(record)


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_has_nan, value))
    if hasattr(value, "__struct_fields__") or hasattr(value, "__dataclass_fields__"):
        return _has_nan(
            msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else _members(value)
        )
    return False


def _members(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name, None) for name in value.__dataclass_fields__}


def _decode_with(decode: Callable[[bytes], T], name: str) -> Callable[[bytes], T]:
    def decode_record(data: bytes) -> T:
        try:
            return decode(data)
        except ValueError as error:  # msgspec's and pydantic's validation errors are ValueErrors
            raise DecodeError(f"the record is not a {name}: {error}") from error

    return decode_record


def _name(model: Any) -> str:
    return getattr(model, "__name__", None) or repr(model)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"
