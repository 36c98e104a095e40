"""List the metrics, one row each, from which files, tables, comparisons and MLflow's names are derived.

Nothing here needs torch. The function that computes a metric is registered under its key in `compute`.
"""

from dataclasses import dataclass, field
from typing import Literal

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # the paper's


@dataclass(frozen=True)
class Metric:
    """A metric: one row of the catalogue."""

    key: str  # in score.json, summary.csv, MLflow and comparisons
    title: str  # in tables
    better: Literal["lower", "higher"] | None
    decimals: int  # of a value without an error
    # setting of its evaluation network or of its own, and name of the features; or `repeated` captions
    needs: str | None = None
    # definition beside the protocol (which fixes sizes, neighbours, CLIP and feature network): scores compare if it is equal
    recipe: dict = field(default_factory=dict)
    # `headline`: with errors in summary.csv and the best row in bold; `main`: in the same table
    shown: Literal["headline", "main", "further"] = "further"

    @property
    def sign(self) -> int:
        """Return 1 where lower is better, -1 where higher is."""
        return 1 if self.better == "lower" else -1

    @property
    def heading(self) -> str:
        """Return the title with an arrow in the better direction."""
        return self.title + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]


PRDC = {"formula": "arXiv 2002.09797, neighbours as of precision"}
CMMD = {"formula": "arXiv 2401.09603 with the protocol's CLIP", "sigma": CMMD_SIGMA, "scale": CMMD_SCALE}
VENDI = {"formula": "arXiv 2210.02410, cosine of the protocol's CLIP embeddings"}
DIVERSITY = {
    "formula": "mean Euclidean distance of the features of two samples of a caption, mean over repeated captions"
}
FID_TEACHER = {
    "formula": "FID's, to the samples of the teacher's row of the lowest FID, by the same captions and noise"
}
PATCH_FID = {"formula": "FID's, of central crops at full resolution"}
METRICS = {  # in the order of files and tables
    metric.key: metric
    for metric in (
        Metric("fid", "FID", "lower", 2, shown="headline"),
        Metric("fid_inf", "FID∞", "lower", 2),
        Metric("clip", "CLIP", "higher", 3, shown="headline"),  # mean cosine, not times 100
        Metric("kid", "KID", "lower", 4, shown="main"),
        Metric("precision", "Precision", "higher", 3, shown="main"),
        Metric("recall", "Recall", "higher", 3, shown="main"),
        Metric("density", "Density", "higher", 3, recipe=PRDC),
        Metric("coverage", "Coverage", "higher", 3, recipe=PRDC),
        Metric("cmmd", "CMMD", "lower", 3, recipe=CMMD),
        Metric("vendi", "Vendi", "higher", 2, recipe=VENDI),
        Metric("diversity", "Diversity", "higher", 2, needs="repeated", recipe=DIVERSITY),
        Metric("fid_teacher", "FID-T", "lower", 2, needs="fid_teacher", recipe=FID_TEACHER),
        Metric("patch_fid", "Patch FID", "lower", 2, needs="patches", recipe=PATCH_FID),
        Metric("fd_dinov2", "FD-DINOv2", "lower", 1, needs="dinov2"),
        Metric("hps", "HPS", "higher", 3, needs="hps"),
        Metric("pickscore", "PickScore", "higher", 2, needs="pickscore"),
        Metric("imagereward", "ImageReward", "higher", 3, needs="imagereward"),
    )
}

# measured by programs of their own and imported (evaluation/benchmarks.py); no functions of the features
BENCHMARKS = {"geneval": Metric("geneval", "GenEval", "higher", 3), "dpg": Metric("dpg", "DPG-Bench", "higher", 1)}


def headline() -> list[Metric]:
    """Return the metrics that summaries, figures and bold rows show."""
    return [metric for metric in METRICS.values() if metric.shown == "headline"]
