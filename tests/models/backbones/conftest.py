"""Run the stages of a family's tiny teacher by their subcommands."""

import json
from itertools import chain
from pathlib import Path

import pytest
import yaml
from small_run import PROMPTS, make_settings

from sid_core import cli
from sid_core.config import Baseline, BaselineSettings, GenerateSettings, Sampling, dump
from sid_core.data.shards import read_shard
from sid_core.sampling import generation


@pytest.fixture
def run_stages(monkeypatch, tmp_path):
    """Return a function that runs all stages to samples of generator and teacher; it returns the folders of both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generation, "EPS_ERROR_SAMPLES", 2)
    results, prompts = tmp_path / "results", tmp_path / "prompts"
    teacher, generator = results / "teacher", results / "runs" / "lsg-1.5" / "generator"

    def call(stage: str, settings, **options) -> None:
        path = tmp_path / f"{stage}.yaml"
        path.write_text(settings if isinstance(settings, str) else dump(settings))
        arguments = [
            [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))] for key, value in options.items()
        ]
        assert cli.main([stage, "--settings", str(path), *chain(*arguments)]) in (0, None)

    def run(
        source: Path, side: int, num_steps: int = 1, t_init: int = 625, solver: str = "ddim", kappa: float = 2.0
    ) -> tuple[Path, Path]:
        noise = {"step_noise": "ddim"} if num_steps > 1 else {}
        scales = dict.fromkeys(("fake_train", "fake_eval", "teacher"), kappa)
        call("teacher", yaml.safe_dump({"source": "local", "path": str(source)}), out=teacher)
        (tmp_path / "captions.txt").write_text("\n".join(PROMPTS) + "\n")
        block = dict.fromkeys(("train", "evaluation"), str(tmp_path / "captions.txt"))
        call("prompts", yaml.safe_dump({"prompts": block | {"source": "file"}}), teacher=teacher, out=prompts)
        assert not cli.main(["tracking-init", "--experiment", "x", "--off", "--out", str(tmp_path / "tracking.json")])
        call(
            "distill", make_settings({"num_steps": num_steps} | noise | scales, t_init=t_init), teacher=teacher,
            prompts=prompts / "train.txt", state=tmp_path / "state", tracking=tmp_path / "tracking.json", out=generator,
        )  # fmt: skip
        inputs = {"teacher": teacher, "captions": prompts / "evaluation.txt", "range": (0, 4)}
        settings = GenerateSettings(t_init=t_init, num_steps=num_steps, **noise, sampling=Sampling(batch=4))
        call("generate", settings, generator=generator, out=tmp_path / "run.tar", **inputs)
        baseline = Baseline(name="teacher", kind="teacher", solver=solver, steps=3, guidance_scale=kappa)
        settings = BaselineSettings(baseline=baseline, split="evaluation", sampling=Sampling(batch=4))
        call("generate-baseline", settings, out=tmp_path / "baseline.tar", **inputs)
        for name in ("run", "baseline"):
            record = json.loads((tmp_path / f"{name}.json").read_text())["record"]
            assert [sample["eps_error"] is not None for sample in record["samples"]] == [True, True, False, False]
            ((indices, images),) = read_shard(tmp_path / f"{name}.tar", 4)
            assert (indices, images.shape) == ([0, 1, 2, 3], (4, side, side, 3))
        return teacher, generator

    return run
