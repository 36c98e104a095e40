"""The one-way street: {errors, config, files, method, scenes} <- models <- {training, evaluation} <- report <- cli."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sid_core import sources

FILES = sorted(sources.ROOT.rglob("*.py"))
BASE = {"__init__", "errors", "config", "files", "downloads", "hub", "machine", "method", "randomness", "shapes"}
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "downloads": {"errors", "files", "transfer"},
    "transfer": {"errors", "files"},
    "hub": {"errors", "files"},
    "config": {"errors", "files"},
    "method": {"errors"},
    "shapes": {"errors", "files"},
    "models": BASE,
    "training": BASE | {"models"},
    "evaluation": BASE | {"models"},
    "report": BASE | {"evaluation"},  # the record of a paired difference, which needs no torch
    "recipes": BASE | {"models", "evaluation"},
    "preview": BASE | {"evaluation"},
    "studio": BASE | {"models", "evaluation", "preview"},
    "serve": BASE | {"preview", "studio"},
    "tracking": BASE,
    "registered": BASE | {"studio"},
    "machine": set(),
    "randomness": set(),
    "slurm": set(),
    "gpus": {"errors", "machine"},
    "launch": {"errors", "files", "gpus", "machine"},
    "torchrun": set(),
    "sources": BASE,
    "plan": BASE,
    "manual": BASE,
    "status": BASE | {"plan"},
    "cli": BASE
    | {
        "gpus",
        "manual",
        "plan",
        "status",
        "sources",
        "models",
        "training",
        "evaluation",
        "report",
        "recipes",
        "preview",
        "studio",
        "serve",
        "tracking",
    },
    "__main__": {"cli"},
}
# third-party libraries, and the only parts that may import them
ONLY = {
    "mlflow": {"tracking"},
    "diffusers": {"models"},
    "transformers": {"models"},
    "open_clip": {"evaluation", "recipes"},
    "cleanfid": {"evaluation"},
    "torch_fidelity": {"evaluation"},
    "matplotlib": {"report"},
    "pydantic": {"config"},
    "requests": {"transfer"},
    "snakemake": set(),
}


def part(path: Path) -> str:
    """The part of the package a file belongs to."""
    names = path.relative_to(sources.ROOT).with_suffix("").parts
    return "recipes" if names[:2] == ("shapes", "recipes") else names[0]


def third_party(path: Path) -> set[str]:
    """Libraries a file imports when it runs; those for type checkers alone do not count."""
    tree, found = ast.parse(path.read_bytes()), set()
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(sources.ROOT)))
def test_imports_go_one_way(path):
    imported = {part(target) for target in sources.imports(path)} - {part(path), "__init__"}
    if part(path) == "recipes":
        imported -= {"shapes"}
    assert imported <= ALLOWED[part(path)]


@pytest.mark.parametrize("library", ONLY)
def test_a_library_has_its_importers(library):
    assert {part(path) for path in FILES if library in third_party(path)} <= ONLY[library]


def test_tracking_is_called_by_cli_alone():
    callers = {part(path) for path in FILES if any(part(target) == "tracking" for target in sources.imports(path))}
    assert callers - {"tracking"} == {"cli"}


def test_training_needs_no_configuration_library():
    """A machine with a GPU may have torch, diffusers and safetensors alone."""
    unwanted = ("pydantic", "snakemake", "mlflow", "pandas", "matplotlib", "open_clip")
    code = f"import sys; sys.modules.update(dict.fromkeys({unwanted!r})); import sid_core.training.iteration, sid_core.method"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_snakemake_and_help_import_nothing_heavy():
    code = (
        "import sys, sid_core.cli, sid_core.sources, sid_core.machine, sid_core.tracking\n"
        "print([name for name in ('torch', 'numpy', 'mlflow', 'diffusers', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# --- what a stage's digest covers ----------------------------------------------------------------------------------------


def covered(module: str) -> set[str]:
    path = sources._file(sources.ROOT.joinpath(*module.split(".")))
    return {str(p.relative_to(sources.ROOT)) for p in sources.reachable(path) - sources.PLUMBING}


def test_a_stage_covers_what_it_imports_and_not_what_comes_after():
    assert {"training/run.py", "training/iteration.py", "method/losses.py", "models/text.py"} <= covered("training.run")
    assert not any(name.startswith(("evaluation", "report", "shapes/recipes")) for name in covered("training.run"))
    assert "evaluation/images.py" in covered("evaluation.generation")
    assert {"training/run.py", "evaluation/scoring.py", "evaluation/features.py"}.isdisjoint(
        covered("evaluation.generation")
    )
    assert "shapes/scenes.py" in covered("models.prompts")
    assert "cli.py" not in covered("report")


def test_stage_digest_follows_imports(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "part").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "part/__init__.py": "",
        "part/a.py": "def f():\n    from . import b\n",
        "part/b.py": "from ..other import x\n",
        "other.py": "x = 1\n",
        "unrelated.py": "x = 1\n",
    }.items():
        (package / name).write_text(text)
    monkeypatch.setattr(sources, "ROOT", package)
    monkeypatch.setattr(sources, "PLUMBING", set())

    def digest(name: str = "", text: str = "") -> str:
        if name:
            (package / name).write_text(text)
        sources.imports.cache_clear()
        return sources.stage_digest("part.a")

    before = digest()
    assert digest("unrelated.py", "x = 2\n") == before
    assert digest("other.py", "x = 1  # the same\n") == before
    assert digest("other.py", "x = 2\n") != before
    before = digest("part/page.css", "a { }")
    assert digest("part/page.css", "b { }") != before
    sources.imports.cache_clear()
