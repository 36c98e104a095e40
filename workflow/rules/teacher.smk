# The teacher, and further ones of imports. As for generators, its family's files and the manifest are no outputs: Snakemake deletes
# outputs before a rerun, and a folder is replaced only if its manifest lists every file in it.
TEACHER = RESULTS.folder / "{teacher}"


rule teacher:
    input:
        settings=settings_beside(TEACHER),
    output:
        provenance=TEACHER / "provenance.json",
    params:
        out=subpath(output.provenance, parent=True),
        data=lambda wildcards: SETUP.data[wildcards.teacher],
    shell:
        "python -m sid_core teacher --settings {input.settings} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
