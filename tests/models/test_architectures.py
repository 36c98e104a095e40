"""Build networks by name or from a directory: their sizes are those of the real ones."""

import shutil

import pytest
from tiny_sdxl import POOLED, TOKENS, WIDTHS

from sid_core import cli
from sid_core.errors import UserError
from sid_core.models import architectures
from sid_core.models.backbones import StableDiffusion, StableDiffusion3, StableDiffusionXL
from sid_core.models.backbones.flux import Flux
from sid_core.models.backbones.sana import Sana
from sid_core.models.teacher import load_backbone, load_text_encoder


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("sd15", StableDiffusion, 859_520_964),
        ("sdxl", StableDiffusionXL, 2_567_463_684),
        ("sd35-medium", StableDiffusion3, 2_243_171_520),
        ("sana-600m", Sana, 591_747_872),
        ("flux-dev", Flux, 11_901_408_320),
    ],
)
def test_new_backbone_by_name_has_the_published_parameters(name, kind, count):
    backbone = architectures.new_backbone(architectures.from_name(name), "meta")
    assert type(backbone) is kind
    assert parameters(backbone.network) == count


def test_architecture_of_an_sdxl_directory_is_that_of_its_networks(tiny_sdxl_source):
    architecture = architectures.from_directory(tiny_sdxl_source)
    assert architecture.text_shape == (TOKENS, sum(WIDTHS))
    assert architecture.pooled == POOLED
    assert architecture.text_parameters == parameters(load_text_encoder(tiny_sdxl_source))
    made = architectures.new_backbone(architecture, "cpu")
    assert parameters(made.network) == parameters(load_backbone(tiny_sdxl_source).network)


def test_architecture_of_a_directory_without_weights_of_a_text_encoder_names_them(tiny_sdxl_source, tmp_path):
    folder = shutil.copytree(tiny_sdxl_source, tmp_path / "source")
    (folder / "text_encoder_2" / "model.safetensors").rename(folder / "text_encoder_2" / "model.fp16.safetensors")
    with pytest.raises(UserError, match=r"--teacher .*: no text_encoder_2/model\.safetensors\. Fix: give a prepared"):
        architectures.from_directory(folder)


@pytest.mark.parametrize("source", ["tiny_sd3_source", "tiny_sana_source", "tiny_flux_source"])
def test_architecture_of_a_flow_directory_is_that_of_its_networks(request, source):
    folder = request.getfixturevalue(source)
    architecture, encoder, backbone = (
        load(folder) for load in (architectures.from_directory, load_text_encoder, load_backbone)
    )
    empty = encoder.empty()
    assert architecture.text_shape == empty.tokens.shape[1:]
    assert architecture.pooled == (None if empty.pooled is None else empty.pooled.shape[1])
    assert architecture.text_parameters == parameters(encoder)
    made = architectures.new_backbone(architecture, "cpu")
    assert type(made) is type(backbone)
    assert {name: p.shape for name, p in made.network.state_dict().items()} == {
        name: p.shape for name, p in backbone.network.state_dict().items()
    }


def test_size_of_plan_memory_is_any_published_architecture():
    assert {*cli.SIZES} == architectures.ARCHITECTURES.keys() - {"small"} | {"shapes"}
