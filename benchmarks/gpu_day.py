"""Measure in 20 minutes, without a network, all that needs a GPU: tables, and the speeds that `sid-core plan` reads.

    make gpu                                                          # tables into docs/performance.md
    python benchmarks/gpu_day.py --device cpu --size tiny --out DIR     # the same parts at their smallest, in a minute

Needs torch, diffusers and safetensors; pytest, torchvision and open_clip for the parts that use them. Each part is a benchmark of
this folder with a time limit; its failure is noted and the others run. The most important come first; the comparison of settings
takes the time that is left. On a GPU every measurement is a process of its own, on a CPU all share one.
"""

import argparse
import contextlib
import io
import re
import runpy
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from parts.clock import machine
from parts.kinds import as_table

from sid_core.method import DTYPES
from sid_core.models import architectures
from sid_core.storage.files import read_json, write_json, write_text
from sid_core.training.memory import CONTEXT_BYTES, GB, MICRO_BATCHES, predict

ROOT = Path(__file__).parents[1]
LIMIT_S = 1170  # of everything
DOCS, MEASURED = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance-gpu.json"
BEGIN, END = "<!-- gpu: begin -->\n", "<!-- gpu: end -->\n"
UNETS = {"sd15": "sd15", "tiny": "shapes"}
LEFT_OUT = "not run: no time was left"


@dataclass(frozen=True)
class Day:
    """The machine, the size and the clock of all measurements."""

    device: str
    size: str
    out: Path
    began_s: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def precision(self) -> str:
        """Return that of our settings; 16 bits are slow on a CPU."""
        return "bfloat16" if self.on_gpu else "float32"

    @cached_property
    def architecture(self) -> architectures.Architecture:
        return architectures.from_name(UNETS[self.size])

    @cached_property
    def predictions(self) -> dict:
        """Return plan-memory's prediction by precision, for the tensors that training_step.py makes: no text encoder, no VAE."""
        by_bits = {bits: predict(self.architecture, 2.0, bits) for bits in ("float32", "bfloat16")}
        return {name: by_bits["float32" if dtype == torch.float32 else "bfloat16"] for name, dtype in DTYPES.items()}

    @cached_property
    def absent_bytes(self) -> int:
        """Return what predictions hold besides: the text encoder and the VAE."""
        with torch.device("meta"):
            codec = architectures.new_codec(self.architecture)
        return 4 * self.architecture.text_parameters + sum(p.nbytes for p in codec.parameters())

    def left_s(self, limit_s: float) -> float:
        """Return `limit_s`, or what is left of all measurements."""
        return min(limit_s, self.began_s + LIMIT_S - time.perf_counter())

    def micro_batch(self, precision: str, reserved: float = 0.0) -> int:
        """Return the largest micro-batch up to 16 that fits, beside `reserved` bytes."""
        if not self.on_gpu:
            return 1
        free = torch.cuda.get_device_properties(0).total_memory - reserved
        return max((n for n in MICRO_BATCHES if n <= 16 and self.predictions[precision].needed(n) <= free), default=1)

    def call(self, name: str, script: str, *arguments: object, limit_s: float) -> dict:
        """Run a benchmark of this folder; return what it writes as JSON, or {"failed": REASON}."""
        limit_s = self.left_s(limit_s)
        if limit_s < 20 and self.on_gpu:
            return {"failed": LEFT_OUT}
        path = self.out / f"{name}.json"
        path.unlink(missing_ok=True)
        words = [str(ROOT / "benchmarks" / script), *map(str, arguments), "--json", str(path)]
        print(f"{time.perf_counter() - self.began_s:5.0f} s  {name}: {' '.join(words[1:-2])}", flush=True)
        failed = self._in_own_process(name, words, limit_s) if self.on_gpu else _in_this_process(words)
        found = read_json(path) if path.is_file() else {}
        if failed:
            print(f"         {failed}", flush=True)
        return found | ({"failed": failed} if failed else {})

    def _in_own_process(self, name: str, words: list[str], limit_s: float) -> str:
        with open(self.out / f"{name}.log", "w") as log:
            try:
                done = subprocess.run([sys.executable, *words], stdout=log, stderr=subprocess.STDOUT, timeout=limit_s)
            except subprocess.TimeoutExpired:
                return f"stopped after its {limit_s:.0f} s"
        lines = (self.out / f"{name}.log").read_text().strip().splitlines()
        return "" if done.returncode == 0 else lines[-1][:200] if lines else f"exit code {done.returncode}"


