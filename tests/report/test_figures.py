import dataclasses
import io
import re

import numpy as np
import pandas as pd
import pytest
from made_up import CAPTION, make_config, read_entries, use_published_protocol
from PIL import Image

from sid_core.config import shards
from sid_core.errors import UserError
from sid_core.pipeline.inputs import Inputs
from sid_core.report import curves, figures, paper, samples, summary, table
from sid_core.report.theme import LIGHT, to_png


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_fid_clip_joins_scales_in_order_with_errors_and_labels(make_experiment):
    config = make_config(guidance_scales=[3.0, 1.5], extra_runs=[{"strategy": "none"}])
    figure = figures.fid_clip(read_entries(config, make_experiment(config)))
    axes, recall = figure.axes
    curve = next(line for line in axes.lines if line.get_color() == LIGHT.generator and len(line.get_xdata()) > 1)
    np.testing.assert_allclose(curve.get_xydata(), [[0.4, 30], [0.6, 45]])
    widths = [np.ptp(segment[:, 1]) for bars in axes.collections for segment in bars.get_segments()]
    assert widths.count(pytest.approx(0.9 + 0.8)) == 5  # two scales, one extra run, two teachers
    assert [recall.get_xlabel(), recall.get_ylabel()] == [axes.get_xlabel(), "Recall  (higher is better)"]
    shown = texts(figure)
    for text in ("κ = 1.5", "3", "CFG 1", "SiD, no guidance"):
        assert shown.count(text) == (4 if text == "3" else 2)  # in each panel; the teacher has a scale 3, too
    for text in ("SiD-LSG, one step", "teacher, DPM-Solver++ Karras, 8 steps"):
        assert shown.count(text) == 1
    assert "VAE reconstructions: FID 5.00 ± 0.43" in shown
    assert "real images: Recall 0.600" in shown
    assert not any("published" in text for text in shown)


def test_fid_clip_of_one_solver_joins_guided_and_unguided_rows(make_experiment):
    config = make_config(baselines=make_config().baselines.model_dump() | {"steps": [8, 16]})
    entries = read_entries(config, make_experiment(config))
    axes = figures.fid_clip(entries).axes[0]
    curves = [line for line in axes.lines if line.get_color() == LIGHT.teacher and line.get_linewidth() == 1.8]
    assert [len(line.get_xdata()) for line in curves] == [2, 2]
    assert {"teacher, DPM-Solver++ Karras, 8 steps", "teacher, DPM-Solver++ Karras, 16 steps"} <= set(
        texts(figures.fid_clip(entries))
    )


def test_figures_of_an_import_of_unknown_origin_draw_it(make_experiment):
    config = make_config(imports=[{"name": "found", "file": "a.pkl", "scale": 2, "train_kimg": 4812}])
    entries = read_entries(config, make_experiment(config))
    [found] = [entry for entry in entries if entry.name == "found"]
    row = dataclasses.replace(found.row, strategy=None, alpha=None, seed=None, train_kimg=None)
    entries = [dataclasses.replace(entry, rows=(row,)) if entry is found else entry for entry in entries]
    assert "SiD-LSG κ = 2 (found)" in texts(figures.fid_clip(entries))
    markdown = summary.to_markdown(config, entries, "", [], [])
    assert re.search(r"\| SiD-LSG κ = 2 \(found\) \|.*\| 1 \| — \|", markdown)
    csv = pd.read_csv(io.StringIO(table.to_csv([row for entry in entries for row in entry.rows])))
    assert paper.scales(csv).axes
    assert csv.set_index("run").loc["found", ["strategy", "alpha", "seed"]].isna().all()
    alone = csv[csv["kind"] != "generator"].merge(csv[csv["run"] == "found"], how="outer")
    with pytest.raises(paper.NoData, match="no run follows the LSG strategy"):
        paper.scales(alone)


def test_fid_clip_of_a_further_run_of_a_scale_shows_its_name(make_experiment):
    longer = {"strategy": "lsg", "scale": 3, "train_kimg": 40, "name": "lsg-3-longer"}
    config = make_config(extra_runs=[longer])
    folder = make_experiment(config)
    entries = read_entries(config, folder)
    shown = texts(figures.overview(entries))
    further = "SiD-LSG κ = 3 (lsg-3-longer)"
    assert [shown.count(text) for text in ("3", further)] == [2, 1]  # of ours, and of the teacher's
    titles = [row.title for row in samples.read_grid(config, folder, entries).rows if row.kind == "generator"]
    assert titles == ["SiD-LSG κ = 1.5", "SiD-LSG κ = 3", further]


