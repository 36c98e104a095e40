# Pairs of real images and captions, encoded once for the runs that use them: no other run depends on it.
rule real_pairs:
    input:
        settings=settings_beside(RESULTS.real_pairs.parent),
        teacher=RESULTS.provenance(),
    output:
        manifest=RESULTS.real_pairs,
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.manifest, parent=True),
        data=SETUP.data["real_pairs"],
    shell:
        "python -m sid_core real-pairs --settings {input.settings} --teacher {params.teacher} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
