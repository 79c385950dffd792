"""The two commands, from their own definitions."""

import enum
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from blocks.markdown import cell, table


def client(_root: Path) -> str:
    from syncline.cli.app import app

    return _reference("syncline", typer.main.get_command(app))


def server(_root: Path) -> str:
    from syncline_server.cli import app

    return _reference("syncline-server", typer.main.get_command(app))


def exit_codes(_root: Path) -> str:
    from syncline.cli.exits import MEANINGS

    return table(("code", "meaning"), ((str(int(code)), text) for code, text in MEANINGS.items()))


def _reference(name: str, root: Any) -> str:
    sections = (_section(path, command, outermost=command is root) for path, command in _walk(name, root))
    return "\n\n".join(sections)


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in _children(command).items():
        yield from _walk(f"{path} {name}", child)


def _children(command: Any) -> dict[str, Any]:
    return {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}


def _section(path: str, command: Any, *, outermost: bool) -> str:
    children = _children(command)
    parts = [f"### `{path}`", inspect.cleandoc(command.help or "")]
    if children:
        rows = ((f"`{path} {name}`", _first_line(child)) for name, child in children.items())
        parts.append(table(("command", ""), rows))
    else:
        parts.append(f"```text\n{' '.join([path, *_usage(command)])}\n```")
    shown = [parameter for parameter in command.params if outermost or not _is_shared(parameter)]
    if rows := [(_names(parameter), _meaning(parameter)) for parameter in shown]:
        parts.append(table(("argument or option", "meaning"), rows))
    return "\n\n".join(part for part in parts if part)


def _first_line(command: Any) -> str:
    return (command.help or "").strip().partition("\n")[0]


def _is_shared(parameter: Any) -> bool:
    """Options that every command has are shown with the outermost one only."""
    panel = getattr(parameter, "rich_help_panel", None) or ""
    return (
        panel.startswith("Shared options") or parameter.name == "help" or getattr(parameter, "hidden", False)
    )


def _usage(command: Any) -> Iterator[str]:
    yield "[OPTIONS]"
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            text = _metavar(parameter)
            yield text if parameter.required or text.startswith("[") else f"[{text}]"


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper() + ("..." if parameter.nargs == -1 else "")


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return names if getattr(parameter, "is_flag", False) else f"{names} `{_value(parameter)}`"


def _value(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return "|".join(str(member.value) for member in kind)
    words = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return parameter.metavar or words.get(kind, "TEXT")


def _meaning(parameter: Any) -> str:
    text = cell(getattr(parameter, "help", None) or "")
    default = parameter.default
    if isinstance(parameter.show_default, str):
        default = parameter.show_default
    if (
        parameter.param_type_name == "option"
        and default not in (None, False, (), [], "", ...)
        and not callable(default)
    ):
        text += f" Default: `{default}`."
    if parameter.envvar:
        text += f" Environment: `{parameter.envvar}`."
    return text.strip()
