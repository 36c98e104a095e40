"""Upload every run, score and file of an experiment to MLflow once, at its end or any time later."""

import csv
import io
from pathlib import Path

from ..config import DistillSettings, ImportSettings, ResampleSettings, load_settings, read_yaml
from ..errors import HIDDEN, UserError
from ..pipeline.inputs import load_frozen
from ..pipeline.paths import Results, Row, State
from ..storage.files import read_json, write_json
from ..storage.lease import living_owner
from . import views
from .registry import LARGEST_UPLOAD, register_best, size
from .run import MirroredRun, generator_run
from .store import first_line, init, later, make_client, resolve_uri

# columns of summary.csv that are settings; the other columns of numbers are metrics
PARAMS = (
    *("teacher", "method", "objective", "strategy", "kappa_fake_train", "kappa_fake_eval", "kappa_teacher"),
    *("seed", "solver", "steps", "nfe"),
    *("train_kimg", "whole_kimg", "network_passes", "real_images", "samples", "protocol", "protocol_hash"),
)
NAMES = {"run", "label", "kind", "alpha", "not_comparable", "generator_sha256"}  # alpha is among a run's own settings


def sync(results: Path, uri: str | None) -> None:
    """Mirror results/EXPERIMENT, finished or not, to the store of `resolve_uri`; raise UserError if it fails."""
    config = load_frozen(results)
    store = init(config.experiment, resolve_uri(config.tracking.uri, uri), Results(results).store)
    if not store["problem"]:
        store = track(results)
    if store["problem"]:
        raise UserError(f"nothing more was mirrored: {store['problem']}")


def track(results: Path) -> dict:
    """Upload every row of summary.csv and every training to MLflow, and register the best generator.

    Prints links, and writes and returns tracking.json: the record of `init`, ids of runs, links, the registered model.
    """
    paths = Results(results)
    best, store = load_frozen(results).tracking.best, read_json(paths.store)
    ids: dict[str, str] = {}
    model = None
    if not store["problem"]:
        try:
            text = paths.summary.read_text(encoding="utf-8") if paths.summary.is_file() else ""  # before the report
            rows = list(csv.DictReader(io.StringIO(text)))
            for row in rows:
                ids[row["run"]] = _sync_row(store, row, paths)
            for folder in sorted(paths.runs.glob("*")):
                if folder.name not in ids and (run_id := _sync_training(store, Row(folder), paths.state(folder.name))):
                    ids[folder.name] = run_id
            model = register_best(store, best, rows, ids, results)
            views.save(make_client(store["uri"]), store["experiment_id"])
        except Exception as error:
            store["problem"] = first_line(error)
            print(f"MLflow at {store['uri']} stopped answering ({store['problem']}). {later(results)}")
    links = {} if store["problem"] else _links(store)
    if links:
        start = "" if store["uri"].startswith("http") else " Start the server with `make ui`, then open"
        print(f"MLflow, experiment {store['experiment']}: {len(ids)} runs.{start}")
        for what, link in links.items():
            print(f"  {what}: {link}")
        if model:
            print(f"  best generator by {model['rule']}: {model['run']}, registered as {model['uri']}")
    record = store | {"runs": ids, "links": links, "model": model}
    write_json(paths.mirrored, record)
    return record


def _sync_row(store: dict, row: dict[str, str], results: Results) -> str:
    """Mirror one row of summary.csv with its curves and files, and return its run's id."""
    name, kind = row["run"], row["kind"]
    if kind == "generator":
        of = results.run(name)
        kinds = {"distill": DistillSettings, "source": ResampleSettings, "imported": ImportSettings}
        kept = kinds[next(filter(kinds.__contains__, read_yaml(of.settings)))]
        run = generator_run(store, load_settings(kept, of.settings), row["protocol_hash"], of.record)
        run.points(of.training)
        run.grids(of.grids)
        weights = of.generator
        run.client.set_tag(run.id, "generator", str(weights.resolve()))
        run.client.set_tag(run.id, "generator_sha256", row["generator_sha256"])
        small = size(weights) <= LARGEST_UPLOAD
        run.files(of.settings, of.generation, of.score, *([weights] if small else []))
    else:
        identity = {key: row.get(key, "") for key in PARAMS if key != "protocol_hash"}
        tags = {"kind": kind, "strategy": row["strategy"], "scale": row["kappa_teacher"]}
        tags = {key: tag for key, tag in tags.items() if tag}
        run = MirroredRun(store, name, identity, tags, row["protocol_hash"] or None, row.get("label"))
        if kind != "published":
            of = results.baseline(name)
            run.files(of.generation, of.score)
    run.params({key: row.get(key, "") for key in PARAMS})  # a table of an earlier version has no solver
    run.metrics({key: float(value) for key, value in row.items() if value and key not in NAMES.union(PARAMS)})
    run.status("FINISHED")
    return run.id


def _sync_training(store: dict, row: Row, state: State) -> str | None:
    """Mirror a distillation that is in no table yet and return its run's id, or None if it has not begun."""
    source = row if row.training.is_file() else state
    if not source.training.is_file():
        return None
    run = generator_run(store, load_settings(DistillSettings, row.settings), None, row.record, state.identity)
    run.points(source.training)
    run.grids(source.grids)
    finished = row.record.is_file()
    run.status("FINISHED" if finished else "RUNNING" if living_owner(state.folder) else "KILLED")
    return run.id


def _links(store: dict) -> dict[str, str]:
    """Return links to the experiment's scores in the UI."""
    server = store["uri"].replace(f"{HIDDEN}@", "").rstrip("/")  # a browser asks for the password
    return views.links(server if server.startswith("http") else "http://127.0.0.1:5000", store["experiment_id"])
