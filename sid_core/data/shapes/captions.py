"""Generate captions by the grammar "a [small|large] [colour] shape [on a colour background]".

Words have soft boundaries, one attribute word in ten is random, and each optional phrase is omitted with probability 15 %. So
a caption does not determine its image; if it did, guidance would have no diversity to trade for fidelity.
"""

import itertools

import torch
from torch import Tensor

# Both cyclic: neighbours blend into each other (scenes.py).
SHAPES = ("circle", "square", "cross", "star", "triangle", "heart")
COLOURS = ("red", "yellow", "green", "teal", "blue", "purple", "pink")
SIZES = ("small", "large")

RANDOM_WORD = 0.10
DROPPED_PHRASE = 0.15
MEDIUM_RADIUS, RADIUS_SOFTNESS = 0.55, 0.05  # half image widths
HUE_SOFTNESS, KIND_SOFTNESS = 0.3, 0.15  # steps on the cycles


def describe(kind: Tensor, hue: Tensor, radius: Tensor, background: Tensor, generator: torch.Generator) -> list[str]:
    """Generate captions of n scenes from attributes (n,) in the units of scenes.Scenes."""
    n = len(kind)

    def words(position: Tensor, softness: float, count: int) -> list[int]:
        nearest = (position + softness * torch.randn(n, generator=generator)).round().long() % count
        random = torch.randint(count, (n,), generator=generator)
        return torch.where(torch.rand(n, generator=generator) < RANDOM_WORD, random, nearest).tolist()

    largeness = ((radius - MEDIUM_RADIUS) / RADIUS_SOFTNESS).sigmoid()  # probability of "large"
    large = (torch.rand(n, generator=generator) < largeness).float()
    chosen = zip(
        words(large, 0.0, len(SIZES)),
        words(hue, HUE_SOFTNESS, len(COLOURS)),
        words(kind, KIND_SOFTNESS, len(SHAPES)),
        words(background, HUE_SOFTNESS, len(COLOURS)),
        (torch.rand(n, 3, generator=generator) >= DROPPED_PHRASE).tolist(),
        strict=True,
    )
    return [
        sentence(SHAPES[shape], SIZES[size] * sized, COLOURS[colour] * coloured, COLOURS[ground] * grounded)
        for size, colour, shape, ground, (sized, coloured, grounded) in chosen
    ]


def sentence(shape: str, size: str = "", colour: str = "", background: str = "") -> str:
    """Return one caption; an empty word omits its phrase."""
    subject = " ".join(word for word in ("a", size, colour, shape) if word)
    return f"{subject} on a {background} background" if background else subject


def all_captions() -> list[str]:
    """Return all 1,152 sentences of the grammar in a fixed order."""
    combinations = itertools.product(SHAPES, ("", *SIZES), ("", *COLOURS), ("", *COLOURS))
    return [sentence(*words) for words in combinations]
