# The teacher (and further ones for imports): copied from its source and checked. Its other files depend on its family; the
# manifest that lists them is no output, as for generators: Snakemake deletes outputs before a rerun, and a folder is replaced only
# if its manifest lists every file in it.
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
