"""Teachers as diffusers directories: what is brought, what is refused and how it is named."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from sid_core.config import Teacher
from sid_core.errors import UserError
from sid_core.files import read_json
from sid_core.models import build
from sid_core.models.generator import load_generator, save_generator
from sid_core.models.teacher import (
    latent_shape,
    load_component,
    load_denoiser,
    make_solver,
    prepare_teacher,
    teacher_sha256,
)
from sid_core.models.vae import ImageCodec


@pytest.fixture
def copy(tiny_teacher_source, tmp_path):
    """A teacher folder a test may damage."""
    return shutil.copytree(tiny_teacher_source, tmp_path / "source")


def prepare(source, tmp_path):
    out = tmp_path / "out"
    try:
        prepare_teacher(Teacher(source="local", path=str(source)), out)
    finally:
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    return out


def edit(path, **changes):
    path.write_text(json.dumps(read_json(path) | changes))


def test_brings_the_weights_unchanged(tiny_teacher_source, tiny_teacher):
    ours = load_denoiser(tiny_teacher).unet.state_dict()
    theirs = UNet2DConditionModel.from_pretrained(tiny_teacher_source / "unet", low_cpu_mem_usage=False).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert latent_shape(tiny_teacher) == (4, 8, 8)
    assert len(teacher_sha256(tiny_teacher)) == 64


def test_unused_forms_of_weights_are_left_behind(copy, tmp_path):
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    out = prepare(copy, tmp_path)
    assert not list(out.rglob("*.bin"))


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_missing_component_is_named(copy, tmp_path, component):
    shutil.rmtree(copy / component)
    with pytest.raises(UserError, match=f"component {component} is missing"):
        prepare(copy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"teacher\.path=.*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path)


def test_truncated_weights(copy, tmp_path):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        prepare(copy, tmp_path)


def test_weights_of_another_shape(copy, tmp_path):
    edit(copy / "unet" / "config.json", block_out_channels=[16, 32])
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        prepare(copy, tmp_path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("text_encoder/model.safetensors", "final_layer_norm.weight"),
        ("unet/diffusion_pytorch_model.safetensors", "conv_out.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
    ],
)
def test_weights_that_are_not_there_are_not_random_ones(copy, tmp_path, file, name):
    weights = load_file(copy / file)
    del weights[next(key for key in weights if key.endswith(name))]
    save_file(weights, copy / file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{file.split('/')[0]}: lacks weights of \w+: {name}; get the file again"):
        prepare(copy, tmp_path)


def test_published_names_of_weights_are_known(copy):
    """Stable Diffusion's text encoder has a prefix and a buffer that is none now, its VAE old names of attention."""
    unprefixed = load_file(copy / "text_encoder" / "model.safetensors")
    prefixed = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in unprefixed.items()}
    prefixed["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    ours = load_component(CLIPTextModel, copy / "text_encoder").state_dict()
    save_file(prefixed, copy / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    theirs = load_component(CLIPTextModel, copy / "text_encoder").state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8)
    vae.save_pretrained(copy / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in vae.state_dict().items():
        new = next((part for part in old if f".{part}." in name), None)
        renamed[name.replace(f".{new}.", f".{old[new]}.") if new else name] = tensor
    assert renamed.keys() != vae.state_dict().keys()
    save_file(renamed, copy / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    loaded = load_component(AutoencoderKL, copy / "vae").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vae.state_dict().items())


def test_text_encoder_of_another_width(copy, tmp_path):
    build.new_text_encoder(32, 1, 2, 74, 12).save_pretrained(copy / "text_encoder")
    with pytest.raises(UserError, match="text_encoder gives 32 values a token, unet expects 16"):
        prepare(copy, tmp_path)


def test_vae_of_other_channels(copy, tmp_path):
    build.new_vae((8, 8), 8, 16).save_pretrained(copy / "vae")
    with pytest.raises(UserError, match="vae has 8 latent channels, unet expects 4"):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("change", [{"clip_sample": True}, {"prediction_type": "sample"}])
def test_refused_schedulers(copy, tmp_path, change):
    edit(copy / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(UserError, match=next(iter(change))):
        prepare(copy, tmp_path)


def test_prediction_type_is_read_from_the_scheduler(copy, tmp_path):
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert load_denoiser(prepare(copy, tmp_path)).prediction_type == "v_prediction"


def test_an_edited_file_is_noticed(copy, tmp_path):
    out = prepare(copy, tmp_path)
    edit(out / "unet" / "config.json", sample_size=16)
    with pytest.raises(UserError, match=r"unet/config\.json: differs from its recorded sha256"):
        teacher_sha256(out)


def test_codec_hides_the_scaling_factor(tiny_teacher):
    codec = ImageCodec.from_directory(tiny_teacher)
    vae = AutoencoderKL.from_pretrained(tiny_teacher / "vae", low_cpu_mem_usage=False).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(codec.encode(images), latents)
        torch.testing.assert_close(codec.decode(latents), vae.decode(latents / vae.config.scaling_factor).sample)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver"])
def test_solvers_walk_the_teachers_schedule(tiny_teacher, name):
    solver = make_solver(name, tiny_teacher, 8)
    assert len(solver.timesteps) == 8
    assert solver.timesteps[0] == 999
    assert solver.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize("name", ["ddim", "dpm-solver"])
def test_solver_takes_nothing_but_the_noise_schedule_from_the_teacher(tiny_teacher, copy, name):
    sampler = {
        "set_alpha_to_one": False,
        "solver_order": 3,
        "use_karras_sigmas": True,
        "algorithm_type": "sde-dpmsolver",
    }
    edit(copy / "scheduler" / "scheduler_config.json", timestep_spacing="leading", steps_offset=1, **sampler)
    plain, found = make_solver(name, tiny_teacher, 8), make_solver(name, copy, 8)
    assert dict(found.config) == dict(plain.config)
    x, estimate = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    found.register_to_config(prediction_type="sample")
    for t in found.timesteps:
        x = found.step(estimate, t, x).prev_sample
    torch.testing.assert_close(x, estimate)  # x_0 itself, without the noise of level 0


def test_generator_round_trip(tiny_teacher, tmp_path):
    unet = load_denoiser(tiny_teacher).unet
    record = {"t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(tiny_teacher)}
    save_generator(tmp_path / "generator", unet, unet.state_dict(), record)
    loaded, read = load_generator(tmp_path / "generator", tiny_teacher)
    assert read == record
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), unet.parameters(), strict=True))
    assert str(tmp_path) not in (tmp_path / "generator" / "unet" / "config.json").read_text()
    assert UNet2DConditionModel.from_pretrained(tmp_path / "generator" / "unet", low_cpu_mem_usage=False)


def test_generator_of_another_teacher(tiny_teacher, copy, tmp_path):
    unet, sha256 = load_denoiser(tiny_teacher).unet, teacher_sha256(tiny_teacher)
    save_generator(tmp_path / "g", unet, unet.state_dict(), {"t_init": 625, "num_steps": 1, "teacher_sha256": sha256})
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    other = prepare(copy, tmp_path)
    says = f"g: distilled from the teacher {sha256[:12]}, but {other} is {teacher_sha256(other)[:12]}; give the teacher"
    with pytest.raises(UserError, match=says):
        load_generator(tmp_path / "g", other)
