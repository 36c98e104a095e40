"""Compute the metrics of the catalogue, each by its function of the features."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..protocol import KID_SEED, KID_SUBSET_SIZE, KID_SUBSETS
from .catalogue import METRICS
from .frechet import Gaussian, Reference, fid
from .kernels import cmmd, kid
from .neighbours import Neighbours, neighbours
from .samples import clip_score, diversity, mean, vendi
from .uncertainty import GROUPS, Estimate

if TYPE_CHECKING:
    from ...config import Evaluate


class Sets(NamedTuple):
    """Features of the samples and of the reference images, by network, one row an image.

    Both have `features` (N, D), `clip_image` (N, E), and `dinov2` (N, F) and `patches` (N, D) if they are set; samples also `clip_text` (N, E), and
    `hps`, `pickscore` and `imagereward` (N,) if they are set, and `repeated` (N,), of `repeated_captions`. The reference has
    `fid_teacher` (N, D), the features of the teacher's samples, if it is set. CLIP's rows are of unit length.
    """

    samples: dict[str, Tensor]
    reference: dict[str, Tensor]
    evaluate: "Evaluate"

    @property
    def groups(self) -> int:
        """Return the groups of a jackknife, of two samples at least."""
        return min(GROUPS, len(self.samples["features"]) // 2)

    def pair(self, network: str) -> tuple[Tensor, Tensor]:
        """Return the features of samples and reference by one network."""
        return self.samples[network], self.reference[network]


def _frechet(sets: Sets, network: str, reference: str | None = None) -> Sequence[Estimate]:
    compared_with = sets.reference[reference or network]
    return fid(sets.samples[network], Reference(Gaussian.fit(compared_with)), sets.groups)


def _kid(sets: Sets) -> Estimate:
    samples, reference = sets.pair("features")
    subset_size = min(KID_SUBSET_SIZE, len(samples), len(reference))
    return kid(samples, reference, KID_SUBSETS, subset_size, KID_SEED, sets.groups)


# a function may compute several metrics that share its work
FUNCTIONS: dict[tuple[str, ...], Callable[[Sets], Estimate | Sequence[Estimate]]] = {
    ("fid", "fid_inf"): lambda s: _frechet(s, "features"),
    ("clip",): lambda s: clip_score(s.samples["clip_image"], s.samples["clip_text"]),
    ("kid",): _kid,
    Neighbours._fields: lambda s: neighbours(*s.pair("features"), s.evaluate.neighbours, s.groups),
    ("cmmd",): lambda s: cmmd(*s.pair("clip_image"), s.groups),
    ("vendi",): lambda s: vendi(s.samples["clip_image"], s.groups),
    ("diversity",): lambda s: diversity(s.samples["features"], s.samples["repeated"]),
    ("fid_teacher",): lambda s: _frechet(s, "features", "fid_teacher")[0],
    ("patch_fid",): lambda s: _frechet(s, "patches")[0],
    ("fd_dinov2",): lambda s: _frechet(s, "dinov2")[0],
    ("hps",): lambda s: mean(s.samples["hps"]),
    ("pickscore",): lambda s: mean(s.samples["pickscore"]),
    ("imagereward",): lambda s: mean(s.samples["imagereward"]),
}


def estimates(sets: Sets) -> dict[str, Estimate]:
    """Compute every metric whose needs are met by the samples, with its uncertainty, in catalogue order."""
    unlike = METRICS.keys() ^ {key for keys in FUNCTIONS for key in keys}
    assert not unlike, f"{', '.join(sorted(unlike))}: in the catalogue or in FUNCTIONS, expected in both"
    found: dict[str, Estimate] = {}
    for keys, function in FUNCTIONS.items():
        if METRICS[keys[0]].needs in (None, *sets.samples, *sets.reference):
            result = function(sets)
            found |= zip(keys, [result] if isinstance(result, Estimate) else result, strict=True)
    return {key: found[key] for key in METRICS if key in found}
