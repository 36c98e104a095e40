"""Measure the peak memory of sampling and of feature extraction by the number of images.

    OMP_NUM_THREADS=1 python benchmarks/peak_memory.py [--images 1000 30000] [--threads 2]

Each stage of the embedded experiment runs in a process of its own, with all images in one shard; what is shown is the most that
the process ever held (maximum resident set size). A score holds the features of all images, 4 bytes a number, and must grow.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from sid_core import config
from sid_core.data.shapes import scenes
from sid_core.pipeline.settings import stage_settings

ROOT = Path(__file__).parents[1]


def prepare(folder: Path, images: int) -> None:
    """Write settings, captions, the embedded teacher, and its weights as a generator."""
    from sid_core.models.generator import save_generator
    from sid_core.models.teacher import load_backbone, prepare_teacher, teacher_sha256

    prepare_teacher(config.Teacher(), folder / "teacher")
    backbone = load_backbone(folder / "teacher")
    record = {"t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(folder / "teacher")}
    save_generator(folder / "generator", backbone, backbone.network.state_dict(), record)
    (folder / "captions.txt").write_text("\n".join(scenes.draw("evaluation", images)[1]) + "\n", encoding="utf-8")
    shipped = config.load_config(ROOT / "config.yaml")
    values = shipped.model_dump() | {"prompts": shipped.prompts.model_dump() | {"evaluation": images}}
    values["generate"] |= {"samples": images, "samples_per_shard": images}
    files = stage_settings(config.parse_config(values))
    name = next(name for name in files if name.endswith("generate.yaml"))
    wanted = {"generate": name, "features": "features.settings.yaml", "reference": "reference/settings.yaml"}
    wanted["score"] = "score.settings.yaml"
    for stage, path in wanted.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(files[path].model_dump(mode="json")), encoding="utf-8")


# a process's own high-water mark: the kernel's ru_maxrss counts what its parent held when it was started
MEASURED = """
import re, sys
from sid_core.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def run(folder: Path, stage: str, arguments: str, threads: int) -> tuple[float, float]:
    """Run a stage in `folder`; return its peak memory in MiB and its seconds."""
    began_s = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, stage, "--settings", f"{stage}.yaml", *arguments.split()]
    # the threads are for images; on a busy machine torch's own would wait for one another
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(
        [*command, "--threads", str(threads)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024, time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 30000])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    for images in given.images:
        folder = Path(tempfile.mkdtemp(prefix="peak-memory-"))
        prepare(folder, images)
        stages = {
            "generate": f"--generator generator --teacher teacher --captions captions.txt --range 0 {images} --out s.tar",
            "features": "--samples s.tar --captions captions.txt --out f.safetensors",
            "reference": "--out r.safetensors",
            "score": "--features f.safetensors --reference r.safetensors --captions captions.txt --out score.json",
        }
        for stage, arguments in stages.items():
            peak_mib, elapsed_s = run(folder, stage, arguments, given.threads)
            print(f"{images:>6,} images  {stage:9} {peak_mib:6.0f} MiB  {elapsed_s:6.0f} s", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
