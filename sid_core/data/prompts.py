"""Write an experiment's prompt files from the embedded scenes, a file, or a file of a hub repository.

A prompt file has one caption a line. Captions are streamed: each of 10 million keeps 8 bytes in memory.
"""

import logging
import random
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import COCO2014_30K
from ..errors import UserError
from ..storage import hub
from ..storage.files import atomic_path, read_json, sha256_file, write_json, write_manifest
from .captions import LineFile, read_captions
from .pool import batches
from .shapes import scenes

if TYPE_CHECKING:
    from ..config import Prompts, PromptsSettings

log = logging.getLogger(__name__)

COCO_CAPTIONS = Path(__file__).with_name("coco2014_captions_30k.txt")
COCO_SHA256 = "edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945"
TOKEN_SAMPLE = 10_000  # captions whose tokens are counted; each takes 0.1 ms


def prepare_prompts(settings: "PromptsSettings", out: Path, teacher: Path | None = None) -> None:
    """Write train.txt, evaluation.txt, report.json (counts, tokens, overlap) and a manifest atomically to `out`.

    Captions are stripped. A blank line is skipped (and counted) among the training captions, which are drawn at random, and
    rejected among the evaluation captions, where it would shift the numbering. Tokens are counted by the tokenizer of
    `teacher`, if it has one.

    Raises:
        UserError: a file is missing, empty, damaged, not UTF-8 or not on the hub; `teacher` is not a prepared teacher.
    """
    prompts = settings.prompts
    if teacher and not (teacher / "manifest.json").is_file():
        raise UserError(f"--teacher {teacher}: no prepared teacher; expected results/EXPERIMENT/teacher, or none")
    with atomic_path(out) as folder:
        folder.mkdir()
        evaluation = _Written(folder / "evaluation.txt")
        evaluation.write(_evaluation_captions(prompts), f"prompts.evaluation={prompts.evaluation}", blanks=False)
        train, overlap = _Written(folder / "train.txt"), _Overlap(folder / "evaluation.txt")
        captions, origin = _train_captions(prompts)
        train.write(overlap.watch(captions), f"prompts.train={prompts.train}", blanks=True)
        report = {"source": {"kind": prompts.source, "file": prompts.train, **origin}, "train": train.report(teacher)}
        report |= {"evaluation": evaluation.report(teacher), "overlap": overlap.report()}
        write_json(folder / "report.json", report)
        write_manifest(folder)
    _log_report(report, embedded=prompts.source == "embedded")


def training_prompts(path: Path) -> LineFile:
    """Open the training captions of the prompts stage, with the hash that their manifest records."""
    return LineFile(path, read_json(Path(path).parent / "manifest.json")["files"][Path(path).name]["sha256"])


# --- sources -----------------------------------------------------------------------------------------------------------


def _train_captions(prompts: "Prompts") -> tuple[Iterator[list[str]], dict[str, object]]:
    """Return batches of training captions, and their repository and commit, if any."""
    if prompts.source == "embedded":
        return iter([scenes.draw("train", prompts.train)[1]]), {}
    if prompts.source == "file":
        return _file_captions(prompts.train, prompts.column, prompts.member), {}
    repository = hub.find(prompts.repo, prompts.revision or "main", ("prompts.repo", "prompts.revision"))
    origin = {"repo": prompts.repo, "commit": repository.commit}
    return read_captions(repository.fetch(prompts.train), prompts.column, prompts.member), origin


def _evaluation_captions(prompts: "Prompts") -> Iterator[list[str]]:
    if prompts.source == "embedded":
        return iter([scenes.draw(prompts.split, prompts.evaluation)[1]])
    return _file_captions(prompts.evaluation, prompts.column)


def _file_captions(name: str, column: str | None, member: str | None = None) -> Iterator[list[str]]:
    """Return batches of captions of a file, or of the COCO-2014 captions in the package."""
    if name != COCO2014_30K:
        return read_captions(Path(name), column, member)
    if sha256_file(COCO_CAPTIONS) != COCO_SHA256:
        raise UserError(f"{COCO_CAPTIONS}: expected sha256 {COCO_SHA256}. Fix: install sid_core again")
    return read_captions(COCO_CAPTIONS)


# --- writing and counting ----------------------------------------------------------------------------------------------


