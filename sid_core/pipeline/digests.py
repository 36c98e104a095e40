"""What shapes a stage's result beside its settings and inputs: the modules it imports, and folders outside of results/.

Snakemake sees neither. A digest of each stands in the rules' `params`, so that an edit or a replaced file reruns the stages
it can change, and those alone.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..config import COCO2014_30K, Config
from ..data.shapes import asset
from ..errors import UserError
from ..storage.downloads import is_url
from ..storage.files import digest, sha256_file
from .paths import teacher_name

ROOT = Path(__file__).parents[1]
# how settings are read and files are written: no number of a result depends on them
PLUMBING = {
    ROOT / "__init__.py",
    ROOT / "errors.py",
    *(ROOT / "config").glob("*.py"),
    *(ROOT / "storage").glob("*.py"),
    ROOT / "pipeline" / "paths.py",
    ROOT / "pipeline" / "inputs.py",
}
BESIDE = {".html", ".css", ".js", ".csv"}


def stage_digest(module: str) -> str:
    """Digest of a module ('training.run') and of what it imports from this package; comments and docstrings do not count.

    Also of other files beside modules: a page's template, style and script, a table.
    """
    path = _file(ROOT.joinpath(*module.split(".")))
    assert path is not None, f"sid_core.{module}: no such module"
    modules = reachable(path) - PLUMBING
    beside = {p for folder in {m.parent for m in modules} - {ROOT} for p in folder.iterdir() if p.suffix in BESIDE}
    return code_digest(*sorted(modules | beside))


def code_digest(*modules: str | Path) -> str:
    """Digest of sources; of Python by meaning: comments, blank lines and docstrings do not count.

    `modules` are files, or folders of Python. Rules put it into `params`, so that editing what shapes a stage's result reruns that
    stage, and a comment does not.
    """
    hashed = hashlib.sha256()
    for module in modules:
        for path in sorted(Path(module).rglob("*.py")) if Path(module).is_dir() else [Path(module)]:
            source = path.read_bytes()
            hashed.update(path.name.encode() + (_meaning(source) if path.suffix == ".py" else source))
    return hashed.hexdigest()[:16]


@cache
def _meaning(source: bytes) -> bytes:
    """A module without comments, blank lines and docstrings. Stages share modules, and every job of a cluster digests all stages."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()


def data_digests(config: Config) -> dict[str, str]:
    """Digests of the files a user's configuration points at, or of the assets in their place, by stage.

    Raises:
        UserError: a path does not exist; the message names its key. It costs seconds to find out here, hours later on.
    """
    prompts, evaluate = config.prompts, config.evaluate
    teachers = {teacher_name(): config.teacher} | {teacher_name(name): block for name, block in config.teachers.items()}
    paths = {
        "prompts.train": prompts.train if prompts.source == "file" else None,
        "prompts.evaluation": prompts.evaluation,
    }
    files = {key: path for key, path in paths.items() if isinstance(path, str) and path != COCO2014_30K}
    return {
        **{
            where: ""
            if block.source == "hub"
            else _data_digest(f"{where.replace('/', '.')}.path", _place(block.path or "embedded", "teacher"))
            for where, block in teachers.items()
        },
        **{
            f"imports/{imported.name}": ""
            if imported.repo is not None
            else _data_digest(f"imports.{imported.name}.file", imported.file)
            for imported in config.imports
        },
        "prompts": digest([_data_digest(key, path) for key, path in files.items()]),
        "evaluate": digest(
            [
                _data_digest(f"evaluate.{key}.source", _place(network.source, key))
                for key, network in evaluate.networks().items()
                if network.revision is None
            ]
        ),
        "reference": "" if evaluate.reference == "embedded" else _data_digest("evaluate.reference", evaluate.reference),
    }


def _place(setting: str, key: str) -> str | Path:
    return asset(key) if setting == "embedded" else setting


def _data_digest(key: str, path: str | Path) -> str:
    """A user's files by name, size and time (they may be gigabytes); the package's own by content (a checkout has new times).

    What is fetched has no digest: the settings pin it.
    """
    if is_url(str(path)):
        return ""
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{key}={path}: no such file or folder (a relative path starts at {Path.cwd()})")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if path.is_relative_to(ROOT):
        return digest({str(p.relative_to(path)): sha256_file(p) for p in files})
    return digest({str(p.relative_to(path)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files})


def reachable(path: Path) -> set[Path]:
    """`path` and every file of this package that it imports, directly or not, also inside functions."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += imports(current)
    return found


@cache
def imports(path: Path) -> frozenset[Path]:
    """Files of this package that the module at `path` imports itself, with the packages they lie in."""
    found = set()
    for target in _targets(path):
        file = _file(target)
        if file is not None:
            found.add(file)
            found.update(p / "__init__.py" for p in file.parents if p.is_relative_to(ROOT))
    return frozenset(found - {path})


def _targets(path: Path) -> Iterator[Path]:
    """What import statements name, as paths without suffix; some are functions or classes and no files."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = path.parents[node.level - 1]
            elif (node.module or "").split(".")[0] == ROOT.name:
                base = ROOT.parent
            else:
                continue
            base = base.joinpath(*(node.module or "").split(".")) if node.module else base
            yield base
            yield from (base / alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (ROOT.parent.joinpath(*alias.name.split(".")) for alias in node.names)


def _file(target: Path) -> Path | None:
    """The source file of a module or package; None where there is none in this package."""
    for path in (target.with_name(f"{target.name}.py"), target / "__init__.py"):
        if path.is_relative_to(ROOT) and path.is_file():
            return path
    return None
