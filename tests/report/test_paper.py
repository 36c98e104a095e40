import io

import numpy as np
import pandas as pd
import pytest
from made_up import make_config, use_published_protocol

from sid_core.pipeline.inputs import Inputs
from sid_core.report import curves, paper, table
from sid_core.report.theme import LIGHT, RenderedFigure
from sid_core.storage.files import read_json, write_json

CONVERGENCE = ["run", "setting", "label", "kimg", "fid_proxy", "clip_proxy", "network_passes"]


def read_summary(config, folder):
    rows = table.make_rows(config, folder, table.read_scores(Inputs.finished(config, folder).scores))
    return pd.read_csv(io.StringIO(table.to_csv(rows)))


def test_by_setting_of_several_seeds_returns_mean_and_range(make_experiment):
    config = make_config(seeds=[0, 1])
    frame = paper.by_setting(read_summary(config, make_experiment(config))).set_index("run")
    assert frame.loc["lsg-3", ["fid", "fid_low", "fid_high"]].tolist() == [46, 45, 47]
    assert frame.loc["real", ["fid_low", "fid_high"]].tolist() == pytest.approx([0.3 - 0.9, 0.3 + 0.8])
    assert "lsg-3-seed1" not in frame.index


def test_scales_of_another_protocol_draws_no_published_rows(make_experiment):
    config = make_config(guidance_scales=[3.0, 1.5])
    figure = paper.scales(read_summary(config, make_experiment(config)))
    ours, _ = figure.axes
    np.testing.assert_allclose(ours.lines[0].get_xydata(), [[1.5, 30], [3, 45]])
    assert [text.get_text() for text in ours.get_legend().texts] == ["embedded"]


def edit(path, **changes):
    write_json(path, read_json(path) | changes)


def test_scales_of_extra_runs_leaves_the_sweep_unchanged(make_experiment):
    lsg = {"strategy": "lsg", "scale": 2}
    extra = [
        *(lsg | {"name": "brief", "train_kimg": 5}, lsg | {"name": "four", "num_steps": 4}),
        *(lsg | {"name": "strong", "alpha": 1.4}, {"strategy": "none"}),
    ]
    config = make_config(guidance_scales=[1.5, 2, 3], extra_runs=extra)
    folder = make_experiment(config)
    for fid, name in enumerate(("brief", "four", "strong"), 50):
        edit(folder / "runs" / name / "score.json", fid=fid)
        edit(folder / "runs" / name / "generator" / "generator.json", train_kimg=5)
    summary = read_summary(config, folder)
    axes = paper.scales(summary).axes[0]
    drawn = {
        line.get_label(): line.get_xydata().tolist() for line in axes.lines if not line.get_label().startswith("_")
    }
    assert drawn == {
        "embedded": [[1.5, 30], [2, 35], [3, 45]],
        "embedded, 4 steps": [[2, 51]],
        "embedded, α 1.4": [[2, 52]],
    }
    hollow = [line.get_xydata().tolist() for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [points for points in hollow if points] == [[[2, 50]]]


def test_scales_of_an_equal_protocol_draws_one_panel_a_metric(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    use_published_protocol(folder)
    figure = paper.scales(read_summary(config, folder))
    assert len(figure.axes) == 2
    labels = [text.get_text() for text in figure.axes[0].get_legend().texts]
    assert labels == ["embedded", "published, sd15", "published, sd21-base"]
    published = figure.axes[0].lines[2:4]
    np.testing.assert_allclose(published[0].get_xydata(), [[1.5, 8.71], [2, 9.56], [3, 13.21], [4.5, 16.59]])
    np.testing.assert_allclose(published[1].get_xydata(), [[1.5, 8.15]])  # trained for longer
    use_published_protocol(folder, samples=2000)
    assert len(paper.scales(read_summary(config, folder)).axes[0].get_legend().texts) == 1


def test_convergence_draws_the_proxy_evaluations(make_experiment):
    config = make_config(seeds=[0, 1])
    text = paper.to_convergence_csv(
        curves.read_curves(config, Inputs.finished(config, make_experiment(config)).trainings)
    )
    frame = pd.read_csv(io.StringIO(text))
    assert frame.columns.tolist() == ["run", "setting", "label", "kimg", "fid_proxy", "clip_proxy", "network_passes"]
    assert frame[frame["run"] == "lsg-3-seed1"].iloc[:, 1:5].to_numpy().tolist() == [
        ["lsg-3", "SiD-LSG κ = 3", 0.64, pytest.approx(73.6)],
        ["lsg-3", "SiD-LSG κ = 3", 1.28, pytest.approx(67.2)],
    ]
    figure = paper.convergence(frame)
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert len(figure.axes[0].lines) == 4
    with pytest.raises(paper.NoData, match="proxy_samples"):
        paper.convergence(frame[:0])


def test_convergence_of_runs_that_differ_in_passes_draws_them_too():
    lines = [("lsg-1.5", 18), ("none", 12)]
    frame = pd.DataFrame(
        [(name, name, name, kimg, 9 / kimg, 0.1, 1000 * kimg * passes) for name, passes in lines for kimg in (1, 2)],
        columns=CONVERGENCE,
    )
    figure = paper.convergence(frame)
    assert [axes.get_xlabel() for axes in figure.axes] == ["images seen"] * 2 + ["network passes in training"] * 2
    drawn = [[line.get_xdata().tolist() for line in axes.lines] for axes in figure.axes[::2]]
    assert drawn == [[[1000, 2000], [1000, 2000]], [[18_000, 36_000], [12_000, 24_000]]]
    assert len(paper.convergence(frame.assign(network_passes=np.nan)).axes) == 2  # of an earlier version


def test_rendered_figure_is_reproducible_and_its_colours_have_names():
    table = pd.DataFrame([["lsg", "lsg", "SiD-LSG", 1, 9, 0.1, 18_000]], columns=CONVERGENCE)
    figure, again = (RenderedFigure.from_figure(paper.convergence(table)) for _ in range(2))
    assert figure == again
    assert "SiD-LSG" in figure.svg
    assert set(LIGHT.names().values()) >= {"paper", "ink", "faint", "line-5"}