def _in_this_process(words: list[str]) -> str:
    given, sys.argv = sys.argv, words
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(words[0], run_name="__main__")
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        sys.argv = given
    return ""


# --- the parts ---------------------------------------------------------------------------------------------------------


def training_step(day: Day, name: str, precision: str, compiled: bool, deterministic: bool, *more: object) -> dict:
    """Time an iteration; long, in four micro-batches and with a profile, or short and in one."""
    longest, micro_batch = name == "ours", day.micro_batch(precision)
    batch = micro_batch * (4 if longest and day.on_gpu else 1)
    seconds, warmup = ((40, 10) if longest else (8, 2)) if day.on_gpu else (0, 0)
    switches = ["--compile"] * compiled + ["--no-deterministic"] * (not deterministic)
    found = day.call(
        name, "training_step.py", "--size", UNETS[day.size], "--device", day.device, "--precision", precision,
        "--micro-batch", micro_batch, "--batch", batch, "--seconds", seconds, "--warmup", warmup, *switches, *more,
        limit_s=300 if longest else 150,
    )  # fmt: skip
    found |= {"precision": precision, "compile": compiled, "deterministic": deterministic, "micro_batch": micro_batch}
    return found | {"predicted_gb": (day.predictions[precision].peak(micro_batch) - day.absent_bytes) / GB}


def beside(day: Day, loop: str) -> dict:
    """Time our iteration and the published loop in turn; both are in memory at once."""
    theirs = (42e9 if loop == "fp32" else 85e9) + CONTEXT_BYTES
    file, micro_batch = (
        ROOT / "benchmarks" / "parts" / f"published_{loop}.py",
        min(day.micro_batch("bfloat16", theirs), 8),
    )
    seconds = (24, 2) if day.on_gpu else (0, 0)
    return day.call(
        f"beside-{loop}", "training_step.py", "--size", UNETS[day.size], "--device", day.device,
        "--precision", day.precision, "--micro-batch", micro_batch, "--batch", 16 if day.on_gpu else 1,
        "--seconds", seconds[0], "--warmup", seconds[1], "--rounds", 2 if day.on_gpu else 1, "--beside", file,
        *["--compile"] * day.on_gpu, limit_s=210,
    )  # fmt: skip


def generation(day: Day) -> dict:
    """Generate 1,000 images, and score them where the libraries of the evaluation networks are installed."""
    if not day.on_gpu:
        networks = ["--feature-network", "embedded", "--clip", "embedded"]
        return day.call("generation", "generation.py", "--images", 32, "--batch", 16, *networks, limit_s=60)
    networks: list[object] = []
    if find_spec("open_clip") and find_spec("torchvision"):
        from parts.feature_networks import save_clip, save_inception

        inception, clip = day.out / "inception.pt", day.out / "clip"
        save_inception(inception)
        save_clip(clip)
        networks = ["--feature-network", inception, "--clip", clip, "--image-size", 256, "--feature-size", 299]
    return day.call(
        "generation", "generation.py", "--size", "sd15", "--images", 1000, "--threads", 8, *networks, limit_s=240
    )


