# The teacher (and further ones for imports): copied from its source and checked, with a manifest that every later stage verifies.
TEACHER = RESULTS.folder / "{teacher}"


rule teacher:
    input:
        settings=settings_beside(TEACHER),
    output:
        manifest=TEACHER / "manifest.json",
        provenance=TEACHER / "provenance.json",
        unet=TEACHER / "unet/diffusion_pytorch_model.safetensors",
        vae=TEACHER / "vae/diffusion_pytorch_model.safetensors",
        text_encoder=TEACHER / "text_encoder/model.safetensors",
        scheduler=TEACHER / "scheduler/scheduler_config.json",
    params:
        out=subpath(output.manifest, parent=True),
        data=lambda wildcards: SETUP.data[wildcards.teacher],
    shell:
        "python -m sid_core teacher --settings {input.settings} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
