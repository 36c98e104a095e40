"""Add a metric of one row and one function, and find it in every place that shows metrics."""

import csv
import json
from pathlib import Path

import pytest
import torch
from made_up import CAPTIONS, SAMPLES, make_config, write_experiment
from safetensors.torch import save_file
from torch.nn.functional import normalize

from sid_core import cli, tracking
from sid_core.config import Evaluate, ScoreSettings, baselines, dump, generators
from sid_core.data.shards import captions_sha256
from sid_core.evaluation.metrics import compute
from sid_core.evaluation.metrics.catalogue import METRICS, Metric
from sid_core.evaluation.metrics.samples import mean
from sid_core.evaluation.pairs import write_pairs
from sid_core.evaluation.protocol import image_record
from sid_core.evaluation.scoring import score
from sid_core.pipeline.inputs import Inputs
from sid_core.pipeline.settings import stage_settings
from sid_core.report import write_report
from sid_core.storage.files import read_json, write_manifest, write_sidecar

# --- the metric: a row of the catalogue, and a function ------------------------------------------------------------------

LENGTH = Metric("length", "Length", "higher", 2, recipe={"formula": "mean norm of the features"}, shown="main")


def length(sets: compute.Sets):
    return mean(sets.samples["features"].norm(dim=1))


# --- where it is found ---------------------------------------------------------------------------------------------------

WEIGHTS = {"features": "f" * 64, "clip": "c" * 64}
EVALUATE = Evaluate(protocol="tiny", reference_samples=30, batch=1, neighbours=2)


def rows(seed: int, count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features, image, text = torch.randn(3, count, 6, generator=generator)
    clip = {"clip_image": normalize(image, dim=1), "clip_text": normalize(text, dim=1)}
    return {"index": torch.arange(count), "features": features, **clip}


def save(path: Path, tensors: dict[str, torch.Tensor], **record) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    write_sidecar(path, {"weights": WEIGHTS, "extras": {}, "images": image_record(EVALUATE)} | record)
    return path


def write_scores(folder: Path, config) -> None:
    """Score every run and baseline from features of its own."""
    source = {"source": "embedded", "count": 30, "images_sha256": "a" * 64}
    reference = save(folder / "reference" / "features.safetensors", rows(100, 30), **source)
    samples = [{"index": i, "seed": i, "sha256": str(i), "eps_error": None} for i in range(SAMPLES)]
    shard = {"start": 0, "stop": SAMPLES, "samples": samples, "captions_sha256": captions_sha256(CAPTIONS)}
    shard |= {"seed": 0, "noise_device": "cpu", "device": "cpu", "precision": "float32", "caption_prefix": ""}
    shard |= {"sampler": None, "images_per_s": 10.0, "generator_sha256": "a" * 64}
    folders = {f"runs/{run.name}": run.num_steps for run in generators(config)}
    folders |= {f"baselines/{baseline.name}": baseline.nfe for baseline in baselines(config)}
    for number, (name, nfe) in enumerate(folders.items()):
        features = save(folder / name / "features.safetensors", rows(number, SAMPLES), nfe=nfe, **shard)
        settings = ScoreSettings(evaluate=EVALUATE, samples=SAMPLES, seed=0)
        score(settings, [features], reference, folder / "prompts" / "evaluation.txt", folder / name / "score.json")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Make a finished experiment that was scored, compared and tracked with the metric in the catalogue."""
    project = tmp_path_factory.mktemp("project")
    folder, config = project / "results" / "shapes", make_config()
    folder.mkdir(parents=True)
    write_experiment(folder, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, LENGTH.key, LENGTH)
        patch.setitem(compute.FUNCTIONS, (LENGTH.key,), length)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_scores(folder, config)
        write_pairs(config, Inputs.finished(config, folder))
        write_report(config, Inputs.finished(config, folder))
        for name, settings in (stage_settings(config) | {"config.yaml": config}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(dump(settings))
        (folder / "teacher").mkdir()
        write_manifest(folder / "teacher")
        tracking.init("shapes", f"sqlite:///{project / 'mlflow.db'}", folder / "state" / "tracking.json")
        tracking.track(folder)
        yield folder


@pytest.fixture
def scored(experiment):
    return read_json(experiment / "runs" / "lsg-3" / "score.json")


def test_added_metric_is_in_the_score_with_its_interval(scored):
    low, high = scored["intervals"]["length"]
    assert low < scored["length"] < high
    assert scored["standard_errors"]["length"] > 0
    assert scored["recipes"]["length"] == LENGTH.recipe


def test_added_metric_is_a_column_of_the_summary(experiment, scored):
    with (experiment / "summary.csv").open(encoding="utf-8", newline="") as handle:
        table = {row["run"]: row for row in csv.DictReader(handle)}
    assert float(table["lsg-3"]["length"]) == scored["length"]
    assert table["real"]["length"]
    assert "Length ↑ |" in (experiment / "summary.md").read_text(encoding="utf-8")


def test_added_metric_is_a_column_and_a_difference_of_the_page(experiment, scored):
    page = (experiment / "report.html").read_text(encoding="utf-8")
    assert '<button type="button">Length ↑</button>' in page
    assert f'<td data-sort="{scored["length"]}">{scored["length"]:.2f} ± ' in page
    assert '<option value="length">Length ↑</option>' in page
    pairs = page.split('<script type="application/json" id="pairs">')[1].split("</script>")[0]
    [(_, _, _, value, low, high, *_)] = [p for p in json.loads(pairs) if p[:3] == ["lsg-1.5", "lsg-3", "length"]]
    assert low < value < high


def test_added_metric_is_mirrored_to_mlflow(experiment, scored):
    from mlflow import MlflowClient

    record = read_json(experiment / "tracking.json")
    run = MlflowClient(record["uri"]).get_run(record["runs"]["lsg-3"])
    assert run.data.metrics["length"] == scored["length"]


def test_added_metric_is_compared_with_its_interval(experiment, scored, capsys):
    assert cli.main(["compare", *(str(experiment / "runs" / name) for name in ("lsg-1.5", "lsg-3"))]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("length (higher)")]
    low, high = scored["intervals"]["length"]
    assert f"{scored['length']:.2f} [{low:.2f}, {high:.2f}]" in line


def test_metric_without_a_function_is_named(monkeypatch):
    monkeypatch.setitem(METRICS, "width", Metric("width", "Width", None, 2))
    with pytest.raises(AssertionError, match="width: in the catalogue or in FUNCTIONS"):
        compute.estimates(compute.Sets({}, {}, EVALUATE))


def test_metric_without_a_better_direction_is_compared_without_a_verdict(experiment, monkeypatch, capsys):
    monkeypatch.setitem(METRICS, LENGTH.key, Metric("length", "Length", None, 2))
    assert cli.main(["compare", *(str(experiment / "runs" / name) for name in ("lsg-1.5", "lsg-3"))]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("length ")]
    assert line.endswith("]")
