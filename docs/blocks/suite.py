"""The tests there are, and on which of the stores they run, read from their source.

A test runs on both stores when a fixture that it uses, however indirectly, is one of ``STORE_FIXTURES`` (see
tests/fixtures/fix_stores.py). One with the mark ``only_store`` runs on that store alone; one that brings a PostgreSQL
of its own runs on that. Whatever is left needs no store, or makes an SQLite file.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

Store: TypeAlias = Literal["sqlite", "postgres"]
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Fixtures: TypeAlias = Mapping[str, frozenset[str]]
"""What each fixture asks for."""

STORE_FIXTURES = frozenset({"store_name", "backend_name", "feed_backend_name"})
POSTGRES_FIXTURE = "postgres_cluster"
BRINGS_POSTGRES = re.compile(r"brings .*PostgreSQL")
"""Why a test is not run for PostgreSQL once more: it is on one anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    file: str
    name: str
    guarantees: frozenset[int]
    commit: frozenset[Store]
    """Stores that it runs on with every commit: `make test`."""
    stores: frozenset[Store]
    """Stores that it runs on at all: `make test-all`."""


def find_tests(root: Path) -> Iterator[Test]:
    """Every test that names a guarantee."""
    for file in sorted((root / "tests").rglob("test_*.py")):
        module = _parse(file)
        shared = _fixtures_around(file, root)
        for node in _functions(module):
            numbers = _guarantees(node)
            if node.name.startswith("test_") and numbers:
                commit, stores = _stores(node, module, shared)
                yield Test(
                    file=str(file.relative_to(root)),
                    name=node.name,
                    guarantees=numbers,
                    commit=commit,
                    stores=stores,
                )


def _guarantees(node: Function) -> frozenset[int]:
    named = re.findall(r"_g(\d+)(?=_|$)", node.name)
    told = re.findall(r"\bG(\d+)\b", ast.get_docstring(node) or "")
    return frozenset(map(int, named + told))


def _stores(
    node: Function, module: ast.Module, shared: Fixtures
) -> tuple[frozenset[Store], frozenset[Store]]:
    """With every commit, and at all."""
    marks = {
        name: call
        for decorator in (*_module_marks(module), *node.decorator_list)
        for name, call in _mark(decorator)
    }
    only = marks.get("only_store")
    slow = "slow" in marks
    if only is not None:
        stores: frozenset[Store] = frozenset({_only(only)})
        return (frozenset() if slow else stores), stores
    used = {ast.literal_eval(name) for name in marks["usefixtures"].args} if "usefixtures" in marks else set()
    asked = _closure(_arguments(node) | used, shared | _fixtures_of(module))
    if STORE_FIXTURES & asked:
        on_both: frozenset[Store] = frozenset({"sqlite", "postgres"} if "on_both" in marks else {"sqlite"})
        return (frozenset() if slow else on_both), frozenset({"sqlite", "postgres"})
    stores = frozenset({"postgres" if POSTGRES_FIXTURE in asked else "sqlite"})
    return (frozenset() if slow else stores), stores


def _only(mark: ast.Call) -> Store:
    """The store of a test that is about one alone."""
    reason = next(ast.literal_eval(keyword.value) for keyword in mark.keywords if keyword.arg == "reason")
    named: Store = ast.literal_eval(mark.args[0])
    return "postgres" if BRINGS_POSTGRES.search(reason) else named


def _module_marks(module: ast.Module) -> Iterable[ast.expr]:
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                return value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    return []


def _mark(decorator: ast.expr) -> Iterator[tuple[str, ast.Call]]:
    """``pytest.mark.NAME`` or ``pytest.mark.NAME(…)``."""
    call = decorator if isinstance(decorator, ast.Call) else ast.Call(func=decorator, args=[], keywords=[])
    match call.func:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="pytest"), attr="mark"), attr=name):
            yield name, call


def _closure(names: Iterable[str], fixtures: Fixtures) -> set[str]:
    """These fixtures and all that they ask for."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += fixtures.get(name, ())
    return found


def _fixtures_around(file: Path, root: Path) -> dict[str, frozenset[str]]:
    """Those of the plugins, and of the conftest files above."""
    found: dict[str, frozenset[str]] = {}
    for plugin in sorted((root / "tests" / "fixtures").glob("*.py")):
        found |= _fixtures_of(_parse(plugin))
    for directory in (root / "tests", file.parent):
        if (directory / "conftest.py").exists():
            found |= _fixtures_of(_parse(directory / "conftest.py"))
    return found


def _fixtures_of(module: ast.Module) -> dict[str, frozenset[str]]:
    return {
        node.name: frozenset(_arguments(node))
        for node in _functions(module)
        if any("fixture" in ast.dump(decorator) for decorator in node.decorator_list)
    }


def _arguments(node: Function) -> set[str]:
    """Fixtures that a function takes, or asks for by name."""
    taken = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    for call in ast.walk(node):
        match call:
            case ast.Call(func=ast.Attribute(attr="getfixturevalue"), args=[ast.Constant(value=str(name))]):
                taken.add(name)
    return taken


def _functions(module: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())
