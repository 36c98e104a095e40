import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler
from small import CAPTIONS, SAMPLES, baseline_settings, generate_settings, sampling

from sid_core.data.images import shrink
from sid_core.data.shards import read_shard
from sid_core.errors import UserError
from sid_core.method import Steps, n_step
from sid_core.models import embeddings
from sid_core.models.backbones import StableDiffusion
from sid_core.models.conditioning import Conditioning
from sid_core.models.embeddings import embed_prompts
from sid_core.models.generator import load_generator
from sid_core.models.scheduler import make_solver, noise_schedule, scheduler_config
from sid_core.models.teacher import load_backbone, load_solver
from sid_core.models.vae import ImageCodec
from sid_core.sampling import generation
from sid_core.sampling import inputs as inputs_module
from sid_core.sampling.generation import generate, solve
from sid_core.sampling.inputs import Inputs, block_size
from sid_core.storage.files import read_json, sidecar

BLOCK = 16


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Shrink blocks, so that 20 samples fill two; the first 5 have an epsilon-prediction error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "EPS_ERROR_SAMPLES", 5)
        patch.setattr(inputs_module, "LARGEST_BLOCK", BLOCK)
        yield


def record(shard) -> dict:
    return read_json(sidecar(shard))["record"]


def pixels(*shards) -> np.ndarray:
    return np.concatenate([images for shard in shards for _, images in read_shard(shard, 100)])


@pytest.fixture(scope="module")
def whole(tiny_generator, tiny_teacher, captions, tmp_path_factory):
    """Write all samples to one shard."""
    out = tmp_path_factory.mktemp("samples") / "00000.tar"
    generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out)
    return out


def test_generate_of_different_captions_gives_different_images(whole):
    images = pixels(whole)
    assert images.shape == (SAMPLES, 16, 16, 3)
    assert images.std() > 5
    assert len({sample["sha256"] for sample in record(whole)["samples"]}) == SAMPLES


def test_generate_with_stored_embeddings_gives_equal_bytes_without_a_text_encoder(
    whole, tiny_generator, tiny_teacher, captions, tmp_path, monkeypatch
):
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 1)
    embed_prompts(captions, tiny_teacher, tmp_path / "evaluation")
    monkeypatch.setattr(inputs_module, "load_text_encoder", None)
    out = tmp_path / "00000.tar"
    generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out, embeddings=tmp_path)
    assert out.read_bytes() == whole.read_bytes()


def test_block_size_of_larger_latents_shrinks():
    assert block_size((4, 8, 8)) == BLOCK
    assert block_size((4, 64, 64)) == 16
    assert block_size((4, 96, 64)) == 10
    assert block_size((4, 512, 512)) == 1


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_generate_with_another_batch_gives_equal_bytes(batch, whole, tiny_generator, tiny_teacher, captions, tmp_path):
    out = tmp_path / "00000.tar"
    generate(generate_settings(batch=batch), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out)
    assert out.read_bytes() == whole.read_bytes()
    assert record(out)["samples"] == record(whole)["samples"]


@pytest.mark.parametrize("cuts", [[0, 20], [0, 7, 20], [0, 3, 9, 16, 17, 20]])
def test_generate_in_other_shards_gives_equal_pixels(cuts, whole, tiny_generator, tiny_teacher, captions, tmp_path):
    shards = []
    for start, stop in itertools.pairwise(cuts):
        shards.append(tmp_path / f"{start:05d}.tar")
        generate(generate_settings(batch=3), tiny_generator, tiny_teacher, captions, start, stop, shards[-1])
    assert np.array_equal(pixels(*shards), pixels(whole))
    assert [sample for shard in shards for sample in record(shard)["samples"]] == record(whole)["samples"]


def test_generate_with_more_workers_gives_equal_bytes(whole, tiny_generator, tiny_teacher, captions, tmp_path):
    out = tmp_path / "00000.tar"
    generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out, workers=3)
    assert out.read_bytes() == whole.read_bytes()
    assert record(out)["samples"] == record(whole)["samples"]


def test_generate_at_another_png_level_gives_equal_pixels(
    whole, tiny_generator, tiny_teacher, captions, tmp_path, monkeypatch
):
    out = tmp_path / "00000.tar"
    monkeypatch.setattr(generation, "PNG_LEVEL", 9)
    generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out)
    assert np.array_equal(pixels(out), pixels(whole))
    assert out.read_bytes() != whole.read_bytes()


