"""The protobuf API, from the comments in ``proto/``: the compiler hands them over with the descriptors."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from blocks.markdown import table

# Numbers of fields in descriptor.proto, which source locations are made of.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM = 2, 3, 4
_ENUM_VALUE, _SERVICE_METHOD = 2, 2

Location = tuple[int, ...]


class _File:
    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }

    def comment(self, path: Location) -> str:
        return "\n".join(line.removeprefix(" ") for line in self._comments.get(path, "").splitlines()).strip()


def reference(root: Path) -> str:
    files = [_File(file) for file in _descriptors(root).file if file.package == "syncline.v1"]
    files.sort(key=lambda file: (not file.file.service, file.file.name))
    return "\n\n".join(part for file in files for part in _sections(file))


def _descriptors(root: Path) -> FileDescriptorSet:
    buf = Path(sys.executable).with_name("buf")
    made = subprocess.run(
        [buf, "build", "proto", "--as-file-descriptor-set", "--output", "-"],
        cwd=root,
        check=True,
        capture_output=True,
    )
    return FileDescriptorSet.FromString(made.stdout)


def _sections(file: _File) -> Iterator[str]:
    for index, service in enumerate(file.file.service):
        yield from _service(file, service, (_FILE_SERVICE, index))
    for index, message in enumerate(file.file.message_type):
        yield from _message(file, message, (_FILE_MESSAGE, index), "")
    for index, enum in enumerate(file.file.enum_type):
        yield from _enum(file, enum, (_FILE_ENUM, index), "")


def _service(file: _File, service: Any, path: Location) -> Iterator[str]:
    yield f"## {service.name}"
    yield file.comment(path)
    rows = []
    for index, method in enumerate(service.method):
        request = ("stream " if method.client_streaming else "") + _type_link(method.input_type)
        answer = ("stream " if method.server_streaming else "") + _type_link(method.output_type)
        rows.append(
            (f"`{method.name}`", f"{request} → {answer}", file.comment((*path, _SERVICE_METHOD, index)))
        )
    yield table(("method", "", "meaning"), rows)


def _message(file: _File, message: Any, path: Location, outer: str) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = outer + message.name
    yield f"### {name}"
    yield file.comment(path)
    if message.field:
        yield table(
            ("field", "type", "meaning"),
            (
                (
                    f"`{field.name}` = {field.number}",
                    _field_type(field, message),
                    file.comment((*path, _MESSAGE_FIELD, index)),
                )
                for index, field in enumerate(message.field)
            ),
        )
    for index, nested in enumerate(message.nested_type):
        yield from _message(file, nested, (*path, _MESSAGE_NESTED, index), f"{name}.")
    for index, enum in enumerate(message.enum_type):
        yield from _enum(file, enum, (*path, _MESSAGE_ENUM, index), f"{name}.")


def _enum(file: _File, enum: Any, path: Location, outer: str) -> Iterator[str]:
    yield f"### {outer}{enum.name}"
    yield file.comment(path)
    yield table(
        ("value", "number", "meaning"),
        (
            (f"`{value.name}`", str(value.number), file.comment((*path, _ENUM_VALUE, index)))
            for index, value in enumerate(enum.value)
        ),
    )


def _field_type(field: Any, message: Any) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith("." + nested.name):
            return f"map of {_field_type(nested.field[0], nested)} to {_field_type(nested.field[1], nested)}"
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    if field.type_name:
        return repeated + _type_link(field.type_name)
    return repeated + FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _type_link(type_name: str) -> str:
    package, _, name = type_name.lstrip(".").partition("syncline.v1.")
    if package or not name:
        return f"`{type_name.lstrip('.')}`"
    return f"[{name}](#{name.replace('.', '').lower()})"
