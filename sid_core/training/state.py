"""Write and restore checkpoints: weights, averages, optimizers and counters, exactly.

A checkpoint has no random state (see randomness), and is independent of world size, dtype and memory layout. It is a
folder with one safetensors file per vector, each written atomically with a sidecar of its sha256. Ranks write different
files without synchronisation: a checkpoint is valid once every sidecar exists. The newest `keep` are retained. If the
newest is damaged, the one before is restored, and the damaged one is quarantined.
"""

import contextlib
import json
import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..storage.files import atomic_path, sha256_file, verify_sidecar, write_sidecar
from ..storage.states import STATE, saved_record, saved_states
from .flat import Layout
from .iteration import Trainer

log = logging.getLogger(__name__)

IDENTITY = "identity.json"
DAMAGED = "damaged"  # name of a quarantined checkpoint
# entries that a run writes to its folder, and removes if it starts over
WRITTEN = re.compile(rf"{IDENTITY}|ended\.json|training\.jsonl|grids|{DAMAGED}|\.?{STATE.pattern}")
THREADS = 8  # more than a checkpoint has files: at SD 1.5's size each takes ten seconds of a core


class StateWriter(contextlib.AbstractContextManager):
    """Writes checkpoints in the background: training waits for a copy in host memory, not for the disk.

    One write is active at a time. The end of the context and the next checkpoint wait for it and raise its errors. A
    kill during a write leaves the earlier checkpoints intact. The host memory is a reused buffer.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = Path(folder), keep
        self._executor, self._pending = ThreadPoolExecutor(THREADS), None
        self._copies: dict[str, Tensor] = {}

    _pending: Future | None

    def write(self, trainer: Trainer, window: dict[str, Tensor]) -> None:
        """Save a checkpoint, then remove all but the `keep` newest; a collective, in which each rank writes some files.

        Args:
            window: sums of the metrics since the last logged point, from which the log continues exactly.
        """
        self.wait()
        _copy_vectors(trainer, self._copies)
        self._pending = self._executor.submit(self._write, trainer.layout, _record(trainer, window))

    def wait(self) -> None:
        """Wait for this rank's files of the active write; raise its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, layout: Layout, record: dict) -> None:
        state = self.folder / _name(record["iteration"], record["phases_done"])

        def write(name: str) -> None:
            path = state / f"{name}.safetensors"
            with atomic_path(path) as temporary:
                save_file(layout.contiguous_views(self._copies[name]), temporary)
                sha256 = sha256_file(temporary)  # still in the page cache
            write_sidecar(path, record, sha256)

        list(self._executor.map(write, self._copies))
        for old in saved_states(self.folder)[self.keep :]:
            with contextlib.suppress(FileNotFoundError):  # another rank renamed it first
                shutil.rmtree(old.rename(self.folder / f".{old.name}"), ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._executor.shutdown()


def check_owner(folder: Path) -> None:
    """Raise a UserError if entries that a run would overwrite or remove were not created by one."""
    path = Path(folder) / IDENTITY
    try:
        known = path.read_text(encoding="utf-8")
        if {"code", "teacher", "prompts"} <= set(json.loads(known)):
            return
    except (OSError, ValueError, TypeError):
        pass
    if found := sorted(entry.name for entry in Path(folder).glob("*") if WRITTEN.fullmatch(entry.name)):
        raise UserError(
            f"--state {folder}: expected the folder of a run, got {', '.join(found)} without an {IDENTITY} of sid-core. "
            "Fix: use another folder"
        )


def remove_partial_writes(folder: Path) -> None:
    """Remove partial checkpoints of killed processes, gigabytes each."""
    whole = saved_states(folder)
    for path in Path(folder).glob("*state-*"):
        if STATE.fullmatch(path.name.removeprefix(".")) and path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def load_newest_state(folder: Path, trainer: Trainer) -> dict[str, Tensor] | None:
    """Restore the newest valid checkpoint, read by rank 0; return its log window, or None without checkpoints.

    All damaged is a UserError: starting over silently would discard work.
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
            "%s: saved by %d process(es), resumed on %d: the same draws, weights equal up to rounding only",
            folder,
            counters["processes"],
            world.size,
        )
    trainer.phases_done = counters["phases_done"]
    trainer.metrics = _to_tensors(counters["metrics"], trainer.device)
    return _to_tensors(counters["window"], trainer.device)


def quarantine_damaged(folder: Path, trainer: Trainer) -> None:
    """Rename checkpoints newer than the restored one, retaining one for inspection.

    As the newest, a damaged one would be retained in place of those saved later.
    """
    aside = Path(folder) / DAMAGED
    for path in reversed(saved_states(folder)):
        if path.name > _name(trainer.iteration, trainer.phases_done):
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log.warning("%s: damaged, renamed to %s", path, aside.name)


def _name(iteration: int, phases_done: int) -> str:
    """Name a checkpoint; the name of one within an iteration sorts after that of the complete iteration before."""
    return f"state-{iteration:09d}{f'half{phases_done}' if phases_done else ''}"


def _to_text(values: dict[str, Tensor]) -> dict[str, str]:
    """Convert scalars to text, exactly; JSON has no NaN."""
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
            log.warning("%s; falling back to the checkpoint before it", str(error).split(";")[0])
            continue
        return path
    if states:
        raise UserError(f"{folder}: all {len(states)} checkpoints are damaged; delete the folder to start over")
    return None


def _vectors(trainer: Trainer) -> dict[str, Tensor]:
    """Return the vectors of a checkpoint by file name."""
    vectors = {"ema": trainer.ema_weights}
    for name, trained in trainer.trained.items():
        vectors[name] = trained.master
        vectors[f"{name}_second_moment"] = trained.optimizer.second
    return vectors


@torch.no_grad()
def _copy_vectors(trainer: Trainer, copies: dict[str, Tensor]) -> None:
    """Copy the vectors that this rank writes to host memory, by name; a collective, as shards are gathered."""
    for number, (name, vector) in enumerate(_vectors(trainer).items()):
        vector = trainer.full_vector(vector)
        if number % trainer.world.size == trainer.world.rank:
            if name not in copies:  # pinned: one second from a GPU instead of five
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
    """Fill the trainer's vectors from the files (rank 0), or by broadcast."""
    for name, vector in _vectors(trainer).items():
        whole = vector if len(vector) == trainer.layout.size else trainer.gradient.parameters
        if path is not None:
            file = safe_open(path / f"{name}.safetensors", "pt")
            for parameter, view in trainer.layout.views(whole).items():
                view.copy_(file.get_tensor(parameter))
        trainer.world.broadcast_(whole)
        if whole is not vector:
            vector.copy_(whole[trainer.own])
