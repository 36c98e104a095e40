"""Run one distillation from settings to a generator on disk: resume, loop, log, save, export.

Everything that must survive a kill is in the state folder, which is no output of the workflow: Snakemake deletes the
outputs of a failed job. A resumed run gives the same bits as an uninterrupted one.
"""

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor
from tqdm import tqdm

from ..cluster.machine import device as this_device
from ..config import CONSTANTS
from ..errors import UserError
from ..models.conditioning import PromptSet
from ..models.devices import set_memory_format
from ..models.embeddings import StoredPrompts
from ..models.generator import save_generator
from ..models.real_pairs import RealPairs
from ..models.teacher import latent_shape, load_backbone, load_text_encoder, teacher_sha256
from ..pipeline.paths import Row, State
from ..storage.files import MANIFEST, atomic_path, digest, read_json, write_json
from ..storage.lease import lease
from ..storage.states import KEEP_STATES, saved_states, trained_from
from .blocks import shard_blocks
from .distributed import World, connected, is_first
from .health import AlarmWatch, TrainingStopped
from .iteration import IterationInterrupted, Trainer
from .logger import TrainingLogger, make_point
from .optimizer import BETA2, EPS
from .state import DAMAGED, StateWriter, check_owner, load_newest_state, quarantine_damaged, remove_partial_writes

if TYPE_CHECKING:
    from ..config import Distill, DistillSettings

log = logging.getLogger(__name__)
# an iteration is interrupted if it takes longer after a signal: clusters kill after 30 s, which must suffice to save
PATIENCE_S = 5.0
STATE_EVERY_S = 1800.0  # at most, between checkpoints

# settings that may change when a run is resumed, as they do not change the weights; `memory` only sets others
FREE = ("train_kimg", "memory", "state_every_nimg", "log_every_nimg", "samples_every_nimg", "alarms", "nonfinite")
# settings that may change too, and change the weights by rounding
ROUNDING = ("micro_batch", "checkpointing", "compile", "offload", "shard", "deterministic")


