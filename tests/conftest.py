"""Define fixtures of all tests: a tiny random teacher in the diffusers layout, made in a second."""

import json
import string
from pathlib import Path

import pytest
import torch
from small import CAPTIONS, SAMPLES

from sid_core.config import Evaluate, ScoreSettings


def pytest_collection_modifyitems(items):
    """Run the folders of the longest files first: the last file to end keeps one of two processes waiting."""
    items.sort(key=lambda item: item.path.parent.name not in ("training", "workflow"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_teacher_source(tmp_path_factory) -> Path:
    """Write a diffusers directory with random weights: 4 x 8 x 8 latents, 16 x 16 images, 12 tokens of width 16."""
    from recipes import networks
    from sid_core.models.convert.pipeline import write_model_index

    folder = tmp_path_factory.mktemp("source") / "teacher"
    letters = list(string.ascii_lowercase + string.digits)
    tokens = letters + [f"{c}</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(0)
    parts = {
        "tokenizer": networks.new_tokenizer({token: i for i, token in enumerate(tokens)}, [], 12),
        "text_encoder": networks.new_text_encoder(width=16, layers=1, heads=2, vocabulary=len(tokens), length=12),
        "unet": networks.new_unet((16, 16), latent_channels=4, latent_size=8, text_width=16),
        "vae": networks.new_vae((8, 8), latent_channels=4, image_size=16),
        "scheduler": networks.new_scheduler(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    write_model_index(folder, "DDIMScheduler")
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl_source(tmp_path_factory) -> Path:
    """Write Stable Diffusion XL's layout with random weights: 4 x 8 x 8 latents, 64 x 64 images, 12 tokens of width 24."""
    from tiny_sdxl import write_teacher

    return write_teacher(tmp_path_factory.mktemp("sdxl") / "source")


@pytest.fixture(scope="session")
def tiny_sd3_source(tmp_path_factory) -> Path:
    """Write Stable Diffusion 3's layout with random weights: 4 x 8 x 8 latents, 64 x 64 images, 12 + 256 tokens of width 32."""
    from tiny_sd3 import write_teacher

    return write_teacher(tmp_path_factory.mktemp("sd3") / "source")


@pytest.fixture(scope="session")
def tiny_sana_source(tmp_path_factory) -> Path:
    """Write SANA's layout with random weights: 4 x 8 x 8 latents, 32 x 32 images, 300 tokens of width 16."""
    from tiny_sana import write_teacher

    return write_teacher(tmp_path_factory.mktemp("sana") / "source")


@pytest.fixture(scope="session")
def tiny_flux_source(tmp_path_factory) -> Path:
    """Write FLUX.1's layout with random weights: 4 x 8 x 8 latents, 64 x 64 images, 512 tokens of width 16."""
    from tiny_flux import write_teacher

    return write_teacher(tmp_path_factory.mktemp("flux") / "source")


@pytest.fixture(scope="session")
def tiny_teacher(tiny_teacher_source, tmp_path_factory) -> Path:
    """Prepare it by the teacher stage: with provenance and manifest."""
    from sid_core.config import Teacher
    from sid_core.models.teacher import prepare_teacher

    out = tmp_path_factory.mktemp("results") / "teacher"
    prepare_teacher(Teacher(source="local", path=str(tiny_teacher_source)), out)
    return out


@pytest.fixture(scope="session")
def captions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "evaluation.txt"
    path.write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def scene_captions(tmp_path_factory) -> Path:
    """Write the captions of the first evaluation scenes."""
    from sid_core.data.shapes import scenes

    path = tmp_path_factory.mktemp("prompts") / "evaluation.txt"
    path.write_text("\n".join(scenes.draw("evaluation", SAMPLES)[1]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def save_tiny_generator(tiny_teacher):
    """Return a function that writes a generator with the tiny teacher's weights; a broken one makes NaN."""
    from sid_core.models.generator import save_generator
    from sid_core.models.teacher import load_backbone, teacher_sha256

    def save(out: Path, num_steps: int = 1, broken: bool = False) -> Path:
        backbone = load_backbone(tiny_teacher)
        weights = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
        if broken:
            weights["conv_out.bias"].fill_(torch.nan)
        record = {"t_init": 625, "num_steps": num_steps, "teacher_sha256": teacher_sha256(tiny_teacher)}
        save_generator(out, backbone, weights, record)
        return out

    return save


@pytest.fixture(scope="session")
def tiny_generator(save_tiny_generator, tmp_path_factory) -> Path:
    return save_tiny_generator(tmp_path_factory.mktemp("run") / "generator")


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> dict[str, str]:
    """Write a feature network for 24 x 24 images and an open_clip model for 16 x 16."""
    import open_clip
    from safetensors.torch import save_file

    from sid_core.evaluation.networks.feature_network import FeatureNetwork

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    FeatureNetwork(24, [8, 8], 6).save(folder / "features")
    model = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    weights = open_clip.CLIP(**model).state_dict()
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "clip" / "open_clip_model.safetensors")
    return {"feature_network": str(folder / "features"), "clip": str(folder / "clip")}


@pytest.fixture(scope="session")
def evaluate_settings(networks):
    """Return a function that makes score settings for the tiny networks: 16 x 16 images, enlarged to 24 x 24."""

    def make(samples: int = SAMPLES, seed: int = 0, **changes) -> ScoreSettings:
        values = {
            "protocol": "tiny",
            "reference_samples": 30,
            "image_size": 16,
            "feature_size": 24,
            "batch": 7,
        }
        return ScoreSettings(evaluate=Evaluate(**(values | networks | changes)), samples=samples, seed=seed)

    return make
