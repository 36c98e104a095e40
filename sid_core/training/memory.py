"""Predict the GPU memory of a run by tracing an iteration of Trainer on the device `meta`.

The bytes of all live tensors are counted; their maximum is the peak. The prediction thus follows the code: activations
stored for backward, buffers, copies. Traces of two micro-batch sizes suffice, as the peak is linear in the size. The
CUDA context, workspaces of libraries and fragmentation are not traced; `needed` adds an allowance for them. Tests
compare the trace with torch's CPU allocator; nothing was measured on a GPU.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..errors import UserError
from ..method import DTYPES
from ..models.architectures import Architecture, new_backbone, new_codec
from .blocks import blocks_to_shard
from .dry_run import RandomPairs, RandomPrompts, make_run, make_settings
from .iteration import Trainer

aten = torch.ops.aten
GB, GIB = 1e9, 2**30
BLOCK = 512  # bytes, the granularity of CUDA's allocator
# CUDA context and workspaces; fraction of the peak. From experience, not measured here
CONTEXT_BYTES, FRAGMENTED = 1.2e9, 0.03
GRID = 16  # samples of a grid, decoded together
# bytes of each GPU: RTX 3060 and 4070, RTX 3090 and 4090, A100, A100 and H100, H200
GPUS = {"12 GB": 12 * GIB, "24 GB": 24 * GIB, "40 GB": 40 * GIB, "80 GB": 79 * GIB, "141 GB": 140 * GB}
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# (distill.offload, distill.shard) in order of their cost in time, on one GPU and on several
PLACES = tuple((offload, "none") for offload in ("none", "ema", "optimizer", "all"))
SHARED_PLACES = (("none", "none"), ("none", "optimizer"), ("none", "all"), ("all", "all"))
GOOD = 4  # micro-batch above which throughput grows little
GAN = SimpleNamespace(weight=0.01, discriminator_weight=1.0, start_nimg=0)  # its loss acts from the first image
NOTE = (
    "GB = 10^9 bytes; n is distill.micro_batch. float16 takes what bfloat16 takes, tf32 what float32 takes. Predicted by tracing an iteration on the "
    "device meta; not measured on a GPU. Compiled blocks take less."
)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors that operations allocate on a device.

    Attributes:
        live, peak: bytes now, and their maximum since the start or `restart`.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device, self.live, self.peak = torch.device(device).type, 0, 0
        self._known: dict[int, weakref.ref] = {}

    def restart(self) -> None:
        self.peak = self.live

    def __torch_dispatch__(self, operation: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        result = operation(*args, **(kwargs or {}))
        if any(returned.alias_info for returned in operation._schema.returns):
            return result  # a view, or in place
        for item in tree_iter(result):
            if isinstance(item, Tensor) and item.device.type == self.device:
                self.add(item)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Replace attention by the fused kernel of GPUs; on `meta` torch would materialise the attention matrix."""
    original = F.scaled_dot_product_attention

    # replaced by name: a torch function mode is not active while backward recomputes a checkpointed block
    def fused(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        return aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


@dataclass(frozen=True)
class Prediction:
    """Bytes on one GPU.

    Attributes:
        static: weights, optimizers, gradient, averages, text encoder and VAE, which are always allocated.
        fixed, per_image: the peak of an iteration is fixed + micro_batch * per_image.
        decoding: peak of decoding a grid between iterations, above static.
        averages, optimizers: parts of static that `distill.offload` and `distill.shard` reduce.
        blocks, block: part of static in blocks of the teacher that can be sharded, and the largest block.
        reused: part of the optimizers' float32 weights that float32 networks compute with, if not offloaded or sharded.
    """

    static: int
    fixed: int
    per_image: int
    decoding: int
    averages: int
    optimizers: int
    reused: int
    blocks: int
    block: int

    def placed(self, offload: str = "none", shard: str = "none", gpus: int = 1) -> "Prediction":
        """Predict for `distill.offload`, and for `distill.shard` over `gpus`."""
        parts = 1 if shard == "none" else gpus
        averages = 0 if offload in ("ema", "all") else self.averages // parts
        optimizers = 0 if offload in ("optimizer", "all") else self.optimizers // parts
        less = self.averages - averages + self.optimizers - optimizers
        if optimizers < self.optimizers:
            less -= self.reused
        if shard == "all" and gpus > 1:
            less += self.blocks - self.blocks // gpus - 2 * self.block  # one block as gathered, and in its own shape
        return replace(self, static=self.static - less, fixed=self.fixed - less)

    def peak(self, micro_batch: int) -> int:
        """Return the bytes that torch.cuda.max_memory_allocated would report."""
        return max(self.static + self.decoding, self.fixed + micro_batch * self.per_image)

    def needed(self, micro_batch: int) -> float:
        """Return the peak with an allowance for CUDA context and fragmentation."""
        return (1 + FRAGMENTED) * self.peak(micro_batch) + CONTEXT_BYTES

    def max_micro_batch(self, gpu: str) -> int:
        """Return the largest of MICRO_BATCHES that fits, or 0."""
        return max((n for n in MICRO_BATCHES if self.needed(n) <= GPUS[gpu]), default=0)


def predict(
    architecture: Architecture,
    kappa: float = 2.0,
    precision: str = "float32",
    checkpointing: bool = False,
    run: SimpleNamespace | None = None,
) -> Prediction:
    """Trace iterations of micro-batch 1 and 2 on the device meta; about ten seconds at SD 1.5's size.

    Args:
        run: as in `dry_run.make_trainer`.
    """
    settings = make_settings(precision=precision, checkpointing=checkpointing, batch=1, micro_batch=1)
    with torch.device("meta"):
        encoder = torch.empty(architecture.text_parameters)
        codec = new_codec(architecture)
    teacher = new_backbone(architecture, "meta")  # counts as host memory: made outside of LiveBytes
    with LiveBytes("meta") as memory, fused_attention():
        prompts = RandomPrompts(architecture.text_shape, torch.device("meta"), architecture.pooled)
        run, real = run or make_run(kappa), RandomPairs(prompts, architecture.latent_shape)
        trainer = Trainer(teacher, prompts, architecture.latent_shape, run, settings, real=real)
        network = trainer.teacher.network
        for tensor in (encoder, *codec.parameters(), *network.parameters(), *network.buffers()):
            memory.add(tensor)
        static = memory.live
        assert memory.peak <= static, "expected no temporary memory while networks are set up"
        one = _peak_of_a_step(trainer, memory)
        settings.batch = settings.micro_batch = 2
        trainer.micro_batches = trainer.world.micro_batches(2, 2)
        two = _peak_of_a_step(trainer, memory)
        memory.restart()
        codec.decode(trainer.grid_latents(GRID))
        decoding = memory.peak - static
    averages, networks = trainer.ema_weights.nbytes, trainer.trained.values()
    optimizers = sum(trained.master.nbytes + trained.optimizer.second.nbytes for trained in networks)
    reused = 0 if DTYPES[precision] != torch.float32 else sum(trained.master.nbytes for trained in networks)
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_to_shard(trainer.teacher)]
    return Prediction(
        static, 2 * one - two, two - one, decoding, averages, optimizers, reused, sum(blocks), max(blocks, default=0)
    )


