"""Execute the notebook docs/first-look.ipynb, and hold it to no stored outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-look.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_notebook_has_no_outputs_and_no_counts():
    for cell in CELLS:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_notebook_goes_from_checkpoint_to_image_to_score(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict = {}
    for number, code in enumerate(CODE):
        exec(compile(code, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    assert (names["generator"] / "generator.json").is_file()
    scores = names["scores"]
    assert scores["scenes"]["fid"] < scores["generator"]["fid"] < scores["noise"]["fid"]
    assert scores["scenes"]["clip"] == pytest.approx(0.6, abs=0.15)
    assert scores["generator"]["clip"] > scores["noise"]["clip"]
