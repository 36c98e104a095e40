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
from sid_core.models.backbones.flux import Flux
from sid_core.models.convert.pipeline import export
from sid_core.models.generator import save_generator
from sid_core.models.lora import FILE, adapted, merge, own_weights
from sid_core.models.teacher import load_backbone, load_text_encoder, prepare_teacher, teacher_sha256
from sid_core.sampling.session import InferenceSession
from sid_core.storage.files import read_json

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[3]
SEED, PROMPT = 3, "a red dot"
START = {"t_init": 625, "prediction_type": "epsilon"}
# the code of the card, on a stock pipeline; the fine-tune has all weights of its network times `factor`
SCRIPT = """
import re
import sys
from pathlib import Path
import numpy as np
import torch

teacher, lora, out, factor = *sys.argv[1:4], float(sys.argv[4])

def tune(pipeline):
    with torch.no_grad():
        for weight in (getattr(pipeline, "unet", None) or pipeline.transformer).parameters():
            weight *= factor

code = re.search(r"```python\\n(.*?)```", Path(lora, "README.md").read_text(), re.DOTALL)[1]
changes = {
    "THIS REPOSITORY OR FOLDER": lora, "THE TEACHER": teacher, "a prompt": "a red dot", "manual_seed(0)": "manual_seed(3)",
    "pipeline.load_lora": "tune(pipeline)\\npipeline.load_lora", "generator=seed": "generator=seed, output_type=kind",
}
for text, instead in changes.items():
    assert text in code
    code = code.replace(text, instead)
for kind in ("np", "latent"):
    found = {"tune": tune, "kind": kind}
    exec(code, found)
    np.save(f"{out}/{kind}.npy", found["image"])
"""
FLOWS = ("tiny_sd3_source", "tiny_sana_source", "tiny_flux_source")


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


@pytest.fixture(scope="module", params=["tiny_teacher_source", "tiny_sdxl_source", *FLOWS])
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
    kind = {"t_init": 1000, "prediction_type": "flow"} if request.param in FLOWS else START
    record = {"run": run, "num_steps": 1, "train_kimg": 1.0} | kind
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
    merge(backbone.network, folder / FILE, backbone.NETWORK)
    z = torch.randn(1, *backbone.latent_shape(teacher), generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        expected = one_step(
            backbone, z, read_json(folder / "generator.json")["t_init"], load_text_encoder(teacher).encode([PROMPT])
        )[0]
    latents = torch.from_numpy(np.load(tmp_path / "latent.npy"))
    if latents.ndim == 2:  # of FLUX: (patches, values)
        sides = expected.shape[1] // Flux.PATCH, expected.shape[2] // Flux.PATCH
        latents = torch.nn.functional.pixel_shuffle(latents.T.unflatten(1, sides), Flux.PATCH)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert read_json(folder / "generator.json")["run"]["lora"] == {"rank": 4}
