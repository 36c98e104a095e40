"""Test exports in the layouts of GenEval and DPG-Bench, and imports of result files as their programs write them."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from made_up import make_config, write_experiment
from PIL import Image
from small import generate_settings

from sid_core import cli
from sid_core.data.shards import read_shard
from sid_core.errors import UserError
from sid_core.evaluation.benchmarks import export_benchmark, import_benchmark
from sid_core.pipeline.inputs import Inputs
from sid_core.report import summary, table
from sid_core.report.entries import make_entries
from sid_core.sampling.generation import generate
from sid_core.storage.files import read_json, write_json, write_manifest

TASKS = ("single_object", "counting", "colors")
METADATA = [
    {"tag": TASKS[i], "prompt": prompt, "include": [{"class": "dot", "count": i}]}
    for i, prompt in enumerate(["a red dot", "two dots", "a blue dot"])
]


@pytest.fixture(scope="module")
def samples(tiny_generator, tiny_teacher, tmp_path_factory) -> np.ndarray:
    """Generate four samples of each prompt from seed 7 on."""
    folder = tmp_path_factory.mktemp("samples")
    captions = folder / "captions.txt"
    captions.write_text("".join(f"{entry['prompt']}\n" * 4 for entry in METADATA))
    generate(generate_settings(seed=7), tiny_generator, tiny_teacher, captions, 0, 12, folder / "x.tar")
    [(_, images)] = read_shard(folder / "x.tar", 12)
    return images


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_export_of_geneval_has_its_layout(samples, tiny_generator, tiny_teacher, tmp_path):
    prompts, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps(entry) + "\n" for entry in METADATA))
    export_benchmark("geneval", tiny_generator, prompts, out, tiny_teacher, 7)
    assert sorted(path.name for path in out.iterdir()) == ["images", "manifest.json"]
    assert sorted(path.name for path in (out / "images").iterdir()) == ["00000", "00001", "00002"]
    for number, entry in enumerate(METADATA):
        folder = out / "images" / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == entry
        assert [path.name for path in sorted((folder / "samples").iterdir())] == [f"000{i}.png" for i in range(4)]
        for i in range(4):
            assert np.array_equal(pixels(folder / "samples" / f"000{i}.png"), samples[4 * number + i])


def test_export_of_dpg_writes_a_grid_of_each_file(samples, tiny_generator, tiny_teacher, tmp_path):
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    for name, entry in zip(("COCO_1", "diffusiondb2", "partiprompts3"), METADATA, strict=True):
        (prompts / f"{name}.txt").write_text(entry["prompt"] + "\n")
    export_benchmark("dpg", tiny_generator, prompts, out, tiny_teacher, 7)
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == ["COCO_1.png", "diffusiondb2.png", "partiprompts3.png"]
    for number, name in enumerate(names):
        grid, side = pixels(out / "images" / name), samples.shape[1]
        # the boxes (left, upper) that its program crops, in this order
        for i, (left, upper) in enumerate([(0, 0), (side, 0), (0, side), (side, side)]):
            assert np.array_equal(grid[upper : upper + side, left : left + side], samples[4 * number + i])
    (prompts / "v1.5.txt").write_text("a dot")
    with pytest.raises(UserError, match=r"v1\.5\.txt: expected a prompt, in a file whose name has no dot"):
        export_benchmark("dpg", tiny_generator, prompts, out, tiny_teacher, 7)


# --- imports: a whole set of prompts, made up -----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    folder, config = tmp_path / "shapes", make_config()
    folder.mkdir()
    write_experiment(folder, config)
    return folder, config


def exported(folder: Path, benchmark: str, prompts: list[dict], **changes) -> Path:
    folder.mkdir()
    record = {"benchmark": benchmark, "generator_sha256": "a" * 64, "nfe": 1, "seed": 0, "prompts": prompts}
    write_manifest(folder, record | changes)
    return folder


def geneval(folder: Path) -> tuple[Path, list[dict], float]:
    """Write an export of 553 prompts; return it with a line for each image and the score as GenEval's summary computes it."""
    prompts = [{"name": f"{i:05d}", "text": f"p{i}", "prompt": f"p{i}", "tag": TASKS[i % 7 % 3]} for i in range(553)]
    rng, lines = np.random.default_rng(0), []
    for prompt in rng.permutation(prompts):
        for i in range(4):
            path = f"/data/x/images/{prompt['name']}/samples/000{i}.png"
            correct = bool(rng.random() < 0.2 + 0.3 * TASKS.index(prompt["tag"]))
            lines.append({"filename": path, "tag": prompt["tag"], "prompt": prompt["prompt"], "correct": correct})
    shares = [np.mean([line["correct"] for line in lines if line["tag"] == tag]) for tag in TASKS]
    return exported(folder, "geneval", prompts), lines, float(np.mean(shares))


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_import_of_geneval_gives_the_mean_over_tasks_as_a_column(project, tmp_path):
    folder, config = project
    made, lines, expected = geneval(tmp_path / "exported")
    file, row = write_lines(tmp_path / "results.jsonl", lines), folder / "runs" / "lsg-3"
    arguments = ["import-benchmark", "geneval", str(file), "--exported", str(made), "--row", str(row)]
    assert cli.main(arguments) == 0
    found = read_json(row / "benchmarks.json")["geneval"]
    assert found["value"] == pytest.approx(expected, abs=1e-12)
    by_prompt = {}
    for line in lines:
        by_prompt.setdefault((line["tag"], line["prompt"]), []).append(line["correct"])
    draws = []
    for tag in TASKS:
        means = np.array([np.mean(values) for (own, _), values in by_prompt.items() if own == tag])
        draws.append(np.random.default_rng(1).choice(means, (4000, len(means))).mean(1))
    assert found["se"] == pytest.approx(np.mean(draws, 0).std(), rel=0.05)

    scores = table.read_scores(Inputs.finished(config, folder).scores)
    rows = table.make_rows(config, folder, scores)
    cells = {cell["run"]: cell["geneval"] for cell in csv.DictReader(io.StringIO(table.to_csv(rows)))}
    assert float(cells["lsg-3"]) == found["value"]
    assert cells["lsg-1.5"] == ""
    entries = make_entries(config, rows, scores, {})
    text = summary.to_markdown(config, entries, "", summary.notes(entries, scores), [])
    assert "GenEval ↑ |" in text
    assert "imported: GenEval of lsg-3: results.jsonl." in text
    write_json(row / "benchmarks.json", {"geneval": found | {"generator_sha256": "b" * 64}})
    with pytest.raises(UserError, match=r"benchmarks\.json: geneval is of other weights than the score"):
        table.read_scores(Inputs.finished(config, folder).scores)


