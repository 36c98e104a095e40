"""Prompt files: good text, bad text."""

import pytest

from sid_core.config import Prompts, PromptsSettings
from sid_core.errors import UserError
from sid_core.files import read_json, read_lines, verify_manifest
from sid_core.models.prompts import prepare_prompts


def prepare(tmp_path, train: bytes, evaluation: bytes = b"a cat\n"):
    (tmp_path / "train").write_bytes(train)
    (tmp_path / "eval").write_bytes(evaluation)
    prompts = Prompts(source="file", train=str(tmp_path / "train"), evaluation=str(tmp_path / "eval"))
    prepare_prompts(PromptsSettings(prompts=prompts), tmp_path / "out")
    return tmp_path / "out"


def test_case_is_kept_and_overlap_reported(tmp_path):
    out = prepare(tmp_path, "A Dog \nÉté\r\na cat\nÉté".encode(), b"a cat\nA DOG\n")
    verify_manifest(out)
    assert read_lines(out / "train.txt", "caption") == ["A Dog", "Été", "a cat", "Été"]
    report = read_json(out / "report.json")
    assert (report["train"]["captions"], report["train"]["distinct"]) == (4, 3)
    assert report["distinct_evaluation_captions_in_train"] == 1


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (b"", "train: empty"),
        (b"fine\n\xff\xfe\n", "line 2: not UTF-8"),
        (b"x" * 10_000_000, "line 1: 10,000,000 characters"),
        (b"one\n\ntwo\n", "line 2: blank"),
    ],
)
def test_bad_text_is_named(tmp_path, train, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, train)
    assert not (tmp_path / "out").exists()


def test_embedded_captions_differ_by_split(tmp_path):
    read = {}
    for split in ("evaluation", "validation"):
        settings = PromptsSettings(prompts=Prompts(train=50, evaluation=40, split=split))
        prepare_prompts(settings, tmp_path / split)
        read[split] = read_lines(tmp_path / split / "evaluation.txt", "caption")
        assert len(read[split]) == 40
    assert read["evaluation"] != read["validation"]
