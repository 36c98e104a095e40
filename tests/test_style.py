"""Hold docstrings to docs/contributing/style.md. `python tests/test_style.py [PACKAGE]` lists what breaks the rules.

Verbs that a docstring may begin with are in helpers/verbs.txt: add one that is missing.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "sid_core"
PASSED: tuple[str, ...] = (
    "../benchmarks",
    "sampling",
    "../tests/sampling",
    "models",
    "../tests/models",
    "method",
    "config",
    "pipeline",
    "../recipes",
    "report",
    "../tests/report",
    "serve",
    "../tests/serve",
    "../tests/recipes",
    "training",
    "../tests/method",
    "../tests/training",
    "storage",
    "data",
    "evaluation",
    "../tests/evaluation",
    "../tests/data",
    "../tests/config",
    "cluster",
    "tracking",
    "../tests/cluster",
    "../tests/storage",
    "../tests/pipeline",
    "../tests/workflow",
    "../tests/slurm",
    "../tests/helpers",
)  # packages that keep the rules; add one when its language pass is done
VERBS = set((Path(__file__).parent / "helpers" / "verbs.txt").read_text(encoding="utf-8").split())


def broken(folder: Path) -> Iterator[str]:
    """Yield a line for each module or function whose docstring does not begin with an imperative verb."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.FunctionDef):
                continue
            summary = (ast.get_docstring(node) or "").split("\n")[0]
            if summary and summary.split()[0].lower().rstrip(",:;") not in VERBS:
                line = getattr(node, "lineno", 1)
                yield f"{path.resolve().relative_to(ROOT.parent.resolve())}:{line}: {getattr(node, 'name', 'module')}: {summary[:90]}"


def test_docstrings_of_passed_packages_begin_with_a_verb():
    found = [line for name in PASSED for line in broken(ROOT / name)]
    assert not found, "\n".join(found)


def test_broken_of_a_noun_names_file_and_function(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.py").write_text('"""Add numbers."""\n\n\ndef total():\n    """The sum."""\n')
    (line,) = broken(tmp_path)
    assert line.endswith("a.py:4: total: The sum.")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()):
        lines = list(broken(ROOT / name))
        print(*(lines if sys.argv[1:] else [f"{name}: {len(lines)}"]), sep="\n")