class Interrupted(Exception):
    """SIGTERM, SIGUSR1 (a cluster's warning) or SIGINT, `signum`, arrived; a checkpoint is saved."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def distill(
    settings: "DistillSettings",
    teacher: Path,
    prompts: Sequence[str],
    state: Path,
    out: Path,
    on_samples: Callable[[int, Tensor], None] | None = None,
    on_held_out: Callable[[Iterator[Tensor]], dict[str, float | None]] | None = None,
    code: str = "",
    real_pairs: Path | None = None,
    embeddings: Path | None = None,
) -> None:
    """Train or resume one generator and write it to `out` (runs/<run>/generator), with log and grids next to it.

    Under torchrun all ranks call this; rank 0 reads and writes.

    Args:
        teacher: a prepared teacher directory.
        prompts: training captions.
        state: folder of this run's checkpoints, with the current training.jsonl and grids/.
        on_samples: called with (nimg, latents (16, C, H, W)) for every sample grid; writes to `state`/grids.
        on_held_out: called with latents of the last `distill.proxy_samples` prompts, in micro-batches; returns the
            proxy metrics fid_proxy and clip_proxy, which are logged.
        code: digest of the training code. A finished run of other code is trained again, not exported again.
        real_pairs: what `encode_pairs` wrote, for a run that uses real images.
        embeddings: folders `train` and, with real_pairs, `real` of `embed_prompts`; None: the text encoder is loaded.

    Raises:
        TrainingStopped: non-finite numbers, or an alarm.
        Interrupted: a signal arrived; running again resumes.
        UserError: `state` is from other settings or in use by another process, or the GPU is out of memory.
    """
    if is_first():
        check_owner(state)  # before the lease adds a file
    with lease(state) if is_first() else nullcontext(), connected() as (world, device), _Signals(world) as signals:
        sha256 = teacher_sha256(teacher)
        identity = _identity(settings, sha256, prompts, real_pairs)
        if is_first():
            _claim_state(state, settings, identity, code)
        _agree(world, identity)
        try:
            trainer = make_trainer(settings, teacher, prompts, world, device, real_pairs, embeddings)
            _train(trainer, state, signals, on_samples, on_held_out)
        except TrainingStopped as error:
            if is_first():
                _end(state, "aborted", trainer, f"{settings.run.name}: {error}")
            world.barrier()
            raise TrainingStopped(f"{settings.run.name}: {error}") from None
        except Interrupted:
            world.barrier()
            raise
        except torch.OutOfMemoryError as error:
            raise UserError(f"{settings.run.name}: {_out_of_memory(error, settings.distill, world)}") from None
        except RuntimeError as error:
            if "determinis" not in str(error):
                raise
            fix = "set distill.deterministic: false. Running again resumes"
            raise UserError(f"{settings.run.name}: {str(error).split(',')[0]}; {fix}") from None
        if is_first():
            origin = trained_from(identity | {"code": code})
            _export(trainer, settings, sha256, state, out, origin)
            _end(state, "finished", trainer)


def make_trainer(
    settings: "DistillSettings",
    teacher: Path,
    prompts: Sequence[str],
    world: World | None = None,
    device: torch.device | None = None,
    real_pairs: Path | None = None,
    embeddings: Path | None = None,
) -> Trainer:
    """Build the Trainer of a run from a prepared teacher directory, its captions and, if it uses them, real pairs."""
    world, device = world or World(), device or torch.device(this_device())
    distill, backbone = settings.distill, load_backbone(teacher)
    first, last = backbone.schedule.limits
    if not first <= distill.t_init <= last:
        raise UserError(
            f"distill.t_init={distill.t_init}: expected {first} to {last} for {type(backbone).__name__}. Fix: set it, "
            "or take the preset of the teacher's size"
        )
    set_memory_format(backbone.network, distill.precision, device)
    encoder = None if embeddings else load_text_encoder(teacher).to(device)
    prompt_set = StoredPrompts(embeddings / "train", prompts, teacher) if embeddings else PromptSet(encoder, prompts)
    real = RealPairs(real_pairs, encoder, teacher, embeddings and embeddings / "real") if real_pairs else None
    held_out = distill.proxy_samples
    if held_out >= len(prompts):
        raise UserError(f"distill.proxy_samples={held_out}: expected fewer than the {len(prompts)} training captions")
    if settings.run.lora and distill.shard == "all" and world.size > 1:
        raise UserError(
            f"{settings.run.name}: distill.shard=all with lora: expected none or optimizer, as the three networks share one "
            "copy of the weights on each GPU. Fix: distill: {shard: optimizer}"
        )
    shape = latent_shape(teacher)
    trainer = Trainer(backbone, prompt_set, shape, settings.run, distill, world, held_out, device, real)
    if distill.shard == "all" and world.size > 1:
        shard_blocks(trainer.teacher, device)
    return trainer


def _export(
    trainer: Trainer, settings: "DistillSettings", teacher_sha256: str, state: Path, out: Path, origin: dict[str, str]
) -> None:
    row, files = Row(out.parent), State(state)
    last = json.loads(files.training.read_text(encoding="utf-8").splitlines()[-1])
    record = {
        "run": settings.run.model_dump(),
        "t_init": settings.distill.t_init,
        "num_steps": settings.run.num_steps,
        "step_noise": settings.run.step_noise,
        "prediction_type": trainer.teacher.prediction_type,
        "train_kimg": trainer.nimg / 1000,
        "whole_kimg": trainer.nimg / 1000,  # earlier versions could publish weights of an earlier point
        "skipped_updates": trainer.skipped,
        "network_passes": round(trainer.network_passes),
        "train_s": last["elapsed_s"],
        "train_gpu_s": last["gpu_s"],
        "uses_real_images": trainer.objective.uses_real_images,
        "teacher_sha256": teacher_sha256,
        "trained_from": origin,
    }
    with atomic_path(row.training) as temporary:
        shutil.copy(files.training, temporary)
    with atomic_path(row.grids, only=r"\d{8,}\.png") as temporary:
        shutil.copytree(files.grids, temporary)
    save_generator(out, trainer.ema, trainer.averages(), record)


def _out_of_memory(error: Exception, distill: "Distill", world: World) -> str:
    """Format the error with its remedies, the cheapest in time first."""
    remedies = []
    share = distill.batch // world.size
    if smaller := [n for n in range(1, min(distill.micro_batch, share)) if share % n == 0]:
        remedies.append(f"distill.micro_batch: {smaller[-1]} (the same gradient)")
    if distill.offload != "all":
        remedies.append("distill.offload: all")
    if not distill.checkpointing:
        instead = " with distill.compile: false" if distill.compile else ""  # the schema rejects both together
        remedies.append(f"distill.checkpointing: true{instead} (a third slower)")
    if distill.precision in ("float32", "tf32"):
        remedies.append("distill.precision: bfloat16 (a run of its own)")
    if distill.shard != "all":
        remedies.append("distill.shard: all on several GPUs")
    advice = ", or ".join(remedies) or "a GPU with more memory"
    return f"the GPU's memory is full ({str(error).split('.')[0]}); set {advice}. Running again resumes"


# --- the loop --------------------------------------------------------------------------------------------------------


class Due(NamedTuple):
    """Actions due after an iteration."""

    log: bool  # a point
    score: bool  # a proxy evaluation
    draw: bool  # a sample grid
    save: bool  # a checkpoint
    last: bool  # the run is complete
    signum: int  # of a signal that arrived on any rank, else 0


def _loop(trainer: Trainer, total: int, window: dict[str, Tensor], signals: "_Signals") -> Iterator[Due]:
    """Iterate to the end, adding metrics to `window`; yield the actions due, equal on all ranks.

    Raises:
        IterationInterrupted: a signal arrived, and the iteration did not end within PATIENCE_S.
    """
    s, world, saved_s = trainer.settings, trainer.world, time.monotonic()
    trainer.should_interrupt = lambda: world.all_reduce_max(signals.overdue()) > 0
    while trainer.iteration < total:
        for name, value in trainer.step().items():
            window[name] = window.get(name, 0) + value.double()
        window["iterations"] = window.get("iterations", 0) + 1
        # both in one number: a single collective an iteration. The first clock that is late decides for all ranks
        is_late = time.monotonic() - saved_s >= STATE_EVERY_S
        signum, late = divmod(world.all_reduce_max(2 * signals.first + is_late), 2)
        last = trainer.iteration == total
        score = s.proxy_samples > 0 and (last or _due(trainer, s.proxy_every_nimg))
        log_now = last or score or _due(trainer, s.log_every_nimg)
        save = bool(last or signum or late or _due(trainer, s.state_every_nimg))
        yield Due(log_now, score, last or _due(trainer, s.samples_every_nimg), save, last, signum)
        if save:
            saved_s = time.monotonic()


def _train(
    trainer: Trainer,
    state: Path,
    signals: "_Signals",
    on_samples: Callable[[int, Tensor], None] | None,
    on_held_out: Callable[[Iterator[Tensor]], dict[str, float | None]] | None,
) -> None:
    """Iterate to the end, with logs, sample grids and checkpoints."""
    s, world = trainer.settings, trainer.world
    window = load_newest_state(state, trainer) or {}
    if is_first():
        quarantine_damaged(state, trainer)
    total = _iterations(s)
    if trainer.iteration > total:
        raise UserError(
            f"{state}: has already seen {trainer.nimg:,} images, more than distill.train_kimg={s.train_kimg:g}; delete the folder to start over"
        )
    trainer.gather_ema()
    logger = TrainingLogger(trainer, state, total * s.batch, on_samples, on_held_out) if is_first() else None
    watch = AlarmWatch(s.alarms, trainer.run.adversarial.start_nimg if trainer.run.adversarial else 0)
    # one point fewer than an alarm needs
    before = logger.before[max(len(logger.before) + 1 - s.alarms.patience, 0) :] if logger else None
    for point in json.loads(world.broadcast_text(json.dumps(before))):
        watch.check(point)
    with StateWriter(state, KEEP_STATES) as writer, _bar(trainer, total) as bar:
        try:
            for due in _loop(trainer, total, window, signals):
                bar.update(s.batch)
                if due.log or due.save:
                    trainer.raise_if_stopped()
                if due.score or due.draw:
                    trainer.gather_ema()
                if due.log:
                    point = make_point(trainer, window)
                    window.clear()
                    if logger:
                        logger.log(point | (logger.score_held_out() if due.score else {}), quiet=not bar.disable)
                    watch.check(point)
                if logger and due.draw:
                    logger.draw()
                if due.save:
                    writer.write(trainer, window)
                if due.signum and not due.last:
                    raise Interrupted(due.signum)
        except IterationInterrupted:
            trainer.raise_if_stopped()
            writer.write(trainer, window)
            raise Interrupted(world.all_reduce_max(signals.first)) from None
    trainer.gather_ema()


def _bar(trainer: Trainer, total: int) -> tqdm:
    done, name, disable = trainer.nimg, trainer.run.name, None if is_first() else True
    total *= trainer.settings.batch
    return tqdm(total=total, initial=done, unit="img", desc=name, mininterval=1, disable=disable)


def _due(trainer: Trainer, every_nimg: int) -> bool:
    """Return whether this iteration crossed a multiple of `every_nimg`."""
    return trainer.nimg // every_nimg > (trainer.nimg - trainer.settings.batch) // every_nimg


# --- owner of the state folder ---------------------------------------------------------------------------------------


def _claim_state(state: Path, settings: "DistillSettings", identity: dict[str, object], code: str) -> None:
    """Record this run as the owner of `state`; a UserError if another one has not finished there."""
    remove_partial_writes(state)
    files = State(state)
    path, mark = files.identity, files.ended
    before = _defaults(settings) | read_json(path) if path.is_file() else identity | {"code": code}
    rounding = {f"distill.{key}" for key in ROUNDING}
    changes = {key: f"{key} ({before.get(key)} -> {new})" for key, new in identity.items() if before.get(key) != new}
    changed = [change for key, change in changes.items() if key not in rounding]
    ended = read_json(mark) if mark.is_file() else None
    recoded = before.get("code") != code
    if changed and not ended and saved_states(state):
        raise UserError(
            f"{state}: holds an unfinished run of other settings: {', '.join(changed)}; "
            "restore them to continue it, or delete the folder to start over"
        )
    if recoded and not ended:  # an update of the code must not discard days of training, but the bits may differ
        log.warning("%s: resumed with other training code than before; weights may differ", settings.run.name)
    if not ended and rounding & changes.keys():
        log.warning(
            "%s: resumed with %s: the same draws, weights equal up to rounding only",
            settings.run.name,
            ", ".join(changes[key] for key in sorted(rounding & changes.keys())),
        )
    if not ended and changed:
        ended = {"iteration": 0}  # without a checkpoint nothing is lost
    if ended and (changed or recoded or ended["iteration"] > _iterations(settings.distill)):
        files.training.unlink(missing_ok=True)
        for stale in (*saved_states(state), state / DAMAGED, files.grids):
            shutil.rmtree(stale, ignore_errors=True)
    mark.unlink(missing_ok=True)
    write_json(path, identity | {"code": code})


def _defaults(settings: "DistillSettings") -> dict[str, object]:
    """Return the defaults of settings, which a state from before such a setting was trained with."""
    return {
        f"{block}.{key}": field.default
        for block, values in settings
        for key, field in type(values).model_fields.items()
        if not field.is_required()
    }


def _iterations(distill: "Distill") -> int:
    """Return the iterations of a run, rounded up."""
    return -(-round(1000 * distill.train_kimg) // distill.batch)


def _identity(
    settings: "DistillSettings", teacher_sha256: str, prompts: Sequence[str], real_pairs: Path | None = None
) -> dict[str, object]:
    """Return everything that the weights depend on, flat; if the learning rate decays, also train_kimg."""
    distill = settings.distill.model_dump()
    free = [key for key in FREE if key != "train_kimg" or distill["lr_final"] is None]
    return {
        **{f"run.{key}": value for key, value in settings.run.model_dump().items() if key not in ("name", "strategy")},
        **{f"distill.{key}": value for key, value in distill.items() if key not in free},
        **{f"distill.{key}": value for key, value in CONSTANTS.items()},
        "distill.adam_beta1": 0.0,
        "distill.adam_beta2": BETA2,
        "distill.adam_eps": EPS,
        "distill.weight_decay": 0.0,
        "teacher": teacher_sha256[:16],
        # hashing 10 million prompts is slow, so the hash of their file is used if known
        "prompts": (getattr(prompts, "sha256", None) or digest(prompts))[:16],
        **({"real_pairs": digest(read_json(real_pairs / MANIFEST)["files"])[:16]} if real_pairs else {}),
    }


def _agree(world: World, identity: dict[str, object]) -> None:
    """Raise a UserError unless all ranks have equal inputs, which may be files of different machines."""
    mine = int(digest(identity)[:15], 16)
    if (world.all_reduce_max(mine), world.all_reduce_max(-mine)) != (mine, -mine):
        raise UserError("settings, teachers or prompts differ among the processes of this run. Fix: use the same files")


def _end(state: Path, how: str, trainer: Trainer, why: str = "") -> None:
    write_json(State(state).ended, {"how": how, "iteration": trainer.iteration, "why": why})


class _Signals:
    """Records signals in its context, for the loop to check between iterations.

    Attributes:
        first: number of the first signal, else 0.
    """

    COLLECTED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, world: World) -> None:
        self.first, self._at_s, self._world = 0, 0.0, world

    def overdue(self) -> int:
        """Return the first signal if it arrived more than PATIENCE_S ago, else 0."""
        return self.first if self.first and time.monotonic() - self._at_s > PATIENCE_S else 0

    def _note(self, signum: int, _: object) -> None:
        if not self.first:
            self.first, self._at_s = signum, time.monotonic()

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._note) for signum in self.COLLECTED}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        # torchrun sends it once one rank exits; this rank may still have to print its message
        if kind is Interrupted and self._world.size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
