"""The public names of the SDK, with their signatures and docstrings, from the source."""

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import syncline
from blocks.markdown import table

FIRST = ("connect", "Client", "Dataset", "Session", "ChangeFeed", "Copy", "Digest")
"""What is looked for most; the rest follows by name. Exceptions have a page of their own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def reference(_root: Path) -> str:
    names = [*FIRST, *sorted(set(syncline.__all__) - set(FIRST))]
    return "\n\n".join(part for name in names for part in _entry(name))


def _entry(name: str) -> Iterator[str]:
    value: Any = getattr(syncline, name)
    if inspect.isclass(value) and issubclass(value, BaseException):
        return
    if not hasattr(value, "__module__") or not value.__module__.startswith("syncline"):
        yield f"## {name}\n\n```python\n{name} = {value}\n```".replace("syncline.events.", "").replace(
            "syncline.models.", ""
        )
        return
    node = _definitions(value.__module__)[value.__name__]
    yield f"## {name}"
    if isinstance(node, ast.ClassDef):
        yield from _class(node)
    else:
        yield from _function(node)


@cache
def _definitions(module: str) -> Mapping[str, ast.ClassDef | Function]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    found: dict[str, ast.ClassDef | Function] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function):
            found[node.name] = node
    return found


def _class(node: ast.ClassDef) -> Iterator[str]:
    yield _prose(ast.get_docstring(node))
    rows = list(_fields(node))
    if rows:
        yield table(
            ("", "type", "meaning"), ((name, kind, text.replace("``", "`")) for name, kind, text in rows)
        )
    for item in node.body:
        if (
            isinstance(item, Function)
            and not item.name.startswith("_")
            and not _is(item, "overload", "property")
        ):
            yield f"### {node.name}.{item.name}"
            yield from _function(item)


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Fields, members of an enum, and properties, each with the string that follows it."""
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        match item:
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                default = f" = {ast.unparse(item.value)}" if isinstance(item.value, ast.Constant) else ""
                yield f"`{name}`", f"`{ast.unparse(item.annotation)}{default}`", _following(after)
            case ast.Assign(targets=[ast.Name(id=name)]) if name.isupper():
                yield f"`{name}`", "", _following(after)
            case ast.FunctionDef(name=name, returns=ast.expr() as kind) if _is(item, "property"):
                yield f"`{name}`", f"`{ast.unparse(kind)}`", ast.get_docstring(item) or ""


def _following(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
        case _:
            return ""


def _function(node: Function) -> Iterator[str]:
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = list(_arguments(node.args))
    line = f"{word} {node.name}({', '.join(arguments)}){result}"
    if len(line) > 100:
        lines = ",\n    ".join(arguments)
        line = f"{word} {node.name}(\n    {lines},\n){result}"
    yield f"```python\n{line}\n```"
    yield _prose(ast.get_docstring(node))


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    given = [argument for argument in (*arguments.posonlyargs, *arguments.args) if argument.arg != "self"]
    defaults: list[ast.expr | None] = [None] * (len(given) - len(arguments.defaults)) + [*arguments.defaults]
    for argument, default in zip(given, defaults[-len(given) :] if given else [], strict=True):
        yield _argument(argument, default)
    if arguments.vararg:
        yield f"*{_argument(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{kind}" + (f" = {ast.unparse(default)}" if default else "")


def _is(node: Function, *decorators: str) -> bool:
    return any(ast.unparse(decorator).rpartition(".")[2] in decorators for decorator in node.decorator_list)


def _prose(text: str | None) -> str:
    """A docstring as Markdown: double back-quotes become single ones, literal blocks get fences."""
    lines: list[str] = []
    literal = False
    for line in (text or "").replace("``", "`").splitlines():
        if line.strip() == "::":
            continue
        indented = line.startswith("    ")
        if indented != literal and (line.strip() or not literal):
            lines.append("```text" if indented else "```")
            literal = indented
        lines.append(line)
    return "\n".join([*lines, "```"] if literal else lines)
