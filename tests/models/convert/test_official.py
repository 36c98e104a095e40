"""Import pickles of whole UNets as generators, and reject other content."""

import hashlib
import json
import pickle
from collections import OrderedDict
from datetime import datetime
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from malicious import Call, corpus
from official_style import network, write

from sid_core import cli
from sid_core.config import Imported, ImportSettings, imported_run
from sid_core.models.convert.official import import_settings, parse_name
from sid_core.models.generator import load_generator
from sid_core.storage import hub
from sid_core.storage.files import read_json, verify_manifest

NAME = "batch512_cfg1.51.51.5_t625_8806_v2.pkl"


def import_official(pickled: Path, teacher: Path, out: Path, *more: str) -> int:
    return cli.main(["import-official", str(pickled), "--teacher", str(teacher), "--out", str(out), *more])


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_import_official_keeps_the_weights_of_the_pickle(tiny_teacher, tmp_path, dtype, old):
    unet = network(tiny_teacher, dtype)
    pickled = write(unet, tmp_path / NAME, old)
    assert (b"diffusers.models.unet_2d_condition" in pickled.read_bytes()) == old
    assert import_official(pickled, tiny_teacher, tmp_path / "generator") == 0

    verify_manifest(tmp_path / "generator")
    generator, record = load_generator(tmp_path / "generator", tiny_teacher)
    expected = unet.state_dict()
    assert generator.network.state_dict().keys() == expected.keys()
    for name, tensor in generator.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].float())
    assert record["run"] == {
        "name": "lsg-1.5",
        "strategy": "lsg",
        "fake_train": 1.5,
        "fake_eval": 1.5,
        "teacher": 1.5,
        "alpha": None,
        "num_steps": 1,
        "seed": None,
    }
    assert (record["t_init"], record["num_steps"], record["train_kimg"]) == (625, 1, 8806)
    assert record["imported"] == {"file": NAME, "sha256": hashlib.sha256(pickled.read_bytes()).hexdigest()}


def test_import_official_gives_a_network_with_equal_outputs(tiny_teacher, tmp_path):
    unet = network(tiny_teacher)
    import_official(write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path / "generator")
    generator, _ = load_generator(tmp_path / "generator", tiny_teacher)
    x, cond, t = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16), torch.tensor([625, 625])
    assert torch.equal(generator.network(x, t, cond).sample, unet(x, t, cond).sample)


@pytest.mark.parametrize(
    ("name", "scales", "t_init", "kimg"),
    [
        ("batch512_cfg1.51.51.5_t625_18789_v2.pkl", (1.5, 1.5, 1.5), 625, 18789),
        ("batch512_cfg222_t625_4812_v2.pkl", (2, 2, 2), 625, 4812),
        ("batch512_sd21_cfg4.54.54.5_t625_7168_v2.pkl", (4.5, 4.5, 4.5), 625, 7168),
        ("x_cfg11.53_t600_1.pkl", (None, None, None), 600, 1),
        ("network-snapshot.pkl", (None, None, None), None, None),
    ],
)
def test_parse_name_of_the_release_returns_scales_t_init_and_kimg(name, scales, t_init, kimg):
    assert parse_name(name) == (scales, t_init, kimg)


def test_import_official_with_options_overrides_the_name(tiny_teacher, tmp_path):
    pickled = write(network(tiny_teacher), tmp_path / NAME)
    assert import_official(pickled, tiny_teacher, tmp_path / "g", "--t-init", "600", "--num-steps", "2") == 0
    record = read_json(tmp_path / "g" / "generator.json")
    assert (record["t_init"], record["num_steps"], record["run"]["num_steps"]) == (600, 2, 2)


def test_import_settings_of_a_hub_file_records_repo_and_commit(tiny_teacher, tmp_path, monkeypatch):
    pickled = write(network(tiny_teacher), tmp_path / "x.pkl")

    class Repository:
        commit = "1" * 40

        def fetch(self, file):
            return pickled.with_name(file)

    monkeypatch.setattr(hub, "find", lambda *_: Repository())
    imported = Imported(name="lsg-2", file="x.pkl", repo="a/b", revision="1" * 40, scale=2, train_kimg=4812)
    run = imported_run(imported)
    import_settings(ImportSettings(run=run, imported=imported), tiny_teacher, tmp_path / "generator")
    record = read_json(tmp_path / "generator" / "generator.json")
    assert record["run"] == run.model_dump()
    assert record["imported"].items() >= {"repo": "a/b", "commit": "1" * 40}.items()


def test_import_official_of_a_network_whose_config_holds_a_path_reads_it(tiny_teacher, tmp_path):
    unet = network(tiny_teacher)
    unet.register_to_config(trained_in=Path("/data/run"), trained_at=datetime(2024, 1, 2))
    assert import_official(write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path / "generator") == 0


