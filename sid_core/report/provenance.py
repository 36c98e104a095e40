"""Where the numbers come from: protocol, weights, versions, commit, and in what settings the runs differ."""

import json
import subprocess
from pathlib import Path

from ..config import Config, distillations, dump
from ..storage.files import flat
from .entries import base_name


def provenance(config: Config, scores: dict[str, dict]) -> dict:
    """Return names and values by section."""
    first = next(iter(scores.values()))
    differing, rows = differing_settings(config)
    return {
        "protocol": {"hash": first["protocol_hash"]} | _texts(first["protocol"]),
        "differing": differing,
        "rows": rows,
        "generators": {name: score["generator_sha256"] for name, score in scores.items() if score["generator_sha256"]},
        "versions": {"commit of this report": commit()} | _versions(scores),
        "configuration": dump(config),
    }


def differing_settings(config: Config) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the settings that are not the same in all distillations; and of each its setting's name, its own, and its values."""
    settings = {
        each.run.name: (base_name(each.run), _texts(each.model_dump(mode="json"))) for each in distillations(config)
    }
    names = list(dict.fromkeys(name for _, values in settings.values() for name in values))
    differing = [
        name for name in names if name != "run.name" and len({values.get(name) for _, values in settings.values()}) > 1
    ]
    rows = [(base, [run, *(values.get(name, "—") for name in differing)]) for run, (base, values) in settings.items()]
    return differing, rows


def commit() -> str:
    """The commit of this code, and whether it was edited since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        edited = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + edited
    except (OSError, subprocess.CalledProcessError):
        return "unknown: the code is not in a git repository"


def _texts(record: dict) -> dict[str, str]:
    """A nested record as text by dotted names."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in flat(record).items()
    }


def _versions(scores: dict[str, dict]) -> dict[str, str]:
    """The versions of all scores put together; where they differ, every one."""
    found: dict[str, dict[str, None]] = {}
    for score in scores.values():
        for name, version in _texts(score["versions"]).items():
            found.setdefault(name, {})[version] = None
    return {name: "; ".join(versions) for name, versions in found.items()}
