"""Prepare, distil, sample and export a tiny Stable Diffusion XL; reject its relatives by name."""

import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from PIL import Image
from serving import Server
from small_run import PROMPTS
from teacher_folders import edit, prepare, weights_of
from tiny_parts import old_tokenizer
from tiny_sdxl import POOLED, SIZE_WIDTH, TOKENS, WIDTHS, new_pipeline

from recipes import networks
from sid_core import cli
from sid_core.config import Teacher
from sid_core.errors import UserError
from sid_core.models.backbones import StableDiffusionXL
from sid_core.models.conditioning import PromptSet
from sid_core.models.devices import place
from sid_core.models.teacher import load_backbone, load_image_codec, load_text_encoder, prepare_teacher
from sid_core.sampling.session import InferenceSession


@pytest.fixture
def copy(tiny_sdxl_source, tmp_path):
    return shutil.copytree(tiny_sdxl_source, tmp_path / "source")


@pytest.fixture(scope="module")
def teacher(tiny_sdxl_source, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "teacher"
    prepare_teacher(Teacher(source="local", path=str(tiny_sdxl_source)), out)
    return out


@pytest.mark.parametrize(
    ("num_steps", "words", "options"),
    [(1, "one step", {"num_inference_steps": 1}), (4, "4 steps", {"timesteps": [625, 468, 312, 156]})],
)
def test_stages_of_sdxl_end_in_a_pipeline_that_gives_the_image_of_sample(
    run_stages, tiny_sdxl_source, tmp_path, num_steps, words, options
):
    teacher, generator = run_stages(tiny_sdxl_source, 64, num_steps)
    assert type(load_backbone(teacher)) is StableDiffusionXL
    folders = {"generator": generator, "teacher": teacher}
    sample = folders | {"prompt": PROMPTS[0], "seed": 3, "out": tmp_path / "x.png"}
    for stage, given in (("sample", sample), ("export", folders | {"out": tmp_path / "pipeline"})):
        assert cli.main([stage, *(text for key, value in given.items() for text in (f"--{key}", str(value)))]) == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    for network in (pipeline.unet, pipeline.vae):  # as in `sample`: convolutions round differently in the other format
        network.to(memory_format=torch.channels_last)
    seed = torch.Generator().manual_seed(3)
    pixels = np.asarray(pipeline(PROMPTS[0], guidance_scale=1, generator=seed, **options).images[0])
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"
    assert pixels.std() > 5
    with Image.open(tmp_path / "x.png") as image:
        difference = np.asarray(image).astype(int) - pixels.repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(difference).max() <= (num_steps > 1)
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert f"# lsg-1.5: text to 64 x 64 images in {words}" in card
    assert all(f"{key}={value}" in card for key, value in options.items())


def test_session_of_sdxl_samples_its_teacher(teacher):
    image = InferenceSession(teacher).teacher_image(PROMPTS[0], seed=0, steps=2, guidance_scale=2.0)
    assert image.shape == (64, 64, 3)


# --- conditioning ------------------------------------------------------------------------------------------------------


def test_encoder_of_sdxl_joins_both_and_pools_the_second(teacher):
    encoder, pipeline = load_text_encoder(teacher), new_pipeline()
    found = encoder.encode(PROMPTS)
    tokens, zero_tokens, pooled, zero_pooled = pipeline.encode_prompt(PROMPTS)
    torch.testing.assert_close(found.tokens, tokens)
    torch.testing.assert_close(found.pooled, pooled)
    assert found.tokens.shape == (len(PROMPTS), TOKENS, sum(WIDTHS))
    assert found.pooled.shape == (len(PROMPTS), POOLED)
    assert torch.equal(encoder.empty().tokens, zero_tokens[:1])
    assert torch.equal(encoder.empty().pooled, zero_pooled[:1])


def test_empty_prompt_of_a_teacher_without_zeros_is_encoded(copy, tmp_path):
    edit(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    encoder = load_text_encoder(prepare(copy, tmp_path))
    empty, encoded = encoder.empty(), encoder.encode([""])
    assert torch.equal(empty.tokens, encoded.tokens)
    assert torch.equal(empty.pooled, encoded.pooled)
    assert empty.pooled.abs().min() > 0


def test_dropped_prompt_of_sdxl_loses_tokens_and_pooled(teacher):
    prompts = PromptSet(load_text_encoder(teacher), PROMPTS)
    whole, dropped = prompts(torch.tensor([0, 1])), prompts(torch.tensor([0, 1]), torch.tensor([True, False]))
    for part in ("tokens", "pooled"):
        before, after = getattr(whole, part), getattr(dropped, part)
        assert not after[0].any()
        assert before[0].any()
        assert torch.equal(after[1], before[1])


def test_predict_of_sdxl_passes_the_size_of_the_image(teacher, monkeypatch):
    backbone, seen = load_backbone(teacher), []
    forward = backbone.network.forward
    monkeypatch.setattr(
        backbone.network,
        "forward",
        lambda *a, **options: seen.append(options["added_cond_kwargs"]) or forward(*a, **options),
    )
    cond = load_text_encoder(teacher).encode(PROMPTS[:2])
    backbone(torch.randn(2, 4, 8, 16), torch.tensor([20, 979]), cond)
    assert seen[0]["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]] * 2
    assert torch.equal(seen[0]["text_embeds"], cond.pooled)


def test_guided_pair_of_sdxl_equals_two_evaluations(teacher):
    backbone, encoder = load_backbone(teacher), load_text_encoder(teacher)
    cond, empty = encoder.encode(PROMPTS[:2]), encoder.empty()
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([20, 979])
    with_prompt, without = backbone(x_t, t, cond), backbone(x_t, t, empty.expand(2))
    torch.testing.assert_close(
        backbone(x_t, t, cond, empty, 3.0), without + 3 * (with_prompt - without), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kappa", [0.0, 1.0, 3.0])
def test_logits_of_sdxl_are_the_mean_of_the_middle(teacher, kappa):
    backbone, encoder, seen = load_backbone(teacher), load_text_encoder(teacher), []
    cond, empty = encoder.encode(PROMPTS[:2]), encoder.empty()
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([20, 979])
    backbone.check_discriminator()
    hook = backbone.network.mid_block.register_forward_hook(lambda *call: seen.append(call[-1]))
    backbone(x_t, t, cond)
    hook.remove()
    x0_hat, logits = backbone.with_logits(x_t, t, cond, empty, kappa)
    torch.testing.assert_close(x0_hat, backbone(x_t, t, cond, empty, kappa), rtol=1e-4, atol=1e-4)
    for found in (logits, backbone.logits(x_t, t, cond)):
        torch.testing.assert_close(found, seen[0].mean(dim=1))


@pytest.mark.parametrize("upcast", [True, False])
def test_image_codec_that_overflows_in_16_bits_stays_in_float32(copy, tmp_path, upcast):
    edit(copy / "vae" / "config.json", force_upcast=upcast)
    out = prepare(copy, tmp_path)
    codec, encoder = place(load_image_codec(out), "float16"), place(load_text_encoder(out), "float16")
    assert codec.vae.dtype == (torch.float32 if upcast else torch.float16)
    assert {one.model.dtype for one in encoder.encoders} == {torch.float16}
    assert codec.vae.config.scaling_factor == 0.13025


# --- preparation -------------------------------------------------------------------------------------------------------


def test_prepare_teacher_of_sdxl_in_half_precision_and_shards_joins_them(teacher, tmp_path):
    pipeline = new_pipeline().to(torch.float16)
    pipeline.save_pretrained(tmp_path / "source", variant="fp16", max_shard_size="40KB")
    assert list((tmp_path / "source").glob("*/*.index.fp16.json"))
    found, expected = weights_of(prepare(tmp_path / "source", tmp_path)), weights_of(teacher)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in expected.items())


def test_prepare_teacher_of_sdxl_from_a_hub_fetches_its_components_alone(copy, teacher, tmp_path, monkeypatch):
    for unneeded in ("vae_1_0/diffusion_pytorch_model.safetensors", "sd_xl_base_1.0.safetensors", "unet/model.onnx"):
        (copy / unneeded).parent.mkdir(exist_ok=True)
        (copy / unneeded).write_bytes(b"not needed")
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        old_tokenizer(copy / name, pad)
    with Server(repos={"owner/sdxl": copy}) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        settings = Teacher(source="hub", repo="owner/sdxl", revision=hub.commit("owner/sdxl"))
        prepare_teacher(settings, tmp_path / "out")
    weights = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*.safetensors")}
    assert weights == {f"{name}/{stem}.safetensors" for name, stem in StableDiffusionXL.WEIGHTS.items()}
    found, expected = (load_text_encoder(folder).encode(PROMPTS) for folder in (tmp_path / "out", teacher))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.pooled, expected.pooled)
    found, expected = weights_of(tmp_path / "out"), weights_of(teacher)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# --- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["tokenizer", "tokenizer_2", "text_encoder_2", "unet", "vae", "scheduler"])
def test_prepare_teacher_of_sdxl_without_a_component_names_it(copy, tmp_path, component):
    shutil.rmtree(copy / component)
    with pytest.raises(
        UserError, match=rf"component {component} is missing: .*Fix: give a teacher with all its folders"
    ):
        prepare(copy, tmp_path)


@pytest.mark.parametrize("index", ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_prepare_teacher_of_a_refiner_names_it(copy, tmp_path, index):
    edit(copy / "model_index.json", _class_name=index, text_encoder=[None, None], tokenizer=[None, None])
    edit(copy / "unet" / "config.json", projection_class_embeddings_input_dim=POOLED + 5 * SIZE_WIDTH)
    with pytest.raises(UserError, match=r"and 6 time_ids \(SDXL's refiner has 5\).*Fix: give the base model"):
        prepare(copy, tmp_path)
    for folder in ("text_encoder", "tokenizer"):
        shutil.rmtree(copy / folder)
    with pytest.raises(
        UserError, match=r"has text_encoder_2 and no text_encoder: SDXL's refiner.*Fix: give the base model"
    ):
        prepare(copy, tmp_path)


CHANGES = [
    ("unet/config.json", {"in_channels": 9}, "unet: in_channels=9: expected 4; an inpainting UNet"),
    ("unet/config.json", {"addition_embed_type": None}, "unet: addition_embed_type=None: expected text_time"),
    ("unet/config.json", {"projection_class_embeddings_input_dim": 2816}, "input_dim=2816: expected text_encoder_2's"),
    ("unet/config.json", {"time_cond_proj_dim": 256}, "unet: time_cond_proj_dim=256"),
    ("vae/config.json", {"block_out_channels": [8, 8, 8]}, "vae: 3 levels in block_out_channels: expected 4"),
    ("tokenizer_2/tokenizer_config.json", {"model_max_length": 11}, "tokenizers of 12 and 11 tokens"),
    ("text_encoder_2/config.json", {"model_type": "t5"}, "text_encoder_2: model_type=t5"),
    (
        "model_index.json",
        {"_class_name": "StableDiffusionXLControlNetPipeline"},
        "_class_name=StableDiffusionXLControl",
    ),
    ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet=ControlNetModel"),
    ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2=CLIPTextModel"),
]


@pytest.mark.parametrize(("file", "changes", "message"), CHANGES)
def test_prepare_teacher_of_another_sdxl_names_what_differs(copy, tmp_path, file, changes, message):
    edit(copy / file, **changes)
    with pytest.raises(UserError, match=f"{re.escape(message)}.*Fix: (give|take) "):
        prepare(copy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_prepare_teacher_of_sdxl_with_a_vae_of_other_channels_names_both(copy, tmp_path):
    networks.new_vae((8,) * 4, 8, 64).save_pretrained(copy / "vae")
    with pytest.raises(
        UserError, match=r"vae has 8 latent channels, unet expects 4.*Fix: take the vae of the same model"
    ):
        prepare(copy, tmp_path)


def test_prepare_teacher_of_a_control_network_names_it(tmp_path):
    network = ControlNetModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), norm_num_groups=4, only_cross_attention=False,
        conditioning_embedding_out_channels=(8,),
    )  # fmt: skip
    network.save_pretrained(tmp_path / "source")
    with pytest.raises(
        UserError, match=r"holds one component, a ControlNetModel: expected .*Fix: give the whole model"
    ):
        prepare(tmp_path / "source", tmp_path)


def test_prepare_teacher_of_sdxl_without_its_index_asks_for_it(copy, tmp_path):
    (copy / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"has text_encoder_2, tokenizer_2; .*Fix: .*the model_index\.json"):
        prepare(copy, tmp_path)
