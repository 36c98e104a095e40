"""Write a page of blind pairs of samples: equal prompts and noise, sides at random, names hidden until votes are saved."""

import base64
import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from ..errors import UserError
from ..evaluation.comparison import distinct_names
from ..pipeline.paths import Results, Row
from ..storage.files import digest, read_json, read_lines, sidecar, write_text
from .markup import EXACT, image_uri
from .page import fill
from .samples import read_images

SHARD = "00000"
LARGEST = 768  # pixels; two images side by side fill a screen


def write_vote_page(runs: Sequence[Path], out: Path, count: int, seed: int) -> None:
    """Write a page on which a person votes on every two of `runs` for `count` prompts, at most those of a shard.

    Prompts, order and sides come from `seed`. The page has the names in base64, so that nobody reads them by accident.
    """
    if count < 1:
        raise UserError(f"--count {count}: expected 1 or more prompts")
    names = distinct_names("vote", runs)
    captions, noise = _captions(runs[0])
    for run in runs[1:]:
        if _captions(run) != (captions, noise):
            text = f"not comparable: {runs[0]} and {run} have samples of other captions or seeds"
            raise UserError(f"{text}. Fix: give runs of one experiment")
    rng, first_with = random.Random(seed), {caption: index for index, caption in reversed([*enumerate(captions)])}
    indices = sorted(rng.sample(sorted(first_with.values()), min(count, len(first_with))))
    images = [
        (name, index, image)
        for name, run in zip(names, runs, strict=True)
        for index, image in zip(indices, read_images(Row(run).samples(SHARD), indices, captions), strict=True)
    ]
    rng.shuffle(images)
    place = {(name, index): number for number, (name, index, _) in enumerate(images)}
    pairs = [(index, rng.sample(pair, 2)) for pair in combinations(names, 2) for index in indices]
    rng.shuffle(pairs)
    shown = [
        {"sample": index, "prompt": captions[index], "images": [place[name, index] for name in sides]}
        for index, sides in pairs
    ]
    content = {"pairs": shown, "images": [image_uri(image, LARGEST) for _, _, image in images]}
    sealed = base64.b64encode(json.dumps([sides for _, sides in pairs]).encode()).decode()
    data = {"page": digest([content, sealed])[:16], **content, "sealed": sealed}
    pixels = max(images[0][2].shape) <= EXACT
    write_text(out, fill("vote.html", "vote.js", data=data, pixels=pixels))


def _captions(run: Path) -> tuple[list[str], list[int]]:
    """Return captions and seeds of the samples in a run's first shard."""
    shard = Row(run).samples(SHARD)
    if not shard.is_file():
        text = f"{run}: no {shard.relative_to(run)}"
        raise UserError(f"{text}; expected a run with samples, such as results/shapes/runs/lsg-2")
    samples = read_json(sidecar(shard)).get("record", {}).get("samples", [])
    captions = read_lines(Results(run.resolve().parents[1]).captions, "caption")[: len(samples)]
    return captions, [sample["seed"] for sample in samples]