def test_place_of_many_labels_covers_neither_labels_nor_frame(make_experiment):
    config = make_config(guidance_scales=[1.5, 1.6, 1.7, 1.8, 3.0])
    figure = figures.fid_clip(read_entries(config, make_experiment(config)))
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(axes.bbox.padded(1).containsx(box.x0) and axes.bbox.padded(1).containsx(box.x1) for box in boxes)


@pytest.mark.parametrize("draw", [figures.fid_clip, figures.overview])
def test_trade_off_of_close_single_points_names_each_beside_it(make_experiment, draw):
    baseline = make_config().baselines.model_dump() | {"steps": [8], "guidance_scales": [2.0]}
    config = make_config(guidance_scales=[1.5], extra_runs=[{"strategy": "none"}], baselines=baseline)
    found = read_entries(config, make_experiment(config))
    values = dict(zip(["lsg-1.5", "none", found[2].name], [(10, 0.64), (9.6, 0.6405), (10.5, 0.641)], strict=True))
    for at, entry in enumerate(found[:3]):
        fid, clip = values[entry.name]
        row = dataclasses.replace(entry.row, measured=entry.row.measured | {"fid": fid, "clip": clip})
        bars = {"fid": (fid - 0.9, fid + 0.9), "clip": (clip - 0.0024, clip + 0.0024)}
        found[at] = dataclasses.replace(entry, rows=(row,), intervals=bars)
    figure = draw(found)
    figure.canvas.draw()
    axes, names = figure.axes[0], ["SiD-LSG, one step", "SiD, no guidance", "teacher, DPM-Solver++ Karras, 8 steps"]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    for name, (fid, clip) in zip(names, values.values(), strict=True):
        point = axes.transData.transform((clip, fid))
        gap = np.hypot(*(np.clip(point, boxes[name].min, boxes[name].max) - point))
        assert gap <= 20.5 * figure.dpi / 72, name


def test_fid_clip_of_an_equal_protocol_shows_published_points(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    use_published_protocol(folder)
    figure = figures.fid_clip(read_entries(config, folder))
    shown = [text for text in texts(figure) if text.startswith("published")]
    assert shown == ["published, 18.8M images", "published, sd15", "published, sd21-base"]
    curve = next(
        line for line in figure.axes[0].lines if line.get_color() == LIGHT.published and len(line.get_xdata()) > 1
    )
    np.testing.assert_allclose(curve.get_xydata(), [[0.302, 8.71], [0.313, 9.56], [0.314, 13.21], [0.317, 16.59]])
    use_published_protocol(folder, samples=2000)
    assert not any("published" in text for text in texts(figures.fid_clip(read_entries(config, folder))))


def test_training_draws_a_line_for_each_run_and_alarm_limit(make_experiment):
    config = make_config(seeds=[0, 1])
    logs = curves.read_curves(config, Inputs.finished(config, make_experiment(config)).trainings)
    assert np.isnan(logs[0][1]["fake_loss"]).sum() == 1
    figure = curves.training(config.distill.alarms, logs)
    gap, std = figure.axes[:2]
    assert [len(gap.lines), len(std.lines)] == [4 + 1, 4 + 2]
    np.testing.assert_allclose(gap.lines[0].get_xdata(), [320, 640, 960, 1280, 1600])
    assert gap.lines[4].get_ydata()[0] == config.distill.alarms.score_gap_max
    assert gap.lines[0].get_color() == gap.lines[1].get_color() != gap.lines[2].get_color()


def test_training_with_a_gan_adds_a_panel_of_its_accuracy(make_experiment):
    distill = make_config().distill.model_dump(mode="json") | {"real": {}}
    config = make_config(extra_runs=[{"strategy": "none", "adversarial": {"start_nimg": 0}}], distill=distill)
    logs = curves.read_curves(config, Inputs.finished(config, make_experiment(config)).trainings)
    logs[-1][1]["discriminator_accuracy"][:] = 0.6
    axes = curves.training(config.distill.alarms, logs).axes
    titles = [one.get_title(loc="left") for one in axes]
    shown = axes[titles.index("Discriminator")]
    assert shown.lines[len(logs) - 1].get_ydata().tolist() == [0.6] * len(logs[-1][1]["nimg"])
    assert shown.lines[-1].get_ydata()[0] == config.distill.alarms.discriminator_accuracy_max
    assert shown.get_xlabel() == "images seen"
    assert "Discriminator" not in [
        one.get_title(loc="left") for one in curves.training(config.distill.alarms, logs[:-1]).axes
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b'{"nimg": 3', "line 1: not a logged point"),
        (b'{"nimg": 3}\n', "no 'elapsed_s'"),
        (b"\xff\n", "not UTF-8"),
        (b"[]\n", "line 1"),
    ],
)
def test_read_curves_of_a_damaged_log_names_it(make_experiment, content, message):
    config = make_config()
    folder = make_experiment(config)
    path = folder / "runs" / "lsg-3" / "training.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        curves.read_curves(config, Inputs.finished(config, folder).trainings)
    assert str(path) in str(error.value)