def test_import_of_geneval_with_a_missing_or_foreign_image_raises(project, tmp_path):
    row = project[0] / "runs" / "lsg-3"
    made, lines, _ = geneval(tmp_path / "exported")
    file = write_lines(tmp_path / "results.jsonl", lines[:-1])
    with pytest.raises(UserError, match=r"expected 4 results of each of 553 prompts; 1 differ"):
        import_benchmark("geneval", file, made, row)
    write_lines(file, [*lines, lines[0]])
    with pytest.raises(UserError, match=r"line 2213: .*expected each exported image once"):
        import_benchmark("geneval", file, made, row)
    write_lines(file, [*lines[:-1], lines[-1] | {"prompt": "another"}])
    with pytest.raises(UserError, match=r"line 2212: .*with its prompt"):
        import_benchmark("geneval", file, made, row)


def test_import_of_dpg_gives_the_mean_over_prompts(project, tmp_path):
    prompts = [{"name": f"COCO_{i}", "text": f"p{i}"} for i in range(1065)]
    values = np.random.default_rng(0).random((1065, 4))
    lines = [
        f"/data/images/{prompt['name']}.png, {', '.join(map(str, four.tolist()))}, {four.mean()}"
        for prompt, four in zip(prompts, values, strict=True)
    ]
    end = ["Model: images", "L1 category scores:", "\tentity: 80.0", f"DPG-Bench score: {100 * values.mean()}"]
    file, row = tmp_path / "dpg.txt", project[0] / "runs" / "lsg-3"
    made = exported(tmp_path / "exported", "dpg", prompts)
    file.write_text("\n".join(lines + end) + "\n")
    import_benchmark("dpg", file, made, row)
    found = read_json(row / "benchmarks.json")["dpg"]
    assert found["value"] == pytest.approx(100 * values.mean())
    assert found["se"] == pytest.approx(100 * values.mean(1).std(ddof=1) / np.sqrt(1065))
    file.write_text("\n".join(lines[1:] + end) + "\n")
    with pytest.raises(UserError, match=r"expected 1 results of each of 1065 prompts; 1 differ, such as COCO_0"):
        import_benchmark("dpg", file, made, row)
    file.write_text("\n".join(["x.png, 1, 2", *lines]))
    with pytest.raises(UserError, match=r"line 1: expected an image, 4 scores and their mean"):
        import_benchmark("dpg", file, made, row)


def test_import_of_another_export_or_run_raises(project, tmp_path):
    row, file = project[0] / "runs" / "lsg-3", tmp_path / "results.jsonl"
    made, lines, _ = geneval(tmp_path / "exported")
    write_lines(file, lines)
    with pytest.raises(UserError, match=r"expected what sid-core export-benchmark dpg wrote"):
        import_benchmark("dpg", file, made, row)
    baseline = project[0] / "baselines" / "real"
    fewer = exported(tmp_path / "fewer", "geneval", read_json(made / "manifest.json")["record"]["prompts"][:9])
    steps = exported(tmp_path / "steps", "geneval", [], nfe=4)
    for export, place, message in (
        (made, baseline, "not the scored run"),
        (steps, row, "not the scored run"),
        (fewer, row, "9 prompts, expected all 553"),
    ):
        with pytest.raises(UserError, match=message):
            import_benchmark("geneval", file, export, place)
