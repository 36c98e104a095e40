"""MLflow as a mirror of the files: the only importer of mlflow, always late (it takes five seconds).

The files under results/ are the record. What is mirrored is read from them, so that losing MLflow loses nothing, syncing again
repeats nothing, and no number depends on tracking. An experiment's runs are flat (the UI folds nested ones away) and are
recognised by a digest of their settings: reruns and resumed jobs continue their run.
"""

import csv
import json
import logging
import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .config import DistillSettings, ImportSettings, load_settings
from .errors import UserError
from .files import digest, flat, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PERIOD_S = 20.0  # between two looks at a training log
GOODBYE_S = 10.0  # a job that ends waits this long for its last sync; `track` brings the rest
POINTS = 50  # of a training log in one request: MLflow takes 1,000 values
LARGEST_UPLOAD = 50_000_000  # bytes of a generator; of a larger one only the path is noted
LATER = "the files hold everything; to mirror them later: snakemake --cores 1 --forcerun tracking_init"
LAST_POINT, LAST_GRID, FILES = "training/nimg", "last_grid_nimg", "files_sha256"
# columns of summary.csv
METRICS = [
    "fid",
    "fid_se",
    "fid_inf",
    "clip",
    "clip_se",
    "kid",
    "precision",
    "recall",
    "teacher_eps_error",
    "images_per_s",
]
PARAMS = [
    "teacher",
    "strategy",
    "kappa_fake_train",
    "kappa_fake_eval",
    "kappa_teacher",
    "seed",
    "nfe",
    "train_kimg",
    "samples",
    "protocol",
    "protocol_hash",
]


