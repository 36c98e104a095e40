"""Test the documentation: reference pages are up to date, commands exist, links have targets."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import reference

from sid_core import cli, config
from sid_core.pipeline.plan import to_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize(("path", "text"), reference.pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_reference_page_equals_its_generated_text(path, text):
    assert path.read_text() == text, f"{path.name}: out of date. Fix: make reference"


def test_config_page_has_a_row_for_every_key():
    page = reference.config_page()
    for key in ("lsg", "fake_train", "ema_halflife_nimg", "save_s", "repo"):
        assert f"`{key}`" in page

    def check(block: config.Block):
        for key, value in block:
            assert f"| `{key}` |" in page, key
            if isinstance(value, config.Block):
                check(value)

    check(config.load_config(ROOT / "config.yaml"))


def test_cli_page_lists_every_command_and_argument():
    page = reference.cli_page(cli._parser())
    assert all(f"## sid-core {stage}\n" in page for stage in cli.COMMANDS)
    assert "|  |\n| `--" not in page


def prose(page: Path) -> str:
    """Return a page without its blocks and spans of code."""
    return re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_of_a_page_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if heading:
            lines = [line.lstrip("# ").lower() for line in file.read_text().splitlines() if line.startswith("#")]
            assert heading in [re.sub(r"[^\w\s-]", "", line).replace(" ", "-") for line in lines], target


def test_index_links_every_page():
    linked = {
        (ROOT / "docs" / target).resolve()
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / "docs" / "README.md").read_text())
    }
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {ROOT / "docs" / "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_of_a_page_parse(page):
    """Parse every `sid-core STAGE --option …` but for placeholders and arguments omitted by `…`."""
    commands = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    for line in re.findall(r"sid-core ([a-z][^\n`|;]*)", page.read_text()):
        words = (
            shlex.split(line.split("  #")[0].split(" # ")[0], posix=True) if line.count('"') % 2 == 0 else line.split()
        )
        if words[0] not in commands:
            assert not words[0].replace("-", "").isalpha() or len(words) < 2 or "--" not in line, line
            continue
        known = {option for action in commands[words[0]]._actions for option in action.option_strings}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known, f"sid-core {line}"


@pytest.mark.parametrize("page", ["how-to/own-prompts", "how-to/own-teacher", "contributing/experiment"])
def test_example_of_a_page_validates(page, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.S)
    (tmp_path / "mine.yaml").write_text(block)
    given = config.load_config(ROOT / "config.yaml", tmp_path / "mine.yaml")
    assert given.experiment != "shapes", "it would make another experiment's results again"
    assert "note" not in to_text(given)


def test_readme_has_few_lines():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 85
    assert max(map(len, lines)) <= 110


def test_pictures_have_few_bytes():
    for picture in (ROOT / "docs").rglob("mlflow_*.png"):
        assert picture.stat().st_size < 150_000, picture.name
