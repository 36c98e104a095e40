"""Run every stage with a transformer with flow matching: one file outside of the package, and one registration."""

import json
from itertools import chain

import pytest
import torch
import yaml
from small_run import PROMPTS, make_settings
from tiny_flow import TinyFlow, write_teacher

from sid_core import cli
from sid_core.config import Baseline, BaselineSettings, GenerateSettings, Sampling, dump
from sid_core.data.shards import read_shard
from sid_core.models import backbones
from sid_core.models.teacher import load_backbone
from sid_core.sampling import generation


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "FAMILIES", [*backbones.FAMILIES, TinyFlow])
    monkeypatch.chdir(tmp_path)

    def run(stage: str, settings, **options) -> None:
        path = tmp_path / f"{stage}.yaml"
        path.write_text(settings if isinstance(settings, str) else dump(settings))
        arguments = [
            [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))] for key, value in options.items()
        ]
        assert cli.main([stage, "--settings", str(path), *chain(*arguments)]) in (0, None)

    return run


def test_stages_of_another_family_prepare_distil_and_sample(call, tmp_path, monkeypatch):
    source, teacher = write_teacher(tmp_path / "source"), tmp_path / "results" / "teacher"
    call("teacher", yaml.safe_dump({"source": "local", "path": str(source)}), out=teacher)
    assert type(load_backbone(teacher)) is TinyFlow

    (tmp_path / "captions.txt").write_text("\n".join(PROMPTS) + "\n")
    prompts = tmp_path / "prompts"
    block = {"source": "file", "train": str(tmp_path / "captions.txt"), "evaluation": str(tmp_path / "captions.txt")}
    call("prompts", yaml.safe_dump({"prompts": block}), teacher=teacher, out=prompts)
    run = tmp_path / "results" / "runs" / "lsg-1.5"
    assert not cli.main(["tracking-init", "--experiment", "x", "--off", "--out", str(tmp_path / "tracking.json")])
    call(
        "distill", make_settings(), teacher=teacher, prompts=prompts / "train.txt", state=tmp_path / "state",
        tracking=tmp_path / "tracking.json", out=run / "generator",
    )  # fmt: skip
    assert [path.name for path in run.glob("generator/*/*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    assert list((run / "generator").glob("transformer/config.json"))

    monkeypatch.setattr(generation, "EPS_ERROR_SAMPLES", 2)
    sampling = Sampling(batch=4)
    captions = prompts / "evaluation.txt"
    settings = GenerateSettings(t_init=625, num_steps=1, sampling=sampling)
    call(
        "generate", settings, generator=run / "generator", teacher=teacher, captions=captions, range=(0, 4),
        out=tmp_path / "run.tar",
    )  # fmt: skip
    baseline = Baseline(name="teacher", kind="teacher", solver="ddim", steps=3, guidance_scale=2.0)
    settings = BaselineSettings(baseline=baseline, split="evaluation", sampling=sampling)
    call("generate-baseline", settings, teacher=teacher, captions=captions, range=(0, 4), out=tmp_path / "baseline.tar")
    for name in ("run", "baseline"):
        record = json.loads((tmp_path / f"{name}.json").read_text())["record"]
        assert [sample["eps_error"] is not None for sample in record["samples"]] == [True, True, False, False]
        ((indices, images),) = read_shard(tmp_path / f"{name}.tar", 4)
        assert (indices, images.shape) == ([0, 1, 2, 3], (4, 32, 32, 3))


def test_backbone_of_another_family_guides_x0(call, tmp_path):
    teacher = load_backbone(write_teacher(tmp_path / "source"))
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9])
    encoder = TinyFlow.text_encoder(tmp_path / "source")
    cond, empty = encoder.encode(["a red dot", "two dots"]), encoder.empty()
    with_prompt, without = teacher(x_t, t, cond), teacher(x_t, t, empty.expand(2))
    torch.testing.assert_close(teacher(x_t, t, cond, empty, 3.0), without + 3 * (with_prompt - without))
