"""Exact training state: all weights, both optimizers, counters. Nothing random is in it (see randomness).

A state is one safetensors file and a sidecar with its sha256, written under temporary names and renamed; the newest `keep`
stay. A damaged newest falls back to the one before.
"""

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path, sidecar, verify_sidecar, write_sidecar
from .iteration import Trainer

log = logging.getLogger(__name__)


def save_state(folder: Path, trainer: Trainer, window: dict[str, float], keep: int) -> None:
    """Write the state after `trainer.iteration` iterations, then drop all but the `keep` newest.

    Args:
        window: sums of the metrics since the last logged point, so that the log continues exactly too.
    """
    path = Path(folder) / f"state-{trainer.iteration:09d}.safetensors"
    counters = {"iteration": trainer.iteration, "skips": trainer.skips, "skipped": trainer.skipped, "window": window}
    with atomic_path(path) as temporary:
        save_file(_tensors(trainer), temporary, metadata={"counters": json.dumps(counters)})
    write_sidecar(path, counters)
    for old in saved_states(folder)[keep:]:
        # the sidecar first: a state without one does not count
        sidecar(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)


def saved_states(folder: Path) -> list[Path]:
    """Finished states, newest first."""
    return sorted((p for p in Path(folder).glob("state-*.safetensors") if sidecar(p).is_file()), reverse=True)


def load_newest_state(folder: Path, trainer: Trainer) -> dict[str, float] | None:
    """Restore the newest state that is whole; return its log window, or None where there is no state yet.

    Raises UserError when states exist and every one is damaged: starting over silently would throw work away.
    """
    states = saved_states(folder)
    for path in states:
        try:
            counters = verify_sidecar(path)["record"]
            tensors = load_file(path)
        except (UserError, OSError) as error:
            log.warning("%s; falling back to the state before it", str(error).split(";")[0])
            continue
        _restore(trainer, tensors)
        trainer.iteration, trainer.skips, trainer.skipped = (
            counters["iteration"],
            counters["skips"],
            counters["skipped"],
        )
        return counters["window"]
    if states:
        raise UserError(
            f"{folder}: all {len(states)} saved states are damaged; delete the folder to start this run over"
        )
    return None


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the state by a flat name; a copy is made only where safetensors needs contiguous memory."""
    tensors = {}
    for name in ("generator", "fake_score", "ema"):
        for key, value in getattr(trainer, name).unet.state_dict().items():
            tensors[f"{name}/{key}"] = value.contiguous()
    for half, optimizer in trainer.optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                tensors[f"adam/{half}/{index}/{slot}"] = value.contiguous()
    return tensors


@torch.no_grad()
def _restore(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    for name in ("generator", "fake_score", "ema"):
        prefix = f"{name}/"
        weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        getattr(trainer, name).unet.load_state_dict(weights)
    for half, optimizer in trainer.optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "adam" and rest.startswith(f"{half}/"):
                _, index, slot = rest.split("/")
                state.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
