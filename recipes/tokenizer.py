"""Train the tokenizer: merge byte pairs of the captions until nearly every word is one token."""

import json
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sid_core.data.shapes.captions import all_captions

from .networks import new_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

VOCABULARY = 99
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(length: int) -> "CLIPTokenizer":
    """Train a CLIPTokenizer of VOCABULARY ids, with the highest for the end token, as pooling takes the ids' argmax.

    Letters that no caption contains become the end token.
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 2, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(all_captions(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"]) | {START: VOCABULARY - 2, END: VOCABULARY - 1}
    assert len(vocabulary) == VOCABULARY, f"{len(vocabulary)} tokens: expected {VOCABULARY}"
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    return new_tokenizer(vocabulary, merges, length)
