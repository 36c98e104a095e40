"""Find saved training states, a folder each named by its iteration, and describe the origin of weights."""

import re
from pathlib import Path

from ..errors import UserError
from .files import read_json, sidecar

KEEP_STATES = 2  # newest ones retained: the older one serves where the newest is damaged
STATE = re.compile(r"state-\d{9}(half\d*)?")  # name of a checkpoint
ENDED = "ended.json"  # beside the checkpoints: how the training ended


def saved_states(folder: str | Path) -> list[Path]:
    """Return the finished training states below `folder`, newest first: those whose files all have a sidecar."""
    states = (path for path in Path(folder).glob("state-*") if STATE.fullmatch(path.name))
    return sorted(filter(_is_finished, states), reverse=True)


def saved_record(state: Path) -> dict:
    """Return the record in a training state's sidecars: {"iteration", "nimg", "files", …}."""
    return read_json(min(state.glob("*.json")))["record"]


def trained_from(record: dict) -> dict[str, str] | None:
    """Return the inputs of a training from its generator.json or identity.json; None if unknown."""
    if "imported" in record:
        return {"file": record["imported"]["sha256"], "teacher": record["teacher_sha256"]}
    if "trained_from" in record:
        return record["trained_from"]
    keys = ("teacher", "prompts", "code")
    return {key: record[key] for key in (*keys, "real_pairs") if key in record} if record.keys() >= set(keys) else None


def _is_finished(state: Path) -> bool:
    try:
        return all(sidecar(state / name).is_file() for name in saved_record(state)["files"])
    except ValueError:  # no sidecar yet
        return False
    except UserError:  # damaged, which loading it reports; or just removed
        return state.is_dir()
