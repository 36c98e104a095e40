"""Train the tokenizer: merge byte pairs of the captions until nearly every word is one token."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sid_core.data.shapes.captions import all_captions

VOCABULARY = 99
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary of VOCABULARY ids and its merges, the same in every process.

    The end token has the highest id, as pooling takes the ids' argmax; letters that no caption contains become the end token.
    """
    captions = all_captions()
    letters = {letter for text in captions for letter in text} - {" "}
    last = {f"{word[-1]}</w>" for text in captions for word in text.split()}
    # given first: the trainer would number letters at word ends in the order of a hash map, which differs by process
    options = {"special_tokens": sorted(letters) + sorted(last), "end_of_word_suffix": "</w>", "show_progress": False}
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=VOCABULARY - 2, **options))
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"] | {START: VOCABULARY - 2, END: VOCABULARY - 1}
    assert len(vocabulary) == VOCABULARY, f"{len(vocabulary)} tokens: expected {VOCABULARY}"
    return vocabulary, [tuple(pair) for pair in model["merges"]]
