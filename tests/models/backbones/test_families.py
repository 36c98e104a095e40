"""Compare every family of diffusers' pipelines, with every prediction type, to the pipeline itself."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from small import baseline_settings
from small_run import PROMPTS
from tiny_sdxl import BETAS

from sid_core.config import Teacher
from sid_core.data.shards import read_shard
from sid_core.method import one_step
from sid_core.models.convert.pipeline import euler_scheduler
from sid_core.models.teacher import load_backbone, load_solver, load_text_encoder, prepare_teacher
from sid_core.sampling import generation
from sid_core.sampling import inputs as inputs_module

# fixture of the source, and what its model_index.json states
FAMILIES = {
    "Stable Diffusion": ("tiny_teacher_source", {}),
    "SDXL": ("tiny_sdxl_source", {"force_zeros_for_empty_prompt": True}),
    "SDXL, the empty prompt encoded": ("tiny_sdxl_source", {"force_zeros_for_empty_prompt": False}),
}
# what scheduler_config.json states
PREDICTIONS = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v, zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}
# diffusers' scheduler of each solver, and the tolerance: DPM-Solver++ takes 2^-24 for the last abar of zero terminal SNR
SOLVERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}, 1e-5),
    "dpm-solver": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}, 5e-5),
}
STEPS, GUIDANCE = 4, 3.0


@pytest.fixture(scope="module", params=PREDICTIONS)
def prediction(request):
    return PREDICTIONS[request.param]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, prediction, tmp_path_factory):
    """Return a prepared teacher, and diffusers' pipeline of its source."""
    name, index = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    source = shutil.copytree(request.getfixturevalue(name), folder / "source")
    for path, changes in (("model_index.json", index), ("scheduler/scheduler_config.json", prediction)):
        (source / path).write_text(json.dumps(json.loads((source / path).read_text()) | changes))
    prepare_teacher(Teacher(source="local", path=str(source)), folder / "teacher")
    pipeline = DiffusionPipeline.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)
    return folder / "teacher", pipeline


@pytest.fixture
def teacher(family):
    return family[0]


@pytest.fixture(params=SOLVERS)
def solver(request):
    return request.param


@pytest.fixture
def sample(family, prediction, solver, z):
    """Return a function that samples diffusers' pipeline from the noise z, for the given output type."""
    pipeline, (scheduler, settings, _) = family[1], SOLVERS[solver]
    pipeline.scheduler = scheduler(**BETAS, **prediction, **settings, timestep_spacing="trailing")
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": z}
    return lambda kind: pipeline(PROMPTS, **options, output_type=kind).images


@pytest.fixture
def z() -> torch.Tensor:
    """Draw the noise of samples 0 to 4."""
    return torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(len(PROMPTS))])


def assert_equal(latents: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Compare to a fraction of the largest value: at the first step x_0 is 15 times the noise."""
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@torch.inference_mode()
def test_solve_equals_the_pipeline(teacher, solver, sample, z):
    encoder, steps = load_text_encoder(teacher), load_solver(solver, teacher, STEPS)
    cond, empty = encoder.encode(PROMPTS), encoder.empty()
    latents = generation.solve(steps, load_backbone(teacher), z, cond, empty, GUIDANCE)
    assert_equal(latents, sample("latent"), SOLVERS[solver][-1])


def test_generate_baseline_equals_the_pipeline_to_one_level(teacher, solver, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "LARGEST_BLOCK", len(PROMPTS))
    (tmp_path / "captions.txt").write_text("\n".join(PROMPTS) + "\n")
    settings = baseline_settings("teacher", solver=solver, steps=STEPS, guidance_scale=GUIDANCE)
    generation.generate_baseline(settings, teacher, tmp_path / "captions.txt", 0, len(PROMPTS), tmp_path / "shard.tar")
    ((_, images),) = read_shard(tmp_path / "shard.tar", len(PROMPTS))
    expected = np.stack([np.asarray(image) for image in sample("pil")])
    assert expected.std() > 5
    assert np.abs(images.astype(int) - expected).max() <= 1


@torch.inference_mode()
def test_one_step_equals_the_pipeline_with_the_exported_scheduler(family, z):
    teacher, pipeline = family
    pipeline.scheduler = euler_scheduler(teacher, 625)
    latents = pipeline(PROMPTS, num_inference_steps=1, guidance_scale=1, latents=z, output_type="latent").images
    assert_equal(one_step(load_backbone(teacher), z, 625, load_text_encoder(teacher).encode(PROMPTS)), latents)
