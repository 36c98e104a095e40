"""The gradients' fidelity: float32 against itself is exact, 16 bits are near, what is compared is training's own gradient."""

import csv
import math

import pytest
import torch
from PIL import Image
from small_run import PROMPTS, make_settings

from sid_core.errors import UserError
from sid_core.report import precision as report
from sid_core.training import fidelity


@pytest.fixture(scope="module")
def rows(tiny_teacher):
    settings = make_settings(lr=1e-3, lr_final=1e-4)
    return fidelity.check_precision(settings, tiny_teacher, PROMPTS, 6, ["float32", "bfloat16", "float16"], 2, 3, None)


def of(rows, precision, network):
    return [row for row in rows if (row.precision, row.network) == (precision, network)]


def test_every_network_precision_and_bin_has_a_row(rows):
    assert len(rows) == 4 * 2 * 3
    for row in (r for r in rows if r.network == "generator"):
        assert (row.t_low, row.t_high) in [(20, 500), (500, 980), (20, 980)]


@pytest.mark.parametrize("network", ["fake score", "generator"])
def test_float32_is_exact_and_more_bits_are_nearer(rows, network):
    for row in of(rows, "float32", network):
        assert (row.cosine, row.relative_error, row.norm_ratio) == pytest.approx((1, 0, 1), abs=1e-6)
    errors = {p: of(rows, p, network)[-1].relative_error for p in ("bfloat16", "float16", fidelity.ANOTHER)}
    assert 0 < errors["float16"] < errors["bfloat16"] < errors[fidelity.ANOTHER]


def test_gradients_are_trainings_own_and_move_nothing(make_trainer):
    trainer = make_trainer(nonfinite="skip")
    before = {half: student.master.clone() for half, student in trainer.students.items()}
    found = next(iter(fidelity._gradients(trainer, [(20, 980)], first=0)))
    assert all(torch.equal(before[half], student.master) for half, student in trainer.students.items())
    other = make_trainer(nonfinite="skip")
    other._half("fake")
    torch.testing.assert_close(other.gradient.parameters, found["fake"])


def test_comparison_of_vectors():
    a, b = torch.zeros(128), torch.zeros(128)
    a[3], b[3], b[70] = 2.0, 1.0, 1.0
    assert fidelity._compare(a, b) == pytest.approx((2**-0.5, 2**-0.5, 2**-0.5))
    assert all(math.isnan(value) for value in fidelity._compare(a, b * math.inf))


@pytest.mark.parametrize(
    ("precisions", "bins", "message"), [(["fp8"], 2, "--precision fp8"), (["float16"], 0, "--bins 0")]
)
def test_mistakes_are_named(tiny_teacher, precisions, bins, message):
    with pytest.raises(UserError, match=message):
        fidelity.check_precision(make_settings(), tiny_teacher, PROMPTS, 4, precisions, bins, 0, None)


def test_a_folder_without_states_is_named(tiny_teacher, tmp_path):
    with pytest.raises(UserError, match="no saved state"):
        fidelity.check_precision(make_settings(), tiny_teacher, PROMPTS, 4, ["float16"], 2, 0, tmp_path)


def test_table_and_figure_are_drawn_from_the_csv(rows, tmp_path):
    fidelity.write_csv(
        [*rows, fidelity.Row("generator", "overflow", 20, 980, math.nan, math.nan, math.nan)],
        tmp_path / "gradients.csv",
    )
    with open(tmp_path / "gradients.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["cosine"]) == rows[0].cosine
    report.render(tmp_path)
    table = (tmp_path / "gradients.md").read_text()
    assert table.count("\n") == 2 + len(rows) + 1
    assert "| generator | bfloat16 | 500–979 |" in table
    with Image.open(tmp_path / "gradients.png") as image:
        assert image.size[0] > 1000
