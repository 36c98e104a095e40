"""Test `sid-core compare` and pairs.csv on made-up scores."""

import csv
import json
import random
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml

from sid_core import cli
from sid_core.config import Config, baselines, generators, merge, parse_config
from sid_core.errors import UserError
from sid_core.evaluation.metrics.catalogue import METRICS
from sid_core.evaluation.metrics.uncertainty import Estimate, bootstrap, jackknife, mean_over_seeds
from sid_core.evaluation.pairs import read, replicates_record, write_pairs
from sid_core.pipeline.inputs import Inputs
from sid_core.storage.files import digest, write_json

ROOT = Path(__file__).parents[2]
GROUPS = 8
PROTOCOL = {"name": "made-up", "samples": 5000, "kid": {"subsets": 100}}
MISSING = {name: f"evaluate.{name} is null" for name in ("hps", "pickscore")} | {"fd_dinov2": "evaluate.dinov2 is null"}


def estimates(level: float, seed: int, own: float) -> dict[str, Estimate]:
    """Make every computed metric at `level`; replicates are noise that all runs share, and `own` times noise of the run's own."""
    shared, private = random.Random(0), random.Random(seed)
    found = {}
    for metric in METRICS:
        if metric in MISSING:
            continue
        noise = [
            shared.gauss(0, 0.1) + own * private.gauss(0, 0.1) for _ in range(20 if metric == "clip" else 2 * GROUPS)
        ]
        values = [level + value for value in noise]
        found[metric] = bootstrap(level, values) if metric == "clip" else jackknife(level, values)
    return found


def make_score(folder: Path, level: float, seed: int = 0, own: float = 0.01, protocol: dict = PROTOCOL, **more) -> Path:
    found = estimates(level, seed, own)
    values = {metric: found[metric].value if metric in found else None for metric in METRICS}
    score = {
        "samples": protocol["samples"],
        **values,
        "intervals": {metric: [e.low, e.high] for metric, e in found.items()},
        "not_computed": MISSING,
        "recipes": {},
        "protocol": protocol,
        "protocol_hash": digest(protocol),
    }
    write_json(folder / "score.json", score | more)
    write_json(folder / "replicates.json", {metric: replicates_record(e) for metric, e in found.items()})
    return folder


@pytest.fixture
def runs(tmp_path):
    """Make scores: `good` is better than `bad` by ten standard errors in metrics where lower is better; `same` differs from good by chance."""
    folder = tmp_path / "x" / "runs"
    return [
        make_score(folder / "good", 3.0, 1),
        make_score(folder / "bad", 4.0, 2),
        make_score(folder / "same", 3.0001, 3, own=1),
    ]


def compare(capsys, *folders) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, folders)])
    return code, *capsys.readouterr()


def test_compare_names_the_runs_that_use_real_images(runs, capsys):
    for folder, used in zip(runs[:2], (True, False), strict=True):
        write_json(folder / "generator" / "generator.json", {"uses_real_images": used})
    code, said, _ = compare(capsys, *runs)
    assert code == 0
    assert [line for line in said.splitlines() if "real images" in line] == ["good uses real images."]


def test_compare_prints_intervals_and_winners(runs, capsys):
    code, table, _ = compare(capsys, *runs[:2])
    assert code == 0
    lines = {line.split("  ")[0]: line for line in table.splitlines()}
    good = read(runs[0]).estimates["fid"]
    assert f"3.00 [{good.low:.2f}, {good.high:.2f}]" in lines["fid (lower)"]
    assert "good, by 1.00" in lines["fid (lower)"]
    assert "bad, by 1.00" in lines["precision (higher)"]
    assert table.startswith("protocol made-up (")
    assert "Not computed: fd_dinov2 (evaluate.dinov2 is null), hps (evaluate.hps is null)" in table
    assert not any(line.startswith("hps") for line in table.splitlines())


