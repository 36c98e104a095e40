"""Train one run of a finished experiment again under other roundings, and score it.

    python benchmarks/rounding.py [results/shapes [lsg-1.5]] [--variants VARIANT ...]

Weights of the same seed differ between machines and thread counts, as sums have another order. This shows how far a
score depends on that alone: each variant is the same seed, settings and captions, on one machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sid_core.pipeline.paths import Results, Row
from sid_core.storage.files import read_json

VARIANTS = {  # environment of the training, with the number of its threads
    "one thread": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.1": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def score(results: Results, run: str, variant: dict[str, str], folder: Path) -> dict:
    """Train in `folder` under `variant`; sample and score as the experiment did."""
    row, out, teacher, captions = results.run(run), Row(folder / "run"), results.teacher(), results.captions
    samples, features, reference = out.samples("00000"), out.features("00000"), results.reference("reference").features
    count = len(captions.read_text(encoding="utf-8").splitlines())
    made = {"prompts": results.train_captions, "state": folder / "state", "tracking": folder / "none.json"}
    _call("distill", variant, settings=row.settings, teacher=teacher, out=out.generator, **made)
    made = {"generator": out.generator, "range": (0, count), "out": samples}
    _call("generate", settings=row.generation, teacher=teacher, captions=captions, **made)
    _call("features", settings=results.features_settings, captions=captions, samples=samples, out=features)
    made = {"features": features, "reference": reference, "out": out.score}
    _call("score", settings=results.score_settings, captions=captions, **made)
    return read_json(out.score)


def _call(command: str, variant: Mapping[str, str] = MappingProxyType({}), **options: Path | tuple[int, int]) -> None:
    words = [command]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variant
    subprocess.run([sys.executable, "-m", "sid_core", *words], check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results/shapes"))
    parser.add_argument("run", nargs="?", default="lsg-1.5")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given, found = parser.parse_args(), []
    if not given.results.is_dir():
        print(f"{given.results}: no such experiment; make run makes it")
        return
    for name in given.variants:
        with tempfile.TemporaryDirectory() as folder:
            scored = score(Results(given.results), given.run, VARIANTS[name], Path(folder))
        found.append(scored)
        print(
            f"{name:12s} FID {scored['fid']:.3f}  CLIP {scored['clip']:.4f}  recall {scored['recall']:.3f}", flush=True
        )
    if len(found) > 1:
        for metric in ("fid", "clip", "recall"):
            print(f"standard deviation of {metric}: {statistics.stdev(one[metric] for one in found):.4f}")


if __name__ == "__main__":
    main()
