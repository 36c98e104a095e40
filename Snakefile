# SiD-LSG from teacher to comparison: `snakemake --cores all`. Settings and their units: config.yaml; another experiment:
# --configfile experiments/NAME.yaml. Results: results/EXPERIMENT; results/README.md says what is what.
from snakemake.utils import min_version

min_version("9.20")


configfile: "config.yaml"


# an image for all jobs, where a cluster wants one (docs/slurm.md)
container: config.pop("container", None)


include: "workflow/rules/common.smk"
include: "workflow/rules/settings.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/import.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/tracking.smk"


# Every artefact that is kept, not only the last: a deleted intermediate goes unnoticed while a later file exists.
rule all:
    default_target: True
    input:
        expand(rules.settings.output, file=SETTINGS),
        expand(rules.teacher.output, teacher=TEACHERS),
        rules.prompts.output,
        expand(rules.distill.output, run=DISTILLED),
        expand(rules.import_generator.output, run=IMPORTED),
        expand(rules.generate_run.output, run=RUNS, shard=SHARDS),
        expand(rules.generate_baseline.output, name=BASELINES, shard=SHARDS),
        rules.extractors.output,
        rules.reference.output,
        expand(rules.features.output, kind="runs", name=RUNS, shard=SHARDS),
        expand(rules.features.output, kind="baselines", name=BASELINES, shard=SHARDS),
        expand(rules.score.output, kind="runs", name=RUNS),
        expand(rules.score.output, kind="baselines", name=BASELINES),
        rules.pairs.output,
        rules.compare.output,
        rules.track.output,
    message:
        f"finished: {RESULTS}/report.html shows the comparison"


# a job on a cluster's node runs this Snakefile as well
onerror:
    if workflow.is_main_process:
        report_so_far()
