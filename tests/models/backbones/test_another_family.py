"""Run every stage with a transformer with flow matching: one file outside of the package, and one registration."""

import pytest
import torch
from tiny_flow import TinyFlow, write_teacher

from sid_core import cli
from sid_core.models import backbones
from sid_core.models.teacher import load_backbone


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(backbones, "FAMILIES", [*backbones.FAMILIES, TinyFlow])


def test_stages_of_another_family_prepare_distil_and_sample(run_stages, tmp_path, capsys):
    teacher, generator = run_stages(write_teacher(tmp_path / "source"), side=32)
    assert type(load_backbone(teacher)) is TinyFlow
    assert [path.name for path in generator.glob("*/*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    assert list(generator.glob("transformer/config.json"))
    folders = ["--generator", str(generator), "--teacher", str(teacher), "--out", str(tmp_path / "pipeline")]
    assert cli.main(["export", *folders]) == 1
    assert "TinyFlow is no pipeline of diffusers. Fix: use sid-core sample" in capsys.readouterr().err


def test_backbone_of_another_family_guides_x0(tmp_path):
    teacher = load_backbone(write_teacher(tmp_path / "source"))
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9])
    encoder = TinyFlow.text_encoder(tmp_path / "source")
    cond, empty = encoder.encode(["a red dot", "two dots"]), encoder.empty()
    with_prompt, without = teacher(x_t, t, cond), teacher(x_t, t, empty.expand(2))
    torch.testing.assert_close(teacher(x_t, t, cond, empty, 3.0), without + 3 * (with_prompt - without))
