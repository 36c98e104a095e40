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


def _chart(section: str, kind: str, name: str, **more: object) -> dict:
    common = {"uuid": name, "type": kind, "displayName": name, "metricSectionId": section, "runsCountToCompare": 100}
    return common | {"deleted": False, "isGenerated": False} | more


def _scatter(x: str, y: str) -> dict:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart("trade-off", "SCATTER", f"{x}-{y}", **axes)


def _section(name: str, columns: int) -> dict:
    shown = {"uuid": name, "name": name, "display": True, "deleted": False, "isGenerated": False, "isReordered": True}
    return shown | {"columns": columns, "cardHeight": 360}


STATE = {
    "searchFilter": "tags.kind != 'published'",  # of another protocol, as a rule
    "orderByKey": "metrics.`fid`",
    "orderByAsc": True,
    "selectedColumns": [f"metrics.`{key}`" for key in ("fid", "clip", "recall")],
    "runsHiddenMode": "SHOWALL",
    "compareRunCharts": [
        *(_scatter("clip", "fid"), _scatter("clip", "recall")),
        _chart("samples", "IMAGE", "samples", imageKeys=["samples"], step=0, showRunParams=False),
    ],
    "compareRunSections": [_section("trade-off", 2), _section("samples", 1)],
    "isAccordionReordered": True,
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