def test_generate_with_image_size_equals_shrinking_later(whole, tiny_generator, tiny_teacher, captions, tmp_path):
    out = tmp_path / "00000.tar"
    generate(generate_settings(image_size=8), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out)
    later = np.stack([shrink(image, 8) for image in pixels(whole)])
    assert np.array_equal(pixels(out), later)
    assert np.array_equal(np.stack([shrink(image, 8) for image in later]), later), "shrinking again must do nothing"
    assert record(out)["image_size"] == 8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_generate_in_16_bit_stays_close_to_float32(precision, whole, tiny_generator, tiny_teacher, captions, tmp_path):
    out = tmp_path / "00000.tar"
    generate(generate_settings(precision=precision), tiny_generator, tiny_teacher, captions, 0, SAMPLES, out)
    difference = np.abs(pixels(out).astype(int) - pixels(whole))
    assert 0 < difference.mean() < 1
    assert (record(out)["precision"], record(whole)["precision"]) == (precision, "float32")
    assert record(out)["device"] == ("cuda" if torch.cuda.is_available() else "cpu")


def test_generate_without_eps_errors_needs_no_teacher(whole, tiny_generator, tiny_teacher, captions, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(inputs_module, "load_backbone")
        patch.setattr(generation, "EPS_ERROR_SAMPLES", 0)
        generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, 4, tmp_path / "00000.tar")
    assert np.array_equal(pixels(tmp_path / "00000.tar"), pixels(whole)[:4])


def test_generate_again_gives_equal_bytes(tiny_generator, tiny_teacher, captions, tmp_path):
    """Delete one of two shards, as an interruption leaves them, and make it again."""
    first, second = tmp_path / "00000.tar", tmp_path / "00001.tar"
    for shard, span in ((first, (0, 10)), (second, (10, 20))):
        generate(generate_settings(), tiny_generator, tiny_teacher, captions, *span, shard)
    before = second.read_bytes()
    second.unlink()
    generate(generate_settings(batch=5), tiny_generator, tiny_teacher, captions, 10, 20, second)
    assert second.read_bytes() == before


