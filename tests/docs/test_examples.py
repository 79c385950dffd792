"""What the docs tell people to type works: every example is run, in order, against a server without datasets.

Blocks marked ``console`` hold commands after ``$`` and what they print, where ``…`` stands for anything; blocks
marked ``python`` are scripts, or doctests. Blocks marked otherwise are not run.
"""

import asyncio
import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

import syncline

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1:7420"
"""Of the server in the docs."""

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    *(
        ROOT / "docs" / "how-to" / f"{name}.md"
        for name in ("backup", "cron", "csv", "files", "keys", "mirror", "replicas", "sensors")
    ),
    *(ROOT / "docs" / "reference" / name for name in ("filters.md", "record-ids.md")),
]


@pytest.fixture
def terminal(tmp_path, shared_server):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["SYNCLINE_SERVER"] = shared_server.address
    environment["SYNCLINE_DATA"] = str(shared_server.data)
    yield Terminal(tmp_path, shared_server.address, environment)
    asyncio.run(delete_datasets(shared_server))


async def delete_datasets(server):
    async with syncline.connect(server.address, key=server.key) as client:
        for dataset in await client.list_datasets():
            await client.delete_dataset(dataset.dataset)


ONLY_SQLITE = pytest.mark.only_store("sqlite", reason="PostgreSQL is saved by its own tools")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(path, id=str(path.relative_to(ROOT)), marks=ONLY_SQLITE if path.stem == "backup" else ())
        for path in DOCUMENTS
    ],
)
def test_examples_run(document, terminal):
    parsers = [
        CodeBlockParser("console", lambda example: terminal.console(example.parsed)),
        CodeBlockParser("python", lambda example: terminal.python(example.parsed) and None),
    ]
    examples = list(Sybil(parsers=parsers, encoding="utf-8").parse(document).examples())

    assert examples
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("name", ["quickstart", "follow", "replace_from_csv"])
def test_scripts_of_the_examples_directory_run(name, terminal):
    """And print what they say at their end that they print."""
    script = (ROOT / "examples" / f"{name}.py").read_text()
    expected = script.rpartition("# Prints:\n")[2].replace("# ", "").strip()

    printed = terminal.python(script)

    assert matches(expected, printed), printed


class Terminal:
    """A directory and an environment in which commands and scripts find the server."""

    def __init__(self, directory: Path, address: str, environment: dict[str, str]) -> None:
        self._directory = directory
        self._address = address
        self._environment = environment

    def console(self, text: str) -> None:
        """Run each command, and compare what it prints."""
        for command, expected in commands(text):
            printed = self._run(["bash", "-c", command])
            assert matches(expected, printed), f"$ {command}\n{printed}\n--- expected:\n{expected}"

    def python(self, text: str) -> str:
        """Run a script or a doctest; returns what it printed."""
        if text.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(text, {}, "docs", None, 0)
            failed, tried = doctest.DocTestRunner(verbose=False).run(test)
            assert tried and not failed
            return ""
        script = self._directory / "script.py"
        script.write_text(text.replace(ADDRESS, self._address))
        return self._run([sys.executable, "-W", "error", str(script)])

    def _run(self, command: list[str]) -> str:
        ended = subprocess.run(
            command,
            check=False,
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stdout}"
        return ended.stdout


def commands(text: str) -> list[tuple[str, str]]:
    """Commands and what they print. A here-document belongs to its command."""
    found = []
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = block.partition("\n")
        if command.startswith("cat > "):  # what is shown is what is typed, up to Ctrl-D
            command, printed = f"{command} <<'END'\n{printed}\nEND", ""
        found.append((command, printed))
    return found


def matches(expected: str, printed: str) -> bool:
    """Whether the output is the expected one; ``…`` is anything, line ends and spaces count as one space."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("…"))
    return (
        re.fullmatch(r"\s*" + pattern.replace(r"\ ", r"\s+") + r"\s*", " ".join(printed.split())) is not None
    )
