"""Prompt files of an experiment: one caption a line, from the embedded scenes or from the user's own text."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import atomic_path, digest, read_lines, write_json, write_manifest
from ..shapes import scenes

if TYPE_CHECKING:
    from ..config import PromptsSettings


def prepare_prompts(settings: "PromptsSettings", out: Path) -> None:
    """Write `out`/train.txt, `out`/evaluation.txt, report.json (counts, duplicates, overlap) and a manifest, all or nothing."""
    prompts = settings.prompts
    if prompts.source == "embedded":
        train, evaluation = scenes.draw("train", prompts.train)[1], scenes.draw(prompts.split, prompts.evaluation)[1]
    else:
        train, evaluation = read_lines(prompts.train, "caption"), read_lines(prompts.evaluation, "caption")
    for name, captions in (("train", train), ("evaluation", evaluation)):
        if any("\n" in caption or "\r" in caption for caption in captions):
            raise UserError(f"prompts.{name}: a caption holds a line break; expected one caption a line")
    with atomic_path(out) as folder:
        folder.mkdir()
        (folder / "train.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
        (folder / "evaluation.txt").write_text("\n".join(evaluation) + "\n", encoding="utf-8")
        overlap = len(set(train) & set(evaluation))
        report = {
            name: {"captions": len(captions), "distinct": len(set(captions)), "sha256": digest(captions)}
            for name, captions in (("train", train), ("evaluation", evaluation))
        }
        write_json(folder / "report.json", report | {"distinct_evaluation_captions_in_train": overlap})
        write_manifest(folder)