def test_generate_of_one_sample_depends_on_its_caption_and_seed(tiny_generator, tiny_teacher, captions, tmp_path):
    """Compute one sample step by step; alone in a batch it rounds differently, hence a tolerance of one level."""
    from sid_core.data.images import quantise
    from sid_core.models.text import TextEncoder
    from sid_core.models.vae import ImageCodec

    out = tmp_path / "00000.tar"
    settings = generate_settings(seed=1000)
    generate(settings, tiny_generator, tiny_teacher, captions, 0, SAMPLES, out)
    z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1000 + 13))
    cond = TextEncoder.from_directory(tiny_teacher).encode([CAPTIONS[13]])
    with torch.no_grad():
        x_g = n_step(load_generator(tiny_generator, tiny_teacher)[0], [z[None]], Steps(625), cond)
        [expected] = quantise(ImageCodec.from_directory(tiny_teacher).decode(x_g))
    difference = np.abs(pixels(out)[13].astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_noises_of_larger_count_continue_the_stream(tiny_teacher, captions):
    inputs = Inputs(sampling(seed=5), tiny_teacher, captions)
    noises = inputs.noises(torch.arange(2 * BLOCK), 3)
    generator = torch.Generator().manual_seed(5 + 17)
    assert all(torch.equal(noise, torch.randn(4, 8, 8, generator=generator)) for noise in noises[17])
    assert torch.equal(inputs.noises(torch.arange(BLOCK), 1)[:, 0], noises[:BLOCK, 0])


def test_generate_of_two_steps_differs_from_one(save_tiny_generator, tiny_teacher, captions, whole, tmp_path):
    generator = save_tiny_generator(tmp_path / "generator", num_steps=2)
    out = tmp_path / "00000.tar"
    generate(generate_settings(num_steps=2), generator, tiny_teacher, captions, 0, 8, out)
    assert record(out)["nfe"] == 2
    assert not np.array_equal(pixels(out), pixels(whole)[:8])


def test_generate_records_its_inputs(whole, tiny_generator):
    from sid_core.data.shards import captions_sha256
    from sid_core.models.generator import generator_sha256

    made = record(whole)
    assert (made["start"], made["stop"], made["seed"], made["nfe"]) == (0, SAMPLES, 0, 1)
    assert made["captions_sha256"] == captions_sha256(CAPTIONS)
    assert made["generator_sha256"] == generator_sha256(tiny_generator)
    assert made["noise_device"] == "cpu"
    assert made["images_per_s"] > 0
    assert [sample["seed"] for sample in made["samples"]] == list(range(SAMPLES))
    assert [sample["eps_error"] is not None for sample in made["samples"]] == [True] * 5 + [False] * 15


def test_eps_errors_of_wrong_latents_equal_the_schedules_weight(tiny_teacher, captions):
    """Use a teacher whose x_0 is always 0: no error at 0; elsewhere it takes alpha x / sigma for noise."""

    class Zero(StableDiffusion):
        def forward(self, x_t, t, cond, uncond=None, guidance_scale=1.0):
            return torch.zeros_like(x_t)

    inputs = Inputs(sampling(), tiny_teacher, captions)
    schedule = noise_schedule(scheduler_config(tiny_teacher))
    inputs.teacher = Zero(torch.nn.Identity(), schedule, "epsilon")
    indices = torch.arange(2 * BLOCK)
    good = inputs.eps_errors(torch.zeros(2 * BLOCK, 4, 8, 8), indices)
    assert max(good) < 1e-9
    bad = inputs.eps_errors(torch.ones(2 * BLOCK, 4, 8, 8), indices)
    t = torch.stack([inputs._probe(int(i), torch.Size([4, 8, 8]))[0] for i in indices])
    assert bad == pytest.approx(schedule.fake_weight(t).flatten().tolist(), rel=1e-3)
    assert t.min() >= 20
    assert t.max() < 980
    assert len(t.unique()) > BLOCK


def test_probe_draws_other_noise_than_the_sample(tiny_teacher, captions):
    inputs = Inputs(sampling(), tiny_teacher, captions)
    z = inputs.noises(torch.arange(BLOCK), 1)[3, 0]
    eps = inputs._probe(3, z.shape)[1]
    assert torch.nn.functional.cosine_similarity(z.flatten(), eps.flatten(), dim=0).abs() < 0.3


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "dpm-solver-karras"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_solve_with_x0_equals_diffusers_with_epsilon(name, guidance_scale, tiny_teacher):
    """Compare steps with x_0 to the usual loop over guided epsilon."""
    teacher, generator = load_backbone(tiny_teacher), torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 8, 8, generator=generator)
    cond, uncond = torch.randn(3, 12, 16, generator=generator), torch.randn(1, 12, 16, generator=generator)
    solver, x = make_solver(name, tiny_teacher, 6), z
    with torch.no_grad():
        for t in solver.timesteps:
            conditional = teacher.network(x, t, cond).sample
            unconditional = teacher.network(x, t, uncond.expand(3, -1, -1)).sample
            eps = unconditional + guidance_scale * (conditional - unconditional)
            x = solver.step(eps, t, x).prev_sample
        cond, uncond = Conditioning(cond), Conditioning(uncond)
        ours = solve(load_solver(name, tiny_teacher, 6), teacher, z, cond, uncond, guidance_scale)
    # Karras' noise levels are between the schedule's: the network is evaluated at the nearest, where x_0 differs slightly
    tolerance = 1e-2 if name == "dpm-solver-karras" else 1e-4
    assert torch.allclose(ours, x, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "dpm-solver-karras"])
@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_solve_with_any_named_scheduler_does_not_clip_latents(name, kind, tmp_path):
    """Use schedulers without clip_sample in their config, for which DDIM's default is to clip."""

    class Five(StableDiffusion):
        def forward(self, x_t, t, cond, uncond=None, guidance_scale=1.0):
            return torch.full_like(x_t, 5.0)

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    kind(**betas).save_pretrained(tmp_path / "scheduler")
    teacher = Five(torch.nn.Identity(), noise_schedule(scheduler_config(tmp_path)), "epsilon")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x_0 = solve(load_solver(name, tmp_path, 4), teacher, z, None, None, 1.0)
    assert (x_0 - 5).abs().max() < 1e-4


def test_generate_of_baseline_of_teacher_in_another_shard_gives_equal_pixels(tiny_teacher, captions, tmp_path):
    """Check that the history of a multistep solver does not leak from one block into the next."""
    settings = baseline_settings("teacher", solver="dpm-solver", steps=3, guidance_scale=2.0)
    generate(settings, None, tiny_teacher, captions, 0, SAMPLES, tmp_path / "all.tar")
    generate(settings, None, tiny_teacher, captions, 17, SAMPLES, tmp_path / "end.tar")
    assert np.array_equal(pixels(tmp_path / "all.tar")[17:], pixels(tmp_path / "end.tar"))
    assert record(tmp_path / "all.tar")["sampler"] == {"solver": "dpm-solver", "steps": 3, "guidance_scale": 2.0}
    assert record(tmp_path / "all.tar")["nfe"] == 6  # both branches of three steps
    assert record(tmp_path / "all.tar")["generator_sha256"] is None


