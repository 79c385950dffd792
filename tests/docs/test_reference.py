"""The reference says what the code says, and says all of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import generate
from blocks import BLOCKS, operation
from blocks import errors as error_blocks
from syncline.names import encode_key, parse_record_id
from syncline_server import errors
from syncline_server.metrics import Metrics
from syncline_server.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = list(generate.pages())
CLIENT_VARIABLES = {
    f"SYNCLINE_{name}"
    for name in ("SERVER", "KEY", "TLS", "CA", "CERT", "CERT_KEY", "INSECURE", "FAILPOINTS")
}


def test_generated_blocks_are_up_to_date():
    """`make docs` mends it."""
    checked = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_block_is_used_somewhere():
    used = {match["name"] for page in PAGES for match in generate.BLOCK.finditer(page.read_text())}

    assert used == set(BLOCKS)


def test_every_setting_has_a_meaning():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_reason_is_documented_and_no_other():
    listed = {reason for reasons in error_blocks.listed().values() for reason in reasons}

    assert listed == set(error_blocks.REASONS)


def test_every_reason_that_is_raised_is_listed():
    """With the class under which the docstring of errors.py lists it."""
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    listed = error_blocks.listed()
    unlisted = set()
    for file in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id=kind) | ast.Attribute(attr=kind),
                    args=[ast.Constant(value=str(reason)), *_],
                ) if kind in kinds and reason not in listed.get(kind, ()):
                    unlisted.add((file.name, kind, reason))

    assert unlisted == set()


def test_failpoints_named_in_their_module_are_the_ones_reached():
    from syncline_server import failpoints

    named = set(
        re.findall(r"``([a-z]+(?:\.[a-zN_]+)?)``", (failpoints.__doc__ or "").partition("Places:")[2])
    )

    assert named == operation.reached_failpoints(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Relative links, and the headings they point at."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)

    assert broken == []


def test_record_ids_of_the_reference_are_those_of_the_code():
    text = (ROOT / "docs/reference/record-ids.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \| `([^`|]+)` \|$", text.partition("| key fields |")[2], re.MULTILINE)

    assert len(rows) > 10
    for fields, record_id in rows:
        values = ast.literal_eval("[" + fields.replace("`", "").replace("true", "True") + "]")
        assert encode_key(values) == record_id
        assert parse_record_id(record_id) == (None, tuple(values))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_files_of_the_docs_are_accepted(page, tmp_path):
    for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        file = tmp_path / "syncline.toml"
        file.write_text(text)
        assert load_settings(file)


def test_metrics_and_variables_of_the_docs_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    exposed = Metrics().exposition().decode()
    metrics = set(re.findall(r"^# TYPE (\w+)", exposed, re.MULTILINE))
    variables = {f"SYNCLINE_{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
    variables |= {"SYNCLINE_CHECK_SEED", "SYNCLINE_CHECK_SECONDS"}  # of the checker, for those who work on it

    assert {
        name
        for name in re.findall(r"\bsyncline_(?!server\b|moved_TIME\b)[a-z_]+", text)
        if name.removesuffix("_bucket") not in metrics
    } == set()
    assert set(re.findall(r"\bSYNCLINE_[A-Z_]+\b", text)) - variables == set()