def resolve_uri(configured: str | None) -> str:
    """Where to track: MLFLOW_TRACKING_URI, else the configured place, else mlflow.db here; SQLite paths made absolute.

    A relative path would follow each process's working folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or configured or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


# --- before anything runs ----------------------------------------------------------------------------------------------


def init(experiment: str, uri: str | None, out: Path) -> None:
    """Make database and experiment, and write to `out` where they are. `uri` None: tracking is off.

    Four processes that open a fresh SQLite file at once crash three of them, so this runs first. What goes wrong is said
    once, here, and the pipeline goes on.
    """
    record = {"uri": uri, "experiment": experiment, "experiment_id": None, "problem": None}
    if uri is None:
        record["problem"] = "switched off (tracking.enabled)"
    else:
        try:
            record["experiment_id"] = _open_experiment(experiment, uri)
        except Exception as error:
            record["problem"] = f"{type(error).__name__}: {_first_line(error)}"
            print(f"MLflow at {uri} cannot be used ({record['problem']}): this run is not tracked. {LATER}")
    write_json(out, record)


def _open_experiment(name: str, uri: str) -> str:
    client = _client(uri)
    experiment = client.get_experiment_by_name(name)
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database:
        # readers and writers no longer wait for each other: 300 to 460 points/s from four writers against 57 to 210
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    if experiment is None:
        files = database and (database.parent / "mlartifacts" / name).as_uri()
        return client.create_experiment(name, artifact_location=files)
    if experiment.lifecycle_stage != "active":
        raise UserError(f"experiment {name!r} was deleted there; restore it, or give this experiment another name")
    return experiment.experiment_id


def _client(uri: str) -> "MlflowClient":
    # without these a dead server blocks one call for minutes, and usage statistics go out over the network
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


# --- one run -----------------------------------------------------------------------------------------------------------


class MirroredRun:
    """One MLflow run and what of the files it has already."""

    def __init__(self, store: dict, name: str, settings: dict, tags: dict[str, str], protocol_hash: str | None = None):
        """Find the run of these settings, or create it.

        Args:
            store: what `init` wrote.
            settings: what identifies the run beside its name.
            protocol_hash: of its scores. A run that was scored by another protocol keeps its scores; these get their own run.
        """
        self.client, experiment = _client(store["uri"]), store["experiment_id"]
        identity = digest([store["experiment"], name, settings])[:32]
        found = self.client.search_runs([experiment], f"tags.identity = '{identity}'", order_by=["start_time DESC"])
        fitting = [run for run in found if protocol_hash in (None, run.data.params.get("protocol_hash", protocol_hash))]
        if fitting:
            self.run = fitting[0]
        else:
            tags = tags | {"sweep": store["experiment"], "identity": identity}
            self.run = self.client.create_run(experiment, tags=tags, run_name=name)
        self.id = self.run.info.run_id

    def params(self, values: dict[str, object]) -> None:
        """Log the params that the run does not have yet: another value for one it has would raise."""
        from mlflow.entities import Param

        new = {
            key: value for key, value in values.items() if key not in self.run.data.params and value not in (None, "")
        }
        self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in new.items()])

    def metrics(self, values: dict[str, float]) -> None:
        """Log final values, where they differ from the run's."""
        for key, value in values.items():
            if self.run.data.metrics.get(key) != value:
                self.client.log_metric(self.id, key, value)

    def points(self, path: Path) -> None:
        """Log the points of a training log beyond the last logged one; points logged twice would show twice."""
        from mlflow.entities import Metric

        last = self.client.get_run(self.id).data.metrics.get(LAST_POINT, -1)
        points = [point for point in _read_points(path) if point["nimg"] > last]
        for first in range(0, len(points), POINTS):
            batch = [
                Metric(
                    f"training/{key}", value, self.run.info.start_time + round(1000 * point["elapsed_s"]), point["nimg"]
                )
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
        names = [
            file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
        ]
        current = digest([[str(file), sha256_file(file)] for file in names])
        if self.client.get_run(self.id).data.tags.get(FILES) == current:
            return
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(self.id, str(path), path.name)
            else:
                self.client.log_artifact(self.id, str(path))
        self.client.set_tag(self.id, FILES, current)

    def status(self, status: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        if self.client.get_run(self.id).info.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(self.id, status=status)
        else:
            self.client.set_terminated(self.id, status)


def _read_points(path: Path) -> list[dict]:
    """The whole lines of a training log; the last one may still be under way."""
    points = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                points.append(json.loads(line))
    return points


def _generator_run(
    store: dict, settings: DistillSettings | ImportSettings, protocol_hash: str | None = None
) -> MirroredRun:
    """The MLflow run of a distillation or an import, with its settings as params."""
    run, others = settings.run, flat(settings.model_dump(mode="json", exclude={"run"}))
    strategy_tags = {"kind": "generator", "strategy": run.strategy, "scale": f"{run.teacher:g}"}
    mirrored = MirroredRun(store, run.name, settings.model_dump(mode="json"), strategy_tags, protocol_hash)
    scales = {f"kappa_{key}": getattr(run, key) for key in ("fake_train", "fake_eval", "teacher")}
    named = {key: getattr(run, key) for key in ("strategy", "alpha", "num_steps", "seed")}
    mirrored.params(scales | named | others)
    return mirrored


# --- while it trains ---------------------------------------------------------------------------------------------------


class Mirror:
    """Mirrors one training log from a thread beside the training, which never waits for it and never dies of it."""

    def __init__(self, tracking: Path, settings: DistillSettings, state: Path):
        """`tracking` is what `init` writes; until it is there nothing is mirrored."""
        self.tracking, self.settings, self.state = Path(tracking), settings, Path(state)
        self.run: MirroredRun | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._ended_as = "RUNNING"

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if kind is None:
            self._ended_as = "FINISHED"
        else:
            self._ended_as = "FAILED" if isinstance(error, UserError) else "KILLED"
        self._stop.set()
        self._thread.join(GOODBYE_S)

    def _loop(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._try(self._sync)
        if self.run is not None:
            self._try(self._sync)

    def _try(self, sync) -> None:
        try:
            sync()
        except Exception as error:
            log.debug("tracking: %s", _first_line(error))

    def _sync(self) -> None:
        if not self.tracking.is_file():
            return
        store = read_json(self.tracking)
        if store["problem"]:
            return
        if self.run is None:
            self.run = _generator_run(store, self.settings)
        self.run.status(self._ended_as)
        self.run.points(self.state / "training.jsonl")
        self.run.grids(self.state / "grids")


# --- when all is done ----------------------------------------------------------------------------------------------------


def track(experiment: str, results: Path, tracking: Path, out: Path) -> None:
    """Bring every row of summary.csv, with curves, grids, scores and files, to MLflow; print links; note them in `out`."""
    store = read_json(tracking)
    ids: dict[str, str] = {}
    if not store["problem"]:
        try:
            with open(results / "summary.csv", encoding="utf-8", newline="") as handle:
                for row in csv.DictReader(handle):
                    ids[row["run"]] = _sync_row(store, row, results)
        except Exception as error:
            store["problem"] = f"{type(error).__name__}: {_first_line(error)}"
            print(f"MLflow at {store['uri']} stopped answering ({store['problem']}). {LATER}")
    generators = [ids[row] for row in ids if (results / "runs" / row).is_dir()]
    links = {} if store["problem"] else _links(store, generators)
    if links:
        print(f"MLflow, experiment {experiment}: {len(ids)} runs. " + _how_to_look(store["uri"]))
        for what, link in links.items():
            print(f"  {what}: {link}")
    write_json(out, store | {"runs": ids, "links": links})


def _sync_row(store: dict, row: dict[str, str], results: Path) -> str:
    """Mirror one row of summary.csv and what lies behind it; its run's id."""
    name, kind = row["run"], row["kind"]
    folder = results / ("runs" if kind == "generator" else "baselines") / name
    if kind == "generator":
        kept = DistillSettings if (folder / "training.jsonl").is_file() else ImportSettings
        run = _generator_run(store, load_settings(kept, folder / "settings.yaml"), row["protocol_hash"])
        run.points(folder / "training.jsonl")
        run.grids(folder / "grids")
        weights = folder / "generator"
        run.client.set_tag(run.id, "generator", str(weights.resolve()))
        run.client.set_tag(run.id, "generator_sha256", row["generator_sha256"])
        small = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file()) <= LARGEST_UPLOAD
        run.files(
            folder / "settings.yaml", folder / "generate.yaml", folder / "score.json", *([weights] if small else [])
        )
    else:
        identity = {key: row[key] for key in PARAMS if key != "protocol_hash"}
        tags = {"kind": kind, "strategy": row["strategy"], "scale": row["kappa_teacher"]}
        run = MirroredRun(
            store, name, identity, {key: tag for key, tag in tags.items() if tag}, row["protocol_hash"] or None
        )
        if kind != "published":
            run.files(folder / "generate.yaml", folder / "score.json")
    run.params({key: row[key] for key in PARAMS})
    run.metrics({key: float(row[key]) for key in METRICS if row[key]})
    run.status("FINISHED")
    return run.id


def _links(store: dict, compared: list[str]) -> dict[str, str]:
    """Pages of the UI: curves of the whole experiment, and the given runs side by side."""
    base = store["uri"].rstrip("/") if store["uri"].startswith("http") else "http://127.0.0.1:5000"
    runs, experiment = quote(json.dumps(compared, separators=(",", ":"))), store["experiment_id"]
    return {
        "charts": f"{base}/#/experiments/{experiment}/runs?compareRunsMode=CHART",
        "generators side by side": f"{base}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}",
    }


def _how_to_look(uri: str) -> str:
    return "Look at" if uri.startswith("http") else "Start the server with `make ui`, then look at"
