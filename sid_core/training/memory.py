"""How much memory of a GPU a run will take, before it starts: its own iteration, walked on tensors of shapes alone.

One iteration of Trainer runs on the device `meta` while every tensor that is alive is counted; the largest sum is the peak. So
the prediction follows the code: what it keeps for backward, when it frees it, what it copies. Two sizes of micro-batch
give the rest, as everything grows linearly with it. Not seen are the context of CUDA, workspaces of its libraries and fragmentation:
`needed` adds an allowance for them. The walk equals what torch's allocator counts on a CPU (tests); nothing was measured on a GPU.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..errors import UserError
from ..method import DTYPES
from ..models.architectures import Architecture, new_backbone, new_codec
from .blocks import blocks_to_shard
from .dry_run import RandomPrompts, make_run, make_settings
from .iteration import Trainer

aten = torch.ops.aten
GB, GIB = 1e9, 2**30
BLOCK = 512  # bytes, the granularity of CUDA's allocator
CONTEXT_BYTES, FRAGMENTED = 1.2e9, 0.03  # CUDA context and workspaces; share of the peak. Experience, not measured here
GRID = 16  # samples drawn at once between iterations
# bytes that each has: RTX 3090 and 4090, A100, A100 and H100, H200
CARDS = {"24 GB": 24 * GIB, "40 GB": 40 * GIB, "80 GB": 79 * GIB, "141 GB": 140 * GB}
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# distill.offload and distill.shard by the time they cost, on one GPU and on several
PLACES = tuple((offload, "none") for offload in ("none", "ema", "optimizer", "all"))
SHARED_PLACES = (("none", "none"), ("none", "optimizer"), ("none", "all"), ("all", "all"))
GOOD = 4  # images at once, from which on more gain little
NOTE = (
    "GB = 10^9 bytes; n is distill.micro_batch. float16 takes what bfloat16 takes, tf32 what float32 takes. Predicted by walking an iteration on "
    "tensors of shapes alone; not measured on a GPU. Compiled blocks take less."
)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors on a device that operations make, as long as they live.

    Attributes:
        live, peak: bytes now, and at most since the start or `restart`.
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
        """Count a tensor, once, for as long as its storage lives."""
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
    """Attention as GPUs do it, without the matrix of all pairs; on `meta` torch would write it out."""
    plain = F.scaled_dot_product_attention
    # replaced by name: a mode of torch's would not hold while backward computes a checkpointed block again
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: aten._scaled_dot_product_flash_attention(q, k, v)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


@dataclass(frozen=True)
class Prediction:
    """Bytes on one GPU.

    Attributes:
        static: weights, optimizers, gradient, averages, text encoder and VAE: always there, and all there is while they are set up.
        fixed, per_image: the peak of an iteration is fixed + micro_batch * per_image.
        decoding: of one sample to look at, between iterations, above static.
        averages, optimizers: of static, what is offloaded or shared out.
        blocks, block: of static, the teacher's weights that are shared out, and the largest of them at a time.
        lent: of the optimizers' float32 weights, what networks in float32 compute with where they stay on one GPU.
    """

    static: int
    fixed: int
    per_image: int
    decoding: int
    averages: int
    optimizers: int
    lent: int
    blocks: int
    block: int

    def placed(self, offload: str = "none", shard: str = "none", gpus: int = 1) -> "Prediction":
        """With `distill.offload`, and with `distill.shard` over a number of GPUs."""
        parts = 1 if shard == "none" else gpus
        averages = 0 if offload in ("ema", "all") else self.averages // parts
        optimizers = 0 if offload in ("optimizer", "all") else self.optimizers // parts
        less = self.averages - averages + self.optimizers - optimizers
        if optimizers < self.optimizers:
            less -= self.lent
        if shard == "all" and gpus > 1:
            less += self.blocks - self.blocks // gpus - 2 * self.block  # as it arrives, and in its own shape
        return replace(self, static=self.static - less, fixed=self.fixed - less)

    def peak(self, micro_batch: int) -> int:
        """What torch.cuda.max_memory_allocated would say."""
        return max(self.static + self.decoding, self.fixed + micro_batch * self.per_image)

    def needed(self, micro_batch: int) -> float:
        """With the allowance for what the walk does not see."""
        return (1 + FRAGMENTED) * self.peak(micro_batch) + CONTEXT_BYTES

    def largest(self, card: str) -> int:
        """The largest of MICRO_BATCHES that fits; 0 where not even one image does."""
        return max((n for n in MICRO_BATCHES if self.needed(n) <= CARDS[card]), default=0)


def predict(
    architecture: Architecture, kappa: float = 2.0, precision: str = "float32", checkpointing: bool = False
) -> Prediction:
    """Walk iterations of micro-batch 1 and 2 on the device meta; some ten seconds at SD 1.5's size."""
    settings = make_settings(precision=precision, checkpointing=checkpointing, batch=1, micro_batch=1)
    with torch.device("meta"):
        encoder = torch.empty(architecture.text_parameters)
        codec = new_codec(architecture)
    teacher = new_backbone(architecture, "meta")  # in the host's memory, until it is copied
    with LiveBytes("meta") as memory, fused_attention():
        prompts = RandomPrompts(architecture.text_shape, torch.device("meta"))
        trainer = Trainer(teacher, prompts, architecture.latent_shape, make_run(kappa), settings)
        for tensor in (encoder, *codec.parameters(), *trainer.teacher.parameters()):
            memory.add(tensor)
        static = memory.live
        assert memory.peak <= static, "setting up takes more than what it makes"
        one = _peak_of_a_step(trainer, memory)
        settings.batch = settings.micro_batch = 2
        trainer.micro_batches = trainer.world.micro_batches(2, 2)
        two = _peak_of_a_step(trainer, memory)
        memory.restart()
        codec.decode(trainer.grid_latents(GRID))
        decoding = memory.peak - static
    averages, students = trainer.ema_weights.nbytes, trainer.trained.values()
    optimizers = sum(student.master.nbytes + student.optimizer.second.nbytes for student in students)
    lent = 0 if DTYPES[precision] != torch.float32 else sum(student.master.nbytes for student in students)
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_to_shard(trainer.teacher)]
    return Prediction(
        static, 2 * one - two, two - one, decoding, averages, optimizers, lent, sum(blocks), max(blocks, default=0)
    )


