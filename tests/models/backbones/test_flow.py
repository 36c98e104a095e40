"""Prepare, distil, sample and export tiny teachers with flow matching; reject what does not fit them by name."""

import inspect
import re
import shutil

import numpy as np
import pytest
import tiny_sana
import torch
from small_run import PROMPTS, make_settings
from teacher_folders import edit, prepare
from tiny_sd3 import new_pipeline

from recipes import networks
from sid_core import cli
from sid_core.config import Lora, Teacher
from sid_core.errors import UserError
from sid_core.method import Steps
from sid_core.models.backbones import StableDiffusion3, family_of
from sid_core.models.conditioning import Conditioning
from sid_core.models.devices import place
from sid_core.models.teacher import load_backbone, load_solver, load_text_encoder, prepare_teacher
from sid_core.sampling.session import InferenceSession
from sid_core.training import dry_run
from sid_core.training.iteration import Trainer
from sid_core.training.run import make_trainer


@pytest.fixture
def copy(request, tmp_path):
    """Return a copy of a source, Stable Diffusion 3's by default."""
    return shutil.copytree(request.getfixturevalue(getattr(request, "param", "tiny_sd3_source")), tmp_path / "source")


def without_t5(source):
    edit(source / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None], max_sequence_length=0)
    return source


@pytest.mark.parametrize(
    ("copy", "side", "settings"),
    [
        ("tiny_sd3_source", 64, {"num_steps": 3, "t_init": 850}),
        ("tiny_sana_source", 32, {"t_init": 1000}),
        ("tiny_flux_source", 64, {"t_init": 850, "kappa": 1.0}),
    ],
    indirect=["copy"],
)
def test_stages_of_a_flow_end_in_a_pipeline_that_gives_the_image_of_sample(run_stages, copy, side, settings, tmp_path):
    family = family_of(copy)
    if family is StableDiffusion3:
        without_t5(copy)
    teacher, generator = run_stages(copy, side, solver="flow-euler", **settings)
    assert type(load_backbone(teacher)) is family
    assert not (teacher / "text_encoder_3").exists()
    assert not cli.main(["export", "--generator", str(generator), "--teacher", str(teacher), "--out", "pipeline"])
    card = (tmp_path / "pipeline" / "README.md").read_text()
    count = "3 steps" if "num_steps" in settings else "one step"
    assert f"# lsg-1.5: text to {side} x {side} images in {count}" in card
    # the code of the card itself
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace("THIS REPOSITORY OR FOLDER", "pipeline").replace("a prompt", PROMPTS[0])
    found = {}
    exec(code.replace("manual_seed(0)", "manual_seed(3)"), found)
    pixels = np.asarray(found["image"]).astype(int)
    assert type(found["pipeline"]).__name__ == family.PIPELINES[0]
    assert pixels.std() > 5
    assert np.abs(InferenceSession(teacher).image(generator, PROMPTS[0], 3) - pixels).max() <= 1


def test_encoder_of_sd3_joins_clip_on_features_and_t5_on_tokens(tiny_sd3_source, tmp_path):
    encoder, pipeline = load_text_encoder(prepare(tiny_sd3_source, tmp_path)), new_pipeline()
    tokens, empty_tokens, pooled, empty_pooled = pipeline.encode_prompt(PROMPTS, None, None)
    for found, expected in (
        (encoder.encode(PROMPTS), Conditioning(tokens, pooled)),
        (encoder.empty(), Conditioning(empty_tokens[:1], empty_pooled[:1])),
    ):
        torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-4)
    assert place(encoder, "float16").encoders[2].model.dtype == torch.bfloat16  # T5 overflows in float16