def test_compare_of_a_difference_within_its_interval_has_no_winner(runs, capsys):
    _, table, _ = compare(capsys, runs[0], runs[2])
    row = next(line for line in table.splitlines() if line.startswith("fid (lower)"))
    assert row.endswith("no difference shown")
    _, table, _ = compare(capsys, *runs)
    row = next(line for line in table.splitlines() if line.startswith("kid (lower)"))
    assert row.endswith("no difference shown: good, same")
    row = next(line for line in table.splitlines() if line.startswith("recall (higher)"))
    assert row.endswith("  bad")


def test_compare_of_a_value_outside_its_interval_decides_by_the_interval(tmp_path, capsys):
    # FID_inf: the value is a line's, the interval a parabola's.
    config, centres = make_experiment(tmp_path), {"lsg-1.5": 5.0, "lsg-2": 9.0}
    for name, centre in centres.items():
        folder = tmp_path / "runs" / name
        score, records = (json.loads((folder / file).read_text()) for file in ("score.json", "replicates.json"))
        values = [centre + value for value in estimates(0, 1, 0.01)["fid_inf"].replicates]
        found = jackknife({"lsg-1.5": 8.0, "lsg-2": 7.0}[name], values, centre=centre)
        write_json(folder / "replicates.json", records | {"fid_inf": replicates_record(found)})
        intervals = score["intervals"] | {"fid_inf": [found.low, found.high]}
        write_json(folder / "score.json", score | {"fid_inf": found.value, "intervals": intervals})
    write_pairs(config, Inputs.finished(config, tmp_path))
    pair = ("lsg-1.5", "lsg-2", "fid_inf")
    [row] = [row for row in rows(tmp_path / "pairs.csv") if (row["a"], row["b"], row["metric"]) == pair]
    assert (float(row["difference"]), row["better"]) == (1.0, "lsg-1.5")
    assert float(row["high"]) < 0
    _, table, _ = compare(capsys, *(tmp_path / "runs" / name for name in centres))
    verdict = next(line for line in table.splitlines() if line.startswith("fid_inf"))
    assert re.search(r"lsg-1\.5, by -1\.0\d* \[[34]\.\d+, [45]\.\d+\]$", verdict)


def test_compare_of_two_experiments_names_them(runs, tmp_path, capsys):
    other = make_score(tmp_path / "y" / "runs" / "good", 3.5)
    _, table, _ = compare(capsys, runs[0], other)
    assert table.splitlines()[2].split() == ["x/good", "y/good", "better"]
    copy = make_score(tmp_path / "elsewhere" / "x" / "runs" / "good", 3.5)
    _, table, _ = compare(capsys, runs[0], copy)
    assert table.splitlines()[2].split() == [str(runs[0]), str(copy), "better"]


def test_compare_of_other_protocols_names_the_differences(runs, tmp_path, capsys):
    other = make_score(tmp_path / "other", 3.0, protocol=PROTOCOL | {"samples": 1000, "kid": {"subsets": 50}})
    code, table, message = compare(capsys, runs[0], runs[1], other)
    assert (code, table) == (1, "")
    assert message.startswith("error: not comparable: ")
    assert f"{runs[0]} and {other} have different protocols (kid.subsets: 100, 50; samples: 5000, 1000)" in message


def test_compare_of_other_recipes_marks_the_metric(runs, tmp_path, capsys):
    other = make_score(tmp_path / "other", 5.0, recipes={"cmmd": {"sigma": 20}})
    _, table, _ = compare(capsys, runs[0], other)
    rows = {line.split("  ")[0]: line for line in table.splitlines()}
    assert rows["cmmd (lower)"].endswith("not comparable: measured differently")
    assert "good, by" in rows["fid (lower)"]


