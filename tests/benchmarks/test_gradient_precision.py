"""Test that float32 equals itself, that 16 bits are close, and that the gradients compared are those of training."""

import csv
import math
import sys
from pathlib import Path

import pytest
import torch
from small_run import PROMPTS, make_settings, make_trainer

from sid_core.errors import UserError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gradient_precision as benchmark  # noqa: E402


@pytest.fixture(scope="module")
def rows(tiny_teacher):
    settings = make_settings(lr=1e-3, lr_final=1e-4)
    return benchmark.check_precision(settings, tiny_teacher, PROMPTS, 6, ["float32", "bfloat16", "float16"], 2, 3, None)


def of(rows, precision, network):
    return [row for row in rows if (row.precision, row.network) == (precision, network)]


def test_check_precision_gives_each_network_precision_and_bin_a_row(rows):
    assert len(rows) == 4 * 2 * 3
    for row in (r for r in rows if r.network == "generator"):
        assert (row.t_low, row.t_high) in [(20, 500), (500, 980), (20, 980)]


@pytest.mark.parametrize("network", ["fake score", "generator"])
def test_check_precision_of_more_bits_gives_nearer_gradients(rows, network):
    for row in of(rows, "float32", network):
        assert (row.cosine, row.relative_error, row.norm_ratio) == pytest.approx((1, 0, 1), abs=1e-6)
    errors = {p: of(rows, p, network)[-1].relative_error for p in ("bfloat16", "float16", benchmark.ANOTHER)}
    assert 0 < errors["float16"] < errors["bfloat16"] < errors[benchmark.ANOTHER]


def test_gradients_equal_those_of_training_and_keep_weights(tiny_teacher):
    trainer = make_trainer(tiny_teacher, nonfinite="skip")
    before = {name: trained.master.clone() for name, trained in trainer.trained.items()}
    found = next(iter(benchmark._gradients(trainer, [(20, 980)], first=0)))
    assert all(torch.equal(before[name], trained.master) for name, trained in trainer.trained.items())
    other = make_trainer(tiny_teacher, nonfinite="skip")
    other._update(other.phases[0])
    torch.testing.assert_close(other.gradient.parameters, found["fake"])


def test_compare_of_vectors_returns_their_differences():
    a, b = torch.zeros(128), torch.zeros(128)
    a[3], b[3], b[70] = 2.0, 1.0, 1.0
    assert benchmark._compare(a, b) == pytest.approx((2**-0.5, 2**-0.5, 2**-0.5))
    assert all(math.isnan(value) for value in benchmark._compare(a, b * math.inf))


@pytest.mark.parametrize(
    ("precisions", "bins", "message"), [(["fp8"], 2, "--precision fp8"), (["float16"], 0, "--bins 0")]
)
def test_check_precision_of_wrong_values_names_them(tiny_teacher, precisions, bins, message):
    with pytest.raises(UserError, match=message):
        benchmark.check_precision(make_settings(), tiny_teacher, PROMPTS, 4, precisions, bins, 0, None)


def test_check_precision_of_a_folder_without_states_names_it(tiny_teacher, tmp_path):
    with pytest.raises(UserError, match="no saved state"):
        benchmark.check_precision(make_settings(), tiny_teacher, PROMPTS, 4, ["float16"], 2, 0, tmp_path)


def test_write_of_rows_gives_csv_and_table(rows, tmp_path):
    overflow = benchmark.Row("generator", "overflow", 20, 980, math.nan, math.nan, math.nan)
    benchmark.write([*rows, overflow], tmp_path)
    with open(tmp_path / "gradients.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["cosine"]) == rows[0].cosine
    table = (tmp_path / "gradients.md").read_text()
    assert table.count("\n") == 2 + len(rows) + 1
    assert "| generator | bfloat16 | 500–979 |" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "0"], "--prompts 0: expected 1 or more"),
        (["--prompts", "-1"], "--prompts -1: expected 1 or more"),
        (["--configfile", str(ROOT / "experiments" / "published.yaml")], "published.yaml: expected guidance_scales"),
        (["--from-state", "nowhere"], "--from-state nowhere: no saved state there"),
    ],
)
def test_main_with_a_wrong_option_names_it(options, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gradient_precision.py", *options])
    with pytest.raises(UserError, match=message):
        benchmark.main()
