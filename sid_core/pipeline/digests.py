"""Compute digests of code and of the user's files: as `params` of rules they rerun what depends on an edited one."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..config import COCO2014_30K, Config
from ..data import shapes
from ..errors import UserError
from ..storage.downloads import is_url
from ..storage.files import digest, sha256_file
from .paths import teacher_name

ROOT = Path(__file__).parents[1]
# code that no number of a result depends on
PLUMBING = {ROOT / name for name in ("__init__.py", "errors.py", "pipeline/paths.py", "pipeline/inputs.py")}
PLUMBING |= {*(ROOT / "config").glob("*.py"), *(ROOT / "storage").glob("*.py")}
BESIDE = {".html", ".css", ".js", ".csv"}


def stage_digest(module: str) -> str:
    """Hash a module ('training.run'), its imports from this package, and the tables and page files beside them."""
    path = _file(ROOT.joinpath(*module.split(".")))
    assert path is not None, f"sid_core.{module}: no such module"
    modules = reachable(path) - PLUMBING
    beside = {p for folder in {m.parent for m in modules} - {ROOT} for p in folder.iterdir() if p.suffix in BESIDE}
    return code_digest(*sorted(modules | beside))


def code_digest(*files: Path) -> str:
    """Hash files; comments, blank lines and docstrings of Python do not count."""
    hashed = hashlib.sha256()
    for path in files:
        source = path.read_bytes()
        hashed.update(path.name.encode() + (_meaning(source) if path.suffix == ".py" else source))
    return hashed.hexdigest()[:16]


@cache
def _meaning(source: bytes) -> bytes:
    """Return a module without comments and docstrings; cached, since stages share modules."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()


def data_digests(config: Config) -> dict[str, str]:
    """Hash the files and assets that a configuration names, by stage; raise UserError for a missing one, before any stage."""
    prompts, evaluate, real = config.prompts, config.evaluate, config.distill.real
    train = prompts.train if prompts.source == "file" else None
    paths = {"prompts.train": train, "prompts.evaluation": prompts.evaluation}
    captions = [_data_digest(*item) for item in paths.items() if isinstance(item[1], str) and item[1] != COCO2014_30K]
    networks = [
        _data_digest(f"evaluate.{key}.source", shapes.asset(key) if network.source == "embedded" else network.source)
        for key, network in evaluate.networks().items()
        if network.revision is None
    ]
    places = {"source": real.source, "captions": real.captions} if real and real.source != "embedded" else {}
    pairs = [_data_digest(f"distill.real.{key}", place) for key, place in places.items() if place]
    found = {"prompts": digest(captions), "evaluate": digest(networks), "real_pairs": digest(pairs)}
    own = evaluate.reference != "embedded"
    found["reference"] = _data_digest("evaluate.reference", evaluate.reference) if own else ""
    teachers = {teacher_name(): config.teacher} | {teacher_name(name): block for name, block in config.teachers.items()}
    for name, block in teachers.items():
        place = shapes.teacher(block.source) if block.is_embedded else block.path
        found[name] = "" if block.source == "hub" else _data_digest(f"{name.replace('/', '.')}.path", place)
    for one in config.imports:
        found[f"imports/{one.name}"] = "" if one.repo else _data_digest(f"imports.{one.name}.file", one.file)
    return found


def _data_digest(key: str, path: str | Path) -> str:
    """Hash a user's files by name, size and time (they may be gigabytes), the package's by content; settings pin downloads."""
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
    """Return `path` and every file of this package that it imports, directly, indirectly or inside functions."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += imports(current)
    return found


@cache
def imports(path: Path) -> frozenset[Path]:
    """List the files of this package that a module imports itself, with their packages' __init__.py."""
    files = {file for target in _targets(path) if (file := _file(target)) is not None}
    packages = {p / "__init__.py" for file in files for p in file.parents if p.is_relative_to(ROOT)}
    return frozenset((files | packages) - {path})


def _targets(path: Path) -> Iterator[Path]:
    """Yield the targets of import statements as paths without suffix, also functions, classes and other packages."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1] if node.level else ROOT.parent
            base = above.joinpath(*(node.module or "").split("."))
            yield base
            yield from (base / alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (ROOT.parent.joinpath(*alias.name.split(".")) for alias in node.names)


def _file(target: Path) -> Path | None:
    """Return the source file of a module or package of this package, or None."""
    places = (target.with_name(f"{target.name}.py"), target / "__init__.py")
    return next((path for path in places if path.is_relative_to(ROOT) and path.is_file()), None)
