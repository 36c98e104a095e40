"""Collect the provenance of the numbers: protocol, weights, versions, commit, and settings that differ between runs."""

import json
import subprocess
from pathlib import Path

from ..config import Config, distillations, dump, generators
from ..storage.files import flat
from .entries import base_name


def provenance(config: Config, scores: dict[str, dict]) -> dict:
    """Return names and values by section."""
    first = next(iter(scores.values()))
    differing, rows = differing_settings(config)
    scored = [run for run in generators(config) if run.name in scores]
    return {
        "protocol": {"hash": first["protocol_hash"]} | _texts(first["protocol"]),
        "differing": differing,
        "rows": rows,
        "generators": {run.label: scores[run.name]["generator_sha256"] for run in scored},
        "versions": {"commit of this report": commit()} | _versions(scores),
        "configuration": dump(config),
    }


def differing_settings(config: Config) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Name the settings that differ between distillations, and return (name without seed, [run, *values]) of each."""
    runs = [(each.run, _texts(each.model_dump(mode="json"))) for each in distillations(config)]
    names = dict.fromkeys(name for _, values in runs for name in values if name != "run.name")
    differing = [name for name in names if len({values.get(name) for _, values in runs}) > 1]
    rows = [(base_name(run), [run.label, *(values.get(name, "—") for name in differing)]) for run, values in runs]
    return differing, rows


def commit() -> str:
    """Return the commit of this code, and 'with uncommitted changes' after an edit."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        edited = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + edited
    except (OSError, subprocess.CalledProcessError):
        return "unknown: the code is not in a git repository"


def _texts(record: dict) -> dict[str, str]:
    """Flatten a nested record to texts by dotted names."""
    values = flat(record)
    return {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in values.items()}


def _versions(scores: dict[str, dict]) -> dict[str, str]:
    """Merge the versions of all scores; where they differ, list each."""
    found: dict[str, dict[str, None]] = {}
    for score in scores.values():
        for name, version in _texts(score["versions"]).items():
            found.setdefault(name, {})[version] = None
    return {name: "; ".join(versions) for name, versions in found.items()}
