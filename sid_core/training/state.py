"""Exact training state: all weights, both optimizers, counters. Nothing random is in it (see randomness), nor how many processes
there were, nor in which precision or memory layout they computed.

A state is a folder with one safetensors file a vector, each under a temporary name first and renamed, then recorded beside it with its
sha256; processes share the files out and need not speak to one another about it: a state counts once every record is there. The
newest `keep` stay. A damaged newest falls back to the one before, and is renamed.
"""

import contextlib
import json
import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..storage.files import atomic_path, remove_abandoned, sha256_file, sidecar, verify_sidecar, write_sidecar
from ..storage.states import STATE, saved_record, saved_states
from .flat import Layout
from .iteration import Trainer

log = logging.getLogger(__name__)

IDENTITY = "identity.json"
BEST = re.compile(r"best-\d{12}\.safetensors")  # by images seen: one for each point with the lowest value so far
DAMAGED = "damaged"  # name of a state that could not be restored
# what a training writes into its folder, and removes where it starts over
WRITTEN = re.compile(
    rf"{IDENTITY}|ended\.json|training\.jsonl|grids|best(-\d{{12}})?\.(safetensors|json)|{DAMAGED}|\.?{STATE.pattern}"
)
THREADS = 8  # more than a state has files: at SD 1.5's size each takes a core ten seconds


class StateWriter:
    """Writes states in the background: training waits for a copy in the host's memory, not for the disk.

    One write is in flight at a time. Leaving the context waits for it; what went wrong in it is raised then, or at the next
    state. A kill while it writes leaves the states before it. The copy's memory is kept for the next one.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = Path(folder), keep
        self._executor, self._pending = ThreadPoolExecutor(THREADS), None
        self._copies: dict[str, Tensor] = {}

    _pending: Future | None

    def write(self, trainer: Trainer, window: dict[str, Tensor]) -> None:
        """Save the state after `trainer.iteration` iterations, then drop all but the `keep` newest. All processes call it; each writes
        some of the files.

        Args:
            window: sums of the metrics since the last logged point, so that the log continues exactly too.
        """
        self.wait()
        _copy_vectors(trainer, self._copies)
        self._pending = self._executor.submit(self._write, trainer.layout, _record(trainer, window))

    def wait(self) -> None:
        """Until this process's part of the state in flight is on disk; raises what kept it from it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, layout: Layout, record: dict) -> None:
        state = self.folder / _name(record["iteration"], record["phases_done"])

        def write(name: str) -> None:
            path = state / f"{name}.safetensors"
            views = layout.views(self._copies[name])
            with atomic_path(path) as temporary:
                save_file({parameter: view.contiguous() for parameter, view in views.items()}, temporary)
                sha256 = sha256_file(temporary)  # from the system's memory, not from the disk
            write_sidecar(path, record, sha256)

        list(self._executor.map(write, self._copies))
        for old in saved_states(self.folder)[self.keep :]:
            with contextlib.suppress(FileNotFoundError):  # another process was first
                shutil.rmtree(old.rename(self.folder / f".{old.name}"), ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._executor.shutdown()


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder in which entries have the names that a training writes and removes, but no training began.

    Raises:
        UserError: there are such entries, and `folder`/identity.json is missing or another program's.
    """
    path = Path(folder) / IDENTITY
    try:
        known = path.read_text(encoding="utf-8")
        if {"code", "teacher", "prompts"} <= set(json.loads(known)):
            return
    except (OSError, ValueError, TypeError):
        pass
    if found := sorted(entry.name for entry in Path(folder).glob("*") if WRITTEN.fullmatch(entry.name)):
        raise UserError(
            f"{folder}: holds {', '.join(found)}, none of this program's (no {IDENTITY} of a training), so nothing is written there; "
            "give --state another folder"
        )


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writes left behind, best weights without a record among it: gigabytes each."""
    whole = saved_states(folder)
    for path in Path(folder).glob("*state-*"):
        if STATE.fullmatch(path.name.removeprefix(".")) and path not in whole:
            shutil.rmtree(path, ignore_errors=True)
    for path in Path(folder).glob(".best*.????????"):
        remove_abandoned(path.with_name(path.stem.removeprefix(".")))
    for path in Path(folder).glob("best-*"):
        if BEST.fullmatch(path.name) and not sidecar(path).is_file():
            path.unlink()


def load_newest_state(folder: Path, trainer: Trainer) -> dict[str, Tensor] | None:
    """Restore the newest state that is whole; return its log window, or None where there is no state yet.

    Process 0 reads, the others are given what it read.

    Raises:
        UserError: states exist and every one is damaged; starting over silently would throw work away.
    """
    world, path, text = trainer.world, None, None
    if world.rank == 0:
        path = _newest_whole(folder)
        text = None if path is None else json.dumps(saved_record(path))
    text = world.broadcast_text(text)
    if text is None:
        return None
    counters = json.loads(text)
    _restore(trainer, path)
    trainer.iteration = counters["iteration"]
    for name, trained in trainer.trained.items():
        trained.optimizer.steps.fill_(counters["adam_steps"][name])
        trained.guard.restore(counters["guards"][name])
        trained.refresh()
    if counters["processes"] != world.size and world.rank == 0:
        log.warning(
            "%s: saved by %d process(es), continued on %d: the same draws, weights equal up to rounding only",
            folder,
            counters["processes"],
            world.size,
        )
    trainer.phases_done = counters["phases_done"]
    trainer.metrics = _to_tensors(counters["metrics"], trainer.device)
    return _to_tensors(counters["window"], trainer.device)


def set_damaged_aside(folder: Path, trainer: Trainer) -> None:
    """Rename what is newer than the state that `trainer` was restored from: as the newest, it would have those to come removed in its
    place. One is kept, for who wants to look at it.
    """
    aside = Path(folder) / DAMAGED
    for path in reversed(saved_states(folder)):
        if path.name > _name(trainer.iteration, trainer.phases_done):
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log.warning("%s: damaged, and now called %s", path, aside.name)


def _name(iteration: int, phases_done: int) -> str:
    """Name a state. One within an iteration sorts after the whole iterations before it."""
    return f"state-{iteration:09d}{f'half{phases_done}' if phases_done else ''}"


def _to_text(values: dict[str, Tensor]) -> dict[str, str]:
    """Exact, and NaN is no JSON."""
    return {name: repr(float(value)) for name, value in values.items()}


def _to_tensors(values: dict[str, str], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.tensor(float(value), dtype=torch.float64, device=device) for name, value in values.items()}


def _newest_whole(folder: Path) -> Path | None:
    states = saved_states(folder)
    for path in states:
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(verify_sidecar, [path / name for name in saved_record(path)["files"]]))
        except (UserError, OSError) as error:
            log.warning("%s; falling back to the state before it", str(error).split(";")[0])
            continue
        return path
    if states:
        raise UserError(
            f"{folder}: all {len(states)} saved states are damaged; delete the folder to start this run over"
        )
    return None


