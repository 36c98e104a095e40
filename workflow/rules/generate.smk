# The samples that are scored, in shards: of every generator, and of every baseline.
rule generate_run:
    input:
        settings=f"{RESULTS}/runs/{{run}}/generate.yaml",
        generator=f"{RESULTS}/runs/{{run}}/generator/manifest.json",
        teacher=teacher_of,
        captions=rules.prompts.output.evaluation,
    output:
        samples=f"{RESULTS}/runs/{{run}}/samples/{{shard}}.tar",
        record=f"{RESULTS}/runs/{{run}}/samples/{{shard}}.json",
    log:
        f"{RESULTS}/logs/generate/{{run}}.{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate/{{run}}.{{shard}}.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.generate.threads
    resources:
        gpu=gpus(ASKS.generate),
        mem_mb=memory(ASKS.generate),
        runtime=time_limit(ASKS.generate),
    params:
        generator=subpath(input.generator, parent=True),
        teacher=subpath(input.teacher, parent=True),
        range=shard_range,
        code=stage_digest("sampling.generation"),
    message:
        "generate {wildcards.run}, shard {wildcards.shard}"
    shell:
        "python -m sid_core generate --settings {input.settings} --generator {params.generator}"
        " --teacher {params.teacher} --captions {input.captions} --range {params.range}"
        " --out {output.samples} --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


rule generate_baseline:
    input:
        settings=f"{RESULTS}/baselines/{{name}}/generate.yaml",
        teacher=f"{RESULTS}/teacher/manifest.json",
        captions=rules.prompts.output.evaluation,
    output:
        samples=f"{RESULTS}/baselines/{{name}}/samples/{{shard}}.tar",
        record=f"{RESULTS}/baselines/{{name}}/samples/{{shard}}.json",
    log:
        f"{RESULTS}/logs/generate/{{name}}.{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate/{{name}}.{{shard}}.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.generate.threads
    resources:
        gpu=gpus(ASKS.generate),
        mem_mb=memory(ASKS.generate),
        runtime=time_limit(ASKS.generate),
    params:
        teacher=subpath(input.teacher, parent=True),
        range=shard_range,
        code=stage_digest("sampling.generation"),
    message:
        "generate {wildcards.name}, shard {wildcards.shard}"
    shell:
        "python -m sid_core generate-baseline --settings {input.settings} --teacher {params.teacher}"
        " --captions {input.captions} --range {params.range} --out {output.samples}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
