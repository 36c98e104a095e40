"""Test that the shipped experiments are valid and have the published settings."""

import csv
from pathlib import Path
from unittest.mock import Mock

import pytest
from project import Project

from sid_core import config as c
from sid_core.pipeline.plan import to_text
from sid_core.report.table import PUBLISHED
from sid_core.tracking import run as tracking
from sid_core.training.iteration import EMA_RAMP, Trainer, passes_an_image
from sid_core.training.optimizer import BETA2, EPS
from sid_core.training.run import _identity

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def load(name: str) -> c.Config:
    return c.load_config(ROOT / "config.yaml", ROOT / "experiments" / f"{name}.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_file_validates_and_has_its_name(path):
    assert load(path.stem).experiment == path.stem


def published(teacher: str) -> list[tuple[str, float, float]]:
    """Return strategy, scale and thousand images of every published row."""
    with open(PUBLISHED, encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["teacher"] == teacher]
    return [(row["strategy"], float(row["kappa"]), float(row["train_kimg"])) for row in rows]


@pytest.mark.parametrize("name", ["sd15", "sd21-base"])
def test_experiments_have_the_published_lengths_and_settings(name):
    config = load(name)
    trained = [(s.run.strategy, s.run.teacher, s.distill.train_kimg) for s in c.distillations(config)]
    assert sorted(trained) == sorted(published(name))
    distill = config.distill
    assert (distill.batch, distill.lr, distill.lr_final, distill.t_init, distill.alpha) == (512, 1e-6, None, 625, 1.0)
    assert (BETA2, EPS) == (0.999, 1e-8)
    assert (*Trainer.noise_levels, Trainer.prompt_dropout) == (20, 980, 0.1)
    assert list(c.CONSTANTS.values()) == [*Trainer.noise_levels, Trainer.prompt_dropout, None]
    assert (distill.ema_halflife_nimg, EMA_RAMP, distill.num_steps) == (50_000, 0.05, 1)


def test_identities_of_runs_hold_former_settings(monkeypatch):
    [settings, *_] = c.distillations(load("sd15"))
    found = _identity(settings, "t" * 64, ["a prompt"])
    assert {f"distill.{key}": value for key, value in c.CONSTANTS.items()}.items() <= found.items()
    monkeypatch.setattr(tracking, "MirroredRun", Mock())
    tracking.generator_run({}, settings)
    _, _, identity, *_ = tracking.MirroredRun.call_args.args
    assert c.CONSTANTS.items() <= identity["distill"].items()


def test_sd15_trains_the_main_run_of_the_paper():
    [longest] = [s for s in c.distillations(load("sd15")) if s.distill.train_kimg == 18_789]
    assert (longest.run.name, longest.run.strategy, longest.run.teacher) == ("lsg-1.5-longer", "lsg", 1.5)


def test_published_lists_nine_checkpoints_with_scales_and_lengths():
    config = load("published")
    with open(PUBLISHED, encoding="utf-8", newline="") as handle:
        rows = {(r["teacher"], float(r["kappa"]), float(r["train_kimg"])) for r in csv.DictReader(handle)}
    assert {(i.teacher or "sd15", i.scale, i.train_kimg) for i in config.imports} == rows
    for imported in config.imports:
        assert f"_{imported.train_kimg:g}_" in imported.file
        assert f"cfg{imported.scale:g}{imported.scale:g}{imported.scale:g}_" in imported.file
        assert ("sd21" in imported.file) == (imported.teacher is not None)


@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sd21-768", "published"])
def test_evaluation_equals_the_published_protocol(name):
    config = load(name)
    evaluate = config.evaluate
    assert (evaluate.protocol, evaluate.reference_samples, config.generate.samples) == ("coco2014-30k", 40_504, 30_000)
    assert (evaluate.image_size, evaluate.feature_size, evaluate.caption_prefix) == (256, 299, "A photo depicts ")
    assert config.prompts.evaluation == "coco2014-30k"
    assert config.generate.seed == 0


PASSES = {  # network passes an image, as the comments of the files state them
    "shapes-methods": {"lsg": 25, "long": 17, "none": 15, "zero": 15, "anti": 23, "dmd": 26, "diff_instruct": 14},
    "sd15-methods": {"lsg": 18, "long": 13, "none": 11, "zero": 11, "anti": 16, "dmd": 46, "diff_instruct": 10},
}
OTHERS = {"shapes-methods": {4: 21.5, "GAN": 20}, "sd15-methods": {4: 14}}  # by steps, or with a GAN
SCALES = {"lsg": 1.5, "long": 1.5, "none": 1, "zero": 1, "anti": 1, "dmd": 1.75, "diff_instruct": 1.5}


@pytest.mark.parametrize("name", PASSES)
def test_methods_have_their_published_scales_and_stated_passes(name):
    config = load(name)
    first = [
        s for s in c.distillations(config) if s.run.seed == 0 and s.run.num_steps == 1 and not s.run.uses_real_images
    ]
    rows = {s.run.strategy if s.run.objective == "sid" else s.run.objective: s for s in first}
    assert {key: passes_an_image(s) for key, s in rows.items()} == PASSES[name]
    assert {key: s.run.teacher for key, s in rows.items()} == SCALES
    others = [s for s in c.distillations(config) if s.run.seed == 0 and s not in first]
    assert {"GAN" if s.run.adversarial else s.run.num_steps: passes_an_image(s) for s in others} == OTHERS[name]
    assert len({s.distill.train_kimg for s in first}) == 1
    text = to_text(config, passes=passes_an_image)
    kimg = f"{config.distill.train_kimg:,g}"
    assert all(f"distill {kimg} kimg x {passes} passes" in text for passes in PASSES[name].values())


@pytest.mark.parametrize("name", PASSES)
def test_dry_run_of_methods_plans_every_run(name, tmp_path):
    planned = Project(tmp_path).planned("--configfile", str(ROOT / "experiments" / f"{name}.yaml"))
    config = load(name)
    assert planned["distill"] == len(c.runs(config))
    assert planned["score"] == len(c.generators(config)) + len(c.baselines(config))