def test_draw_of_small_samples_shows_the_stored_pixels_of_different_captions(make_experiment):
    config = make_config(seeds=[0, 1])
    folder = make_experiment(config)
    grid = samples.read_grid(config, folder, read_entries(config, folder))
    assert grid.indices == [0, *range(2, 25)]  # sample 1 has the caption of sample 0
    assert grid.captions[1] == CAPTION
    assert grid.rows[0].title == "teacher, DPM-Solver++ Karras, 8 steps, CFG 1"
    assert [row.name for row in grid.rows] == ["teacher-dpm-solver-karras-cfg1-8steps", "lsg-1.5", "lsg-3", "real"]
    image = Image.open(io.BytesIO(to_png(samples.draw(grid)))).convert("RGB")
    sheet = np.asarray(image)
    wanted = samples.fit(grid.rows[1].images[3])
    assert wanted.shape == (192, 192, 3)
    assert any(wanted[0].tobytes() in line.tobytes() for line in sheet), "enlarged pixels were resampled"


@pytest.mark.parametrize(
    "title", ["teacher, DPM-Solver++, 25 steps, CFG 1.5", "SiD, long guidance κ = 1.5, 1 step of 4"]
)
def test_draw_of_samples_keeps_names_of_rows_inside_the_picture(title):
    row = samples.SampleRow("generator", "a", title, "FID 3.0", [np.zeros((32, 32, 3), np.uint8)])
    figure = samples.draw(samples.Grid([0], ["a star"], [row]))
    figure.canvas.draw()
    assert min(text.get_window_extent().x0 for text in figure.texts) >= 0


def test_read_progress_of_a_long_training_spreads_its_grids(make_experiment):
    config = make_config(seeds=[0, 1])
    folder = make_experiment(config)
    for run in ("lsg-3", "lsg-3-seed1"):
        (folder / "runs" / run / "grids").mkdir()
        for nimg in range(30):
            (folder / "runs" / run / "grids" / f"{nimg:08d}.png").touch()
    [(run, grids)] = samples.read_progress(config, Inputs.finished(config, folder).trainings)
    assert run.name == "lsg-3"
    assert [int(path.stem) for path in grids] == list(range(2, 30, 3))


@pytest.mark.parametrize(("side", "shown"), [(16, 192), (32, 192), (64, 192), (128, 256), (256, 256), (512, 256)])
def test_fit_enlarges_small_images_and_shrinks_large_ones(side, shown):
    assert samples.fit(np.zeros((side, side, 3), np.uint8)).shape == (shown, shown, 3)


def test_read_grid_of_a_damaged_shard_names_it(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    entries = read_entries(config, folder)
    path = folder / "runs" / "lsg-3" / "samples" / f"{shards(config)[0]}.tar"
    whole = path.read_bytes()

    def expect(message):
        with pytest.raises(UserError, match=message) as error:
            samples.read_grid(config, folder, entries)
        assert str(path) in str(error.value)

    captions = folder / "prompts" / "evaluation.txt"
    text = captions.read_text()
    captions.write_text(text.replace("red", "blue"))
    with pytest.raises(UserError, match="other captions"):
        samples.read_grid(config, folder, entries)
    captions.write_text(text)
    path.write_bytes(whole[:6000])
    expect("damaged")
    path.write_bytes((folder / "runs" / "lsg-1.5" / "samples" / path.name).read_bytes())
    expect("differs from its record")
    path.unlink()
    expect("no such file")
