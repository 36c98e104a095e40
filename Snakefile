# SiD-LSG from teacher to comparison: `snakemake --cores all`. Settings and their units: config.yaml; another experiment:
# --configfile experiments/NAME.yaml. Results: results/EXPERIMENT; results/README.md describes the files.
from snakemake.utils import min_version

min_version("9.20")


# a --configfile with a preset replaces config.yaml, whose values are for another teacher's size
if "preset" not in config:

    configfile: "config.yaml"


# an image for all jobs (docs/slurm.md)
container: config.pop("container", None)


include: "workflow/rules/common.smk"
include: "workflow/rules/settings.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/real_pairs.smk"
include: "workflow/rules/embed_prompts.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/import.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tracking.smk"


# Every output, not only the last: Snakemake ignores a missing intermediate while a later file exists.
rule all:
    default_target: True
    input:
        expand(rules.settings.output, file=SETUP.settings),
        expand(rules.teacher.output, teacher=NAMES["teachers"]),
        rules.prompts.output,
        rules.real_pairs.output if NAMES["real_images"] else [],
        expand(rules.embed_prompts.output, captions=NAMES["embedded"]),
        expand(rules.distill.output, run=NAMES["distilled"]),
        expand(rules.import_official.output, run=NAMES["imported"]),
        expand(rules.resample.output, run=NAMES["resampled"]),
        expand(rules.generate.output, run=NAMES["runs"], shard=NAMES["shards"]),
        expand(rules.generate_baseline.output, name=NAMES["baselines"], shard=NAMES["shards"]),
        rules.evaluation_networks.output,
        expand(rules.reference.output, reference="reference"),
        expand(rules.features.output, kind="runs", name=NAMES["runs"], shard=NAMES["shards"]),
        expand(rules.features.output, kind="baselines", name=NAMES["baselines"], shard=NAMES["shards"]),
        expand(rules.score.output, kind="runs", name=NAMES["runs"]),
        expand(rules.score.output, kind="baselines", name=NAMES["baselines"]),
        rules.pairs.output,
        rules.report.output,
        rules.track.output,
    message:
        f"finished: {RESULTS.report} shows the comparison"


# jobs run this Snakefile too
onerror:
    if workflow.is_main_process:
        SETUP.report_so_far()
