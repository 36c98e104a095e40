"""Check machine, accounts and services for a configuration before anything starts; nothing is downloaded."""

import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..cluster.gpus import visible_gpus
from ..cluster.machine import ask, has_gpu
from ..config import Config, read_yaml
from ..errors import UserError, redact
from ..storage import hub
from .paths import Results
from .plan import Stage, make_plan

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"
PROFILE = ROOT / "workflow" / "profiles" / "slurm" / "config.yaml"
DRIVER = Path("/proc/driver/nvidia/version")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
PLUGIN = "snakemake_executor_plugin_slurm"
TIMEOUT_S = 5.0  # of each request
OK, WARNING, ERROR = "ok", "warning", "error"


class Finding(NamedTuple):
    """The result of one check, with the remedy; an error prevents the experiment."""

    level: Literal["ok", "warning", "error"]
    part: str
    text: str

    def __str__(self) -> str:
        return redact(f"{self.level:8s} {self.part}: {' '.join(self.text.split())}")


def diagnose(config: Config, check_store: Callable[[str | None], tuple[str, str | None]]) -> Iterator[Finding]:
    """Yield a finding of each check; `check_store` takes a configured URI of MLflow as `tracking.check` does."""
    stages, listed = make_plan(config, int(has_gpu())), shutil.which("sbatch") is not None
    slurm = listed and find_spec(PLUGIN) is not None
    yield _check_python()
    yield _check_torch()
    yield _check_gpus(config, stages, slurm)
    yield _check_memory(stages, slurm)
    yield _check_disk(Results(Path("results") / config.experiment).folder, sum(stage.disk_gb for stage in stages))
    yield from _check_hub(config)
    if listed:
        yield _check_slurm(slurm)
    yield _check_tracking(config, check_store)


def _check_python() -> Finding:
    found, expected = platform.python_version(), metadata.metadata("sid_core")["Requires-Python"]
    expected = ",".join(sorted(expected.split(","), reverse=True))  # the lower bound first
    if not SpecifierSet(expected).contains(found, prereleases=True):
        return Finding(ERROR, "Python", f"expected {expected}, got {found}. Fix: make setup PYTHON=python3.12")
    return Finding(OK, "Python", f"{found}, expected {expected}")


def _check_torch() -> Finding:
    """Compare torch with the range of pyproject.toml and the version of the lock, without importing it."""
    found = metadata.version("torch")
    [expected] = [r.specifier for r in map(Requirement, metadata.requires("sid_core")) if r.name == "torch"]
    if not expected.contains(found, prereleases=True):
        return Finding(ERROR, "torch", f"expected {expected}, got {found}. Fix: make setup")
    locked = re.search(r"^torch==(\S+)", LOCK.read_text(), re.M)[1] if LOCK.is_file() else None
    if locked not in (None, found.split("+")[0]):
        return Finding(WARNING, "torch", f"the lock has {locked}, got {found}: bits may differ. Fix: make setup")
    return Finding(OK, "torch", f"{found}, {'as locked' if locked else f'expected {expected}'}")


def _check_gpus(config: Config, stages: list[Stage], slurm: bool) -> Finding:
    names, largest = visible_gpus(), max(stages, key=lambda stage: stage.asks.gpu)
    most, trained_on, here = largest.asks.gpu, config.resources.distill.gpus(int(has_gpu())), max(len(names), 1)
    if trained_on > here and not slurm:  # Snakemake would start nothing
        text = f"resources.distill.gpu={trained_on}: expected at most {here}, as this machine has {len(names)}"
        return Finding(ERROR, "GPU", f"{text}. Fix: lower it, or run on a machine or cluster with more")
    if names:
        return _check_driver(names)
    if not most:
        return Finding(OK, "GPU", "none; this configuration requests none, networks run on the CPU")
    if slurm:
        return Finding(OK, "GPU", f"none here; jobs request up to {most} of Slurm")
    text = f"none, but {largest.name} requests {most}: networks would run on the CPU, far slower than planned"
    return Finding(WARNING, "GPU", f"{text}. Fix: run on a machine with an NVIDIA GPU, or on a cluster")


def _check_driver(names: list[str]) -> Finding:
    """Check that torch can use the visible GPUs."""
    import torch

    version = re.search(r"\d+\.\d[\d.]*", DRIVER.read_text()) if DRIVER.is_file() else None
    driver = f"driver {version[0] if version else 'unknown'}"
    if not torch.cuda.is_available():
        text = f"{len(names)} with {driver}, which torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use"
        return Finding(ERROR, "GPU", f"{text}. Fix: install a newer driver, or a torch of its CUDA version")
    kinds = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}))
    return Finding(OK, "GPU", f"{torch.cuda.device_count()} ({kinds}), {driver}, CUDA {torch.version.cuda} of torch")


def _check_memory(stages: list[Stage], slurm: bool) -> Finding:
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        found = min(found, int(MEMORY_LIMIT.read_text()))
    largest = max(stages, key=lambda stage: stage.asks.mem_mb)
    text = f"{found / 1e9:.0f} GB here, {largest.name} requests {largest.asks.mem_mb / 1000:.0f} GB"
    if slurm:
        return Finding(OK, "memory", f"{text} of Slurm")
    if found < largest.asks.mem_mb * 1e6:
        fix = "use a machine with more, or lower mem_mb in `resources` if the job is known to need less"
        return Finding(WARNING, "memory", f"{text}: it may run out. Fix: {fix}")
    return Finding(OK, "memory", text)


