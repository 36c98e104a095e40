import numpy as np
import pytest
from made_up import make_config, read_entries, write_experiment
from test_page import Page

from sid_core.pipeline.inputs import Inputs
from sid_core.report import entries, methods, write_report
from sid_core.storage.files import read_json, write_json

EXTRA = [
    {"strategy": "zero"},
    {"strategy": "long", "scale": 1.75, "objective": "dmd"},
    {"strategy": "long", "scale": 3, "objective": "dmd"},
    {"strategy": "lsg", "scale": 2, "name": "four", "num_steps": 4},
]


def compare(config, folder):
    settings = read_entries(config, folder)
    return methods.compare(settings, entries.read_differences(folder / "pairs.csv", settings))


def edit(path, **changes):
    write_json(path, read_json(path) | changes)


def test_compare_of_one_method_returns_none(make_experiment):
    config = make_config(extra_runs=[{"strategy": "lsg", "scale": 2, "name": "mine"}])
    assert compare(config, make_experiment(config)) is None


def test_compare_lists_settings_by_method_with_differences_from_the_first(make_experiment):
    config = make_config(guidance_scales=[1.5], extra_runs=EXTRA)
    folder = make_experiment(config)
    for run in folder.glob("runs/*"):
        edit(
            run / "generator" / "generator.json",
            whole_kimg=12.8,
            network_passes=12.8e3 * 26,
            train_s=7500,
            train_gpu_s=0,
        )
    found = compare(config, folder)
    assert {name: [entry.name for entry in group] for name, group in found.methods.items()} == {
        "SiD-LSG": ["lsg-1.5"],
        "SiD, Zero-CFG": ["zero"],
        "DMD, long guidance": ["dmd-long-1.75", "dmd-long-3"],
        "SiD-LSG, 4 steps": ["four"],
    }
    table = [dict(zip(found.head, cells, strict=True)) for _, cells in found.rows]
    assert [row["κ₄ − κ₂"] for row in table] == ["0", "1", "0.75", "2", "0"]
    first, zero, *_ = table
    assert "GPU hours" not in first  # all of a CPU
    common = {"kimg": "12.8", "Passes": "0.333 M", "Time": "2.1 h"}
    assert first == common | {
        "Method": "SiD-LSG κ = 1.5",
        "κ₄ − κ₂": "0",
        "FID ↓": "30.00",
        "CLIP ↑": "0.400",
        "Recall ↑": "0.600",
    }
    assert zero["FID ↓"] == "25.00 (3.0 [1.0, 5.0])"  # made up, as all differences
    assert zero["Recall ↑"] == "0.600 (not compared)"
    others = "SiD, Zero-CFG / DMD, long guidance κ = 1.75 / DMD, long guidance κ = 3 / SiD-LSG κ = 2, 4 steps (four)"
    assert found.verdicts == [
        f"FID against SiD-LSG κ = 1.5: worse with {others}.",
        f"CLIP against SiD-LSG κ = 1.5: better with {others}.",
        f"Recall against SiD-LSG κ = 1.5: not compared with {others}.",
    ]


def test_compare_of_several_seeds_averages_times_and_compares_over_seeds(make_experiment):
    config = make_config(guidance_scales=[1.5], extra_runs=[{"strategy": "zero"}], seeds=[0, 1])
    folder = make_experiment(config)
    for seconds, name in ((3600, "zero"), (10_800, "zero-seed1")):
        edit(folder / "runs" / name / "generator" / "generator.json", train_s=seconds, train_gpu_s=4 * seconds)
    _, (name, cells) = (found := compare(config, folder)).rows
    assert name == "zero"
    row = dict(zip(found.head, cells, strict=True))
    assert (row["Method"], row["Time"], row["GPU hours"]) == ("SiD, Zero-CFG", "2.0 h", "8")
    assert row["FID ↓"] == "26.00 (2.0 [-1.0, 5.0])"
    assert found.verdicts[0] == "FID against SiD-LSG κ = 1.5: no difference shown with SiD, Zero-CFG."


def curves(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


def test_draw_joins_the_scales_of_a_method_and_no_others(make_experiment):
    lsg = {"strategy": "lsg", "scale": 2}
    extra = [*(lsg | {"name": "brief", "train_kimg": 5}, lsg | {"name": "strong", "alpha": 1.4}), *EXTRA]
    config = make_config(guidance_scales=[3, 1.5, 2], extra_runs=extra)
    folder = make_experiment(config)
    for fid, name in enumerate(("brief", "four", "strong"), 50):
        edit(folder / "runs" / name / "score.json", fid=fid)
    figure = methods.draw(compare(config, folder).methods)
    clip, recall, alignment = figure.axes
    assert [line.get_ydata().tolist() for line in curves(clip)] == [[30, 35, 45], [32.5, 45]]
    assert len(curves(recall)) == 2
    assert not curves(alignment)
    assert [text.get_text() for text in clip.texts] == ["1.5", "2", "3", "1.75", "3"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "SiD-LSG",
        "SiD, Zero-CFG",
        "DMD, long guidance",
        "SiD-LSG, 4 steps",
    ]
    points = {line.get_gid(): line.get_xdata()[0] for line in alignment.lines if line.get_gid()}
    assert (points["point:zero"], points["point:dmd-long-3"], points["point:lsg-3"]) == (1, 2, 0)


@pytest.mark.parametrize(("strategy", "scales"), [("short", (0.8, 0.2, 0.5)), ("anti", (-0.5, -2, -1))])
def test_draw_of_a_strategy_of_the_fake_score_joins_its_own_scales(make_experiment, strategy, scales):
    config = make_config(guidance_scales=[1.5], extra_runs=[{"strategy": strategy, "scale": scale} for scale in scales])
    axes, *_ = methods.draw(compare(config, make_experiment(config)).methods).axes
    [curve] = curves(axes)
    np.testing.assert_allclose(curve.get_xdata(), [1 / 3 + 0.05 * (1 - scale) for scale in sorted(scales)])


def test_write_report_of_several_methods_has_their_section_and_figure(tmp_path):
    config = make_config(guidance_scales=[1.5], extra_runs=EXTRA)
    folder = write_experiment(tmp_path, config)
    write_report(config, Inputs.finished(config, folder))
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert ("section", {"id": "methods", "aria-labelledby": "methods-title"}) in page.tags
    assert ("a", {"href": "#methods"}) in page.tags
    assert "CLIP against SiD-LSG κ = 1.5: better with" in page.text
    images = [attrs["alt"] for tag, attrs in page.tags if tag == "img" and attrs["alt"].startswith("a red circle (")]
    assert images.count("a red circle (DMD, long guidance κ = 1.75)") == 2  # of the method, and among all images
    assert images.count("a red circle (DMD, long guidance κ = 3)") == 1
    assert (folder / "figures" / "methods.svg").is_file()