def gpu_tests(day: Day) -> dict:
    """Run the tests that need a GPU; without one they are skipped."""
    if not find_spec("pytest"):
        return {"failed": "pytest is not installed"}
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--durations=0", "-rA", *files]
    print(f"{time.perf_counter() - day.began_s:5.0f} s  tests", flush=True)
    limit_s = day.left_s(150) if day.on_gpu else None
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after its {limit_s:.0f} s"}
    write_text(day.out / "tests.log", done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    counts = {word: sum(line.startswith(f"{word} ") for line in lines) for word in ("PASSED", "FAILED")}
    counts["SKIPPED"] = sum(map(int, re.findall(r"^SKIPPED \[(\d+)\]", done.stdout, re.M)))  # by place
    return {"counts": counts} | ({"failed": "see tests.log"} if done.returncode else {})


def resume(day: Day) -> dict:
    """Compare a resumed training with an uninterrupted one, bit by bit."""
    options = ["--size", UNETS[day.size], "--device", day.device, "--precision", day.precision]
    return day.call("resume", "resume.py", *options, "--micro-batch", 4 if day.on_gpu else 1, limit_s=180)


def cases(day: Day) -> list[tuple[str, bool, bool]]:
    """Return (precision, compile, deterministic), the most interesting first; a CPU does not compile and has no choice of kernels."""
    if not day.on_gpu:
        return [("bfloat16", False, True)]
    order = ("bfloat16", "float16", "tf32", "float32")
    every = list(product(order, (True, False), (True, False)))
    return sorted(every, key=lambda case: (order.index(case[0]) + 2 * (not case[2]), not case[1]))


# --- what is written ---------------------------------------------------------------------------------------------------


def speeds(record: dict) -> dict:
    """Return the measured speeds by the names of config `plan`."""
    made = record["generation"]
    found = {
        "train_images_per_s": record["ours"].get("images_per_s"),
        "generate_images_per_s": made.get("images_per_s"),
    }
    if "ms_per_image" in made:
        found["evaluations_per_s"] = 1000 / made["ms_per_image"]["UNet"]
        found["feature_images_per_s"] = made.get("score", {}).get("features_images_per_s")
    return {name: float(f"{value:.3g}") for name, value in found.items() if value}


def tables(record: dict) -> str:
    """Format everything as Markdown."""
    where = record["machine"]
    versions = f"torch {where['torch']}, diffusers {where['diffusers']}, Python {where['python']}"
    lines = [
        f"{where['device']}, {record['date']}, {versions}; random weights of the shape `{record['size']}`, kappa 2, "
        f"{record['minutes']:.0f} minutes in all.",
        "",
        "| precision | compiled | deterministic | micro-batch | ms an image (quartiles) | GB measured | GB predicted | ratio |",
        "|---|---|---|--:|--:|--:|--:|--:|",
        *map(_step_row, [record["ours"], *record["steps"]]),
        "",
        "The first row has four micro-batches an iteration, the others one. Predictions are of `plan-memory`, without text encoder "
        "and VAE; they do not know compiled blocks, which take less.",
        "",
        "| beside | ms an image, theirs | ours | ratio (range) |",
        "|---|--:|--:|--:|",
        *(_beside_row(loop, record[f"beside-{loop}"]) for loop in ("fp32", "fp16")),
        "",
        *_generation_lines(record["generation"]),
        "",
        _resume_line(record["resume"]),
        _tests_line(record["tests"]),
    ]
    if "profile_s" in record["ours"]:
        lines += ["", "Kernels of an iteration of the first row:", "", as_table(record["ours"]["profile_s"])]
    return "\n".join(lines) + "\n"


def _step_row(found: dict) -> str:
    yes = {True: "yes", False: "no"}
    head = (
        f"| {found['precision']} | {yes[found['compile']]} | {yes[found['deterministic']]} | {found['micro_batch']} |"
    )
    if "ms_per_image" not in found or "peak_gb" not in found:
        return f"{head} {found.get('failed', 'failed')} | | {found['predicted_gb']:.2f} | |"
    median, (low, high) = found["ms_per_image"]["median"], found["ms_per_image"]["quartiles"]
    measured, predicted = found["peak_gb"], found["predicted_gb"]
    return f"{head} {median:.1f} ({low:.1f} to {high:.1f}) | {measured:.2f} | {predicted:.2f} | {measured / predicted:.2f} |"


def _beside_row(loop: str, found: dict) -> str:
    if "beside" not in found:
        return f"| published loop, {loop} | {found.get('failed', 'failed')} | | |"
    b = found["beside"]
    ratio = f"{b['ratio']:.2f} ({b['ratio_min']:.2f} to {b['ratio_max']:.2f})"
    return f"| {b['name']} | {b['theirs_ms_per_image']:.1f} | {b['ours_ms_per_image']:.1f} | {ratio} |"


def _generation_lines(found: dict) -> list[str]:
    if "images_per_s" not in found:
        return [f"Generation: {found.get('failed', 'failed')}."]
    made = f"{found['images']:,} images generated at {found['images_per_s']:.1f} images/s ({found['precision']})"
    score = found.get("score")
    text = f", scored in {score['seconds']:.0f} s" if score else ", not scored: open_clip or torchvision is missing"
    rows = [f"| {stage} | {ms:.2f} |" for stage, ms in found["ms_per_image"].items()]
    return [f"{made}{text}.", "", "| stage | ms an image |", "|---|--:|", *rows]


def _resume_line(found: dict) -> str:
    if "equal" not in found:
        return f"Resume: {found.get('failed', 'failed')}."
    disk = f"{found['checkpoint_gb']:.1f} GB written in {found['write_s']:.0f} s, read in {found['read_s']:.0f} s"
    return f"Resume from a checkpoint: {'equal bits' if found['equal'] else 'DIFFERENT'} ({disk})."


def _tests_line(found: dict) -> str:
    counts = ", ".join(f"{n} {word.lower()}" for word, n in found.get("counts", {}).items())
    return "Tests of the GPU: " + "; ".join(filter(None, (counts, found.get("failed")))) + "."


def write_into(page: Path, text: str) -> None:
    """Replace what is between the markers of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page}: expected the lines {BEGIN.strip()} and {END.strip()}")
    write_text(page, before + BEGIN + "\n" + text + "\n" + END + after)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpu else "cpu")
    parser.add_argument("--size", choices=UNETS, default="sd15" if gpu else "tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu-day", help="of logs and records")
    parser.add_argument(
        "--docs", action="store_true", help="write into docs/performance.md and beside it, not into --out"
    )
    given = parser.parse_args()
    if given.device == "cuda" and not gpu:
        raise SystemExit(
            "--device cuda: torch finds no GPU. Fix: `sid-core doctor` names the cause, or give --device cpu"
        )
    if (given.device == "cuda") != (given.size == "sd15"):
        raise SystemExit("--size: expected sd15 with --device cuda, tiny with --device cpu")
    if given.docs and not gpu:
        raise SystemExit("--docs: expected a GPU; the documentation has no numbers of a CPU. Fix: leave it out")
    given.out.mkdir(parents=True, exist_ok=True)
    day = Day(given.device, given.size, given.out.resolve())
    record = {"date": str(date.today()), "size": given.size, "machine": machine(torch.device(given.device))}
    record["ours"] = training_step(day, "ours", day.precision, day.on_gpu, True, "--profile")
    record |= {f"beside-{loop}": beside(day, loop) for loop in ("fp32", "fp16")}
    record |= {"generation": generation(day), "resume": resume(day), "tests": gpu_tests(day)}
    record["steps"] = [training_step(day, f"step-{i}", *case) for i, case in enumerate(cases(day))]
    record["minutes"] = (time.perf_counter() - day.began_s) / 60
    write_json(given.out / "record.json", record)
    ours, text = record["ours"], tables(record)
    parameters = sum(p.numel() for p in architectures.new_network(day.architecture, "meta").parameters())
    settings = f"{ours['precision']}, micro-batch {ours['micro_batch']}" + ", compiled" * ours["compile"]
    measured = {"date": record["date"], "device": record["machine"]["device"], "settings": settings}
    measured |= {"unet_million": round(parameters / 1e6, 1), "speeds": speeds(record)}
    write_json(MEASURED if given.docs else given.out / "measured.json", measured)
    if given.docs:
        write_into(DOCS, text)
    else:
        write_text(given.out / "report.md", text)
    print(text)


if __name__ == "__main__":
    main()
