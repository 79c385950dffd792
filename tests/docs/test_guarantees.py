"""The table of guarantees in the README: what it links to exists, and nothing is promised without a test."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blocks.guarantees import GUARANTEES, STORES, shown
from blocks.suite import BRINGS_POSTGRES, STORE_FIXTURES, find_tests

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    int(match[1]): match[0]
    for match in re.finditer(r"^\| G(\d+) \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
}


def test_every_guarantee_has_its_row():
    assert list(ROWS) == [guarantee.number for guarantee in GUARANTEES]


@pytest.mark.parametrize("number", [g.number for g in GUARANTEES])
def test_the_tests_linked_for_a_guarantee_exist(number):
    """On each store there is one at least."""
    for column in ROWS[number].rstrip("| ").split(" | ")[-len(STORES) :]:
        links = re.findall(r"\[(\w+)\]\((tests/[^)]+\.py)\)", column)

        assert links, f"G{number} is promised and no test names it"
        for name, file in links:
            assert f"test_{name}" in functions(ROOT / file)


COLLECTED = """
import json, sys, pytest

class Tell:
    def pytest_collection_modifyitems(self, items):
        for item in items:
            only = item.get_closest_marker("only_store")
            told = [
                item.nodeid,
                item.callspec.params if hasattr(item, "callspec") else {},
                item.get_closest_marker("slow") is not None,
                list(item.fixturenames),
                [*only.args, only.kwargs["reason"]] if only else [],
            ]
            print("COLLECTED", json.dumps(told, default=str))

sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Tell()]))
"""


@pytest.mark.slow
def test_the_columns_claim_nothing_that_is_not_run():
    """Every test that is linked is collected for the store, and where the table says so with every commit."""
    linked = {(test.file, test.name): test for tests in shown(ROOT).values() for test in tests}
    files = sorted({file for file, _ in linked})
    told = subprocess.run(
        [sys.executable, "-c", COLLECTED, *files], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    stores: dict[tuple[str, str], set[str]] = {place: set() for place in linked}
    commit: dict[tuple[str, str], set[str]] = {place: set() for place in linked}
    for line in re.findall(r"^COLLECTED (.*)$", told, re.MULTILINE):
        node_id, params, slow, fixtures, only = json.loads(line)
        file, _, name = node_id.partition("[")[0].partition("::")
        if (place := (file, name)) not in linked:
            continue
        store = next((params[fixture] for fixture in STORE_FIXTURES if fixture in params), None)
        if only and BRINGS_POSTGRES.search(only[1]):
            store = "postgres"
        elif store is None:
            store = only[0] if only else "postgres" if "postgres_cluster" in fixtures else "sqlite"
        if store in STORES:
            stores[place].add(store)
            if not slow:
                commit[place].add(store)

    # Some are run on both because of a fixture that is always there, and use it on neither.
    claimed = {(place, store) for place, test in linked.items() for store in test.stores - stores[place]}
    with_commits = {(place, store) for place, test in linked.items() for store in test.commit - commit[place]}
    assert claimed == with_commits == set()


def test_tests_name_only_guarantees_that_exist():
    known = {guarantee.number for guarantee in GUARANTEES} | {19}

    assert {number for test in find_tests(ROOT) for number in test.guarantees} <= known


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
