# A published generator, taken as it is: the same folder as a distilled one, without a training log.
rule import_generator:
    input:
        settings=f"{RESULTS}/runs/{{run}}/settings.yaml",
        teacher=teacher_of,
    output:
        manifest=f"{RESULTS}/runs/{{run}}/generator/manifest.json",
        record=f"{RESULTS}/runs/{{run}}/generator/generator.json",
        config=f"{RESULTS}/runs/{{run}}/generator/unet/config.json",
        weights=f"{RESULTS}/runs/{{run}}/generator/unet/diffusion_pytorch_model.safetensors",
    log:
        f"{RESULTS}/logs/import/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/import/{{run}}.tsv"
    wildcard_constraints:
        run=any_of(IMPORTED),
    conda:
        "../../environment.yml"
    threads: ASKS.teacher.threads
    resources:
        gpu=gpus(ASKS.teacher),
        mem_mb=memory(ASKS.teacher),
        runtime=time_limit(ASKS.teacher),
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.manifest, parent=True),
        data=lambda wildcards: DATA[f"imports/{wildcards.run}"],
        code=stage_digest("models.convert.official"),
    message:
        "import {wildcards.run}"
    shell:
        "python -m sid_core import-official --settings {input.settings} --teacher {params.teacher} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
