"""What an iteration computes, held by counts that need no GPU; and the scripts that time it, run at their smallest."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sid_core.models import architectures
from sid_core.models.conditioning import Conditioning, PromptSet
from sid_core.training import dry_run
from sid_core.training.memory import fused_attention

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from counts import count, work_of  # noqa: E402

SMALL = architectures.from_name("small")


@pytest.mark.parametrize(("kappa", "tflop"), [(2.0, 15.03), (1.0, 9.33)])
def test_evaluations_of_sd15_compute_only_necessary_flops(kappa, tflop):
    """With guided pairs evaluated as two it is 15.38 TFLOP an image; kappa 1 has no pairs."""
    work = count("sd15", kappa, precision="bfloat16")
    assert work.flops / 1e12 <= tflop
    assert work.kernels.total() <= 1.01 * {2.0: 8_886, 1.0: 8_616}[kappa]


def flops_of_one(train_weights: bool, differentiate_input: bool, guided: bool) -> int:
    """One evaluation of a new network at batch 1, forward and backward."""
    denoiser = architectures.new_backbone(SMALL, "meta").requires_grad_(train_weights)
    x_t = torch.empty(1, *SMALL.latent_shape, device="meta", requires_grad=differentiate_input)
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    text = Conditioning(torch.empty(1, *SMALL.text_shape, device="meta"))

    def evaluate():
        x0_hat = denoiser(x_t, t, text, text, 2.0) if guided else denoiser(x_t, t, text)
        if x0_hat.requires_grad:
            x0_hat.sum().backward()

    with fused_attention():
        return work_of(evaluate).flops


def test_step_runs_its_evaluations_and_no_weight_gradients_of_frozen_networks():
    """Fake score's half: sample, train on a pair. Generator's: sample and train, two pairs differentiated to their input."""
    expected = (
        flops_of_one(False, False, guided=False)
        + flops_of_one(True, False, guided=True)
        + flops_of_one(True, False, guided=False)
        + 2 * flops_of_one(False, True, guided=True)
    )
    work = count("small", 2.0)
    assert work.flops == expected
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in architectures.new_network(SMALL, "meta").modules())
    assert work.weight_gradients == 2 * convolutions  # of the fake score once, of the generator once


def test_step_in_micro_batches_adds_kernels_and_no_flops():
    one, two = (count("small", 2.0, batch=2, micro_batch=n) for n in (2, 1))
    assert one.flops == two.flops
    assert one.kernels.total() < two.kernels.total() < 2 * one.kernels.total()
    for work in (one, two):  # one update for each network
        assert sum(n for name, n in work.kernels.items() if "fused_adam" in name) == 2


def test_step_launches_a_bounded_number_of_kernels():
    """Each launch costs a GPU's host some microseconds."""
    assert count("small", 2.0, precision="bfloat16").kernels.total() <= 1.01 * 4_081


# what torch.use_deterministic_algorithms says to raise on a GPU
WITHOUT_DETERMINISTIC_KERNEL = re.compile(
    r"(adaptive_\w*pool|avg_pool3d|fractional_max_pool|max_unpool|reflection_pad|upsample_(?!nearest)|grid_sampler)\w*_backward|"
    r"nll_loss|ctc_loss|embedding_bag|\bput_?\b|histc|bincount|median|scatter_reduce"
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_step_uses_deterministic_kernels_only(precision):
    found = count("small", 2.0, precision=precision).kernels
    assert any("upsample_nearest2d_backward" in name for name in found)
    assert not [name for name in found if WITHOUT_DETERMINISTIC_KERNEL.search(name)]


def test_step_encodes_each_prompt_once_and_the_empty_one_once_a_run():
    class Encoder:
        def __init__(self):
            self.encoded = []

        def encode(self, prompts):
            self.encoded += prompts
            return Conditioning(torch.zeros(len(prompts), *SMALL.text_shape))

        def empty(self):
            return self.encode([""])

    def on_meta(tensor):
        return tensor.to("meta")

    encoder = Encoder()
    trainer = dry_run.make_trainer(SMALL, "meta", batch=6, micro_batch=6)
    trainer.prompt_dropout = 0.5
    prompts = PromptSet(encoder, [f"prompt {i}" for i in range(1000)], 0)
    prompts_type = type(
        "Prompts", (), {"__len__": lambda _: 1000, "__call__": lambda _, *asked: prompts(*asked).map(on_meta)}
    )
    trainer.prompts = prompts_type()
    trainer.prompts.empty = prompts.empty.map(on_meta)
    for _ in range(2):
        trainer.step()
    assert encoder.encoded.count("") == 1
    assert len(encoder.encoded) == 1 + 2 * 2 * 6  # iterations, halves, batch


# --- the scripts -------------------------------------------------------------------------------------------------------

# as on a machine that has torch, diffusers, transformers and safetensors alone: the others are not found
WITHOUT = """
import importlib.machinery, runpy, sys
ABSENT = {"pydantic", "mlflow", "snakemake", "pandas", "transformers", "open_clip", "matplotlib"}
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
THEIRS = """
import torch
NAME = "toy"
def build(unet_factory, settings):
    unet = unet_factory().requires_grad_(True)
    optimizer = torch.optim.SGD(unet.parameters(), settings.lr)
    def step():
        z = torch.randn(settings.batch, *settings.latent_shape, device=settings.device)
        text = settings.embeddings[: settings.batch].to(settings.device)
        t = torch.full((settings.batch,), settings.t_init, device=settings.device)
        unet(z, t, encoder_hidden_states=text).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return step
"""


def test_training_step_with_another_implementation_reports_both(tmp_path):
    """With nothing installed but what a bare machine has."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    command = [
        sys.executable,
        "-c",
        WITHOUT,
        str(BENCHMARKS / "training_step.py"),
        "--size",
        "small",
        "--micro-batch",
        "1",
    ]
    times = ["--seconds", "0", "--warmup", "0", "--rounds", "2", "--threads", "1"]
    files = ["--beside", str(tmp_path / "theirs.py"), "--json", str(tmp_path / "step.json")]
    done = subprocess.run([*command, *times, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["images_per_s"] == pytest.approx(1000 / record["ms_per_image"]["median"])
    assert record["beside"]["name"] == "toy"
    assert record["beside"]["ratio"] < 1  # it does a fraction of the work
    assert record["machine"]["torch"] == torch.__version__
    assert "ms per image" in done.stdout


def test_kind_of_an_operation_returns_its_group():
    from parts.kinds import as_table, kind_of

    kinds = {
        "aten::mkldnn_convolution": "convolution",
        "aten::convolution_backward": "convolution",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
        "aten::addmm": "linear",
        "aten::mm": "linear",
        "aten::native_group_norm_backward": "normalisation",
        "aten::_fused_adam_": "optimizer, EMA, copies of weights",
        "aten::add_": "pointwise",
        "aten::copy_": "copies and layout",
        "cudaLaunchKernel": "other",
    }
    assert {name: kind_of(name) for name in kinds} == kinds
    assert "| linear | 1500.0 | 75% |" in as_table({"linear": 1.5, "other": 0.5})
