"""Train adapters: gradients, shared weights, exact resume, files without the base, errors."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_run import PROMPTS, interrupted, load_state, make_settings

from sid_core.config import Lora
from sid_core.errors import UserError
from sid_core.method import n_step
from sid_core.models.generator import load_generator
from sid_core.models.lora import FILE, MARK
from sid_core.storage.files import read_json, sha256_file, write_json, write_manifest
from sid_core.storage.states import saved_states
from sid_core.training import run as training
from sid_core.training.distributed import World
from sid_core.training.run import distill
from sid_core.training.trained_network import TrainedNetwork

LORA = {"lora": Lora(rank=2, lr_factor=10)}


def gradients(trainer, monkeypatch) -> dict[str, dict]:
    """Return the gradients of both networks by name, without an update between them."""
    found = {}
    names = {id(trained): name for name, trained in trainer.trained.items()}

    def keep(self, gradient, *_):
        views = trainer.layout.views(gradient.parameters)
        found[names[id(self)]] = {name: view.clone() for name, view in views.items()}
        return torch.zeros(())

    with monkeypatch.context() as patch:
        patch.setattr(TrainedNetwork, "update", keep)
        trainer.step()
    return found


def randomise(trainer) -> None:
    stream = torch.Generator().manual_seed(0)
    for trained in trainer.trained.values():
        trained.master.copy_(0.05 * torch.randn(trained.master.shape, generator=stream))
        trained.refresh()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_step_with_lora_gives_the_gradients_of_the_whole_weights(make_trainer, monkeypatch, checkpointing):
    """Compare with a training of W + B A: dL/dB = G A^T and dL/dA = B^T G, for both networks."""
    ours, whole = make_trainer(run=LORA, checkpointing=checkpointing, micro_batch=2), make_trainer(micro_batch=2)
    randomise(ours)
    for name, trained in whole.trained.items():
        adapters = ours.layout.views(ours.trained[name].master)
        for layer, weight in whole.layout.views(trained.master).items():
            a, b = (adapters.get(f"{layer.removesuffix('.weight')}.lora_{part}.weight") for part in "AB")
            if a is not None:
                weight += (b.flatten(1) @ a.flatten(1)).view(weight.shape)
    found, expected = gradients(ours, monkeypatch), gradients(whole, monkeypatch)
    for name, trained in ours.trained.items():
        weights = ours.layout.views(trained.master)
        adapted = [key.removesuffix(".lora_A.weight") for key in weights if key.endswith("A.weight")]
        assert len(adapted) > 10
        for layer in adapted:
            a, b = (weights[f"{layer}.lora_{part}.weight"].flatten(1) for part in "AB")
            g = expected[name][f"{layer}.weight"].flatten(1)
            for part, right in (("A", b.T @ g), ("B", g @ a.T)):
                left = found[name][f"{layer}.lora_{part}.weight"].flatten(1)
                assert (left - right).norm() <= 1e-3 * right.norm() + 1e-5 * g.norm(), (name, layer, part)


@pytest.mark.parametrize("more", [{}, {"precision": "bfloat16", "offload": "all", "checkpointing": True}])
def test_step_with_lora_changes_adapters_alone(make_trainer, more):
    trainer = make_trainer(run=LORA, **more)
    networks = [backbone.network for backbone in (trainer.teacher, trainer.fake_score, trainer.generator, trainer.ema)]
    base = dict(networks[0].named_parameters())
    before = {name: weight.clone() for name, weight in base.items()}
    for network in networks[1:]:
        assert {name: p for name, p in network.named_parameters() if MARK not in name}.keys() == base.keys()
        assert all(p is base[name] for name, p in network.named_parameters() if MARK not in name)
    start = {name: trained.master.clone() for name, trained in trainer.trained.items()}
    trainer.step()
    trainer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in base.items())
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    assert all(not torch.equal(trained.master, start[name]) for name, trained in trainer.trained.items())
    assert trainer.layout.size < 0.5 * sum(p.numel() for p in base.values())
    trainer.gather_ema()
    assert trainer.grid_latents(2).isfinite().all()


@pytest.fixture(scope="module")
def uninterrupted(tiny_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    distill(make_settings(run=LORA), tiny_teacher, PROMPTS, folder / "state", folder / "run" / "generator")
    return folder


def test_distill_with_lora_interrupted_gives_equal_bits_and_adapters_alone(
    uninterrupted, tiny_teacher, folders, monkeypatch
):
    with interrupted(monkeypatch, 6):
        distill(make_settings(run=LORA), tiny_teacher, PROMPTS, folders.state, folders.out)
    saved = load_state(folders.state)
    assert len(saved) > 50
    assert all(MARK in name for name in saved)
    other = make_settings(run={"lora": Lora(rank=3, lr_factor=10)})
    with pytest.raises(UserError, match=r"unfinished run of other settings: run\.lora \(.*'rank': 2.* -> .*'rank': 3"):
        distill(other, tiny_teacher, PROMPTS, folders.state, folders.out)
    distill(make_settings(run=LORA), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert sha256_file(folders.out / "unet" / FILE) == sha256_file(uninterrupted / "run" / "generator" / "unet" / FILE)
    assert load_state(folders.state).keys() == load_state(uninterrupted / "state").keys()
    assert saved_states(folders.state)[0].name == saved_states(uninterrupted / "state")[0].name


def test_generator_of_a_training_with_lora_samples_as_its_averages(uninterrupted, tiny_teacher):
    folder = uninterrupted / "run" / "generator"
    assert {path.name for path in folder.rglob("*.safetensors")} == {FILE}
    assert all(name.startswith("unet.") and MARK in name for name in load_file(folder / "unet" / FILE))
    assert read_json(folder / "generator.json")["run"]["lora"] == {"rank": 2, "targets": None, "lr_factor": 10.0}
    generator, _ = load_generator(folder, tiny_teacher)
    trainer = training.make_trainer(make_settings(run=LORA), tiny_teacher, PROMPTS)
    before = n_step(trainer.ema, [torch.ones(1, 4, 8, 8)], trainer.objective.steps, trainer.prompts(torch.tensor([0])))
    while trainer.iteration < 20:
        trainer.step()
    z, cond = [torch.ones(1, 4, 8, 8)], trainer.prompts(torch.tensor([0]))
    expected = n_step(trainer.ema, z, trainer.objective.steps, cond)
    torch.testing.assert_close(n_step(generator, z, trainer.objective.steps, cond), expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 1e-3


def test_load_generator_of_adapters_with_another_teacher_raises(uninterrupted, tiny_teacher, tmp_path):
    other = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, other)
    config = read_json(other / "scheduler" / "scheduler_config.json")
    write_json(other / "scheduler" / "scheduler_config.json", config | {"beta_end": 0.02})
    write_manifest(other)
    with pytest.raises(UserError, match=r"distilled from the teacher .* give the teacher it was distilled from"):
        load_generator(uninterrupted / "run" / "generator", other)


@pytest.mark.parametrize(
    ("lora", "shard", "message"),
    [
        ({"rank": 2}, "all", "lsg-1.5: distill.shard=all with lora: expected none or optimizer"),
        ({"rank": 2, "targets": ["to_z"]}, "none", "lora.targets=to_z: expected endings of names of linear layers"),
    ],
)
def test_make_trainer_with_unsupported_lora_names_the_remedy(tiny_teacher, lora, shard, message):
    settings = make_settings(run={"lora": Lora(**lora)}, shard=shard)
    with pytest.raises(UserError, match=message):
        training.make_trainer(settings, tiny_teacher, PROMPTS, World(0, 2))


def test_make_trainer_with_lora_compiles_nothing(make_trainer, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    make_trainer(compile=True)
    assert compiled
    compiled.clear()
    make_trainer(run=LORA, compile=True)
    assert not compiled


def test_logits_with_lora_train_the_adapters_of_the_encoder(make_trainer):
    """Check the GAN: its discriminator is the encoder of the fake score, adapters included."""
    trainer = make_trainer(run=LORA)
    randomise(trainer)
    trained = trainer.trained["fake_score"]
    trained.enable_grad(trainer.gradient)
    x_t, cond = torch.randn(2, 4, 8, 8), trainer.prompts(torch.tensor([0, 1]))
    trainer.fake_score.logits(x_t, torch.tensor([20, 500]), cond).sum().backward()
    trained.freeze()
    moved = {name for name, view in trainer.gradient.views.items() if view.abs().max() > 0}
    assert any(name.startswith("down_blocks") for name in moved)
    assert not any(name.startswith("up_blocks") for name in moved)
