"""Encode prompts as Stable Diffusion does: the CLIP text model's last hidden state of every token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ..cluster.machine import to_device
from ..errors import UserError
from .components import load_component
from .conditioning import Conditioning

transformers_logging.disable_progress_bar()  # it counts the tensors of one file, which is no progress of a stage


class TextEncoder(nn.Module):
    """The teacher's tokenizer and text encoder, frozen."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel):
        super().__init__()
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)

    @classmethod
    def from_directory(cls, folder: Path) -> "TextEncoder":
        """Load `tokenizer` and `text_encoder` of a teacher directory.

        Raises:
            UserError: a component is damaged.
        """
        try:
            tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
        except Exception as error:  # tokenizers' Rust code raises no narrower class
            raise UserError(
                f"{folder}: tokenizer: cannot be read ({' '.join(str(error).split())[:200]}). Fix: get its files again"
            ) from None
        return cls(tokenizer, load_component(CLIPTextModel, Path(folder) / "text_encoder"))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens (B, L, D) float32, padded and truncated to the tokenizer's length L."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        ids = to_device(tokens.input_ids, self.model.device)
        return Conditioning(self.model(ids).last_hidden_state.float())

    def empty(self) -> Conditioning:
        """Return the embedding of the empty prompt, one row."""
        return self.encode([""])