def _check_disk(folder: Path, planned_gb: float) -> Finding:
    """Compare free disk with the plan, less the files that are there."""
    needed_gb = planned_gb
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile by a running job
            needed_gb -= path.lstat().st_size / 1e9
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding(ERROR, "disk", f"{place}: expected a folder to write to. Fix: correct its permissions")
    free_gb = shutil.disk_usage(place).free / 1e9
    text = f"{free_gb:,.0f} GB free below {folder}, {max(needed_gb, 0):,.1f} GB needed"
    if free_gb < needed_gb:
        return Finding(ERROR, "disk", f"{text}. Fix: make room, or let results be a link to a larger disk")
    return Finding(OK, "disk", text)


def _repositories(config: Config) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the hub's repositories and revisions, each with the keys of the first settings that name it."""
    named = [("teacher", config.teacher), *((f"teachers.{name}", each) for name, each in config.teachers.items())]
    named += [("prompts", config.prompts), *((f"imports.{each.name}", each) for each in config.imports)]
    found = {}
    for key, each in named:
        if each.repo:
            found.setdefault((each.repo, each.revision or "main"), (f"{key}.repo", f"{key}.revision"))
    for key, each in config.evaluate.networks().items():
        if each.revision:
            found.setdefault((each.source, each.revision), (f"evaluate.{key}.source", f"evaluate.{key}.revision"))
    return found


def _check_hub(config: Config) -> Iterator[Finding]:
    """Check the token and every repository: its revision, its terms and this user's access."""
    repositories = _repositories(config)
    if not repositories:
        yield Finding(OK, "hub", "not contacted; this configuration names no repository")
        return
    from huggingface_hub import constants, utils

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    offline = constants.is_offline_mode()
    utils.get_session().timeout = TIMEOUT_S  # its requests have none
    yield _check_token(offline)
    for (name, revision), keys in repositories.items():
        try:
            repository = hub.find(name, revision, keys, TIMEOUT_S)
            if repository.answered:
                hub.check_access(repository)
        except UserError as error:
            yield Finding(ERROR, "hub", str(error))
            continue
        text = f"{keys[0]}={name}: {len(repository.files)} files at {repository.commit}"
        if repository.answered:
            yield Finding(OK, "hub", text)
        elif offline:
            yield Finding(OK, "hub", f"{text} in the cache, as HF_HUB_OFFLINE is set")
        else:
            fix = "connect, or set HF_ENDPOINT to a mirror, if a file is missing there"
            yield Finding(WARNING, "hub", f"{text} in the cache, and {constants.ENDPOINT} does not answer. Fix: {fix}")


def _check_token(offline: bool) -> Finding:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError

    if get_token() is None:
        return Finding(OK, "token", "none; gated and private repositories need HF_TOKEN")
    if offline:
        return Finding(OK, "token", "not checked, as HF_HUB_OFFLINE is set")
    try:
        return Finding(OK, "token", f"of the hub's user {HfApi().whoami()['name']}")
    except (HTTPError, OSError) as error:  # its text may quote the token
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            return Finding(ERROR, "token", "the hub answers 401. Fix: correct HF_TOKEN, or run hf auth login")
        return Finding(WARNING, "token", f"not checked, the hub answers {status or 'nothing'}. Fix: run again later")


def _check_slurm(installed: bool) -> Finding:
    """Check the plugin, and the partition of the profile against those of Slurm."""
    if not installed:
        return Finding(WARNING, "Slurm", "its plugin is not installed. Fix: make slurm, to submit jobs")
    answer, problem = ask("sinfo", "--noheader", "--format=%P", timeout_s=TIMEOUT_S)
    if problem is not None:
        return Finding(WARNING, "Slurm", f"sinfo: {problem}. Fix: run again when Slurm answers")
    listed = answer.split()
    names = sorted({name.rstrip("*") for name in listed})
    defaults = read_yaml(PROFILE).get("default-resources") if PROFILE.is_file() else None
    chosen = (defaults or {}).get("slurm_partition") or ",".join(name[:-1] for name in listed if name.endswith("*"))
    place = PROFILE.relative_to(ROOT)
    if not chosen:
        return Finding(WARNING, "Slurm", f"no default partition. Fix: set slurm_partition in {place} to one of {names}")
    if not set(chosen.split(",")) <= set(names):
        text = f"slurm_partition={chosen}: expected one of {names}. Fix: correct {place}"
        return Finding(ERROR, "Slurm", text)
    return Finding(OK, "Slurm", f"plugin installed, partition {chosen}")


def _check_tracking(config: Config, check_store: Callable[[str | None], tuple[str, str | None]]) -> Finding:
    if not config.tracking.enabled:
        return Finding(OK, "tracking", "off (tracking.enabled)")
    uri, problem = check_store(config.tracking.uri)
    if problem:
        text = f"MLflow at {uri} cannot be used ({problem}); runs would not be tracked, results are complete without"
        return Finding(WARNING, "tracking", f"{text}. Fix: start the server, or correct MLFLOW_TRACKING_URI")
    return Finding(OK, "tracking", f"MLflow at {uri}")
