"""Prepare teachers from diffusers directories; reject damaged and unsupported ones with a message that names the cause."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from teacher_folders import edit, prepare, weights_of
from transformers import CLIPTextModel

from recipes import networks
from sid_core.data import shapes
from sid_core.errors import UserError
from sid_core.models.backbones import StableDiffusion, prediction
from sid_core.models.components import load_component
from sid_core.models.generator import load_generator, save_generator
from sid_core.models.scheduler import make_solver
from sid_core.models.teacher import latent_shape, load_backbone, teacher_sha256
from sid_core.models.text import TextEncoder
from sid_core.models.vae import ImageCodec
from sid_core.storage.files import read_json


@pytest.fixture
def copy(tiny_teacher_source, tmp_path):
    """Copy a teacher folder, so that a test may damage it."""
    return shutil.copytree(tiny_teacher_source, tmp_path / "source")


def test_prepare_teacher_copies_the_weights_unchanged(tiny_teacher_source, tiny_teacher):
    ours = load_backbone(tiny_teacher).network.state_dict()
    theirs = UNet2DConditionModel.from_pretrained(tiny_teacher_source / "unet", low_cpu_mem_usage=False).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert latent_shape(tiny_teacher) == (4, 8, 8)
    assert len(teacher_sha256(tiny_teacher)) == 64


def test_prepare_teacher_with_pickled_weights_too_ignores_them(copy, tmp_path):
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    out = prepare(copy, tmp_path)
    assert not list(out.rglob("*.bin"))


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_prepare_teacher_without_a_component_names_it(copy, tmp_path, component):
    shutil.rmtree(copy / component)
    with pytest.raises(UserError, match=f"component {component} is missing"):
        prepare(copy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_prepare_teacher_of_a_missing_folder_names_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"teacher\.path=.*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path)


def test_prepare_teacher_with_truncated_weights_raises(copy, tmp_path):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        prepare(copy, tmp_path)


def test_prepare_teacher_with_weights_of_another_shape_raises(copy, tmp_path):
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
def test_prepare_teacher_lacking_a_weight_names_it(copy, tmp_path, file, name):
    weights = load_file(copy / file)
    del weights[next(key for key in weights if key.endswith(name))]
    save_file(weights, copy / file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{file.split('/')[0]}: lacks weights of \w+: {name}; get the file again"):
        prepare(copy, tmp_path)


def test_load_component_with_published_names_loads_all_weights(copy):
    """Load the published names: a prefix and a former buffer in the text encoder, old names of attention in the VAE."""
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


def test_prepare_teacher_with_a_text_encoder_of_another_width_names_both(copy, tmp_path):
    networks.new_text_encoder(32, 1, 2, 74, 12).save_pretrained(copy / "text_encoder")
    with pytest.raises(UserError, match="text_encoder gives 32 values a token, unet expects 16"):
        prepare(copy, tmp_path)


def test_prepare_teacher_with_a_vae_of_other_channels_names_both(copy, tmp_path):
    networks.new_vae((8, 8), 8, 16).save_pretrained(copy / "vae")
    with pytest.raises(UserError, match="vae has 8 latent channels, unet expects 4"):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("change", [{"clip_sample": True}, {"prediction_type": "sample"}])
def test_prepare_teacher_with_an_unsupported_scheduler_names_the_setting(copy, tmp_path, change):
    edit(copy / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(UserError, match=next(iter(change))):
        prepare(copy, tmp_path)


def test_prepare_teacher_with_v_prediction_reads_it_from_the_scheduler(copy, tmp_path):
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert load_backbone(prepare(copy, tmp_path)).prediction_type == "v_prediction"


def test_teacher_sha256_of_an_edited_file_raises(copy, tmp_path):
    out = prepare(copy, tmp_path)
    edit(out / "unet" / "config.json", sample_size=16)
    with pytest.raises(UserError, match=r"unet/config\.json: differs from its recorded sha256"):
        teacher_sha256(out)


def test_image_codec_of_a_teacher_applies_the_scaling_factor(tiny_teacher):
    codec = ImageCodec.from_directory(tiny_teacher)
    vae = AutoencoderKL.from_pretrained(tiny_teacher / "vae", low_cpu_mem_usage=False).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(codec.encode(images), latents)
        torch.testing.assert_close(codec.decode(latents), vae.decode(latents / vae.config.scaling_factor).sample)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "dpm-solver-karras"])
def test_make_solver_starts_at_the_last_timestep(tiny_teacher, name):
    solver = make_solver(name, tiny_teacher, 8)
    assert len(solver.timesteps) == 8
    assert solver.timesteps[0] == 999
    assert solver.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "dpm-solver-karras"])
def test_make_solver_with_other_sampler_settings_ignores_them(tiny_teacher, copy, name):
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


def test_load_generator_of_a_saved_one_returns_equal_weights(tiny_teacher, tmp_path):
    backbone = load_backbone(tiny_teacher)
    record = {"t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(tiny_teacher)}
    save_generator(tmp_path / "generator", backbone, backbone.network.state_dict(), record)
    loaded, read = load_generator(tmp_path / "generator", tiny_teacher)
    assert read == record
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), backbone.parameters(), strict=True))
    assert str(tmp_path) not in (tmp_path / "generator" / "unet" / "config.json").read_text()
    assert UNet2DConditionModel.from_pretrained(tmp_path / "generator" / "unet", low_cpu_mem_usage=False)


def test_load_generator_with_another_teacher_names_both_hashes(tiny_teacher, copy, tmp_path):
    backbone, sha256 = load_backbone(tiny_teacher), teacher_sha256(tiny_teacher)
    record = {"t_init": 625, "num_steps": 1, "teacher_sha256": sha256}
    save_generator(tmp_path / "g", backbone, backbone.network.state_dict(), record)
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    other = prepare(copy, tmp_path)
    says = f"g: distilled from the teacher {sha256[:12]}, but {other} is {teacher_sha256(other)[:12]}; give the teacher"
    with pytest.raises(UserError, match=says):
        load_generator(tmp_path / "g", other)


# --- other kinds of models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name=FlowMatchEuler",
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "_class_name=EDMEulerScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "_class_name=LCMScheduler"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ("scheduler/scheduler_config.json", {"timestep_type": "continuous"}, "timestep_type=continuous"),
        ("scheduler/scheduler_config.json", {"beta_start": None}, "scheduler: beta_start missing"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "num_train_timesteps=500: expected 1000"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "unet: addition_embed_type=text_time"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "unet: class_embed_type=timestep"),
        ("unet/config.json", {"num_class_embeds": 10}, "unet: num_class_embeds=10"),
        ("unet/config.json", {"encoder_hid_dim_type": "text_proj"}, "unet: encoder_hid_dim_type=text_proj"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "unet: time_cond_proj_dim=256"),
        ("unet/config.json", {"out_channels": 8}, "unet: out_channels=8: expected 4"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "unet: _class_name=UNet3DConditionModel"),
        ("unet/config.json", {"cross_attention_dim": [16, 32]}, "unet: cross_attention_dim="),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae: _class_name=AutoencoderTiny"),
        ("vae/config.json", {"shift_factor": 0.1}, "vae: shift_factor=0.1"),
        ("text_encoder/config.json", {"model_type": "t5"}, "text_encoder: model_type=t5"),
        (
            "tokenizer/tokenizer_config.json",
            {"tokenizer_class": "T5Tokenizer"},
            "tokenizer: tokenizer_class=T5Tokenizer",
        ),
        ("model_index.json", {"_class_name": "WanPipeline"}, "_class_name=WanPipeline"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "text_encoder_2="),
        ("model_index.json", {"unet": ["diffusers", "UNetSpatioTemporalConditionModel"]}, "unet=UNetSpatio"),
    ],
)
def test_prepare_teacher_of_another_family_names_what_differs(copy, tmp_path, file, changes, message):
    edit(copy / file, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(copy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_prepare_teacher_with_a_second_text_encoder_names_it(copy, tmp_path):
    shutil.copytree(copy / "text_encoder", copy / "text_encoder_2")
    (copy / "model_index.json").unlink()
    with pytest.raises(UserError, match="has text_encoder_2; expected Stable Diffusion's"):
        prepare(copy, tmp_path)


def test_prepare_teacher_without_betas_names_what_is_missing(copy, tmp_path):
    (copy / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler", "clip_sample": false}')
    with pytest.raises(UserError, match="scheduler: beta_schedule, beta_start, beta_end missing"):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_prepare_teacher_with_weights_that_are_no_numbers_names_them(copy, tmp_path, component, value):
    path = next((copy / component).glob("*.safetensors"))
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=rf"{component}: \S+ holds values that are NaN or infinite\. Fix: fetch the file again"
    ):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("stated", [None, int(1e30), 1e30])
def test_prepare_teacher_whose_tokenizer_states_no_length_takes_the_encoders(copy, tmp_path, stated):
    edit(copy / "tokenizer" / "tokenizer_config.json", model_max_length=stated)
    out = prepare(copy, tmp_path)
    assert TextEncoder.from_directory(out).empty().tokens.shape == (1, 12, 16)
    assert read_json(out / "provenance.json")["tokens"] == 12


def test_prepare_teacher_without_tokenizer_config_takes_the_encoders_length(copy, tmp_path):
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    assert TextEncoder.from_directory(prepare(copy, tmp_path)).empty().tokens.shape == (1, 12, 16)


@pytest.mark.parametrize("length", [77, "12"])
def test_prepare_teacher_whose_tokenizer_is_longer_than_the_encoder_names_both(copy, tmp_path, length):
    edit(copy / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(UserError, match=f"tokenizer: model_max_length={length}: expected at most 12"):
        prepare(copy, tmp_path)


def test_prepare_teacher_whose_tokenizer_has_more_tokens_than_the_encoder_names_both(copy, tmp_path):
    networks.new_text_encoder(16, 1, 2, 70, 12).save_pretrained(copy / "text_encoder")
    with pytest.raises(UserError, match="tokenizer has 74 tokens, text_encoder expects 70"):
        prepare(copy, tmp_path)


def test_prepare_teacher_with_a_damaged_tokenizer_names_it(copy, tmp_path):
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer: cannot be read"):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("size", [None, 0, [8]])
def test_prepare_teacher_whose_unet_states_no_size_names_it(copy, tmp_path, size):
    edit(copy / "unet" / "config.json", sample_size=size)
    with pytest.raises(UserError, match=r"unet: sample_size=.*: expected the side of the latents"):
        prepare(copy, tmp_path)


def test_make_solver_with_more_steps_than_the_schedule_names_them(tiny_teacher):
    with pytest.raises(UserError, match="steps=1001: "):
        make_solver("ddim", tiny_teacher, 1001)


# --- the prediction type, where none is stated -------------------------------------------------------------------------


class PredictsV(torch.nn.Module):
    """A network of v from one of epsilon: v = (eps - sigma x_t) / alpha."""

    def __init__(self, teacher: StableDiffusion):
        super().__init__()
        self.teacher = teacher

    def forward(self, x_t, t, encoder_hidden_states):
        output = self.teacher.network(x_t, t, encoder_hidden_states=encoder_hidden_states)
        schedule = self.teacher.schedule
        output.sample = (output.sample - schedule.sigma(t) * x_t) / schedule.alpha(t)
        return output


@pytest.mark.parametrize("right", ["epsilon", "v_prediction"])
def test_x0_errors_of_a_trained_teacher_name_its_prediction_type(right):
    folder = shapes.ASSETS / "teacher"
    teacher, empty = load_backbone(folder), TextEncoder.from_directory(folder).empty()
    if right == "v_prediction":
        teacher = teacher.with_network(PredictsV(teacher))
    errors = prediction.x0_errors(teacher, empty, latent_shape(folder))
    assert prediction.choose_type(errors) == right
    assert errors[right] < 0.3


def test_prepare_teacher_that_states_no_prediction_type_measures_and_records_it(tmp_path):
    source = shutil.copytree(shapes.ASSETS / "teacher", tmp_path / "source")
    path = source / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({k: v for k, v in read_json(path).items() if k != "prediction_type"}))
    out = prepare(source, tmp_path)
    assert read_json(out / "scheduler" / "scheduler_config.json")["prediction_type"] == "epsilon"
    recorded = read_json(out / "provenance.json")["prediction_type"]
    assert (recorded["value"], recorded["stated"]) == ("epsilon", False)
    assert 2 * recorded["x0_errors"]["epsilon"] < recorded["x0_errors"]["v_prediction"]
    assert load_backbone(out).prediction_type == "epsilon"


def test_prepare_teacher_whose_prediction_type_cannot_be_measured_asks_for_it(copy, tmp_path):
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type=None)
    with pytest.raises(UserError, match=r"prediction_type is not stated.*Fix: set it to epsilon or v_prediction"):
        prepare(copy, tmp_path)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((0.1, 1.0), "epsilon"),
        ((1.0, 0.1), "v_prediction"),
        ((0.4, 0.5), None),
        ((0.6, 9.0), None),
        ((float("nan"), 0.1), "v_prediction"),
        ((0.1, float("inf")), "epsilon"),
        ((float("nan"), float("nan")), None),
    ],
)
def test_name_type_needs_a_small_error_and_a_margin(errors, expected):
    assert prediction.choose_type(dict(zip(prediction.KINDS, errors, strict=True))) == expected


def test_prepare_teacher_with_a_stated_prediction_type_records_it(tiny_teacher):
    assert read_json(tiny_teacher / "provenance.json")["prediction_type"] == {"value": "epsilon", "stated": True}


# --- forms of weights --------------------------------------------------------------------------------------------------

STEMS = StableDiffusion.WEIGHTS


def shard(folder, component, variant=""):
    """Split a component's weights into two files and an index, as diffusers and transformers write large ones."""
    dot = f".{variant}" if variant else ""
    path = folder / component / f"{STEMS[component]}{dot}.safetensors"
    weights = load_file(path)
    path.unlink()
    names = [f"{STEMS[component]}{dot}-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    table = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        part = {key: weights[key] for key in weights if table[key] == name}
        save_file(part, folder / component / name, metadata={"format": "pt"})
    index = folder / component / f"{STEMS[component]}.safetensors.index{dot}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))


def make_fp16(folder, keep):
    """Add the fp16 variant of all weights, next to or instead of the float32 ones."""
    for component, stem in STEMS.items():
        path = folder / component / f"{stem}.safetensors"
        half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in load_file(path).items()}
        save_file(half, folder / component / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
        if not keep:
            path.unlink()


def test_prepare_teacher_in_shards_joins_them(copy, tiny_teacher, tmp_path):
    for component in STEMS:
        shard(copy, component)
    out = prepare(copy, tmp_path)
    assert len(list(out.rglob("*.safetensors"))) == 3
    ours, expected = weights_of(out), weights_of(tiny_teacher)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_prepare_teacher_lacking_a_shard_names_it(copy, tmp_path):
    shard(copy, "unet")
    (copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"index\.json: lists unet/diffusion_pytorch_model-00002-of-00002\.safetensors, which is"
    ):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', "not json", '{"weight_map": {"a": "../../secret"}}'])
def test_prepare_teacher_with_a_damaged_index_names_it(copy, tmp_path, text):
    shard(copy, "unet")
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors\.index\.json: "):
        prepare(copy, tmp_path)


@pytest.mark.parametrize(("keep", "settings"), [(True, {"variant": "fp16"}), (False, {"variant": "fp16"}), (False, {})])
def test_prepare_teacher_of_half_precision_from_a_folder_becomes_float32(copy, tiny_teacher, tmp_path, keep, settings):
    make_fp16(copy, keep)
    out = prepare(copy, tmp_path, **settings)
    ours, whole = load_backbone(out).network.state_dict(), load_backbone(tiny_teacher).network.state_dict()
    assert all(torch.equal(ours[name], whole[name].half().float()) for name in whole)
    assert read_json(out / "provenance.json")["weights"]["unet"] == ["unet/diffusion_pytorch_model.fp16.safetensors"]


def test_prepare_teacher_of_half_precision_in_shards_joins_them(copy, tmp_path):
    make_fp16(copy, keep=False)
    shard(copy, "unet", "fp16")
    assert {
        tensor.dtype for tensor in load_file(prepare(copy, tmp_path) / "unet" / f"{STEMS['unet']}.safetensors").values()
    } == {torch.float16}


def test_prepare_teacher_without_the_variant_names_what_is_there(copy, tmp_path):
    with pytest.raises(
        UserError, match=r"has no text_encoder/model\.fp16\.safetensors .*Fix: set teacher\.variant to null"
    ):
        prepare(copy, tmp_path, variant="fp16")


def test_prepare_teacher_of_pickles_names_a_conversion_that_works(copy, tiny_teacher, tmp_path):
    bins = {
        "text_encoder": "pytorch_model.bin",
        "unet": "diffusion_pytorch_model.bin",
        "vae": "diffusion_pytorch_model.bin",
    }
    for component, name in bins.items():
        path = copy / component / f"{STEMS[component]}.safetensors"
        torch.save(load_file(path), copy / component / name)
        path.unlink()
    with pytest.raises(UserError, match="only pickled weights") as caught:
        prepare(copy, tmp_path)
    command = re.search(r"run (python -c .*) and set teacher: \{source: local, path: converted\}", str(caught.value))[1]
    _, *arguments = shlex.split(command)
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, expected = weights_of(prepare(tmp_path / "converted", tmp_path)), weights_of(tiny_teacher)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
