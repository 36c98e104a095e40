"""CLIP score, KID, precision and recall, and the check that a sample set passes before any of them.

Features and embeddings are float32 (N, D), one row a sample.
"""

from collections import Counter

import torch
from torch import Tensor

from ..errors import UserError
from .shards import ranges

# Rows whose distances to the other set are held at once: 500 x 10,000 float32 are 20 MB.
DISTANCE_ROWS = 500
BOOTSTRAP_SEED = 0


def clip_score(image: Tensor, text: Tensor, resamples: int) -> tuple[float, float]:
    """Mean cosine of paired embeddings over all samples, not times 100, and its bootstrap standard error.

    Args:
        image, text: (N, E), each row of unit length.
        resamples: of the bootstrap.
    """
    cosines = (image.double() * text.double()).sum(1)
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    means = torch.stack(
        [cosines[torch.randint(len(cosines), (len(cosines),), generator=generator)].mean() for _ in range(resamples)]
    )
    return float(cosines.mean()), float(means.std(correction=0))


def kid(generated: Tensor, reference: Tensor, subsets: int, subset_size: int, seed: int) -> float:
    """Kernel Inception Distance (arXiv 1801.01401), torch-fidelity's: mean over random subsets, cubic kernel, unbiased.

    Raises:
        UserError: subsets larger than a set.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    smaller = min(len(generated), len(reference))
    if subset_size > smaller:
        raise UserError(
            f"evaluate.kid_subset_size={subset_size}: expected at most the {smaller} images of the smaller set; lower it"
        )
    result = kid_features_to_metric(
        generated, reference, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    return result[KEY_METRIC_KID_MEAN]


def precision_recall(generated: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991), torch-fidelity's, in blocks of rows.

    Raises:
        UserError: fewer images than neighbours.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    smaller = min(len(generated), len(reference))
    if neighbours >= smaller:
        raise UserError(
            f"evaluate.neighbours={neighbours}: expected less than the {smaller} images of the smaller set; lower it"
        )
    result = prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=DISTANCE_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def check_samples(samples: list[dict], expected: int) -> None:
    """Every index 0 .. expected - 1 once, all seeds and all images different.

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
