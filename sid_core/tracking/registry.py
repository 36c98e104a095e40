"""Register the best generator by a declared rule as a model for `mlflow.pyfunc`, without copying large weights."""

import shutil
import tempfile
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ..pipeline.inputs import load_frozen
from ..pipeline.paths import Results
from ..storage.files import MANIFEST, sha256_file, write_json
from .store import make_client, with_password

LARGEST_UPLOAD = 50_000_000  # bytes; larger weights are recorded by path
ALIAS = "best"
BETTER = {"fid": min, "clip": max}
LOADER = "sid_core.sampling.registered"  # called by its name: nothing is pickled


def size(*folders: Path) -> int:
    """Return the total size of all files below a folder, in bytes."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def register_best(store: dict, rule: str | None, rows: list[dict], ids: dict[str, str], results: Path) -> dict | None:
    """Make the generator with the best `rule` ("fid", the lowest, or "clip", the highest) the model EXPERIMENT@best.

    A generator is registered once; if it is the best again, the alias returns to its version. Return {"run", "rule",
    "uri"} or, without a rule or a scored generator, None.
    """
    candidates = [row for row in rows if row["kind"] == "generator" and row[rule or "fid"]]
    if rule is None or not candidates:
        return None
    best = BETTER[rule](candidates, key=lambda row: float(row[rule]))
    client, name = make_client(store["uri"]), model_name(store["experiment"])
    identity = {"generator_sha256": best["generator_sha256"], "run": best["run"]}
    known = client.search_model_versions(f"name = '{name}'")
    model_version = next((found.version for found in known if identity.items() <= found.tags.items()), None)
    if model_version is None:
        model_version = _register(client, store, name, identity, ids[best["run"]], results)
    client.set_registered_model_alias(name, ALIAS, model_version)
    order = "lowest" if BETTER[rule] is min else "highest"
    client.set_model_version_tag(name, model_version, "rule", f"{order} {rule}")
    return {"run": best["run"], "rule": rule, "uri": f"models:/{name}@{ALIAS}"}


def model_name(text: str) -> str:
    """Return a name that MLflow accepts: it rejects dots."""
    return text.replace(".", "_")


def _register(client, store: dict, name: str, identity: dict[str, str], run_id: str, results: Path) -> str:
    """Log the model with the run it comes from, register it, and return its version."""
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(with_password(store["uri"]))  # models:/ is resolved by the global URI, not by a client
    run, origin = identity["run"], {"source_run_id": run_id, "tags": identity, "model_type": "generator"}
    model = client.create_logged_model(store["experiment_id"], name=model_name(run), **origin)
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / "model", run, results)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with suppress(MlflowException):  # it exists
        client.create_registered_model(name, description=f"one-step generators of {store['experiment']}")
    source = f"models:/{model.model_id}"
    return client.create_model_version(name, source, run_id, tags=identity, model_id=model.model_id).version


def _save(out: Path, run: str, results: Path) -> None:
    """Write `out` in MLflow's layout from a folder `data` beside it, as `sid_core.sampling.registered` reads it."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    teacher = next((item.teacher for item in load_frozen(results).imports if item.name == run), None)
    places = {"generator": Results(results).run(run).generator, "teacher": Results(results).teacher(teacher)}
    data = out.with_name("data")
    data.mkdir()
    if copied := size(*places.values()) <= LARGEST_UPLOAD:
        for name, place in places.items():
            shutil.copytree(place, data / name)
    record = {
        name: {"path": name if copied else str(place.resolve()), "manifest_sha256": sha256_file(place / MANIFEST)}
        for name, place in places.items()
    }
    write_json(data / "model.json", record)
    prompts = Schema([ColSpec("string", "prompt"), ColSpec("long", "seed", required=False)])
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    with warnings.catch_warnings():  # MLflow asks for an input example, which it would run for seconds
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            str(out), loader_module=LOADER, data_path=str(data), signature=ModelSignature(prompts, images),
            pip_requirements=[f"sid_core=={version('sid_core')}"],
        )  # fmt: skip
