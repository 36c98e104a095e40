"""Load exported adapters by diffusers and peft: the image of `sid-core sample`, on the teacher and on a fine-tune.

peft is installed into a folder of its own: where it is installed, every process of a pipeline imports it.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_core.config import Lora, Teacher
from sid_core.method import one_step
from sid_core.models.convert.pipeline import export
from sid_core.models.generator import save_generator
from sid_core.models.lora import FILE, adapted, merge, own_weights
from sid_core.models.teacher import load_backbone, load_text_encoder, prepare_teacher, teacher_sha256
from sid_core.sampling.session import InferenceSession
from sid_core.storage.files import read_json

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[3]
SEED, PROMPT = 3, "a red dot"
# a stock pipeline; the fine-tune has all weights of its UNet times `factor`
SCRIPT = """
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler

teacher, lora, out, factor = *sys.argv[1:4], float(sys.argv[4])
pipeline = DiffusionPipeline.from_pretrained(teacher)
with torch.no_grad():
    for weight in pipeline.unet.parameters():
        weight *= factor
pipeline.load_lora_weights(lora)
pipeline.scheduler = EulerDiscreteScheduler.from_pretrained(lora, subfolder="scheduler")
for kind in ("np", "latent"):
    options = {"generator": torch.Generator().manual_seed(3), "output_type": kind}
    image = pipeline("a red dot", num_inference_steps=1, guidance_scale=1, **options).images[0]
    np.save(f"{out}/{kind}.npy", image)
"""


@pytest.fixture(scope="module")
def with_peft(tmp_path_factory):
    """Install peft; return a function that runs SCRIPT with it."""
    folder = tmp_path_factory.mktemp("peft")
    lock = ["--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-lora.lock")]
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([*uv, "--target", str(folder), *lock], check=True)

    def run(*given: object) -> None:
        command = [sys.executable, "-c", SCRIPT, *map(str, given)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"})

    return run


@pytest.fixture(scope="module", params=["tiny_teacher_source", "tiny_sdxl_source"])
def exported(request, tmp_path_factory):
    """Return the folders of the teacher's source, teacher, generator and export."""
    source, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp("exported")
    teacher = folder / "teacher"
    prepare_teacher(Teacher(source="local", path=str(source)), teacher)
    backbone = adapted(load_backbone(teacher), Lora(rank=4), torch.Generator().manual_seed(0))
    weights = own_weights(backbone.network.state_dict())
    for number, weight in enumerate(weights.values()):
        weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    scales = {"fake_train": 1.5, "fake_eval": 1.5, "teacher": 1.5, "alpha": 1.0}
    run = {"name": "lsg-1.5-rank4", **scales, "lora": {"rank": 4}, "seed": 0}
    record = {"run": run, "t_init": 625, "num_steps": 1, "prediction_type": "epsilon", "train_kimg": 1.0}
    save_generator(folder / "generator", backbone, weights, record | {"teacher_sha256": teacher_sha256(teacher)})
    export(folder / "generator", teacher, folder / "lora")
    return source, teacher, folder / "generator", folder / "lora"


def test_load_lora_weights_of_an_export_gives_the_image_of_sample(exported, with_peft, tmp_path):
    source, teacher, generator, folder = exported
    with_peft(source, folder, tmp_path, 1)
    expected = InferenceSession(teacher).image(generator, PROMPT, SEED).astype(float)
    image = 255 * np.load(tmp_path / "np.npy")
    assert expected.std() > 5  # a uniform image would match any other
    assert np.abs(image.round() - expected).max() <= 1


def test_load_lora_weights_onto_a_fine_tune_adds_the_products(exported, with_peft, tmp_path):
    source, teacher, _, folder = exported
    with_peft(source, folder, tmp_path, 1.05)
    backbone = load_backbone(teacher)
    for weight in backbone.network.parameters():
        weight *= 1.05
    merge(backbone.network, folder / FILE, "unet")
    z = torch.randn(1, *backbone.latent_shape(teacher), generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        expected = one_step(backbone, z, 625, load_text_encoder(teacher).encode([PROMPT]))[0]
    latents = torch.from_numpy(np.load(tmp_path / "latent.npy"))
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert read_json(folder / "generator.json")["run"]["lora"] == {"rank": 4}
