"""Test that proxy metrics of latents equal the formulas of evaluation."""

import pytest
import torch
from safetensors.torch import save_file

from sid_core.config import BuildReferenceSettings
from sid_core.data.images import quantise
from sid_core.data.shapes import scenes
from sid_core.evaluation.metrics.frechet import Gaussian, Reference
from sid_core.evaluation.networks.required import Clip, Features
from sid_core.evaluation.proxy import Proxy
from sid_core.storage.files import write_sidecar

SETTINGS = BuildReferenceSettings(reference_samples=40, batch=20)


@pytest.fixture
def reference(tmp_path):
    """Write features of 40 reference images, as the reference stage does."""
    images, _ = scenes.draw("reference", 40)
    path = tmp_path / "features.safetensors"
    save_file({"index": torch.arange(40), "features": Features(SETTINGS).rows(list(images))}, path)
    write_sidecar(path, {})
    return path


def test_proxy_equals_the_metrics_of_the_decoded_images(reference):
    torch.manual_seed(0)
    latents, (_, captions) = torch.rand(24, 3, 32, 32) * 2 - 1, scenes.draw("train", 24)
    values = Proxy(SETTINGS, reference, captions, lambda x: x)(latents.split(10))
    images = list(quantise(latents))
    clip, features = Clip(SETTINGS), Features(SETTINGS)
    from safetensors.torch import load_file

    expected = Reference(Gaussian.fit(load_file(reference)["features"])).distance(Gaussian.fit(features.rows(images)))
    cosines = (clip.images(images) * clip.texts(captions)).sum(1)
    assert values["fid_proxy"] == pytest.approx(expected, rel=1e-4)
    assert values["clip_proxy"] == pytest.approx(cosines.mean().item(), rel=1e-4)