def test_prepare_teacher_of_sd3_in_shards_joins_them(copy, tmp_path):
    whole = prepare(copy, tmp_path)
    sharded = new_pipeline()
    sharded.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert list((tmp_path / "shards" / "transformer").glob("*.index.json"))
    prepare_teacher(Teacher(source="local", path=str(tmp_path / "shards")), tmp_path / "joined")
    weights = [load_backbone(folder).network.state_dict() for folder in (whole, tmp_path / "joined")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    shard = sorted((tmp_path / "shards" / "transformer").glob("*-00002-of-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=f"lists transformer/{shard.name}, which is missing. Fix: get all shards"):
        prepare_teacher(Teacher(source="local", path=str(tmp_path / "shards")), tmp_path / "half")


def test_encoder_of_sana_puts_the_instruction_before_prompts_alone(tiny_sana_source, tmp_path):
    encoder, pipeline = load_text_encoder(prepare(tiny_sana_source, tmp_path)), tiny_sana.new_pipeline()
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    tokens, mask, empty_tokens, empty_mask = pipeline.encode_prompt(PROMPTS, complex_human_instruction=instruction)
    found, empty = encoder.encode([prompt.upper() for prompt in PROMPTS]), encoder.empty()
    for ours, theirs in ((found, (tokens, mask)), (empty, (empty_tokens[:1], empty_mask[:1]))):
        torch.testing.assert_close(ours.tokens, theirs[0])
        assert torch.equal(ours.mask, theirs[1])
    assert len(set(found.mask.sum(1).tolist())) > 1


def test_predict_of_sana_ignores_masked_tokens(tiny_sana_source):
    backbone, encoder = load_backbone(tiny_sana_source), load_text_encoder(tiny_sana_source)
    cond, x_t, t = encoder.encode(PROMPTS[:2]), torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.9])
    changed = Conditioning(torch.where(cond.mask.bool()[..., None], cond.tokens, 1.0), mask=cond.mask)
    expected = backbone(x_t, t, cond)
    torch.testing.assert_close(backbone(x_t, t, changed), expected)
    assert (
        backbone(x_t, t, Conditioning(changed.tokens, mask=torch.ones_like(cond.mask))) - expected
    ).abs().max() > 1e-3


@pytest.mark.parametrize(("checkpointing", "lora"), [(False, None), (True, None), (True, Lora(rank=2))])
@pytest.mark.parametrize("source", ["tiny_sd3_source", "tiny_sana_source", "tiny_flux_source"])
def test_trainer_step_of_a_flow_changes_its_networks(request, source, checkpointing, lora):
    unguided = dict.fromkeys(("fake_train", "fake_eval", "teacher"), 1.0)
    settings = make_settings(
        unguided | {"lora": lora}, t_init=1000, batch=2, micro_batch=2, checkpointing=checkpointing
    )
    trainer = make_trainer(settings, request.getfixturevalue(source), PROMPTS)
    before = {name: trained.master.clone() for name, trained in trainer.trained.items()}
    trainer.step()
    for name, trained in trainer.trained.items():
        assert trained.master.isfinite().all()
        assert not torch.equal(trained.master, before[name])


def test_trainer_on_a_device_shares_one_copy_of_the_positions_there(tiny_sd3_source):
    """Take the teacher from host memory to meta, as to a GPU."""
    meta, teacher = torch.device("meta"), load_backbone(tiny_sd3_source)
    prompts = dry_run.RandomPrompts((268, 32), meta, 24)
    settings = dry_run.make_settings(batch=1, micro_batch=1, precision="bfloat16")
    trainer = Trainer(teacher, prompts, (4, 8, 8), dry_run.make_run(2.0), settings, device=meta)
    trainer.step()
    networks = (trainer.teacher, trainer.fake_score, trainer.generator, trainer.ema)
    positions = {id(buffer): buffer for backbone in networks for buffer in backbone.network.buffers()}
    assert [buffer.device for buffer in positions.values()] == [meta]


# --- mistakes ----------------------------------------------------------------------------------------------------------

SD3 = [
    ("model_index.json", {"_class_name": "StableDiffusion3ControlNetPipeline"}, "_class_name=StableDiffusion3Control"),
    ("model_index.json", {"controlnet": ["diffusers", "SD3ControlNetModel"]}, "controlnet=SD3ControlNetModel"),
    ("model_index.json", {"max_sequence_length": 600}, "max_sequence_length=600: expected 0 to 512 tokens of T5"),
    ("transformer/config.json", {"_class_name": "WanTransformer3DModel"}, "_class_name=WanTransformer3DModel"),
    ("transformer/config.json", {"in_channels": 9}, "transformer: in_channels=9: expected 4"),
    ("transformer/config.json", {"joint_attention_dim": 20}, "give 24 values a token, transformer expects at most 20"),
    ("vae/config.json", {"_class_name": "AutoencoderDC"}, "vae: _class_name=AutoencoderDC: expected AutoencoderKL"),
    ("text_encoder_3/config.json", {"model_type": "umt5"}, "text_encoder_3: model_type=umt5: expected t5"),
    ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "scheduler: _class_name=DDIMScheduler"),
]
SANA = [
    ("vae/config.json", {"_class_name": "AutoencoderKL"}, "vae: _class_name=AutoencoderKL: expected AutoencoderDC"),
    ("text_encoder/config.json", {"model_type": "t5"}, "text_encoder: model_type=t5: expected gemma2"),
    ("transformer/config.json", {"guidance_embeds": True}, "transformer: guidance_embeds=True: expected False"),
    ("model_index.json", {"_class_name": "SanaVideoPipeline"}, "_class_name=SanaVideoPipeline"),
    ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "_class_name=DPMSolverMultistepScheduler"),
]
FLUX = [
    ("vae/config.json", {"_class_name": "AutoencoderDC"}, "vae: _class_name=AutoencoderDC: expected AutoencoderKL"),
    ("text_encoder_2/config.json", {"model_type": "umt5"}, "text_encoder_2: model_type=umt5: expected t5"),
    ("transformer/config.json", {"out_channels": 8}, "transformer: out_channels=8: expected none"),
    ("model_index.json", {"_class_name": "FluxFillPipeline"}, "_class_name=FluxFillPipeline"),
]
OTHERS = {"tiny_sd3_source": SD3, "tiny_sana_source": SANA, "tiny_flux_source": FLUX}


