"""Compare predictions on the device meta with allocators, byte counts and autograd."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sid_core.config import Distill
from sid_core.config.blocks import MEMORY
from sid_core.models import architectures
from sid_core.training import dry_run, memory
from sid_core.training.distributed import World
from sid_core.training.iteration import Trainer

SMALL = architectures.from_name("small")
SD15 = architectures.from_name("sd15")
BLOCKS = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
SMALL_FLOWS = {
    "sd35-medium": {
        "sample_size": 16,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 16,
        "dual_attention_layers": [0],
    },
    "sana-600m": {
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 64,
        "caption_channels": 32,
    },
    "flux-dev": {
        "num_single_layers": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    },
}
NETWORK = architectures.new_backbone(SMALL, "cpu")
CODEC = sum(p.nbytes for p in architectures.new_codec(SMALL).parameters())


@cache
def predict(precision: str, checkpointing: bool = False) -> memory.Prediction:
    return memory.predict(SMALL, 2.0, precision, checkpointing)


def parameters(architecture) -> int:
    return sum(p.numel() for p in architectures.new_network(architecture, "meta").parameters())


def test_make_settings_equals_the_defaults_of_distill():
    fields = Distill.model_fields
    assert dry_run.PUBLISHED.keys() <= fields.keys()
    defaults = {name: field.default for name, field in fields.items() if not field.is_required()}
    defaults |= MEMORY["fast"] | {"compile": False}  # counted without
    assert {
        name: dry_run.PUBLISHED[name] for name in defaults.keys() & dry_run.PUBLISHED.keys()
    }.items() <= defaults.items()


@pytest.mark.parametrize(("precision", "checkpointing"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_live_bytes_on_meta_equals_the_peak_on_a_device(precision, checkpointing):
    """Compare with the same count on real tensors, and with the allocator."""
    predicted = predict(precision, checkpointing)
    settings = {"batch": 3, "micro_batch": 3, "precision": precision, "checkpointing": checkpointing}
    trainer = dry_run.make_trainer(SMALL, "cpu", 2.0, **settings)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step()
    rise = allocated_rise(profiler)
    assert predicted.fixed + 3 * predicted.per_image - predicted.static == pytest.approx(rise, rel=0.1)


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [("sd35-medium", "float32", False), ("sana-600m", "bfloat16", False), ("flux-dev", "bfloat16", True)],
)
def test_predict_of_a_transformer_equals_the_peak_on_a_device(name, precision, checkpointing):
    large = architectures.from_name(name)
    network, shape = large.network | BLOCKS | SMALL_FLOWS[name], (large.latent_shape[0], 16, 16)
    small = replace(large, network=network, latent_shape=shape, tokens=16, text_parameters=0)
    kappa = 2.0 if large.family.GUIDED else 1.0
    predicted = memory.predict(small, kappa, precision, checkpointing)
    settings = {"batch": 3, "micro_batch": 3, "precision": precision, "checkpointing": checkpointing}
    trainer = dry_run.make_trainer(small, "cpu", kappa, **settings)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step()
    rise = allocated_rise(profiler)
    assert predicted.fixed + 3 * predicted.per_image - predicted.static == pytest.approx(rise, rel=0.1)


def test_predict_with_a_gan_equals_the_peak_on_a_device():
    run = dry_run.make_run(2.0, adversarial=memory.GAN)
    predicted = memory.predict(SMALL, run=run)
    trainer = dry_run.make_trainer(SMALL, "cpu", run=run, batch=3, micro_batch=3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step()
    rise = allocated_rise(profiler)
    assert predicted.fixed + 3 * predicted.per_image - predicted.static == pytest.approx(rise, rel=0.1)
    assert predicted.per_image > predict("float32").per_image


def test_search_settings_with_a_gan_predicts_its_run(monkeypatch):
    runs = []
    monkeypatch.setattr(memory, "predict", lambda *given: runs.append(given[-1]) or prediction(26, 4))
    for gan in (True, False):
        memory.search_settings(SMALL, 2.0, ["float32"], gan=gan)
    assert [run and run.adversarial for run in runs] == [memory.GAN, memory.GAN, None, None]


def allocated_rise(profiler) -> int:
    """Return the peak of the allocator above its start, in bytes."""
    now = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 28), ("bfloat16", 30), ("float16", 30)])
def test_predict_static_equals_the_sum_of_all_vectors(precision, bytes_each):
    """Count teacher, gradient, EMA and twice (weights, second moment); in 16 bits also two copies."""
    # vectors have gaps, blocks are rounded
    assert predict(precision).static - CODEC == pytest.approx(bytes_each * parameters(SMALL), rel=0.03)


@pytest.mark.parametrize(("frozen", "gib"), [(False, 0.87), (True, 0.72)])
def test_live_bytes_of_sd15_equals_the_tensors_saved_by_autograd(frozen, gib):
    """Compare live bytes after a bfloat16 forward with the storages of saved tensors, without parameters."""
    unet = architectures.new_network(SD15, "meta").to(torch.bfloat16).requires_grad_(not frozen)
    x = torch.empty(1, *SD15.latent_shape, device="meta", dtype=torch.bfloat16, requires_grad=True)
    text = torch.empty(1, *SD15.text_shape, device="meta", dtype=torch.bfloat16)
    own = {p.untyped_storage()._cdata for p in unet.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with memory.fused_attention(), memory.LiveBytes("meta") as live, hooks:
        output = unet(x, torch.empty(1, dtype=torch.int64, device="meta"), encoder_hidden_states=text).sample
    assert output.requires_grad
    assert sum(kept.values()) == pytest.approx(live.live, rel=0.02)
    assert sum(kept.values()) / memory.GIB == pytest.approx(gib, rel=0.03)


def test_predict_peak_is_linear_in_the_micro_batch():
    predicted = predict("bfloat16")
    with memory.LiveBytes("meta") as live, memory.fused_attention():
        trainer = dry_run.make_trainer(SMALL, "meta", 2.0, precision="bfloat16", batch=10, micro_batch=5)
        live.restart()
        trainer.step()
    # one further copy of a batch's draws: micro-batches are slices of it
    assert live.peak + CODEC == pytest.approx(predicted.fixed + 5 * predicted.per_image, rel=0.01)


@pytest.mark.parametrize("walked", [1, 4])
def test_peak_of_a_mixture_of_four_steps_equals_that_of_one(walked, monkeypatch):
    def peak(**changes) -> int:
        with memory.LiveBytes("meta") as live, memory.fused_attention():
            run = dry_run.make_run(2.0, **changes)
            trainer = dry_run.make_trainer(SMALL, "meta", run=run, batch=4, micro_batch=4)
            monkeypatch.setattr(trainer, "_walked", lambda: walked)
            live.restart()
            trainer.step()
        return live.peak

    assert peak(num_steps=4, steps_objective="mixture") <= 1.02 * peak()


def test_places_cover_every_offload_and_shard():
    for i, name in enumerate(("offload", "shard")):
        ways = {place[i] for place in (*memory.PLACES, *memory.SHARED_PLACES)}
        assert set(get_args(get_args(Distill.model_fields[name].annotation)[0])) == ways


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("offload", "shard"), [*memory.PLACES, ("none", "optimizer"), ("all", "optimizer")])
def test_placed_with_offload_or_shard_equals_a_traced_trainer(precision, offload, shard):
    """Compare with the bytes that a sharded or offloaded trainer allocates on meta."""
    gpus = 1 if shard == "none" else 4
    settings = dry_run.make_settings(precision=precision, offload=offload, shard=shard)
    prompts = dry_run.RandomPrompts(SMALL.text_shape, torch.device("meta"))
    places = {"world": World(0, gpus), "device": torch.device("meta")}
    with memory.LiveBytes("meta") as live:
        trainer = Trainer(NETWORK, prompts, SMALL.latent_shape, dry_run.make_run(2.0), settings, **places)
    planned = predict(precision).placed(offload, shard, gpus).static - CODEC
    assert live.live == pytest.approx(planned, rel=0.03)
    assert live.peak == live.live  # no temporary memory
    assert len(trainer.ema_weights) == trainer.layout.size // gpus


# --- settings that fit ---------------------------------------------------------------------------------------------------


def prediction(static_gb: float, per_image_gb: float) -> memory.Prediction:
    static, per_image = int(static_gb * memory.GB), int(per_image_gb * memory.GB)
    return memory.Prediction(static, static, per_image, int(0.9e9), int(3.4e9), int(13.8e9), 0, int(1.6e9), int(0.1e9))


def test_advice_prefers_speed_and_reports_where_nothing_fits():
    plain, less = prediction(26, 4), prediction(26, 0.8)
    rows = [
        memory.Row("bfloat16", checkpointing, *place, made.placed(*place))
        for checkpointing, made in ((False, plain), (True, less))
        for place in memory.PLACES
    ]
    assert memory.best_fit(rows, "141 GB") == (rows[0], 16)
    assert memory.best_fit(rows, "40 GB") == (rows[1], 4)  # with recomputed activations 16 would fit
    assert memory.best_fit(rows, "24 GB") == (rows[6], 8)  # without, 2 fit
    assert memory.best_fit(rows[:2], "24 GB") is None
    assert "24 GB: nothing fits" in memory.advice(rows[:2])
    line = next(line for line in memory.advice(rows).splitlines() if line.startswith("24 GB"))
    assert "checkpointing: true, compile: false, offload: optimizer" in line  # the schema rejects both
    assert len(memory.to_markdown(rows).splitlines()) == 2 + len(rows)


def test_placed_of_a_teacher_too_large_for_one_gpu_fits_several():
    """Predict a teacher of eleven times SD 1.5: 30 bytes per parameter, 22 of them sharded over 8."""
    large = memory.Prediction(*(int(x * memory.GB) for x in (285, 285, 8.8, 0.9, 37.4, 151, 0, 18, 0.3)))
    assert large.placed("none", "optimizer", 8).static < 125e9
    shared = large.placed("none", "all", 8)
    assert shared.static == pytest.approx((285 - (37.4 + 151 + 18) * 7 / 8 + 0.6) * memory.GB, rel=1e-6)
    assert (large.max_micro_batch("141 GB"), shared.max_micro_batch("141 GB")) == (0, 2)
    assert large.placed("none", "all", 1) == large


def test_predict_of_sd15_fits_24_gb():
    predicted = memory.predict(SD15, 2.0, "bfloat16", checkpointing=True)
    assert predicted.placed("optimizer").max_micro_batch("24 GB") >= memory.GOOD
    assert predicted.static <= 27e9
    smallest = MEMORY["smallest"]
    needed = predicted.placed(smallest["offload"]).needed(smallest["micro_batch"])
    assert needed / memory.GB == pytest.approx(14.2, abs=0.05)  # docs/performance.md


def test_predict_with_lora_counts_one_base_and_vectors_of_adapters():
    """Count the base in 2 bytes; of adapters six float32 vectors and two 16-bit copies."""
    lora = SimpleNamespace(rank=2, targets=["to_q", "conv1"], lr_factor=1)
    predicted = memory.predict(SMALL, 2.0, "bfloat16", run=dry_run.make_run(2.0, lora=lora))
    trainer = dry_run.make_trainer(SMALL, "cpu", run=dry_run.make_run(2.0, lora=lora), batch=1, micro_batch=1)
    tensors = architectures.new_network(SMALL, "meta").parameters()
    base = sum(-(-2 * p.numel() // memory.BLOCK) * memory.BLOCK for p in tensors)
    assert predicted.static - CODEC == pytest.approx(base + 28 * trainer.layout.size, rel=0.03)
    assert predicted.averages == 4 * trainer.layout.size


def test_search_settings_with_lora_shards_no_base(monkeypatch):
    asked = []
    monkeypatch.setattr(
        memory, "predict", lambda *given: asked.append(given[-1] and given[-1].lora) or prediction(5, 1)
    )
    rows = memory.search_settings(SMALL, 2.0, ["bfloat16"], gpus=2, rank=4)
    assert {row.shard for row in rows} == {"none", "optimizer"}
    assert [lora.rank for lora in asked] == [4, 4]
    assert memory.search_settings(SMALL, 2.0, ["bfloat16"], gpus=2)[-1].shard == "all"
    assert asked[2:] == [None, None]


def test_predict_of_sdxl_counts_the_weights_of_a_training(tiny_sdxl_source):
    architecture = architectures.from_directory(tiny_sdxl_source)
    trainer = dry_run.make_trainer(architecture, "cpu", batch=2, micro_batch=1)
    assert set(trainer.step()) >= {"fake_loss", "generator_loss"}
    assert memory.predict(architecture).averages >= trainer.ema_weights.nbytes
