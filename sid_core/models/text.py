"""Encode prompts as Stable Diffusion does: the CLIP text model's last hidden state of every token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import ModelOutput
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
    def from_directory(cls, folder: Path, suffix: str = "", kind: type[nn.Module] = CLIPTextModel) -> "TextEncoder":
        """Load `tokenizer` and `text_encoder` of a teacher directory, or those with a suffix such as `_2`.

        Raises:
            UserError: a component is damaged.
        """
        name = f"tokenizer{suffix}"
        try:
            tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / name)
        except Exception as error:  # tokenizers' Rust code raises no narrower class
            raise UserError(
                f"{folder}: {name}: cannot be read ({' '.join(str(error).split())[:200]}). Fix: get its files again"
            ) from None
        return cls(tokenizer, load_component(kind, Path(folder) / f"text_encoder{suffix}"))

    @torch.no_grad()
    def evaluate(self, prompts: Sequence[str], **options: bool) -> ModelOutput:
        """Return the model's output for prompts that are padded and truncated to the tokenizer's length L."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return self.model(to_device(tokens.input_ids, self.model.device), **options)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens (B, L, D) float32."""
        return Conditioning(self.evaluate(prompts).last_hidden_state.float())

    def empty(self) -> Conditioning:
        """Return the embedding of the empty prompt, one row."""
        return self.encode([""])
