# The teacher: copied from its source and checked, with a manifest that every later stage verifies.
rule teacher:
    input:
        settings=f"{RESULTS}/teacher.settings.yaml",
    output:
        manifest=f"{RESULTS}/teacher/manifest.json",
        provenance=f"{RESULTS}/teacher/provenance.json",
        unet=f"{RESULTS}/teacher/unet/diffusion_pytorch_model.safetensors",
        vae=f"{RESULTS}/teacher/vae/diffusion_pytorch_model.safetensors",
        text_encoder=f"{RESULTS}/teacher/text_encoder/model.safetensors",
        scheduler=f"{RESULTS}/teacher/scheduler/scheduler_config.json",
    log:
        f"{RESULTS}/logs/teacher.log",
    benchmark:
        f"{RESULTS}/benchmarks/teacher.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime="30m",
    params:
        out=subpath(output.manifest, parent=True),
        data=DATA["teacher"],
        code=stage_digest("models.teacher"),
    message:
        "teacher"
    shell:
        "python -m sid_core teacher --settings {input.settings} --out {params.out} --threads {threads} > {log} 2>&1"
