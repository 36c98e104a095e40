# Reference, features of every shard, and the scores: all under one protocol, the same way for runs and baselines.
# Networks and reference images are fetched once, before many jobs want them.
rule extractors:
    input:
        settings=f"{RESULTS}/reference/settings.yaml",
    output:
        f"{RESULTS}/reference/extractors.json",
    log:
        f"{RESULTS}/logs/extractors.log",
    benchmark:
        f"{RESULTS}/benchmarks/extractors.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.teacher.threads
    resources:
        gpu=gpus(ASKS.teacher),
        mem_mb=memory(ASKS.teacher),
        runtime=time_limit(ASKS.teacher),
    params:
        data=DATA["evaluate"],
        reference=DATA["reference"],
        code=stage_digest("evaluation.networks.weights"),
    message:
        "networks and reference images"
    shell:
        "python -m sid_core extractors --settings {input.settings} --out {output}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


rule reference:
    input:
        settings=rules.extractors.input.settings,
        extractors=rules.extractors.output,
    output:
        features=f"{RESULTS}/reference/features.safetensors",
        record=f"{RESULTS}/reference/features.json",
    log:
        f"{RESULTS}/logs/reference.log",
    benchmark:
        f"{RESULTS}/benchmarks/reference.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.reference.threads
    resources:
        gpu=gpus(ASKS.reference),
        mem_mb=memory(ASKS.reference),
        runtime=time_limit(ASKS.reference),
    params:
        data=DATA["evaluate"],
        images=DATA["reference"],
        code=stage_digest("evaluation.features"),
    message:
        "reference features"
    shell:
        "python -m sid_core reference --settings {input.settings} --out {output.features}"
        " --threads {threads} --gpus {resources.gpu}"
        " > {log} 2>&1"


# what trainings are watched against (distill.proxy_samples): scenes that no score is computed from
use rule reference as watch with:
    input:
        settings=f"{RESULTS}/watch/settings.yaml",
        extractors=rules.extractors.output,
    output:
        features=f"{RESULTS}/watch/features.safetensors",
        record=f"{RESULTS}/watch/features.json",
    log:
        f"{RESULTS}/logs/watch.log",
    benchmark:
        f"{RESULTS}/benchmarks/watch.tsv"
    message:
        "reference features of the watch"


# `ancient`: another reference changes no sample's features
rule features:
    input:
        settings=f"{RESULTS}/features.settings.yaml",
        samples=f"{RESULTS}/{{kind}}/{{name}}/samples/{{shard}}.tar",
        record=f"{RESULTS}/{{kind}}/{{name}}/samples/{{shard}}.json",
        captions=rules.prompts.output.evaluation,
        extractors=ancient(rules.extractors.output),
    output:
        features=f"{RESULTS}/{{kind}}/{{name}}/features/{{shard}}.safetensors",
        record=f"{RESULTS}/{{kind}}/{{name}}/features/{{shard}}.json",
    log:
        f"{RESULTS}/logs/features/{{kind}}/{{name}}.{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/features/{{kind}}/{{name}}.{{shard}}.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.features.threads
    resources:
        gpu=gpus(ASKS.features),
        mem_mb=memory(ASKS.features),
        runtime=time_limit(ASKS.features),
    params:
        data=DATA["evaluate"],
        code=stage_digest("evaluation.features"),
    message:
        "features of {wildcards.name}, shard {wildcards.shard}"
    shell:
        "python -m sid_core features --settings {input.settings} --samples {input.samples}"
        " --captions {input.captions} --out {output.features}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


rule score:
    input:
        settings=f"{RESULTS}/score.settings.yaml",
        features=expand(rules.features.output.features, shard=SHARDS, allow_missing=True),
        records=expand(rules.features.output.record, shard=SHARDS, allow_missing=True),
        captions=rules.prompts.output.evaluation,
        reference=rules.reference.output.features,
    output:
        score=f"{RESULTS}/{{kind}}/{{name}}/score.json",
        replicates=f"{RESULTS}/{{kind}}/{{name}}/replicates.json",
    log:
        f"{RESULTS}/logs/score/{{kind}}/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score/{{kind}}/{{name}}.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.score.threads
    resources:
        gpu=gpus(ASKS.score),
        mem_mb=memory(ASKS.score),
        runtime=time_limit(ASKS.score),
    params:
        code=stage_digest("evaluation.scoring"),
    message:
        "score {wildcards.name}"
    shell:
        "python -m sid_core score --settings {input.settings} --features {input.features}"
        " --captions {input.captions} --reference {input.reference} --out {output.score}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


# differences of all that is scored, and means over training seeds: a second's arithmetic on the scores
localrules:
    pairs,


rule pairs:
    input:
        settings=f"{RESULTS}/config.yaml",
        runs=expand(rules.score.output, kind="runs", name=RUNS),
        baselines=expand(rules.score.output, kind="baselines", name=BASELINES),
    output:
        pairs=f"{RESULTS}/pairs.csv",
        seeds=f"{RESULTS}/seeds.csv",
    log:
        f"{RESULTS}/logs/pairs.log",
    benchmark:
        f"{RESULTS}/benchmarks/pairs.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        out=subpath(output.pairs, parent=True),
        code=stage_digest("evaluation.pairs"),
    message:
        "pairs"
    shell:
        "python -m sid_core pairs --settings {input.settings} --results {params.out}"
        " --threads {threads} > {log} 2>&1"
