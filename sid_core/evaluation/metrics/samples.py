"""Compute the CLIP score, other means over samples and the Vendi score, and validate sample sets.

Features and embeddings are float32 (N, D), one row a sample.
"""

import math
from collections import Counter
from functools import reduce
from operator import sub

import torch
from torch import Tensor

from ...data.shards import ranges
from ...errors import UserError
from .frechet import Moments
from .uncertainty import Estimate, bootstrap, jackknife, left_out

RESAMPLES = 1000  # of a bootstrap
BOOTSTRAP_SEED = 0  # one for all: replicate r of two runs draws the same samples, so that differences are paired


def mean(values: Tensor, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the mean of one value per sample (N,) with a bootstrap of `resamples`."""
    values = values.double().cpu()
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    drawn = (torch.randint(len(values), (len(values),), generator=generator) for _ in range(resamples))
    return bootstrap(float(values.mean()), [float(values[rows].mean()) for rows in drawn])


def clip_score(image: Tensor, text: Tensor, resamples: int = RESAMPLES) -> Estimate:
    """Compute the mean cosine similarity of paired embeddings over all samples, not times 100.

    Args:
        image, text: (N, E), each row of unit length.
        resamples: of the bootstrap.
    """
    return mean((image.double() * text.double()).sum(1), resamples)


def vendi(embeddings: Tensor, groups: int) -> Estimate:
    """Compute the Vendi score (arXiv 2210.02410), the effective number of different images.

    It is exp of the entropy of the eigenvalues of K / N.

    K holds the cosines; its eigenvalues but for zeros are those of the embeddings' second moment, which is small.

    Args:
        embeddings: (N, E), each row of unit length.
        groups: of the jackknife.
    """

    def score(moments: Moments) -> float:
        values = torch.linalg.eigvalsh(moments.second / moments.count)
        return math.exp(-float(torch.special.xlogy(values, values.clamp(min=1e-300)).sum()))

    whole, parts = Moments.of(embeddings), [Moments.of(embeddings[group::groups]) for group in range(groups)]
    replicates = [score(reduce(sub, (parts[group] for group in left), whole)) for left in left_out(groups)]
    return jackknife(score(whole), replicates)


def check_samples(samples: list[dict], expected: int) -> None:
    """Check that every index 0 .. expected - 1 occurs once and that all seeds and images differ.

    A set that repeats itself hardly moves FID, and one that lacks samples gives a plausible score too.

    Args:
        samples: records {"index", "seed", "sha256"}.

    Raises:
        UserError: names the samples that are missing, too many or alike.
    """
    indices = Counter(sample["index"] for sample in samples)
    missing = set(range(expected)) - set(indices)
    if missing:
        raise UserError(
            f"samples missing: {ranges(missing)} ({len(missing)} of {expected}); generate their shards and run again"
        )
    surplus = set(indices) - set(range(expected)) | {index for index, count in indices.items() if count > 1}
    if surplus:
        raise UserError(
            f"samples {ranges(surplus)} are too many: expected each of 0–{expected - 1} once; "
            "remove the shards that do not belong and run again"
        )
    for key, what in (("seed", "seed"), ("sha256", "image")):
        owners: dict = {}
        for sample in samples:
            other = owners.setdefault(sample[key], sample["index"])
            if other != sample["index"]:
                raise UserError(
                    f"samples {other} and {sample['index']} have the same {what}; a score needs different ones: "
                    "check the seeds, and whether the generator ignores its noise"
                )
