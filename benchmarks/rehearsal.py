"""Run the stages on a CPU with networks of nearly real size: a UNet of 0.3 billion parameters at 512 px, random weights.

    python benchmarks/rehearsal.py --json rehearsal.json        # 12 minutes, 21 GB of memory and 17 GB of disk

Each stage runs in a process of its own: the teacher is checked and copied, a generator is trained for two iterations (bfloat16,
activation checkpointing, micro-batch 1), two images are generated, and an Inception and a ViT-g/14 extract their features. The
memory of the training is compared with `plan-memory`. The UNet has SD 1.5's structure at 0.6 of its width, so that it fits; text
encoder, VAE, Inception and ViT-g have their real size. Training's grid of 16 samples is left out: decoding it would take most of
the time.
"""

import argparse
import json
import multiprocessing
import os
import string
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path

import diffusers
import torch
import yaml
from parts.clock import machine

from sid_core import config
from sid_core.models import architectures
from sid_core.pipeline.settings import stage_settings
from sid_core.training.memory import GB, predict

ROOT, CPU = Path(__file__).parents[1], torch.device("cpu")
SPARE = 1e9  # bytes that stay free for others
COPIES = 20  # bytes a parameter that a checkpoint copies, which is host memory beside a GPU
LIBRARIES = 1e9

# the last line printed holds bytes: the libraries', and the most of the process
STAGE = """
import sys
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process ends and no other
import torch
from parts.peak import peak, restart_peak
from sid_core.cli import main
before = restart_peak(torch.device("cpu"))
code = main(sys.argv[1:])
print(before, peak(torch.device("cpu")))
sys.exit(code)
"""
# the peak of the iterations alone goes before: neither that of setting up nor of writing the checkpoint
DISTILL = """
import sys
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("1000")
import diffusers, torch, transformers
from parts.peak import peak, restart_peak
from sid_core import config
from sid_core.models.teacher import load_image_codec
from sid_core.training.iteration import Trainer
from sid_core.training.run import distill
CPU, step, iterations = torch.device("cpu"), Trainer.step, []
def measured(trainer):
    if not iterations:
        restart_peak(CPU)
    result = step(trainer)
    iterations.append(peak(CPU))
    print("iteration", len(iterations), {name: float(value) for name, value in result.items()}, flush=True)
    return result
Trainer.step = measured
torch.set_num_threads(int(sys.argv[1]))
before = restart_peak(CPU)
teacher = Path("teacher")
codec = load_image_codec(teacher)
settings = config.load_settings(config.DistillSettings, Path("distill.yaml"))
prompts = Path("prompts/train.txt").read_text().splitlines()
distill(settings, teacher, prompts, Path("state"), Path("run/generator"))
print(max(iterations), before, peak(CPU))
"""


