"""Log params, metrics, curves and files to one MLflow run, skipping those it already has."""

import json
import time
from contextlib import suppress
from pathlib import Path

from ..config import CONSTANTS, DistillSettings, ImportSettings, ResampleSettings
from ..storage.files import digest, flat, read_json, sha256_file
from ..storage.states import trained_from
from .store import make_client

POINTS = 50  # of a training log in one request: MLflow takes 1,000 values
LAST_POINT, LAST_GRID, FILES = "training/nimg", "last_grid_nimg", "files_sha256"


class MirroredRun:
    """One MLflow run and a record of the files it already has."""

    def __init__(
        self,
        store: dict,
        name: str,
        settings: dict,
        tags: dict,
        protocol_hash: str | None = None,
        label: str | None = None,
    ):
        """Find the run of this name and these settings by its tag `identity`, or create it.

        A run that was scored by another protocol keeps its scores; these get their own run. `label` is its name in MLflow
        unless a user has changed that.
        """
        self.client, experiment = make_client(store["uri"]), store["experiment_id"]
        identity = digest([store["experiment"], name, settings])[:32]
        found = self.client.search_runs([experiment], f"tags.identity = '{identity}'", order_by=["start_time DESC"])
        fitting = [run for run in found if protocol_hash in (None, run.data.params.get("protocol_hash", protocol_hash))]
        if fitting:
            self.run = fitting[0]
            if label and self.run.info.run_name == name:  # as earlier versions named it
                self.client.update_run(self.run.info.run_id, name=label)
        else:
            tags = tags | {"run": name, "sweep": store["experiment"], "identity": identity}
            self.run = self.client.create_run(experiment, tags=tags, run_name=label or name)
        self.id = self.run.info.run_id

    def params(self, values: dict[str, object]) -> None:
        """Log the params that the run does not have yet: another value for one it has would raise."""
        from mlflow.entities import Param

        known = self.run.data.params
        new = {key: value for key, value in values.items() if key not in known and value not in (None, "")}
        self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in new.items()])

    def metrics(self, values: dict[str, float]) -> None:
        """Log final values, where they differ from the run's."""
        from mlflow.entities import Metric

        now_ms, known = round(1000 * time.time()), self.run.data.metrics
        new = [Metric(key, value, now_ms, 0) for key, value in values.items() if known.get(key) != value]
        self.client.log_batch(self.id, metrics=new)

    def points(self, path: Path) -> None:
        """Log the points of a training log beyond the last logged one; points logged twice would show twice."""
        from mlflow.entities import Metric

        last, start_ms = self.client.get_run(self.id).data.metrics.get(LAST_POINT, -1), self.run.info.start_time
        points = [point for point in _read_points(path) if point["nimg"] > last]
        for first in range(0, len(points), POINTS):
            batch = [
                Metric(f"training/{key}", value, start_ms + round(1000 * point["elapsed_s"]), point["nimg"])
                for point in points[first : first + POINTS]
                for key, value in point.items()
                if value is not None
            ]
            self.client.log_batch(self.id, metrics=batch)

    def grids(self, folder: Path) -> None:
        """Log the sample grids beyond the last logged one, as images over steps."""
        from PIL import Image

        last = int(self.client.get_run(self.id).data.tags.get(LAST_GRID, -1))
        for path in sorted(folder.glob("*.png")):
            if int(path.stem) > last:
                with Image.open(path) as image:
                    self.client.log_image(self.id, image, key="samples", step=int(path.stem), synchronous=True)
                self.client.set_tag(self.id, LAST_GRID, int(path.stem))

    def files(self, *paths: Path) -> None:
        """Upload files and folders, where they changed since the last time."""
        files = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
        current = digest([[str(file), sha256_file(file)] for file in files if file.is_file()])
        if self.client.get_run(self.id).data.tags.get(FILES) == current:
            return
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(self.id, str(path), path.name)
            else:
                self.client.log_artifact(self.id, str(path))
        self.client.set_tag(self.id, FILES, current)

    def status(self, status: str) -> None:
        """Set the run's status: RUNNING, FINISHED, FAILED or KILLED."""
        if self.client.get_run(self.id).info.status != status:
            change = self.client.update_run if status == "RUNNING" else self.client.set_terminated
            change(self.id, status)


def _read_points(path: Path) -> list[dict]:
    """Read the complete lines of a training log, whose last line may still be incomplete."""
    points = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                points.append(json.loads(line))
    return points


def generator_run(
    store: dict,
    settings: DistillSettings | ImportSettings | ResampleSettings,
    protocol_hash: str | None = None,
    *paths: Path,
) -> MirroredRun:
    """Return the MLflow run of a distillation or an import, with its settings as params.

    The first of `paths` (generator.json, identity.json) that is there names teacher, prompts and code: a training of
    others is a run of its own.
    """
    records = (read_json(path) for path in paths if path.is_file())
    origin = next((found for found in map(trained_from, records) if found), None)
    run, others = settings.run, flat(settings.model_dump(mode="json", exclude={"run"}))
    identity = settings.model_dump(mode="json") | ({"trained_from": origin} if origin else {})
    if isinstance(settings, DistillSettings):
        identity["distill"] |= CONSTANTS
    strategy_tags = {"kind": "generator", "strategy": run.strategy, "scale": run.scale}
    strategy_tags["real_images"] = "yes" if run.uses_real_images else "no"
    mirrored = MirroredRun(store, run.name, identity, strategy_tags, protocol_hash, run.label)
    scales = {f"kappa_{key}": getattr(run, key) for key in ("fake_train", "fake_eval", "teacher")}
    named = {key: getattr(run, key) for key in ("strategy", "alpha", "num_steps", "seed")}
    mirrored.params(scales | named | others | flat({"trained_from": origin or {}}))
    return mirrored
