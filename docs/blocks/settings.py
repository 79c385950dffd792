"""Settings of the server, from the model that reads them."""

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from blocks.markdown import table as markdown_table
from syncline_server.settings import ENVIRONMENT_PREFIX, Settings


def table(_root: Path) -> str:
    rows = [
        (
            f"`{name}`",
            f"`{ENVIRONMENT_PREFIX}{name.upper()}`",
            _type(field.annotation),
            _default(field.default),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
    return markdown_table(("setting", "environment", "type", "default", "meaning"), rows)


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " / ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(annotation) if part is not type(None))
    if origin is tuple:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    return {
        str: "text",
        SecretStr: "text, secret",
        int: "integer",
        float: "number",
        bool: "true / false",
        Path: "path",
    }[annotation]


def _default(value: Any) -> str:
    if value is None or value == "" or value == SecretStr(""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if isinstance(value, int) and value >= unit and value % unit == 0:
            return f"`{value}` ({value // unit} {name})"
    return f"`{value}`"
