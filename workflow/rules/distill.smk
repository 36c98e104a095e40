# One distillation a run. Its training state is no output, since Snakemake deletes those of a failed job: a rerun resumes it.
# `launch` starts a process for each GPU and requeues the job at its time limit; the number of GPUs is no part of the result, so it
# is in the command alone, where a change reruns nothing. Priority: a long job started last would run alone at the end.
# reference of the proxy metrics
WATCH = [RESULTS.reference("watch").features, RESULTS.reference("watch").settings] * (CONFIG.distill.proxy_samples > 0)


rule distill:
    input:
        settings=RUN.settings,
        teacher=RESULTS.provenance(),
        prompts=RESULTS.train_captions,
        watch=WATCH,
        real_pairs=SETUP.real_pairs_of,
        embeddings=SETUP.embeddings_of,
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
        real_pairs=lambda wildcards: [f"--real-pairs {path.parent}" for path in SETUP.real_pairs_of(wildcards)],
    shell:
        "exec python -m sid_core.cluster.launch --gpus {resources.processes} --nodes {resources.nodes} --threads {threads}"
        f" --state {RESULTS.state('{wildcards.run}').folder}"
        " --continuations {resources.continuations} --save-s {resources.save_s} --attempt {resources.attempt}"
        " -- distill --settings {input.settings} --teacher {params.teacher} --prompts {input.prompts}"
        f" --state {RESULTS.state('{wildcards.run}').folder} --out {{params.out}} --tracking {RESULTS.store}"
        + (" --reference {input.watch[0]} --reference-settings {input.watch[1]}" if WATCH else "")
        + (f" --embeddings {RESULTS.folder}/embeddings" if NAMES["embedded"] else "")
        + " {params.real_pairs} --threads {threads} > {log} 2>&1"
