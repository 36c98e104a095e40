"""A tiny generator, feature network and open_clip model with random weights, and settings that go with them."""

import json
from pathlib import Path

import pytest
import torch
from small import CAPTIONS, SAMPLES

from sid_core.config import Evaluate, ScoreSettings


@pytest.fixture(scope="session")
def captions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "evaluation.txt"
    path.write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def scene_captions(tmp_path_factory) -> Path:
    """The captions of the first evaluation scenes."""
    from sid_core.shapes import scenes

    path = tmp_path_factory.mktemp("prompts") / "evaluation.txt"
    path.write_text("\n".join(scenes.draw("evaluation", SAMPLES)[1]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def save_tiny_generator(tiny_teacher):
    """Writes a generator with the tiny teacher's weights; a broken one makes NaN."""
    from sid_core.models.generator import save_generator
    from sid_core.models.teacher import load_denoiser, teacher_sha256

    def save(out: Path, num_steps: int = 1, broken: bool = False) -> Path:
        unet = load_denoiser(tiny_teacher).unet
        weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
        if broken:
            weights["conv_out.bias"].fill_(torch.nan)
        record = {"t_init": 625, "num_steps": num_steps, "teacher_sha256": teacher_sha256(tiny_teacher)}
        save_generator(out, unet, weights, record)
        return out

    return save


@pytest.fixture(scope="session")
def tiny_generator(save_tiny_generator, tmp_path_factory) -> Path:
    return save_tiny_generator(tmp_path_factory.mktemp("run") / "generator")


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> dict[str, str]:
    """Folders of a feature network for 24 x 24 images and of an open_clip model for 16 x 16."""
    import open_clip
    from safetensors.torch import save_file

    from sid_core.models.feature_network import FeatureNetwork

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
    """Settings of a score for the tiny networks: 16 x 16 images, enlarged to 24 x 24; `.evaluate` is what features need."""

    def make(samples: int = SAMPLES, seed: int = 0, **changes) -> ScoreSettings:
        values = {
            "protocol": "tiny",
            "reference_samples": 30,
            "image_size": 16,
            "feature_size": 24,
            "batch": 7,
            "kid_subsets": 4,
            "kid_subset_size": 10,
            "jackknife_groups": 5,
            "bootstrap": 20,
        }
        return ScoreSettings(evaluate=Evaluate(**(values | networks | changes)), samples=samples, seed=seed)

    return make
