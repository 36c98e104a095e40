# The validated configuration and the names made from it.
import re

from sid_core.config import baselines, dump, parse_config, runs, shards, stage_settings
from sid_core.errors import UserError
from sid_core.machine import has_gpu, put_python_first
from sid_core.sources import data_digests, stage_digest

try:
    CONFIG = parse_config(config)
    DATA = data_digests(CONFIG)
except UserError as error:
    raise WorkflowError(str(error)) from None

put_python_first()

RESULTS = f"results/{CONFIG.experiment}"
RUNS = [run.name for run in runs(CONFIG)]
BASELINES = [baseline.name for baseline in baselines(CONFIG)]
SHARDS = shards(CONFIG)
# text of every settings file, by its path
SETTINGS = {name: dump(settings) for name, settings in stage_settings(CONFIG).items()} | {"config.yaml": dump(CONFIG)}
# so that on a machine with a GPU one job has it at a time (profile: gpu: 1), and without one two jobs run side by side
GPU = int(has_gpu())


# which samples a shard holds; sample i has caption i and noise from seed + i, whatever the shards
def shard_range(wildcards):
    start = int(wildcards.shard) * CONFIG.generate.samples_per_shard
    return start, min(start + CONFIG.generate.samples_per_shard, CONFIG.generate.samples)


wildcard_constraints:
    run="[^/]+",
    name="[^/]+",
    kind="runs|baselines",
    shard=r"\d{5}",
