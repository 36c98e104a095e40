# The captions to distil with and to score with.
rule prompts:
    input:
        settings=f"{RESULTS}/prompts.settings.yaml",
        teacher=f"{RESULTS}/teacher/manifest.json",  # its tokenizer counts tokens
    output:
        manifest=f"{RESULTS}/prompts/manifest.json",
        train=f"{RESULTS}/prompts/train.txt",
        evaluation=f"{RESULTS}/prompts/evaluation.txt",
        report=f"{RESULTS}/prompts/report.json",
    log:
        f"{RESULTS}/logs/prompts.log",
    benchmark:
        f"{RESULTS}/benchmarks/prompts.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.prompts.threads
    resources:
        gpu=gpus(ASKS.prompts),
        mem_mb=memory(ASKS.prompts),
        runtime=time_limit(ASKS.prompts),
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.manifest, parent=True),
        data=DATA["prompts"],
        code=stage_digest("data.prompts"),
    message:
        "prompts"
    shell:
        "python -m sid_core prompts --settings {input.settings} --teacher {params.teacher} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
