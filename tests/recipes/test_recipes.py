"""Test the smallest recipe: it resumes where it stopped, and its products load."""

import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes import build
from recipes.settings import SMALLEST
from sid_core.data.shapes import ASSETS
from sid_core.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make the assets of the smallest recipe in two calls."""
    out = tmp_path_factory.mktemp("recipes") / "assets"
    build.make_assets(out, SMALLEST, only={"features", "clip"})
    assert not out.exists()
    assert (out.with_name("assets.work") / "features.made.json").is_file()
    build.make_assets(out, SMALLEST)
    return out


def test_make_assets_of_the_smallest_settings_gives_loadable_networks(made):
    from sid_core.evaluation.networks.feature_network import FeatureNetwork
    from sid_core.models.teacher import load_backbone
    from sid_core.models.text import TextEncoder
    from sid_core.models.vae import ImageCodec

    cond = TextEncoder.from_directory(made / "teacher").encode(["a red circle", ""])
    codec = ImageCodec.from_directory(made / "teacher")
    latents = codec.encode(torch.zeros(2, 3, 32, 32))
    assert latents.shape == (2, 4, 8, 8)
    denoiser = load_backbone(made / "teacher")
    assert denoiser.network(latents, torch.tensor([5, 5]), cond.tokens).sample.shape == latents.shape
    assert FeatureNetwork.from_directory(made / "features")(codec.decode(latents)).shape == (2, 64)


def test_make_assets_records_settings_quality_and_files(made):
    recipe = json.loads((made / build.RECIPE).read_text())
    assert recipe["settings"]["teacher"]["steps"] == SMALLEST.teacher.steps
    assert set(recipe["quality"]) == {"real", "vae", "teacher-cfg-1", "teacher-cfg-3", "flow-cfg-1"}
    on_disk = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert set(recipe["files"]) == on_disk - {build.RECIPE}
    assert not made.with_name("assets.work").exists()


def test_make_assets_again_makes_no_step(made, monkeypatch):
    monkeypatch.setattr(build, "_make_step", lambda *_: pytest.fail("made again"))
    build.make_assets(made, SMALLEST)


def test_make_assets_teacher_loads_in_diffusers(made):
    from diffusers import StableDiffusionPipeline

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline = StableDiffusionPipeline.from_pretrained(made / "teacher", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red circle", num_inference_steps=2, output_type="np", height=32, width=32).images
    assert images.shape == (1, 32, 32, 3)


def test_make_assets_flow_teacher_loads_in_diffusers_and_gives_the_same_image(made):
    from diffusers import StableDiffusion3Pipeline

    from recipes.quality import sample
    from sid_core.models.teacher import load_image_codec, load_solver, load_text_encoder

    folder = made / "flow"
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    options = {"text_encoder_3": None, "tokenizer_3": None, "torch_dtype": torch.float32}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, low_cpu_mem_usage=False, **options)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "height": 32, "width": 32, "guidance_scale": 2, "max_sequence_length": 0}
    image = pipeline("a red circle", generator=torch.manual_seed(0), output_type="pil", **settings).images[0]
    encoder = load_text_encoder(folder)
    arguments = load_image_codec(folder), encoder.encode(["a red circle"]), encoder.empty(), 2, 0
    ours = sample(folder, partial(load_solver, "flow-euler", folder, 2), *arguments)[0]
    assert np.abs(np.asarray(image).astype(int) - ours).max() <= 1


def test_make_assets_of_unknown_or_unmet_steps_raises(tmp_path):
    with pytest.raises(UserError, match="--only vea: expected some of autoencoder"):
        build.make_assets(tmp_path / "assets", SMALLEST, only={"vea"})
    with pytest.raises(UserError, match="--only teacher: expected autoencoder, clip first"):
        build.make_assets(tmp_path / "assets", SMALLEST, only={"teacher"})


def test_make_assets_in_a_foreign_work_folder_raises(tmp_path):
    mine = tmp_path / "assets.work" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: not created by sid-core"):
        build.make_assets(tmp_path / "assets", SMALLEST)
    assert mine.read_text() == "mine"


def test_make_assets_with_other_settings_remakes_dependent_steps():
    from dataclasses import replace

    other = replace(SMALLEST, clip=replace(SMALLEST.clip, steps=5))
    changed = {
        name for name in build.RECIPE_STEPS if build.step_digest(name, other) != build.step_digest(name, SMALLEST)
    }
    assert changed == {"clip", "teacher", "quality", "flow", "flow_quality"}


def test_train_tokenizer_in_every_process_gives_the_same_tokens():
    code = "import json; from recipes.tokenizer import train_tokenizer; print(json.dumps(train_tokenizer()))"
    made = []
    for seed in ("0", "1"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        made.append(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=env, text=True))
    assert made[0] == made[1]
    shipped = json.loads((ASSETS / "teacher" / "tokenizer" / "tokenizer.json").read_text())["model"]
    vocabulary, merges = json.loads(made[0])
    assert merges == shipped["merges"]
    assert vocabulary.keys() == shipped["vocab"].keys()
