"""Compute the CLIP score, other means over samples, Vendi score and diversity, and validate sample sets.

Features and embeddings are float32 (N, D), one row a sample.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.shards import ranges
from ...errors import UserError
from .frechet import Moments, with_replicates
from .uncertainty import Estimate, bootstrap, jackknife

RESAMPLES = 1000  # of a bootstrap
BOOTSTRAP_SEED = 0  # one for all: replicate r of two runs draws the same samples, so that differences are paired


def mean(values: Tensor, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the mean of one value per sample (N,) with a bootstrap of `resamples`."""
    values = values.double().cpu()
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    drawn = (torch.randint(len(values), (len(values),), generator=generator) for _ in range(resamples))
    return bootstrap(float(values.mean()), [float(values[rows].mean()) for rows in drawn])


def clip_score(image: Tensor, text: Tensor, resamples: int = RESAMPLES) -> Estimate:
    """Compute the mean cosine similarity of paired embeddings (N, E), rows of unit length; not times 100."""
    return mean((image.double() * text.double()).sum(1), resamples)


def vendi(embeddings: Tensor, groups: int) -> Estimate:
    """Compute the Vendi score (arXiv 2210.02410), the effective number of different images, of embeddings (N, E).

    It is exp of the entropy of the eigenvalues of K / N, where K holds the cosines. But for zeros they are those of the
    second moment of the embeddings, which is small; rows have unit length.
    """

    def score(moments: Moments) -> float:
        values = torch.linalg.eigvalsh(moments.second / moments.count)
        return math.exp(-float(torch.special.xlogy(values, values.clamp(min=1e-300)).sum()))

    return jackknife(*with_replicates(embeddings, groups, score))


def repeated_captions(captions: Sequence[str]) -> Tensor | None:
    """Return a number for each caption that occurs several times, -1 for others, (N,) int64; None if fewer than two do."""
    several = [caption for caption, count in Counter(captions).items() if count > 1]
    numbers = {caption: number for number, caption in enumerate(several)}
    return torch.tensor([numbers.get(caption, -1) for caption in captions]) if len(several) > 1 else None


def diversity(features: Tensor, captions: Tensor) -> Estimate:
    """Compute the mean Euclidean distance of two samples of a caption, from features (N, D) and `repeated_captions` (N,).

    Each caption counts alike, however often it occurs. The interval is over captions.
    """
    pairs = (torch.pdist(features[captions == number].double()) for number in range(int(captions.max()) + 1))
    return mean(torch.stack([distances.mean() for distances in pairs]))


def check_samples(samples: list[dict], expected: int) -> None:
    """Check that every index 0 .. expected - 1 of records {"index", "seed", "sha256"} occurs once, and that all differ.

    A set that repeats itself hardly moves FID, and one that lacks samples gives a plausible score too.

    Raises:
        UserError: names the samples that are missing, too many or alike.
    """
    indices = Counter(sample["index"] for sample in samples)
    missing = set(range(expected)) - set(indices)
    if missing:
        raise UserError(f"samples missing: {ranges(missing)} ({len(missing)} of {expected}). Fix: generate the shards")
    surplus = set(indices) - set(range(expected)) | {index for index, count in indices.items() if count > 1}
    if surplus:
        raise UserError(f"samples {ranges(surplus)} are too many, expected 0–{expected - 1}. Fix: remove other shards")
    for key, what in (("seed", "seed"), ("sha256", "image")):
        owners: dict = {}
        for sample in samples:
            other = owners.setdefault(sample[key], sample["index"])
            if other != sample["index"]:
                raise UserError(
                    f"samples {other} and {sample['index']} have the same {what}, expected different ones. Fix: check the "
                    "seeds, and whether the generator ignores its noise"
                )
