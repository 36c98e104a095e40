"""Test the supported Pythons and the Makefile: pyproject.toml, Makefile and README state one range."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST, FIRST_REFUSED = "3.11", "3.14"  # immutables, which Snakemake needs, has no wheel for Python 3.14


def make_setup(tmp_path: Path, version: tuple[int, int]) -> subprocess.CompletedProcess:
    """Run `make setup` with a Python that claims `version` and exits when asked for the environment."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} -c 'import sys; sys.version_info = {(*version, 0)}; exec(sys.argv[1])' "$2"; fi
if [ "$1" = -m ]; then echo "makes the environment"; exit 1; fi
echo Python {version[0]}.{version[1]}.0
"""
    )
    python.chmod(0o755)
    return subprocess.run(["make", "setup", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (3, 15)])
def test_make_setup_of_another_python_names_the_range(tmp_path, version):
    done = make_setup(tmp_path, version)
    assert done.returncode != 0
    assert f"is Python {version[0]}.{version[1]}.0; expected Python 3.11, 3.12 or 3.13" in done.stderr
    assert "Fix: make setup PYTHON=python3.12" in done.stderr
    assert "makes the environment" not in done.stdout


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_make_setup_of_a_supported_python_continues(tmp_path, version):
    assert "makes the environment" in make_setup(tmp_path, version).stdout


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_help_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert re.findall(r"^  make (\S+)", make("help"), re.M) == [name for name in targets if name != "chromium"]


def test_make_test_installs_nothing_on_the_system():
    assert "apt-get" not in make("--dry-run", "test")
    assert "apt-get" in make("--dry-run", "test-all")


def test_python_range_is_equal_in_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={OLDEST},<{FIRST_REFUSED}"
    assert "make and Python 3.11, 3.12 or 3.13" in (ROOT / "README.md").read_text()
    checked = re.search(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert checked.split() == ["3.11", "3.12", "3.13"]
