"""Make one random stream for each key: random values are drawn again from their key, never saved."""

import hashlib
import json

import torch

WORDS = 624  # in the state of a Mersenne Twister
FIRST_WORD = 3  # index in torch's state, after the seed and two counters; a word takes 64 bits there


def random_stream(*key: int | str) -> torch.Generator:
    """Make a CPU generator whose stream depends on all of `key`; neighbouring keys have unrelated streams.

    The whole state is hashed from the key. `manual_seed` keeps 32 bits of its seed: among 100,000 hashed keys
    one pair would share all its draws.
    """
    made = torch.Generator()
    state = made.get_state()
    hashed = bytearray(hashlib.shake_256(json.dumps(key).encode()).digest(4 * WORDS))
    words = torch.frombuffer(hashed, dtype=torch.uint32)
    state.view(torch.int64)[FIRST_WORD : FIRST_WORD + WORDS] = words.to(torch.int64)
    return made.set_state(state)
