"""The two commands, from their own definitions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer

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
    return "\n\n".join(
        _section(path, command, outermost=command is root) for path, command in _walk(name, root)
    )


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _walk(f"{path} {name}", child)


def _section(path: str, command: Any, *, outermost: bool) -> str:
    parts = [f"### `{path}`", (command.help or "").replace("\b", "").strip()]
    children = {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}
    if children:
        parts.append(
            table(
                ("command", ""),
                ((f"`{path} {name}`", child.get_short_help_str(200)) for name, child in children.items()),
            )
        )
    else:
        parts.append(f"```text\n{path} {' '.join(_usage(command))}\n```")
    rows = [
        (_names(parameter), _meaning(parameter)) for parameter in command.params if not _hidden(parameter)
    ]
    if rows:
        parts.append(table(("argument or option", "meaning"), rows))
    return "\n\n".join(part for part in parts if part)


def _usage(command: Any) -> list[str]:
    return command.collect_usage_pieces(click.Context(command))


def _hidden(parameter: Any) -> bool:
    """Options that every command has are shown with the outermost one only."""
    shared = (getattr(parameter, "rich_help_panel", None) or "").startswith("Shared options")
    return shared or getattr(parameter, "hidden", False) or parameter.name == "help"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.make_metavar(click.Context(click.Command('x')))}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _meaning(parameter: Any) -> str:
    text = cell(getattr(parameter, "help", None) or "")
    default = parameter.default
    if (
        default not in (None, False, (), ...)
        and not callable(default)
        and parameter.param_type_name == "option"
    ):
        text += f" Default: `{default}`."
    if getattr(parameter, "envvar", None):
        text += f" Environment: `{parameter.envvar}`."
    return text.strip()
