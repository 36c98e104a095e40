"""Rewrite a generator of several evaluations as one of fewer."""

from pathlib import Path

import pytest
import torch

from sid_core.config import ResampleSettings, Run
from sid_core.errors import UserError
from sid_core.method import Steps, n_step
from sid_core.models.generator import find_teacher, generator_sha256, load_generator, recorded_steps, resample
from sid_core.models.text import TextEncoder
from sid_core.storage.files import read_json, verify_manifest, write_json, write_manifest

SCALES = {"fake_train": 1.5, "fake_eval": 1.5, "teacher": 1.5}


def make_run(**changes) -> Run:
    return Run(**{"name": "four", "strategy": "lsg", **SCALES, "alpha": 1.0, "num_steps": 4, "seed": 0} | changes)


@pytest.fixture
def four_steps(save_tiny_generator, tmp_path):
    """Save a generator of four evaluations, trained as a mixture."""
    folder = save_tiny_generator(tmp_path / "four" / "generator", num_steps=4)
    record = read_json(folder / "generator.json") | {"run": make_run(steps_objective="mixture").model_dump()}
    write_json(folder / "generator.json", record | {"step_noise": "ddim"})
    write_manifest(folder)
    return folder


def settings(count: int) -> ResampleSettings:
    return ResampleSettings(run=make_run(name=f"four-in{count}", num_steps=count, of_steps=4), source="four")


def test_resample_shares_the_weights_and_takes_a_part_of_the_grid(four_steps, tiny_teacher, tmp_path):
    out = tmp_path / "two" / "generator"
    resample(settings(2), four_steps, out)
    verify_manifest(out)
    assert generator_sha256(out) == generator_sha256(four_steps)
    network, record = load_generator(out, tiny_teacher)
    assert recorded_steps(record) == Steps(625, 2, "ddim")
    assert record["run"]["name"] == "four-in2"
    z, cond = torch.randn(2, 4, 8, 8), TextEncoder.from_directory(tiny_teacher).encode(["a dot", "two dots"])
    at, inner = [], network.forward
    network.forward = lambda x_t, t, *rest: at.append(t[0].item()) or inner(x_t, t, *rest)
    n_step(network, [z], recorded_steps(record), cond)
    assert at == [625, 312]


@pytest.mark.parametrize(("count", "how"), [(3, "mixture"), (2, "last")])
def test_resample_of_steps_that_were_not_trained_raises(four_steps, tmp_path, count, how):
    record = read_json(four_steps / "generator.json")
    record["run"]["steps_objective"] = how
    write_json(four_steps / "generator.json", record)
    write_manifest(four_steps)
    with pytest.raises(
        UserError, match=f"num_steps=4, steps_objective={how}: expected a mixture of a multiple of {count}"
    ):
        resample(settings(count), four_steps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_find_teacher_of_a_folder_next_to_the_root_raises():
    with pytest.raises(UserError, match=r"^/nowhere/generator\.json: no such file"):
        find_teacher(Path("/nowhere"))
