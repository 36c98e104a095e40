"""Training states on disk: a folder each, named by its iteration; and what weights were trained from."""

import re
from pathlib import Path

from ..errors import UserError
from .files import read_json, sidecar

STATE = re.compile(r"state-\d{9}(half\d*)?")  # name of a training state


def saved_states(folder: str | Path) -> list[Path]:
    """Finished training states below `folder`, newest first: those of whose files every one is recorded."""
    states = (path for path in Path(folder).glob("state-*") if STATE.fullmatch(path.name))
    return sorted(filter(_is_recorded, states), reverse=True)


def saved_record(state: Path) -> dict:
    """What a training state's files say of it: {"iteration", "nimg", "files", …}."""
    return read_json(min(state.glob("*.json")))["record"]


def trained_from(record: dict) -> dict[str, str] | None:
    """Return what weights were trained from beside their settings, by generator.json or a state's identity.json; None if unknown."""
    if "imported" in record:
        return {"file": record["imported"]["sha256"], "teacher": record["teacher_sha256"]}
    if "trained_from" in record:
        return record["trained_from"]
    keys = ("teacher", "prompts", "code")
    return {key: record[key] for key in keys} if record.keys() >= set(keys) else None


def _is_recorded(state: Path) -> bool:
    try:
        return all(sidecar(state / name).is_file() for name in saved_record(state)["files"])
    except ValueError:  # nothing is recorded yet
        return False
    except UserError:  # damaged, which is to be said by who loads it; or just removed
        return state.is_dir()
