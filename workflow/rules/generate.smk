# The scored samples of every generator and baseline, in shards.
rule generate:
    input:
        settings=RUN.generation,
        generator=RUN.record,
        teacher=SETUP.teacher_of,
        captions=RESULTS.captions,
        embeddings=SETUP.sampled_embeddings_of,
    output:
        samples=RUN.samples("{shard}"),
        record=RUN.samples("{shard}").with_suffix(".json"),
    params:
        generator=subpath(input.generator, parent=True),
        teacher=subpath(input.teacher, parent=True),
        range=SETUP.shard_range,
        embeddings=SETUP.embeddings_option,
    shell:
        "python -m sid_core generate --settings {input.settings} --generator {params.generator}"
        " --teacher {params.teacher} --captions {input.captions} --range {params.range}"
        " --out {output.samples} {params.embeddings} --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


rule generate_baseline:
    input:
        settings=BASELINE.generation,
        teacher=RESULTS.provenance(),
        captions=RESULTS.captions,
        embeddings=SETUP.sampled_embeddings_of,
    output:
        samples=BASELINE.samples("{shard}"),
        record=BASELINE.samples("{shard}").with_suffix(".json"),
    params:
        teacher=subpath(input.teacher, parent=True),
        range=SETUP.shard_range,
        embeddings=SETUP.embeddings_option,
    shell:
        "python -m sid_core generate-baseline --settings {input.settings} --teacher {params.teacher}"
        " --captions {input.captions} --range {params.range} --out {output.samples}"
        " {params.embeddings} --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