def _vectors(trainer: Trainer) -> dict[str, Tensor]:
    """What a state holds, by the names of its files."""
    vectors = {"ema": trainer.ema_weights}
    for name, trained in trainer.trained.items():
        vectors[name] = trained.master
        vectors[f"{name}_second_moment"] = trained.optimizer.second
        if trained.optimizer.first is not None:
            vectors[f"{name}_first_moment"] = trained.optimizer.first
    return vectors


@torch.no_grad()
def _copy_vectors(trainer: Trainer, copies: dict[str, Tensor]) -> None:
    """Bring the vectors that this process writes to the host's memory, by name; all have a part in putting each together."""
    for number, (name, vector) in enumerate(_vectors(trainer).items()):
        vector = trainer.full_vector(vector)
        if number % trainer.world.size == trainer.world.rank:
            if name not in copies:  # pinned, a GPU is through in a second instead of five
                copies[name] = torch.empty(len(vector), pin_memory=vector.is_cuda)
            copies[name].copy_(vector)


def _record(trainer: Trainer, window: dict[str, Tensor]) -> dict:
    return {
        "files": [f"{name}.safetensors" for name in _vectors(trainer)],
        "iteration": trainer.iteration,
        "nimg": trainer.nimg,
        "processes": trainer.world.size,
        "adam_steps": {name: trained.optimizer.steps.item() for name, trained in trainer.trained.items()},
        "guards": {name: trained.guard.saved() for name, trained in trainer.trained.items()},
        "window": _to_text(window),
        "phases_done": trainer.phases_done,
        "metrics": _to_text(trainer.metrics),
    }


@torch.no_grad()
def _restore(trainer: Trainer, path: Path | None) -> None:
    """Fill the trainer's vectors from the files (process 0) or from process 0."""
    for name, vector in _vectors(trainer).items():
        whole = vector if len(vector) == trainer.layout.size else trainer.gradient.parameters
        if path is not None:
            file = safe_open(path / f"{name}.safetensors", "pt")
            for parameter, view in trainer.layout.views(whole).items():
                view.copy_(file.get_tensor(parameter))
        trainer.world.broadcast_(whole)
        if whole is not vector:
            vector.copy_(whole[trainer.own])