def test_generate_of_baseline_of_real_and_vae_gives_scenes_and_round_trips(tiny_teacher, scene_captions, tmp_path):
    from sid_core.data.shapes import scenes

    for kind in ("real", "vae"):
        generate(baseline_settings(kind), None, tiny_teacher, scene_captions, 3, SAMPLES, tmp_path / f"{kind}.tar")
    real = scenes.draw("evaluation", SAMPLES)[0][3:]
    assert np.array_equal(pixels(tmp_path / "real.tar"), real)
    assert pixels(tmp_path / "vae.tar").shape == real.shape
    assert not np.array_equal(pixels(tmp_path / "vae.tar"), real)
    errors = [
        [sample["eps_error"] for sample in record(tmp_path / f"{kind}.tar")["samples"]] for kind in ("real", "vae")
    ]
    assert errors[0] == pytest.approx(errors[1])
    assert errors[0][0] is not None
    assert record(tmp_path / "real.tar")["images_per_s"] is None
    assert record(tmp_path / "vae.tar")["images_per_s"] > 0


@pytest.mark.parametrize("kind", ["generator", "teacher", "vae"])
def test_images_per_s_with_slow_inputs_counts_networks_only(
    kind, tiny_generator, tiny_teacher, scene_captions, monkeypatch, tmp_path
):
    """Replace the clock: drawing takes 100 s, decoding a block 1 s."""
    clock = [0.0]
    monkeypatch.setattr(generation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def take(seconds, owner, name):
        method = getattr(owner, name)

        def slow(*given):
            clock[0] += seconds
            return method(*given)

        monkeypatch.setattr(owner, name, slow)

    take(100, Inputs, "noises")
    take(100, Inputs, "real_images")
    take(1, ImageCodec, "decode")
    out = tmp_path / "00000.tar"
    if kind == "generator":
        generate(generate_settings(), tiny_generator, tiny_teacher, scene_captions, 0, SAMPLES, out)
    else:
        solver = {"solver": "ddim", "steps": 1, "guidance_scale": 1.0} if kind == "teacher" else {}
        generate(baseline_settings(kind, **solver), None, tiny_teacher, scene_captions, 0, SAMPLES, out)
    assert record(out)["images_per_s"] == BLOCK


def test_generate_of_baseline_of_real_with_other_captions_raises(tiny_teacher, captions, tmp_path):
    with pytest.raises(UserError, match="caption 1='a dot number 0': expected"):
        generate(baseline_settings("real"), None, tiny_teacher, captions, 0, 4, tmp_path / "00000.tar")


def test_generate_beyond_the_captions_raises(tiny_generator, tiny_teacher, captions, tmp_path):
    with pytest.raises(UserError, match="20 captions"):
        generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, 21, tmp_path / "00000.tar")


def test_generate_with_a_seed_beyond_32_bits_raises(tiny_generator, tiny_teacher, captions, tmp_path):
    """Reject 2^32: torch's CPU generator uses the low 32 bits, so it would give the images of seed 0."""
    settings = generate_settings(seed=2**32)
    with pytest.raises(UserError, match=r"generate\.seed=4294967296"):
        generate(settings, tiny_generator, tiny_teacher, captions, 0, 4, tmp_path / "00000.tar")


def test_generate_with_a_generator_of_other_settings_raises(save_tiny_generator, tiny_teacher, captions, tmp_path):
    generator = save_tiny_generator(tmp_path / "generator", num_steps=2)
    with pytest.raises(UserError, match="num_steps=2: expected 1, as in the settings"):
        generate(generate_settings(), generator, tiny_teacher, captions, 0, 4, tmp_path / "00000.tar")


def test_generate_with_a_changed_generator_raises(tiny_generator, tiny_teacher, captions, tmp_path):
    shutil.copytree(tiny_generator, tmp_path / "generator")
    weights = tmp_path / "generator" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors: differs"):
        generate(generate_settings(), tmp_path / "generator", tiny_teacher, captions, 0, 4, tmp_path / "x.tar")


def test_generate_of_a_diverged_generator_leaves_nothing(save_tiny_generator, tiny_teacher, captions, tmp_path):
    generator = save_tiny_generator(tmp_path / "generator", broken=True)
    with pytest.raises(UserError, match=r"samples 0–15: expected finite values"):
        generate(generate_settings(), generator, tiny_teacher, captions, 0, 4, tmp_path / "samples" / "00000.tar")
    assert list((tmp_path / "samples").iterdir()) == []