# --- rejected ----------------------------------------------------------------------------------------------------------


def rejected(capsys, pickled: Path, teacher: Path, tmp_path: Path) -> str:
    assert import_official(pickled, teacher, tmp_path / "generator") == 1
    assert not (tmp_path / "generator").exists()
    return capsys.readouterr().err


def test_import_official_of_another_architecture_names_differences(tiny_teacher, tmp_path, capsys):
    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(tiny_teacher / "unet") | {"cross_attention_dim": 24, "out_channels": 5}
    )
    message = rejected(capsys, write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path)
    assert "expected the architecture of" in message
    assert "expected [" in message
    assert " more. Fix: give the teacher it was distilled from" in message


def test_import_official_with_missing_and_further_weights_names_them(tiny_teacher, tmp_path, capsys):
    unet = network(tiny_teacher)
    del unet.conv_out._parameters["bias"]
    unet.conv_in.register_buffer("more", torch.zeros(2))
    message = rejected(capsys, write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path)
    assert "conv_out.bias is missing; conv_in.more is unknown. Fix: give" in message


def test_import_official_with_another_setting_without_shape_names_it(tiny_teacher, tmp_path, capsys):
    unet = network(tiny_teacher)
    config = UNet2DConditionModel.load_config(tiny_teacher / "unet") | {"attention_head_dim": 1}
    other = UNet2DConditionModel.from_config(config)
    other.load_state_dict(unet.state_dict())
    message = rejected(capsys, write(other, tmp_path / "x.pkl"), tiny_teacher, tmp_path)
    assert "attention_head_dim=1: expected " in message


def test_import_official_with_nan_weights_names_them(tiny_teacher, tmp_path, capsys):
    unet = network(tiny_teacher)
    unet.conv_in.bias.data[0] = float("nan")
    assert "conv_in.bias: expected finite numbers" in rejected(
        capsys, write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a pickle of dict(ema=UNet2DConditionModel), got list"),
        ({"G": 1, "D": 2}, "got a dict of G, D"),
        ({"ema": torch.nn.Linear(1, 1)}, "ema: expected a UNet2DConditionModel, got a Linear"),
        ({"ema": OrderedDict(weight=torch.zeros(1))}, "ema: expected a UNet2DConditionModel, got a dict"),
    ],
)
def test_import_official_of_other_content_names_it(tiny_teacher, tmp_path, capsys, content, message):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    assert message in rejected(capsys, tmp_path / "x.pkl", tiny_teacher, tmp_path)


def test_import_official_of_cyclic_modules_raises(tiny_teacher, tmp_path, capsys):
    unet = network(tiny_teacher)
    unet.conv_in._modules.update(a=unet, b=unet)
    assert "expected a UNet, got cyclic or too many modules" in rejected(
        capsys, write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path
    )


def test_import_official_with_malicious_content_raises_and_executes_nothing(tiny_teacher, tmp_path, capsys):
    unet = network(tiny_teacher)
    unet.extra = Call(exec, f"open({str(tmp_path / 'marker')!r}, 'w')")
    message = rejected(capsys, write(unet, tmp_path / "x.pkl"), tiny_teacher, tmp_path)
    assert "rejected: the name builtins.exec" in message
    (tmp_path / "x.pkl").write_bytes(corpus(tmp_path / "marker")["os.system"])
    assert "system; a published generator" in rejected(capsys, tmp_path / "x.pkl", tiny_teacher, tmp_path)
    assert not (tmp_path / "marker").exists()


# --- the architecture of Stable Diffusion 1.5, at full size, without weights ------------------------------------------

SD15 = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SHAPES = {  # shapes of some of its 686 weights, as in every published checkpoint
    "conv_in.weight": (320, 4, 3, 3),
    "time_embedding.linear_1.weight": (1280, 320),
    "down_blocks.0.attentions.0.proj_in.weight": (320, 320, 1, 1),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias": (320,),
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight": (640, 768),
    "down_blocks.2.downsamplers.0.conv.weight": (1280, 1280, 3, 3),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
    "up_blocks.1.resnets.0.conv1.weight": (1280, 2560, 3, 3),
    "up_blocks.3.attentions.2.transformer_blocks.0.norm3.weight": (320,),
    "up_blocks.3.resnets.2.conv_shortcut.weight": (320, 640, 1, 1),
    "conv_norm_out.weight": (320,),
    "conv_out.bias": (4,),
}


def test_unet_of_sd15_has_the_published_names_and_shapes():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(json.dumps(SD15)))
    state = unet.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 859_520_964
    assert len(state) == 686
    assert {name: tuple(state[name].shape) for name in SHAPES} == SHAPES