class _Written:
    """A caption file that is being written, with a 64-bit hash of each line to count duplicates.

    Two of 10 million captions collide once in 400,000 files, which would make `distinct` one too small.
    """

    def __init__(self, path: Path):
        self.path, self._hashes, self.blanks = path, array("q"), 0

    def write(self, captions: Iterable[list[str]], source: str, blanks: bool) -> None:
        """Write captions, one a line; skip and count empty ones if `blanks`, else raise a UserError, as for no captions."""
        with open(self.path, "w", encoding="utf-8", newline="\n") as file:
            for batch in captions:
                if "" in batch:
                    if not blanks:
                        number = len(self._hashes) + batch.index("") + 1
                        raise UserError(f"{source}: expected one caption a line, got none in line {number}")
                    self.blanks += batch.count("")
                    batch = [caption for caption in batch if caption]
                self._hashes.extend(map(hash, batch))
                file.writelines(f"{caption}\n" for caption in batch)
        if not self._hashes:
            raise UserError(f"{source}: expected one caption a line, got none")

    def report(self, teacher: Path | None) -> dict[str, object]:
        """Return counts of captions, and token lengths of a random subset."""
        hashes = np.frombuffer(self._hashes, np.int64)
        hashes.sort()
        distinct = 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))
        counts = {"captions": len(hashes), "distinct": distinct, "duplicates": len(hashes) - distinct}
        counted = teacher is not None and (teacher / "tokenizer").is_dir()
        tokens = token_lengths(self.path, len(hashes), teacher) if counted else None
        return counts | {"blank_lines": self.blanks, "tokens": tokens}


class _Overlap:
    """Evaluation captions that occur among the training captions, exactly or after `normalised`."""

    def __init__(self, evaluation: Path):
        self._exact = set(evaluation.read_text(encoding="utf-8").split("\n")[:-1])
        self._normalised = {normalised(caption) for caption in self._exact}
        self._found_exact: set[str] = set()
        self._found: set[str] = set()
        self._training = 0

    def watch(self, captions: Iterable[list[str]]) -> Iterator[list[str]]:
        """Yield the training captions unchanged, and count those that are evaluation captions."""
        for batch in captions:
            keys = [normalised(caption) for caption in batch]
            if not self._normalised.isdisjoint(keys):
                self._training += sum(key in self._normalised for key in keys)
                self._found |= self._normalised.intersection(keys)
                self._found_exact |= self._exact.intersection(batch)
            yield batch

    def report(self) -> dict[str, int]:
        """Count the distinct evaluation captions in training, exact and normalised, and their training captions."""
        counts = len(self._found_exact), len(self._found), self._training
        return dict(zip(("exact", "normalised", "training_captions"), counts, strict=True))


def normalised(caption: str) -> str:
    """Return a caption case-folded, with single spaces and without final punctuation."""
    return " ".join(caption.casefold().split()).rstrip(" .,;:!?")


def token_lengths(path: Path, count: int, teacher: Path) -> dict[str, object]:
    """Measure token lengths, with start and end token, of up to 10,000 of a file's `count` captions, by a fixed seed."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(teacher / "tokenizer")
    chosen = set(random.Random(0).sample(range(count), min(TOKEN_SAMPLE, count)))
    lengths: list[int] = []
    with open(path, encoding="utf-8", newline="\n") as file:
        for some in batches((line for index, line in enumerate(file) if index in chosen), 1000):
            lengths += [len(ids) for ids in tokenizer(some, truncation=False, verbose=False).input_ids]
    return {
        "sample": len(lengths),
        "min": min(lengths),
        "mean": sum(lengths) / len(lengths),
        "max": max(lengths),
        "limit": tokenizer.model_max_length,
        "truncated": sum(length > tokenizer.model_max_length for length in lengths),
    }


def _log_report(report: dict, embedded: bool) -> None:
    """Log the report; overlap with the evaluation captions is a warning, unless both are drawn from one grammar."""
    train, evaluation, overlap = report["train"], report["evaluation"], report["overlap"]
    log.info(
        "training captions: %s, %s of them distinct; blank lines left out: %s",
        *(f"{train[key]:,}" for key in ("captions", "distinct", "blank_lines")),
    )
    if tokens := train["tokens"]:
        percent = 100 * tokens["truncated"] / tokens["sample"]
        values = *(tokens[key] for key in ("min", "max", "mean")), percent, tokens["limit"]
        log.info("tokens a caption: %d to %d, %.1f on average; %.2f %% are cut at %d", *values)
    seen = f"{overlap['normalised']:,} of {evaluation['distinct']:,} distinct evaluation captions"
    if embedded:
        log.info("%s are also trained on, as intended: both are drawn from one grammar", seen)
    elif overlap["normalised"]:
        log.warning(
            "%s are also trained on (%s of them to the letter, the others up to case, spaces and final punctuation): "
            "scores on them are not zero-shot; take them out of prompts.train",
            *(seen, f"{overlap['exact']:,}"),
        )
    else:
        log.info("no evaluation caption is trained on")
