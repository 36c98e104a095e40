"""Compare every family of diffusers' pipelines, with every prediction type, to the pipeline itself."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from small import baseline_settings
from small_run import PROMPTS
from teacher_folders import edit
from tiny_sdxl import BETAS

from sid_core.config import Teacher
from sid_core.data.shards import read_shard
from sid_core.method import Steps, one_step
from sid_core.models.backbones import family_of
from sid_core.models.teacher import load_backbone, load_solver, load_text_encoder, prepare_teacher
from sid_core.sampling import generation
from sid_core.sampling import inputs as inputs_module


class UnroundedDPMSolver(DPMSolverMultistepScheduler):
    """diffusers' solver at the network times of its noise levels, which it rounds to integers."""

    def set_timesteps(self, steps, device=None, mu=None):
        super().set_timesteps(steps, device)
        self.timesteps = 1000 * self.sigmas[:-1]


# fixture of the source, what its model_index.json states, and arguments of its pipeline
DIFFUSION = {
    "Stable Diffusion": ("tiny_teacher_source", {}, {}),
    "SDXL": ("tiny_sdxl_source", {"force_zeros_for_empty_prompt": True}, {}),
    "SDXL, the empty prompt encoded": ("tiny_sdxl_source", {"force_zeros_for_empty_prompt": False}, {}),
}
FLOWS = {
    "SD 3": ("tiny_sd3_source", {}, {}),
    "SD 3 without T5": ("tiny_sd3_source", {name: [None, None] for name in ("text_encoder_3", "tokenizer_3")}, {}),
    "SANA": ("tiny_sana_source", {}, {"height": 32, "width": 32, "use_resolution_binning": False}),
    "FLUX": ("tiny_flux_source", {}, {"height": 64, "width": 64, "guidance_scale": 3.5}),
}
# what scheduler_config.json states
PREDICTIONS = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v, zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}
SHIFTS = {"static shift": {"shift": 3.0}, "dynamic shift": {"use_dynamic_shifting": True, "shift": 1.0}}
SHIFTED = [("SD 3", "static shift"), ("SD 3", "dynamic shift"), ("SD 3 without T5", "static shift")]
SHIFTED += [("SANA", "static shift"), ("FLUX", "dynamic shift")]
TRAILING = BETAS | {"timestep_spacing": "trailing"}
# diffusers' scheduler of each solver, and the tolerance: DPM-Solver++ takes 2^-24 for the last abar of zero terminal SNR
SOLVERS = {
    "ddim": (DDIMScheduler, TRAILING | {"clip_sample": False}, 1e-5),
    "dpm-solver": (
        DPMSolverMultistepScheduler,
        TRAILING | {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"},
        5e-5,
    ),
}
FLOW_SOLVERS = {
    "flow-euler": (FlowMatchEulerDiscreteScheduler, {}, 1e-5),
    "dpm-solver": (UnroundedDPMSolver, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, 1e-5),
}
CASES = {f"{name}, {kind}": (DIFFUSION[name], PREDICTIONS[kind], SOLVERS) for name in DIFFUSION for kind in PREDICTIONS}
CASES |= {f"{name}, {shift}": (FLOWS[name], SHIFTS[shift], FLOW_SOLVERS) for name, shift in SHIFTED}
STEPS, GUIDANCE = 4, 3.0


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def family(request, tmp_path_factory):
    """Return a prepared teacher, diffusers' pipeline of its source, its scheduler's settings, and its solvers."""
    (name, index, _), scheduler, solvers = request.param
    folder = tmp_path_factory.mktemp("family")
    source = shutil.copytree(request.getfixturevalue(name), folder / "source")
    for path, changes in (("model_index.json", index), ("scheduler/scheduler_config.json", scheduler)):
        edit(source / path, **changes)
    prepare_teacher(Teacher(source="local", path=str(source)), folder / "teacher")
    absent = {component: None for component, entry in index.items() if entry == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(source, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return folder / "teacher", pipeline, scheduler, solvers


@pytest.fixture
def teacher(family):
    return family[0]


@pytest.fixture(params=[0, 1], ids=["first order", "DPM-Solver++"])
def solver(request, family):
    return list(family[3])[request.param]


@pytest.fixture
def tolerance(family, solver):
    return family[3][solver][-1]


@pytest.fixture
def options(request) -> dict:
    """Return arguments of the family's pipeline."""
    return request.node.callspec.params["family"][0][-1]


@pytest.fixture
def kappa(options) -> float:
    """Return the guidance scale of both branches: 1 where the scale is an input of the network."""
    return 1.0 if "guidance_scale" in options else GUIDANCE


def sampled(pipeline, z: torch.Tensor, kind: str = "latent", **options) -> torch.Tensor | list:
    """Sample diffusers' pipeline from the noise z, whose latents may be packed."""
    packs = hasattr(pipeline, "_pack_latents")
    noise = pipeline._pack_latents(z, *z.shape) if packs else z
    found = pipeline(PROMPTS, latents=noise, output_type=kind, **options).images
    side = pipeline.vae_scale_factor * z.shape[-1]
    return (
        pipeline._unpack_latents(found, side, side, pipeline.vae_scale_factor) if packs and kind == "latent" else found
    )


@pytest.fixture
def sample(family, solver, options, z):
    """Return a function that samples diffusers' pipeline from the noise z, for the given output type."""
    teacher, pipeline, given, solvers = family
    scheduler, settings, _ = solvers[solver]
    if scheduler is UnroundedDPMSolver:
        given = {"flow_shift": family_of(teacher).load_schedule(teacher).shift}
    pipeline.scheduler = scheduler(**given, **settings)
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | options
    return lambda kind: sampled(pipeline, z, kind, **given)


@pytest.fixture
def z() -> torch.Tensor:
    """Draw the noise of samples 0 to 4."""
    return torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(len(PROMPTS))])


def assert_equal(latents: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Compare to a fraction of the largest value: at the first step x_0 is 15 times the noise."""
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@torch.inference_mode()
def test_solve_equals_the_pipeline(teacher, solver, tolerance, sample, kappa, z):
    encoder, steps = load_text_encoder(teacher), load_solver(solver, teacher, STEPS)
    cond, empty = encoder.encode(PROMPTS), encoder.empty()
    latents = generation.solve(steps, load_backbone(teacher), z, cond, empty, kappa)
    assert_equal(latents, sample("latent"), tolerance)


def test_generate_of_baseline_equals_the_pipeline_to_one_level(teacher, solver, sample, kappa, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "LARGEST_BLOCK", len(PROMPTS))
    (tmp_path / "captions.txt").write_text("\n".join(PROMPTS) + "\n")
    settings = baseline_settings("teacher", solver=solver, steps=STEPS, guidance_scale=kappa)
    generation.generate(settings, None, teacher, tmp_path / "captions.txt", 0, len(PROMPTS), tmp_path / "shard.tar")
    ((_, images),) = read_shard(tmp_path / "shard.tar", len(PROMPTS))
    expected = np.stack([np.asarray(image) for image in sample("pil")])
    assert expected.std() > 5
    assert np.abs(images.astype(int) - expected).max() <= 1


@torch.inference_mode()
def test_one_step_equals_the_pipeline_with_the_exported_scheduler(family, options, z):
    teacher, pipeline, *_ = family
    backbone = load_backbone(teacher)
    t_init = 1000 if backbone.prediction_type == "flow" else 625
    pipeline.scheduler = family_of(teacher).exported(teacher, Steps(t_init))[0]
    latents = sampled(pipeline, z, **{"num_inference_steps": 1, "guidance_scale": 1} | options)
    assert_equal(one_step(backbone, z, t_init, load_text_encoder(teacher).encode(PROMPTS)), latents)
