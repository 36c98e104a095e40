"""Saved views of MLflow's runs page: filter, columns and charts, so that comparing scales takes one click and no set-up.

MLflow keeps a saved view as a tag of the experiment: JSON with a name and the page's state, which its page reads with or without
compression. Names of states and charts are those of its page's source (3.17); a version that reads them otherwise shows its
own charts, and every number stays where it is.
"""

import base64
import json
import time
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "mlflow.sharedViewState."
KIND = "mlflow.experimentKind"  # by it the page shows training runs rather than conversations
COLUMNS = ["metrics.fid", "metrics.fid_se", "metrics.clip", "metrics.clip_se", "metrics.precision", "metrics.recall"]
SETTINGS = ["params.strategy", "params.kappa_teacher", "params.seed", "params.nfe", "tags.kind"]
SIDE_BY_SIDE = {"trade-off": 2, "scores": 4, "curves": 3, "samples": 1}  # charts of a section
CURVES = ["score_gap", "latent_std", "teacher_residual", "fake_residual", "ema_drift", "images_per_s"]


def links(base: str, experiment: str) -> dict[str, str]:
    """Address of each saved view, by its name."""
    page = f"{base}/#/experiments/{experiment}/runs"
    return {state["name"]: f"{page}?viewStateShareKey={key}&compareRunsMode=CHART" for key, state in VIEWS.items()}


def save(client: "MlflowClient", experiment: str) -> None:
    """Add the views to an experiment that does not have them; what a user made of them stays."""
    tags = client.get_experiment(experiment).tags
    if KIND not in tags:
        client.set_experiment_tag(experiment, KIND, "custom_model_development")
    now_ms = round(1000 * time.time())
    for key, view in VIEWS.items():
        if TAG + key not in tags:
            made = {"name": view["name"], "createdAt": now_ms, "updatedAt": now_ms, "state": _packed(view["state"])}
            client.set_experiment_tag(experiment, TAG + key, json.dumps(made))


def _packed(state: dict) -> str:
    """A tag holds 5,000 characters at most."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _chart(section: str, name: str, kind: str, **more: object) -> dict:
    common = {"uuid": f"{section}-{name}", "type": kind, "displayName": name, "metricSectionId": section}
    return common | {"runsCountToCompare": 100, "deleted": False, "isGenerated": False} | more


def _state(search: str, charts: list[dict]) -> dict:
    sections = dict.fromkeys(chart["metricSectionId"] for chart in charts)
    return {
        "searchFilter": search,
        "orderByKey": "metrics.`fid`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"{kind}.`{name}`" for kind, name in (c.split(".") for c in COLUMNS + SETTINGS)],
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "deleted": False, "isGenerated": False, "isReordered": True}
            | {"columns": SIDE_BY_SIDE[name], "cardHeight": 360}
            for name in sections
        ],
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
    }


def _metric(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}


SCALES = [
    _chart("trade-off", "FID against CLIP score", "SCATTER", xaxis=_metric("fid"), yaxis=_metric("clip")),
    _chart(
        "trade-off",
        "scale, FID, CLIP score, precision, recall",
        "PARALLEL",
        selectedParams=["kappa_teacher"],
        selectedMetrics=["fid", "clip", "precision", "recall"],
        showAllRuns=True,
    ),
    *(_chart("scores", key, "BAR", metricKey=key) for key in ("fid", "clip", "precision", "recall")),
]
TRAINING = [
    *(
        _chart(
            "curves",
            key,
            "LINE",
            metricKey=f"training/{key}",
            selectedMetricKeys=[f"training/{key}"],
            lineSmoothness=0,
            scaleType="linear",
            xAxisKey="step",
            xAxisScaleType="linear",
        )
        for key in CURVES
    ),
    _chart("samples", "samples over images seen", "IMAGE", imageKeys=["samples"], step=0, showRunParams=False),
]
VIEWS = {
    "sid-core-scales": {"name": "scales", "state": _state("tags.kind != 'published'", SCALES)},
    "sid-core-training": {"name": "training", "state": _state("tags.kind = 'generator'", TRAINING)},
}