@pytest.mark.parametrize(
    ("copy", "file", "changes", "message"),
    [(source, *row) for source, rows in OTHERS.items() for row in rows],
    indirect=["copy"],
)
def test_prepare_teacher_of_another_flow_names_what_differs(copy, tmp_path, file, changes, message):
    edit(copy / file, **changes)
    with pytest.raises(UserError, match=f"{re.escape(message)}.*Fix: (give|take|omit) "):
        prepare(copy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_stages_of_unets_alone_name_another_family(tiny_sd3_source, tmp_path, capsys):
    pickle = str(tmp_path / "batch512_cfg222_t625_4812_v2.pkl")
    command = ["import-official", pickle, "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--teacher", str(tiny_sd3_source)]) == 1
    assert "expected a teacher of StableDiffusion" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_guidance_of_flux_by_an_empty_prompt_is_named(tiny_flux_source, scale):
    backbone, encoder = load_backbone(tiny_flux_source), load_text_encoder(tiny_flux_source)
    with pytest.raises(UserError, match=rf"guidance scale {scale:g}: expected 1 for Flux.*Fix: .*the strategy none"):
        backbone(torch.randn(1, 4, 8, 8), torch.ones(1), encoder.encode(["a"]), encoder.empty(), scale)


@pytest.mark.parametrize("component", ["text_encoder_2", "tokenizer_3", "vae", "scheduler"])
def test_prepare_teacher_of_sd3_without_a_component_names_it(copy, tmp_path, component):
    shutil.rmtree(copy / component)
    with pytest.raises(
        UserError, match=rf"component {component} is missing: .*Fix: give a teacher with all its folders"
    ):
        prepare(copy, tmp_path)


def test_prepare_teacher_of_sd3_with_a_vae_of_other_channels_names_both(copy, tmp_path):
    networks.new_vae((8,) * 4, 8, 64).save_pretrained(copy / "vae")
    with pytest.raises(UserError, match=r"vae has 8 latent channels, transformer expects 4.*Fix: take the vae"):
        prepare(copy, tmp_path)


def test_solver_of_the_other_kind_of_teacher_is_named(tiny_teacher, tiny_sd3_source):
    with pytest.raises(UserError, match=r"solver=ddim: expected flow-euler or dpm-solver .*Fix: set baselines\.solver"):
        load_solver("ddim", tiny_sd3_source, 4)
    with pytest.raises(UserError, match=r"solver=flow-euler: expected ddim, .*Fix: set baselines\.solver"):
        load_solver("flow-euler", tiny_teacher, 4)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("tiny_teacher_source", {"t_init": 1000}, "distill.t_init=1000: expected 0 to 999 for StableDiffusion"),
        ("tiny_sd3_source", {"t_init": 0}, "distill.t_init=0: expected 1 to 1000 for StableDiffusion3"),
    ],
)
def test_make_trainer_with_times_of_another_schedule_names_them(request, source, changes, message):
    with pytest.raises(UserError, match=f"{message}. Fix: "):
        make_trainer(make_settings(**changes), request.getfixturevalue(source), PROMPTS)


@pytest.mark.parametrize("name", ["tiny_sd3_source", "tiny_sana_source", "tiny_flux_source"])
def test_fit_export_rescales_the_input_of_the_network(request, name, tmp_path):
    copy = shutil.copytree(request.getfixturevalue(name), tmp_path / "source")
    family = family_of(copy)
    family.fit_export(copy, Steps(850))
    before, after = (
        family.load_network(folder / "transformer", copy) for folder in (request.getfixturevalue(name), copy)
    )
    x, t = torch.randn(1, *family.latent_shape(copy)), torch.tensor([0.85])
    cond = load_text_encoder(copy).encode(PROMPTS[:1])
    torch.testing.assert_close(after.predict(x, t, cond), before.predict(0.85 * x, t, cond))


def test_export_of_adapters_from_another_t_init_names_it(tmp_path):
    with pytest.raises(UserError, match=r"t_init=850: expected 1000 for adapters; .*Fix: distil with t_init: 1000"):
        StableDiffusion3.fit_export(tmp_path, Steps(850))