def _peak_of_a_step(trainer: Trainer, memory: LiveBytes) -> int:
    memory.restart()
    trainer.step()
    return memory.peak


# --- settings that fit -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Settings and their prediction."""

    precision: str
    checkpointing: bool
    offload: str
    shard: str
    prediction: Prediction


def search_settings(
    architecture: Architecture,
    kappa: float,
    precisions: Sequence[str],
    gpus: int = 1,
    gan: bool = False,
    rank: int | None = None,
) -> list[Row]:
    """Predict all settings of `precisions`, fastest first: offloading costs less time than recomputing activations.

    Args:
        gpus: world size of the run.
        gan: with `adversarial`, on real images.
        rank: of LoRA on all layers that it adapts by default; None: all weights are trained.

    Raises:
        UserError: an unknown precision.
    """
    rows = []
    for precision in precisions:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision}: expected {', '.join(DTYPES)}")
    places = PLACES if gpus == 1 else SHARED_PLACES
    if rank:  # one copy of the weights on each GPU cannot be sharded
        places = [place for place in places if place[1] != "all"]
    lora = SimpleNamespace(rank=rank, targets=None, lr_factor=1) if rank else None
    run = make_run(kappa, adversarial=GAN if gan else None, lora=lora) if gan or lora else None
    for precision in precisions:
        for checkpointing in (False, True):
            prediction = predict(architecture, kappa, precision, checkpointing, run)
            for place in places:
                rows.append(Row(precision, checkpointing, *place, prediction.placed(*place, gpus)))
    return rows


def best_fit(rows: list[Row], gpu: str) -> tuple[Row, int] | None:
    """Return the first row with a micro-batch of at least GOOD, else the one with the largest; None if nothing fits."""
    fitting = [(row, row.prediction.max_micro_batch(gpu)) for row in rows]
    good = next(((row, n) for row, n in fitting if n >= GOOD), None)
    best = max(fitting, key=lambda pair: pair[1])
    return good or (best if best[1] else None)


def to_markdown(rows: list[Row]) -> str:
    """Format a table: GB, the peak as a function of the micro-batch n, and the largest n on each GPU."""
    gpus = " | ".join(GPUS)
    lines = [
        f"| precision | checkpointing | offload | shard | static | iteration | {gpus} |",
        "|---|---|---|---|--:|--:|" + "--:|" * len(GPUS),
    ]
    for row in rows:
        p = row.prediction
        fits = " | ".join(str(p.max_micro_batch(gpu) or "–") for gpu in GPUS)
        lines.append(
            f"| {row.precision} | {'yes' if row.checkpointing else 'no'} | {row.offload} | {row.shard} | {p.static / GB:.1f} "
            f"| {p.fixed / GB:.1f} + {p.per_image / GB:.2f} n | {fits} |"
        )
    return "\n".join(lines)


def advice(rows: list[Row]) -> str:
    """Format a line for each GPU: the recommended settings."""
    lines = []
    for gpu in GPUS:
        found = best_fit(rows, gpu)
        if found is None:
            lines.append(f"{gpu}: nothing fits")
            continue
        row, micro_batch = found
        lines.append(
            f"{gpu}: precision: {row.precision}, micro_batch: {micro_batch}, {'checkpointing: true, compile: false' if row.checkpointing else 'checkpointing: false'}, "
            f"offload: {row.offload}, shard: {row.shard} ({row.prediction.needed(micro_batch) / GB:.1f} GB with context and fragmentation)"
        )
    return "\n".join(lines)