def test_compare_of_an_unscored_run_names_it(runs, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no score.json;" in compare(capsys, runs[0], empty)[2]
    assert f"{tmp_path / 'nowhere'}: no score.json;" in compare(capsys, runs[0], tmp_path / "nowhere")[2]
    assert "expected two or more different runs" in compare(capsys, runs[0])[2]
    assert "expected two or more different runs" in compare(capsys, runs[0], runs[0])[2]
    (runs[1] / "replicates.json").write_bytes((runs[2] / "replicates.json").read_bytes())
    assert f"{runs[1] / 'replicates.json'}: not of the score beside it" in compare(capsys, *runs[:2])[2]
    (runs[1] / "replicates.json").unlink()
    assert f"{runs[1] / 'replicates.json'}: no such file" in compare(capsys, *runs[:2])[2]
    write_json(runs[1] / "score.json", {"fid": 3.0})
    assert f"{runs[1] / 'score.json'}: no score with intervals" in compare(capsys, *runs[:2])[2]


def test_compare_of_other_numbers_of_groups_raises(runs, tmp_path):
    other = make_score(tmp_path / "other", 3.0)
    records, score = json.loads((other / "replicates.json").read_text()), json.loads((other / "score.json").read_text())
    fewer = jackknife(3.0, records["kid"]["values"][: GROUPS - 2])
    write_json(other / "replicates.json", records | {"kid": replicates_record(fewer)})
    write_json(other / "score.json", score | {"intervals": score["intervals"] | {"kid": [fewer.low, fewer.high]}})
    with pytest.raises(UserError, match=r"16 and 6 replicates of kid\. Fix: score both with one version of sid-core"):
        cli._compare(type("Given", (), {"runs": [runs[0], other]}))


def test_compare_imports_no_torch(runs):
    # Without torch, and as a user calls it.
    code = f"import sys; from sid_core import cli; cli.main(['compare', {str(runs[0])!r}, {str(runs[1])!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# --- all pairs of an experiment ----------------------------------------------------------------------------------------


def make_experiment(folder: Path, **changes) -> Config:
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    config = parse_config(merge(shipped, {"guidance_scales": [1.5, 2.0]} | changes))
    for number, run in enumerate(generators(config)):
        make_score(folder / "runs" / run.name, 3.0 + run.teacher + 0.01 * (run.seed or 0), number)
    for number, baseline in enumerate(baselines(config)):
        make_score(folder / "baselines" / baseline.name, 2.0, 50 + number)
    return config


def rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_write_pairs_writes_every_pair(tmp_path):
    config = make_experiment(tmp_path)
    write_pairs(config, Inputs.finished(config, tmp_path))
    items = len(generators(config)) + len(baselines(config))
    found = rows(tmp_path / "pairs.csv")
    assert len(found) == items * (items - 1) // 2 * (len(METRICS) - len(MISSING))
    assert {row["over"] for row in found} == {"samples"}
    [fid] = [row for row in found if (row["a"], row["b"], row["metric"]) == ("lsg-1.5", "lsg-2", "fid")]
    expected = read(tmp_path / "runs" / "lsg-1.5").estimates["fid"] - read(tmp_path / "runs" / "lsg-2").estimates["fid"]
    assert [float(fid[key]) for key in ("difference", "low", "high")] == [expected.value, expected.low, expected.high]
    assert (fid["excludes_zero"], fid["better"]) == ("true", "lsg-1.5")
    assert rows(tmp_path / "seeds.csv") == []


def test_write_pairs_over_seeds_uses_equal_seeds(tmp_path):
    config = make_experiment(tmp_path, seeds=[0, 1, 2])
    write_pairs(config, Inputs.finished(config, tmp_path))
    [mean] = [row for row in rows(tmp_path / "seeds.csv") if (row["run"], row["metric"]) == ("lsg-2", "fid")]
    assert (float(mean["mean"]), float(mean["sd"]), mean["seeds"]) == (pytest.approx(5.01), pytest.approx(0.01), "3")
    assert float(mean["high"]) - 5.01 == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    over_seeds = [row for row in rows(tmp_path / "pairs.csv") if row["over"] == "seeds"]
    settings, others = ["lsg-1.5", "lsg-2"], [baseline.name for baseline in baselines(config)]
    assert {(row["a"], row["b"]) for row in over_seeds} == {("lsg-1.5", "lsg-2"), *product(settings, others)}
    [fid] = [row for row in over_seeds if (row["b"], row["metric"]) == ("lsg-2", "fid")]
    assert (float(fid["difference"]), fid["better"]) == (pytest.approx(-0.5), "lsg-1.5")


def test_write_pairs_over_seeds_against_a_baseline_uses_all_seeds(tmp_path):
    imported = {"name": "official", "file": "a.pkl", "scale": 2, "train_kimg": 4812}
    config = make_experiment(tmp_path, seeds=[0, 1, 2], imports=[imported])
    write_pairs(config, Inputs.finished(config, tmp_path))
    assert ("lsg-2", "official", "seeds") in {(row["a"], row["b"], row["over"]) for row in rows(tmp_path / "pairs.csv")}
    [fid] = [
        row
        for row in rows(tmp_path / "pairs.csv")
        if (row["a"], row["b"], row["metric"], row["over"]) == ("lsg-2", "vae", "fid", "seeds")
    ]
    assert (float(fid["difference"]), fid["better"]) == (pytest.approx(3.01), "vae")
    ours = [read(tmp_path / "runs" / name).estimates["fid"] for name in ("lsg-2", "lsg-2-seed1", "lsg-2-seed2")]
    vae = read(tmp_path / "baselines" / "vae").estimates["fid"]
    expected = mean_over_seeds([one - vae for one in ours])
    assert [float(fid["low"]), float(fid["high"])] == [expected.low, expected.high]
    assert expected.high - expected.low > 2 * 4.3027 * 0.01 / 3**0.5  # the spread of the seeds alone


def test_write_pairs_over_seeds_of_other_recipes_writes_no_mean(tmp_path):
    config = make_experiment(tmp_path, seeds=[0, 1, 2])
    path = tmp_path / "runs" / "lsg-2-seed1" / "score.json"
    write_json(path, json.loads(path.read_text()) | {"recipes": {"cmmd": {"sigma": 20}}})
    write_pairs(config, Inputs.finished(config, tmp_path))
    assert ("lsg-2", "cmmd") not in {(row["run"], row["metric"]) for row in rows(tmp_path / "seeds.csv")}
    assert ("lsg-2", "fid") in {(row["run"], row["metric"]) for row in rows(tmp_path / "seeds.csv")}
    over_seeds = [row for row in rows(tmp_path / "pairs.csv") if row["over"] == "seeds" and row["metric"] == "cmmd"]
    assert {(row["a"], row["b"]) for row in over_seeds} == {("lsg-1.5", one.name) for one in baselines(config)}


def test_write_pairs_of_missing_scores_raises(tmp_path):
    config = make_experiment(tmp_path)
    (tmp_path / "runs" / "lsg-2" / "score.json").unlink()
    with pytest.raises(UserError, match=r"lsg-2: no score\.json"):
        write_pairs(config, Inputs.finished(config, tmp_path))
    assert not (tmp_path / "pairs.csv").exists()


def test_write_pairs_so_far_uses_finished_scores(tmp_path):
    config = make_experiment(tmp_path)
    (tmp_path / "runs" / "lsg-2" / "score.json").unlink()
    write_pairs(config, Inputs.so_far(config, tmp_path))
    names = {row[key] for row in rows(tmp_path / "so-far" / "pairs.csv") for key in "ab"}
    assert names == {run.name for run in generators(config)} - {"lsg-2"} | {one.name for one in baselines(config)}


def test_write_pairs_without_scores_raises(tmp_path):
    config, elsewhere = make_experiment(tmp_path / "scored"), tmp_path / "elsewhere"
    with pytest.raises(UserError, match="elsewhere: no run is scored yet"):
        write_pairs(config, Inputs.so_far(config, elsewhere))
    assert not elsewhere.exists()
