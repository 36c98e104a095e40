# One distillation a run. Its training state lies in state/RUN and is no output (Snakemake deletes those of a failed job):
# running again continues where it was. `launch` starts a process for each GPU and continues what a time limit interrupts; how many
# there are is no part of the result, so it stands in the command alone, where a change reruns nothing.
WATCHED = CONFIG.distill.proxy_samples > 0
LIMIT = workflow.global_resources.get("gpu")
# Snakemake would lower a job's number to the limit, and say nothing
if workflow.is_main_process and LIMIT is not None and LIMIT.value < gpus(ASKS.distill):
    raise WorkflowError(
        f"resources.distill.gpu={ASKS.distill.gpu}: all jobs together may have {LIMIT.value}; add --resources gpu={ASKS.distill.gpu}"
    )


rule distill:
    input:
        settings=f"{RESULTS}/runs/{{run}}/settings.yaml",
        teacher=f"{RESULTS}/teacher/manifest.json",
        prompts=rules.prompts.output.train,
        # where a training is watched by scores of held-out captions
        watch=[f"{RESULTS}/watch/features.safetensors", f"{RESULTS}/watch/settings.yaml"] if WATCHED else [],
    output:
        manifest=f"{RESULTS}/runs/{{run}}/generator/manifest.json",
        record=f"{RESULTS}/runs/{{run}}/generator/generator.json",
        config=f"{RESULTS}/runs/{{run}}/generator/unet/config.json",
        weights=f"{RESULTS}/runs/{{run}}/generator/unet/diffusion_pytorch_model.safetensors",
        training=f"{RESULTS}/runs/{{run}}/training.jsonl",
        grids=directory(f"{RESULTS}/runs/{{run}}/grids"),
    log:
        f"{RESULTS}/logs/distill/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/distill/{{run}}.tsv"
    wildcard_constraints:
        run=any_of(DISTILLED),
    # the longest jobs first: started last, one of them would run alone at the end
    priority: 5
    conda:
        "../../environment.yml"
    threads: ASKS.distill.threads
    resources:
        **several_nodes(ASKS.distill),
        gpu=gpus(ASKS.distill),
        mem_mb=memory(ASKS.distill),
        runtime=ASKS.distill.runtime,
        nodes=ASKS.distill.nodes,
        processes=gpus(ASKS.distill),  # also where a cluster's profile asks for them by `gres`
        continuations=ASKS.distill.continuations,
        save_s=ASKS.distill.save_s,
        attempt=lambda wildcards, attempt: attempt,
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.manifest, parent=True),
        code=stage_digest("training.run"),
    message:
        "distil {wildcards.run} (progress: {log})"
    shell:
        "exec python -m sid_core.cluster.launch --gpus {resources.processes} --nodes {resources.nodes} --threads {threads}"
        f" --state {RESULTS}/state/{{wildcards.run}}"
        " --continuations {resources.continuations} --save-s {resources.save_s} --attempt {resources.attempt}"
        " -- distill --settings {input.settings} --teacher {params.teacher} --prompts {input.prompts}"
        f" --state {RESULTS}/state/{{wildcards.run}} --out {{params.out}} --tracking {RESULTS}/state/tracking.json"
        + (" --reference {input.watch[0]} --reference-settings {input.watch[1]}" if WATCHED else "")
        + " --threads {threads} > {log} 2>&1"
