# The teacher (and further ones for imports): copied from its source and checked, with a manifest that every later stage verifies.
rule teacher:
    input:
        settings=f"{RESULTS}/{{teacher}}.settings.yaml",
    output:
        manifest=f"{RESULTS}/{{teacher}}/manifest.json",
        provenance=f"{RESULTS}/{{teacher}}/provenance.json",
        unet=f"{RESULTS}/{{teacher}}/unet/diffusion_pytorch_model.safetensors",
        vae=f"{RESULTS}/{{teacher}}/vae/diffusion_pytorch_model.safetensors",
        text_encoder=f"{RESULTS}/{{teacher}}/text_encoder/model.safetensors",
        scheduler=f"{RESULTS}/{{teacher}}/scheduler/scheduler_config.json",
    log:
        f"{RESULTS}/logs/{{teacher}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{teacher}}.tsv"
    conda:
        "../../environment.yml"
    threads: ASKS.teacher.threads
    resources:
        gpu=gpus(ASKS.teacher),
        mem_mb=memory(ASKS.teacher),
        runtime=time_limit(ASKS.teacher),
    params:
        out=subpath(output.manifest, parent=True),
        data=lambda wildcards: DATA[wildcards.teacher],
        code=stage_digest("models.teacher"),
    message:
        "{wildcards.teacher}"
    shell:
        "python -m sid_core teacher --settings {input.settings} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
