"""Prompts to embeddings, as Stable Diffusion does it: the CLIP text model's last hidden state of every token."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ..cluster.machine import to_device
from ..errors import UserError
from .components import load_component

transformers_logging.disable_progress_bar()  # it would count the tensors of one file

CACHED = 4096  # distinct prompts encoded ahead, at most; 1 GB at Stable Diffusion's size
CHUNK = 256  # prompts encoded at once when a whole set is encoded ahead


class TextEncoder(nn.Module):
    """The teacher's tokenizer and text encoder, frozen."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel):
        super().__init__()
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)

    @classmethod
    def from_directory(cls, folder: Path) -> "TextEncoder":
        """Load `tokenizer` and `text_encoder` of a teacher directory.

        Raises:
            UserError: one of them is damaged.
        """
        try:
            tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
        except Exception as error:  # the Rust part of tokenizers raises nothing narrower
            raise UserError(
                f"{folder}: tokenizer: cannot be read ({' '.join(str(error).split())[:200]}). Fix: get its files again"
            ) from None
        return cls(tokenizer, load_component(CLIPTextModel, Path(folder) / "text_encoder"))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) float32, padded and truncated to the tokenizer's length L."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.model(to_device(tokens.input_ids, self.model.device)).last_hidden_state.float()

    def empty(self) -> Tensor:
        """The embedding of the empty prompt, (1, L, D)."""
        return self.encode([""])


class PromptSet:
    """Embeddings of a fixed list of prompts, by index.

    Up to `cache_size` distinct prompts are encoded once, ahead and in a fixed order; more are encoded when asked for. Either
    way the embedding of a batch depends on the list and the indices alone, not on what was asked before: a resumed run
    must see the same bits. Embeddings arrive on the encoder's device; what is kept of them stays on the host.
    """

    def __init__(self, encoder: TextEncoder, prompts: Sequence[str], cache_size: int = CACHED):
        self.encoder, self.prompts = encoder, prompts
        self.empty = encoder.empty()  # (1, L, D)
        self._table = None
        if (rows := _distinct(prompts, cache_size)) is not None:
            texts, self._row = rows
            chunks = [encoder.encode(texts[i : i + CHUNK]).cpu() for i in range(0, len(texts), CHUNK)]
            self._table = torch.cat(chunks)

    def __len__(self) -> int:
        return len(self.prompts)

    def __call__(self, indices: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) of the prompts at `indices` (B,) int64; where `dropped` (B,) bool, of the empty prompt."""
        if self._table is not None:
            cond = to_device(self._table[self._row[indices]], self.empty.device)
        else:
            cond = self.encoder.encode([self.prompts[i] for i in indices.tolist()])
        if dropped is not None:
            cond = torch.where(to_device(dropped, cond.device).view(-1, 1, 1), self.empty, cond)
        return cond


def _distinct(prompts: Sequence[str], most: int) -> tuple[list[str], Tensor] | None:
    """The distinct prompts in order, and for each prompt which one it is; None as soon as there are more than `most`."""
    rows: dict[str, int] = {}
    which = array("q")
    for prompt in prompts:
        which.append(rows.setdefault(prompt, len(rows)))
        if len(rows) > most:
            return None
    return list(rows), torch.tensor(which)
