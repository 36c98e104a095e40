"""Save the view of MLflow's runs page that the printed links open: FID and CLIP as columns, the report's trade-off as charts.

MLflow keeps a saved view as a tag of the experiment, in its page's own format, read in version 3.17.2. A version that reads it
otherwise shows its default columns and charts.
"""

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "sid-core"
TAG = f"mlflow.sharedViewState.{KEY}"


STATE = {
    "searchFilter": "tags.kind != 'published'",  # of another protocol, as a rule
    "orderByKey": "metrics.`fid`",
    "orderByAsc": True,
    "selectedColumns": [f"metrics.`{key}`" for key in ("fid", "clip", "recall")],
    "runsHiddenMode": "SHOWALL",
    "compareRunCharts": [
        {"uuid": f"clip-{key}", "type": "SCATTER", "metricSectionId": "trade-off", "runsCountToCompare": 100}
        | {"xaxis": {"key": "clip", "type": "METRIC"}, "yaxis": {"key": key, "type": "METRIC"}}
        for key in ("fid", "recall")
    ]
    + [
        {"uuid": "grids", "type": "IMAGE", "metricSectionId": "samples", "runsCountToCompare": 100}
        | {"imageKeys": ["samples"], "step": 0}
    ],
    "compareRunSections": [
        {"uuid": name, "name": name, "display": True, "columns": columns, "cardHeight": 360}
        for name, columns in (("trade-off", 2), ("samples", 1))
    ],
}


def save(client: "MlflowClient", experiment: str) -> None:
    """Add the view to an experiment that does not have it: changes by a user stay."""
    if TAG not in client.get_experiment(experiment).tags:
        now_ms = round(1000 * time.time())
        view = {"name": "scores", "createdAt": now_ms, "updatedAt": now_ms, "state": json.dumps(STATE)}
        client.set_experiment_tag(experiment, TAG, json.dumps(view))


def links(base: str, experiment: str) -> dict[str, str]:
    """Return the addresses of the view's table and of its charts."""
    page = f"{base}/#/experiments/{experiment}/runs?viewStateShareKey={KEY}&compareRunsMode="
    return {"runs by FID": f"{page}TABLE", "FID against CLIP score, curves, samples": f"{page}CHART"}
