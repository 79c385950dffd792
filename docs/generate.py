"""Bring the generated blocks of the docs up to date with the code, or check that they are.

A block stands between two comments in a Markdown file and is written over::

    <!-- begin settings -->
    <!-- end settings -->

Each module of ``blocks`` makes one or several of them. Figures come from ``bench/results.json``, which is not kept
in the repository: their block is written only when that file is there, and not checked.

``python docs/generate.py`` writes, ``--check`` shows the differences and ends with 1 if there are any.
"""

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from blocks import BLOCKS, UNCHECKED

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<begin><!-- begin (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(?P<end><!-- end (?P=name) -->)", re.DOTALL
)


def pages() -> Iterator[Path]:
    """Every Markdown page of the project."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def regenerate(text: str, *, checking: bool) -> str:
    """The page with its blocks made anew."""

    def body(match: re.Match[str]) -> str:
        name = match["name"]
        if name in UNCHECKED and checking:
            return match[0]
        made = BLOCKS[name](ROOT)
        if made is None:
            return match[0]
        return f"{match['begin']}\n{made.strip()}\n\n{match['end']}"

    return BLOCK.sub(body, text)


def main() -> int:
    """Write or check; the number of pages that differ is told."""
    checking = "--check" in sys.argv[1:]
    stale = 0
    for page in pages():
        old = page.read_text()
        new = regenerate(old, checking=checking)
        if new == old:
            continue
        stale += 1
        name = str(page.relative_to(ROOT))
        if checking:
            sys.stdout.writelines(
                difflib.unified_diff(
                    old.splitlines(True), new.splitlines(True), name, f"{name} (from the code)"
                )
            )
        else:
            page.write_text(new)
            print(f"wrote {name}")
    if checking and stale:
        print(f"{stale} page(s) differ from the code: run `make docs`")
    return 1 if checking and stale else 0


if __name__ == "__main__":
    sys.exit(main())
