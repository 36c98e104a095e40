# One distillation a run. Its training state is no output (Snakemake deletes those of a failed job): running again continues
# where it was. `launch` starts a process for each GPU and continues what a time limit interrupts; how many there are is no part
# of the result, so it is in the command alone, where a change reruns nothing. The longest jobs first: started last, one of them
# would run alone at the end.
# where a training is watched by scores of held-out captions
WATCH = [RESULTS.reference("watch").features, RESULTS.reference("watch").settings] * (CONFIG.distill.proxy_samples > 0)


rule distill:
    input:
        settings=RUN.settings,
        teacher=RESULTS.provenance(),
        prompts=RESULTS.train_captions,
        watch=WATCH,
    output:
        record=RUN.record,
        training=RUN.training,
        grids=directory(RUN.grids),
    wildcard_constraints:
        run=any_of(NAMES["distilled"]),
    priority: 5
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.record, parent=True),
    shell:
        "exec python -m sid_core.cluster.launch --gpus {resources.processes} --nodes {resources.nodes} --threads {threads}"
        f" --state {RESULTS.state('{wildcards.run}').folder}"
        " --continuations {resources.continuations} --save-s {resources.save_s} --attempt {resources.attempt}"
        " -- distill --settings {input.settings} --teacher {params.teacher} --prompts {input.prompts}"
        f" --state {RESULTS.state('{wildcards.run}').folder} --out {{params.out}} --tracking {RESULTS.store}"
        + (" --reference {input.watch[0]} --reference-settings {input.watch[1]}" if WATCH else "")
        + " --threads {threads} > {log} 2>&1"