def make_networks(folder: Path, width: int) -> None:
    """Write teacher, Inception and ViT-g of random weights in the layouts that the stages read."""
    from parts.feature_networks import save_clip, save_inception

    from recipes import networks
    from sid_core.models.convert.pipeline import write_model_index

    letters = list(string.ascii_lowercase)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    sd15 = architectures.ARCHITECTURES["sd15"]
    unet = sd15.network | {"sample_size": 64, "block_out_channels": [width, 2 * width, 4 * width, 4 * width]}
    parts = {
        "tokenizer": networks.new_tokenizer({token: i for i, token in enumerate(tokens)}, [], 77),
        "text_encoder": networks.new_text_encoder(width=768, layers=12, heads=12, vocabulary=49_408, length=77),
        "unet": architectures.new_network(replace(sd15, network=unet), CPU),
        "vae": diffusers.AutoencoderKL(**sd15.vae, sample_size=512),
        "scheduler": networks.new_scheduler(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / "source" / name)
    write_model_index(folder / "source", "DDIMScheduler")
    if not (folder / "clip" / "open_clip_model.safetensors").exists():  # of an earlier rehearsal
        save_inception(folder / "inception.pt")
        save_clip(folder / "clip")


def write_settings(folder: Path) -> None:
    """Write captions and the frozen settings of each stage."""
    captions = folder / "captions.txt"
    captions.write_text("a red apple\na blue chair\n")
    experiment = {
        "experiment": "rehearsal",
        "preset": "sd15",
        "teacher": {"source": "local", "path": str(folder / "source")},
        "extra_runs": [{"strategy": "lsg", "scale": 2, "train_kimg": 0.002}],
        "prompts": {"source": "file", "train": str(captions), "evaluation": str(captions)},
        "distill": {"batch": 1, "micro_batch": 1, "checkpointing": True, "compile": False},
        "baselines": {"steps": [], "guidance_scales": [], "vae": False, "real": False},
        "generate": {"samples": 2, "samples_per_shard": 2, "batch": 1, "precision": "bfloat16"},
        "evaluate": {
            "protocol": "rehearsal",
            "reference": str(folder),
            "reference_samples": 2,
            "feature_network": {"source": str(folder / "inception.pt"), "sha256": None},
            "clip": {"source": str(folder / "clip"), "revision": None},
            "batch": 2,
        },
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    files = stage_settings(config.load_config(ROOT / "config.yaml", folder / "experiment.yaml"))
    (run,) = (name for name, settings in files.items() if isinstance(settings, config.DistillSettings))
    wanted = {"distill": run, "generate": next(name for name in files if name.endswith("generate.yaml"))}
    wanted |= {name: f"{name}.settings.yaml" for name in ("teacher", "prompts", "features")}
    for stage, path in wanted.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(files[path].model_dump(mode="json")))


def run(folder: Path, stage: str, arguments: str, threads: int) -> dict:
    """Run a stage in `folder`; return its seconds and GB, and of a training those of its iterations."""
    words = [str(threads)] if stage == "distill" else [stage, "--settings", f"{stage}.yaml", *arguments.split()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    environment |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory is returned
    command, began_s = [sys.executable, "-c", DISTILL if stage == "distill" else STAGE, *words], time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{stage}: ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    *iterations, before, most = map(int, done.stdout.split("\n")[-2].split())
    result = {"seconds": round(time.perf_counter() - began_s), "peak_gb": round(most / GB, 2)}
    result |= {"libraries_gb": round(before / GB, 2)}
    result |= {"iterations_gb": round((iterations[0] - before) / GB, 2)} if iterations else {}
    print(f"{stage:9} {result}", flush=True)
    return result


def available() -> int:
    """Return the bytes of memory that a new process can have."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192, help="channels of the UNet's first level; SD 1.5 has 320")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep all files there (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        folder = Path(name).resolve()
        process = multiprocessing.get_context("spawn").Process(target=make_networks, args=(folder, given.width))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"the networks could not be written (exit code {process.exitcode})")
        write_settings(folder)
        architecture = architectures.from_directory(folder / "source")
        parameters = sum(p.numel() for p in architectures.new_network(architecture, "meta").parameters())
        prediction = predict(architecture, 2.0, "bfloat16", checkpointing=True)
        predicted = prediction.fixed + prediction.per_image  # of an iteration; decoding a grid comes later
        needed = predicted + COPIES * parameters + LIBRARIES + SPARE
        print(f"UNet of {parameters / 1e6:.0f} million parameters; plan-memory: {predicted / GB:.2f} GB", flush=True)
        if available() < needed:
            raise SystemExit(f"memory: expected {needed / GB:.1f} GB, got {available() / GB:.1f}. Fix: lower --width")
        record = {"date": str(date.today()), "machine": machine(CPU) | {"threads": given.threads}}
        record |= {"unet_million": round(parameters / 1e6, 1), "predicted_gb": round(predicted / GB, 2), "stages": {}}
        stages = {
            "teacher": "--out teacher",
            "prompts": "--out prompts --teacher teacher",
            "distill": "",
            "generate": "--generator run/generator --teacher teacher --captions prompts/evaluation.txt --range 0 2 --out s.tar",
            "features": "--samples s.tar --captions prompts/evaluation.txt --out f.safetensors",
        }
        for stage, arguments in stages.items():
            record["stages"][stage] = run(folder, stage, arguments, given.threads)
        measured = record["stages"]["distill"]["iterations_gb"]
        record["measured_over_predicted"] = round(measured * GB / predicted, 3)
        print(f"training: {measured:.2f} GB measured, {record['measured_over_predicted']} of the prediction")
        if given.json:
            given.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
