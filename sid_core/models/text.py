"""Encode prompts as Stable Diffusion does: the CLIP text model's last hidden state of every token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase
from transformers.utils import ModelOutput
from transformers.utils import logging as transformers_logging

from ..cluster.machine import to_device
from ..errors import UserError, one_line
from .components import load_component
from .conditioning import Conditioning

transformers_logging.disable_progress_bar()  # it counts the tensors of one file, which is no progress of a stage
OVERFLOWS = ("t5", "gemma2")  # model types whose activations overflow in float16


class TextEncoder(nn.Module):
    """The teacher's tokenizer and text encoder, frozen.

    Args:
        length: tokens of a prompt; None: the tokenizer's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module, length: int | None = None):
        super().__init__()
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)
        self.overflows = model.config.model_type in OVERFLOWS
        self.length = tokenizer.model_max_length if length is None else length

    @classmethod
    def from_directory(
        cls,
        folder: Path,
        suffix: str = "",
        kind: type[nn.Module] = CLIPTextModel,
        tokenizer_kind: type[PreTrainedTokenizerBase] = CLIPTokenizer,
        length: int | None = None,
    ) -> "TextEncoder":
        """Load `tokenizer` and `text_encoder` of a teacher directory, or those with a suffix such as `_2`."""
        name = f"tokenizer{suffix}"
        try:
            tokenizer = tokenizer_kind.from_pretrained(Path(folder) / name)
        except Exception as error:  # tokenizers' Rust code raises no narrower class
            raise UserError(f"{folder}: {name}: cannot be read ({one_line(error)}). Fix: get its files again") from None
        return cls(tokenizer, load_component(kind, Path(folder) / f"text_encoder{suffix}"), length)

    @torch.no_grad()
    def evaluate(self, prompts: Sequence[str], **options: bool) -> ModelOutput:
        """Return the model's output for prompts that are padded and truncated to L tokens."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return self.model(to_device(tokens.input_ids, self.model.device), **options)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens (B, L, D) float32."""
        return Conditioning(self.evaluate(prompts).last_hidden_state.float())

    def empty(self) -> Conditioning:
        """Return the embedding of the empty prompt, one row."""
        return self.encode([""])


class GemmaEncoder(TextEncoder):
    """SANA's text encoder: an instruction precedes every prompt but the unconditional one.

    Of the instruction's tokens the network sees the first alone, and padding is masked.
    """

    instruction = ""

    @torch.no_grad()
    def evaluate(self, prompts: Sequence[str], length: int) -> Conditioning:
        """Return tokens (B, `length`, D) float32 and their mask."""
        self.tokenizer.padding_side = "right"
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        ids, mask = (to_device(part, self.model.device) for part in (tokens.input_ids, tokens.attention_mask))
        return Conditioning(self.model(ids, attention_mask=mask)[0].float(), mask=mask)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the embeddings of the first token and the last L - 1, (B, L, D), and their mask (B, L)."""
        length = len(self.tokenizer.encode(self.instruction)) + self.length - 2
        whole = self.evaluate([self.instruction + prompt.lower().strip() for prompt in prompts], length)
        return whole.map(lambda part: torch.cat([part[:, :1], part[:, 1 - self.length :]], dim=1))

    def empty(self) -> Conditioning:
        return self.evaluate([""], self.length)
