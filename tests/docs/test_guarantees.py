"""The table of guarantees in the README: what it links to exists, and nothing is promised without a test."""

import ast
import re
from pathlib import Path

import pytest

from blocks.guarantees import GUARANTEES, find_tests

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    int(match[1]): match[0]
    for match in re.finditer(r"^\| G(\d+) \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
}


def test_every_guarantee_has_its_row():
    assert list(ROWS) == [guarantee.number for guarantee in GUARANTEES]


@pytest.mark.parametrize("number", [g.number for g in GUARANTEES])
def test_the_tests_linked_for_a_guarantee_exist(number):
    links = re.findall(r"\[(\w+)\]\((tests/[^)]+\.py)\)", ROWS[number])

    assert links, f"G{number} is promised and no test names it"
    for name, file in links:
        assert f"test_{name}" in functions(ROOT / file)


def test_tests_name_only_guarantees_that_exist():
    known = {guarantee.number for guarantee in GUARANTEES} | {19}

    assert {number for test in find_tests(ROOT) for number in test.numbers} <= known


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
