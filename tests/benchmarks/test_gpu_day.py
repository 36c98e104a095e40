"""Run all parts of the measurements of a GPU at their smallest, on the CPU."""

import json
import re
import sys
from pathlib import Path

import pytest

from sid_core.config import Plan

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_day  # noqa: E402


def test_main_on_a_cpu_runs_every_part_and_writes_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--device", "cpu", "--size", "tiny", "--out", str(tmp_path)])
    gpu_day.main()
    record = json.loads((tmp_path / "record.json").read_text())
    parts = ("ours", "beside-fp32", "beside-fp16", "generation", "resume", "tests", *range(len(record["steps"])))
    assert not [
        part for part in parts if "failed" in (record["steps"][part] if isinstance(part, int) else record[part])
    ]
    assert record["resume"]["equal"]
    assert record["resume"]["checkpoint_gb"] > 0
    assert {record[f"beside-{loop}"]["beside"]["name"] for loop in ("fp32", "fp16")} == {
        "published loop, float32, 1 image per backward pass",
        "published loop, float16, 16 images per backward pass",
    }
    assert record["generation"]["images"] == 32
    assert record["generation"]["score"]["fid_of_halves"] > 0
    assert "convolution" in record["ours"]["profile_s"]
    assert record["tests"]["counts"]["FAILED"] == 0
    assert sum(record["tests"]["counts"].values()) >= 5
    report = (tmp_path / "report.md").read_text()
    assert re.search(
        r"\| bfloat16 \| no \| yes \| 1 \| [\d.]+ \([\d.]+ to [\d.]+\) \| [-\d.]+ \| [\d.]+ \| [-\d.]+ \|", report
    )
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["speeds"].keys() == {name for name in Plan.model_fields if name.endswith("_per_s")}
    assert measured["speeds"]["train_images_per_s"] == pytest.approx(record["ours"]["images_per_s"], rel=0.01)


def test_tables_with_failed_parts_name_the_reasons():
    failed = {"failed": "stopped after its 150 s"}
    step = {"precision": "tf32", "compile": True, "deterministic": False, "micro_batch": 8, "predicted_gb": 12.0}
    record = {name: failed for name in ("beside-fp32", "beside-fp16", "generation", "resume", "tests")}
    record |= {
        "machine": {"device": "X", "torch": "1", "diffusers": "2", "python": "3"},
        "date": "today",
        "size": "sd15",
    }
    text = gpu_day.tables(
        record | {"minutes": 3.0, "ours": step | failed, "steps": [step | {"failed": gpu_day.LEFT_OUT}]}
    )
    assert text.count(failed["failed"]) == 6
    assert f"| tf32 | yes | no | 8 | {gpu_day.LEFT_OUT} | | 12.00 | |" in text
    assert gpu_day.speeds(record | {"ours": failed}) == {}


def test_cases_on_a_gpu_are_all_combinations_ours_first(tmp_path):
    found = gpu_day.cases(gpu_day.Day("cuda", "sd15", tmp_path))
    assert len(set(found)) == 16
    assert found[:3] == [("bfloat16", True, True), ("bfloat16", False, True), ("float16", True, True)]


def test_write_into_replaces_what_is_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu_day.BEGIN}old\n{gpu_day.END}after\n")
    gpu_day.write_into(page, "new\n")
    gpu_day.write_into(page, "newer\n")
    assert page.read_text() == f"before\n{gpu_day.BEGIN}\nnewer\n\n{gpu_day.END}after\n"
    assert gpu_day.DOCS.read_text().count(gpu_day.BEGIN) == gpu_day.DOCS.read_text().count(gpu_day.END) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu", "--size", "sd15"], "--size: expected sd15 with --device cuda"),
        (["--device", "cpu", "--size", "tiny", "--docs"], "--docs: expected a GPU"),
    ],
)
def test_main_with_options_that_do_not_fit_names_them(options, message, monkeypatch):
    monkeypatch.setattr(gpu_day.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", *options])
    with pytest.raises(SystemExit, match=message):
        gpu_day.main()