def _peak_of_a_step(trainer: Trainer, memory: LiveBytes) -> int:
    memory.restart()
    trainer.step()
    return memory.peak


# --- what fits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Settings, and what they take."""

    precision: str
    checkpointing: bool
    offload: str
    shard: str
    prediction: Prediction


def survey(architecture: Architecture, kappa: float, precisions: Sequence[str], gpus: int = 1) -> list[Row]:
    """All settings of `precisions`, the fastest first: offloading costs less time than computing again.

    Args:
        gpus: that train together.

    Raises:
        UserError: an unknown precision.
    """
    rows = []
    for precision in precisions:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision}: expected {', '.join(DTYPES)}")
    for precision in precisions:
        for checkpointing in (False, True):
            prediction = predict(architecture, kappa, precision, checkpointing)
            for place in PLACES if gpus == 1 else SHARED_PLACES:
                rows.append(Row(precision, checkpointing, *place, prediction.placed(*place, gpus)))
    return rows


def advised(rows: list[Row], card: str) -> tuple[Row, int] | None:
    """The first row with a micro-batch of GOOD on the card, else the one with the largest; None where nothing fits."""
    fitting = [(row, row.prediction.largest(card)) for row in rows]
    good = next(((row, n) for row, n in fitting if n >= GOOD), None)
    best = max(fitting, key=lambda pair: pair[1])
    return good or (best if best[1] else None)


def to_markdown(rows: list[Row]) -> str:
    """The table: GB, the peak as a line in the micro-batch, and the largest one on each card."""
    cards = " | ".join(CARDS)
    lines = [
        f"| precision | checkpointing | offload | shard | static | iteration | {cards} |",
        "|---|---|---|---|--:|--:|" + "--:|" * len(CARDS),
    ]
    for row in rows:
        p = row.prediction
        fits = " | ".join(str(p.largest(card) or "–") for card in CARDS)
        lines.append(
            f"| {row.precision} | {'yes' if row.checkpointing else 'no'} | {row.offload} | {row.shard} | {p.static / GB:.1f} "
            f"| {p.fixed / GB:.1f} + {p.per_image / GB:.2f} n | {fits} |"
        )
    return "\n".join(lines)


def advice(rows: list[Row]) -> str:
    """A line for each card: the settings to choose."""
    lines = []
    for card in CARDS:
        found = advised(rows, card)
        if found is None:
            lines.append(f"{card}: nothing fits")
            continue
        row, micro_batch = found
        lines.append(
            f"{card}: precision: {row.precision}, micro_batch: {micro_batch}, {'checkpointing: true, compile: false' if row.checkpointing else 'checkpointing: false'}, "
            f"offload: {row.offload}, shard: {row.shard} ({row.prediction.needed(micro_batch) / GB:.1f} GB with context and fragmentation)"
        )
    return "\n".join(lines)
