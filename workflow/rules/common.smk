# The validated configuration and the names made from it.
import re
import subprocess
import sys
from pathlib import Path

from snakemake.resources import Resource

from sid_core.config import (
    baselines,
    dump,
    generators,
    parse_config,
    read_yaml,
    runs,
    score_paths,
    shards,
    stage_settings,
    teacher_folder,
)
from sid_core.errors import UserError
from sid_core.cluster.gpus import visible
from sid_core.cluster.machine import be_home, has_gpu, put_python_first
from sid_core.data.captions import check_enough
from sid_core.pipeline.plan import to_text
from sid_core.cluster.slurm import adapt
from sid_core.pipeline.digests import data_digests, stage_digest

try:
    for given in workflow.configfiles:
        read_yaml(given)  # Snakemake has, but took the last of several values of a key
    CONFIG = parse_config(config, files=workflow.configfiles, arguments=sys.argv[1:])
    DATA = data_digests(CONFIG)
    if workflow.is_main_process:
        check_enough(CONFIG.prompts, CONFIG.generate.samples)
except UserError as error:
    raise WorkflowError(str(error)) from None

put_python_first()
adapt(CONFIG.experiment)
if workflow.is_main_process:
    be_home()

RESULTS = f"results/{CONFIG.experiment}"
DISTILLED = [run.name for run in runs(CONFIG)]
IMPORTED = {imported.name: imported for imported in CONFIG.imports}
# every generator that is sampled and scored
RUNS = [run.name for run in generators(CONFIG)]
TEACHERS = ["teacher", *(f"teachers/{name}" for name in CONFIG.teachers)]
BASELINES = [baseline.name for baseline in baselines(CONFIG)]
SHARDS = shards(CONFIG)
# text of every settings file, by its path
SETTINGS = {name: dump(settings) for name, settings in stage_settings(CONFIG).items()} | {"config.yaml": dump(CONFIG)}
ASKS = CONFIG.resources


# what all jobs together may have here, unless a profile or `--resources gpu=N` says it; on a cluster (`--jobs`) no limit
if workflow.is_main_process and workflow.resource_settings.nodes is None and "gpu" not in workflow.global_resources:
    workflow.global_resources["gpu"] = Resource("gpu", max(len(visible()), 1))


# where nothing is said: on a machine with GPUs each job has one, without any two run side by side
def gpus(asks):
    return asks.gpus(int(has_gpu()))


# tried again (`retries` of a profile), a job asks for more: it may have run out of memory
def memory(asks):
    return lambda wildcards, attempt: attempt * asks.mem_mb


# or of time
def time_limit(asks):
    return lambda wildcards, attempt: f"{attempt * int(asks.runtime[:-1])}{asks.runtime[-1]}"


# a job of several nodes runs its own srun, hence is no step of one (`mpi`); a task on each node starts the processes there
def several_nodes(asks):
    return dict(mpi="srun", tasks=asks.nodes, tasks_per_gpu=0) if asks.nodes > 1 else {}


# a pattern for these names and nothing else, also where there are none
def any_of(names):
    return "|".join(map(re.escape, names)) or "$^"


def teacher_of(wildcards):
    return f"{RESULTS}/{teacher_folder(IMPORTED.get(wildcards.run))}/manifest.json"


# Snakemake tells a Snakefile nothing of a dry run
if any(re.fullmatch(r"--dry-?run|-\w*n\w*", argument) for argument in sys.argv[1:]):
    print(to_text(CONFIG, int(has_gpu())), file=sys.stderr)


# which samples a shard holds; sample i has caption i and noise from seed + i, whatever the shards
def shard_range(wildcards):
    start = int(wildcards.shard) * CONFIG.generate.samples_per_shard
    return start, min(start + CONFIG.generate.samples_per_shard, CONFIG.generate.samples)


# one run that diverges keeps the table of all from being made; the others' is shown, marked as unfinished
def report_so_far():
    try:
        score_paths(CONFIG, Path(RESULTS), so_far=True)
    except UserError:  # no run is scored
        return
    stage = [sys.executable, "-m", "sid_core", "report", "--so-far"]
    done = subprocess.run(
        [*stage, "--settings", f"{RESULTS}/config.yaml", "--results", RESULTS],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(
            f"the runs that are scored could not be compared: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr
        )
    else:
        print(f"unfinished: {RESULTS}/so-far/report.html compares what is scored so far", file=sys.stderr)


wildcard_constraints:
    run="[^/]+",
    name="[^/]+",
    kind="runs|baselines",
    teacher=any_of(TEACHERS),
    shard=r"\d{5}",
