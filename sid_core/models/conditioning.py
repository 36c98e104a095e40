"""Hold the output of a text encoder: a few tensors, one row a prompt, which training and sampling move, slice and drop."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..cluster.machine import to_device

CACHE_SIZE = 4096  # distinct prompts; 1 GB at Stable Diffusion's size
CHUNK = 256  # prompts per call when the cache is filled


@dataclass(frozen=True)
class Conditioning:
    """The embeddings of B prompts. A family of teachers sets the tensors that its network needs."""

    tokens: Tensor  # (B, L, D)
    pooled: Tensor | None = None  # (B, P)
    mask: Tensor | None = None  # (B, L), 1 where a token counts

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply `change` to every tensor that is not None."""
        return Conditioning(**{name: change(part) for name, part in self.parts().items()})

    def __getitem__(self, rows: slice | Tensor) -> "Conditioning":
        return self.map(lambda part: part[rows])

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """Convert floating-point tensors to `dtype`."""
        return self.map(lambda part: part.to(dtype) if part.is_floating_point() else part)

    def to_device(self, device: torch.device) -> "Conditioning":
        return self.map(lambda part: to_device(part, device))

    def expand(self, count: int) -> "Conditioning":
        """Repeat one row `count` times, as a view."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    def split(self, size: int) -> list["Conditioning"]:
        return [self[start : start + size] for start in range(0, len(self), size)]

    def replace(self, dropped: Tensor | None, empty: "Conditioning") -> "Conditioning":
        """Return a copy with the one row of `empty` where `dropped` (B,) bool is set; None drops none."""
        if dropped is None:
            return self
        parts, instead = self.parts(), empty.parts()
        for name, part in parts.items():
            rows = to_device(dropped, part.device).view(-1, *[1] * (part.ndim - 1))
            parts[name] = torch.where(rows, instead[name], part)
        return Conditioning(**parts)

    @staticmethod
    def cat(blocks: Sequence["Conditioning"]) -> "Conditioning":
        """Join rows."""
        tables = [block.parts() for block in blocks]
        return Conditioning(**{name: torch.cat([table[name] for table in tables]) for name in tables[0]})

    def parts(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by name."""
        return {name: part for name, part in vars(self).items() if part is not None}


class Encoder(Protocol):
    """Interface of a family's tokenizers and text encoders, frozen."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the embeddings of the prompts, float32 on the device of the weights."""

    def empty(self) -> Conditioning:
        """Return the unconditional embedding, one row."""


class PromptSet:
    """Embeddings of a fixed list of prompts, by index.

    Up to `cache_size` distinct prompts are encoded once, in advance and in a fixed order; with more, each batch is encoded
    on demand. Either way the embedding of a batch depends on the list and the indices alone, not on earlier calls: a
    resumed run needs equal bits. Embeddings are returned on the encoder's device; the cache is in host memory.
    """

    def __init__(self, encoder: Encoder, prompts: Sequence[str], cache_size: int = CACHE_SIZE):
        self.encoder, self.prompts = encoder, prompts
        self.empty = encoder.empty()
        self._table = None
        if (rows := distinct(prompts, cache_size)) is not None:
            texts, self._row = rows
            chunks = [encoder.encode(texts[i : i + CHUNK]).map(Tensor.cpu) for i in range(0, len(texts), CHUNK)]
            self._table = Conditioning.cat(chunks)

    def __len__(self) -> int:
        return len(self.prompts)

    def __call__(self, indices: Tensor, dropped: Tensor | None = None) -> Conditioning:
        """Return the embeddings of the prompts at `indices` (B,) int64, of the empty prompt where `dropped` (B,) bool."""
        if self._table is not None:
            cond = self._table[self._row[indices]].to_device(self.empty.tokens.device)
        else:
            cond = self.encoder.encode([self.prompts[i] for i in indices.tolist()])
        return cond.replace(dropped, self.empty)


def distinct(prompts: Sequence[str], most: int) -> tuple[list[str], Tensor] | None:
    """Return the distinct prompts in order, and for each prompt its index among them; None if there are more than `most`."""
    rows: dict[str, int] = {}
    which = array("q")
    for prompt in prompts:
        which.append(rows.setdefault(prompt, len(rows)))
        if len(rows) > most:
            return None
    return list(rows), torch.tensor(which)
