# Embeddings of all prompts, where prompts.embeddings is disk. Shards are no output: Snakemake deletes those of a failed job, and a
# rerun resumes at its shard.
EMBEDDED = {
    "train": (RESULTS.train_captions, RESULTS.train_captions),
    "evaluation": (RESULTS.captions, RESULTS.captions),
    "real": (RESULTS.real_pairs, RESULTS.real_pairs.with_name("captions.txt")),
}


rule embed_prompts:
    input:
        captions=lambda wildcards: EMBEDDED[wildcards.captions][0],
        teacher=RESULTS.provenance(),
    output:
        index=RESULTS.embeddings("{captions}"),
    wildcard_constraints:
        captions=any_of(EMBEDDED),
    params:
        captions=lambda wildcards: EMBEDDED[wildcards.captions][1],
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.index, parent=True),
    shell:
        "python -m sid_core embed-prompts --captions {params.captions} --teacher {params.teacher} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
