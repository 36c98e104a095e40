# A published checkpoint as a generator: the same folder as a distilled one, without a training log.
rule import_official:
    input:
        settings=RUN.settings,
        teacher=SETUP.teacher_of,
    output:
        record=RUN.record,
    wildcard_constraints:
        run=any_of(NAMES["imported"]),
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.record, parent=True),
        data=lambda wildcards: SETUP.data[f"imports/{wildcards.run}"],
    shell:
        "python -m sid_core import-official --settings {input.settings} --teacher {params.teacher} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


# The generator of a run as one that takes fewer of its evaluations: a row of the table of its own.
rule resample:
    input:
        settings=RUN.settings,
        source=lambda wildcards: RESULTS.run(SETUP.sources[wildcards.run]).record,
    output:
        record=RUN.record,
    wildcard_constraints:
        run=any_of(NAMES["resampled"]),
    params:
        generator=subpath(input.source, parent=True),
        out=subpath(output.record, parent=True),
    shell:
        "python -m sid_core resample --settings {input.settings} --generator {params.generator} --out {params.out}"
        " --threads {threads} > {log} 2>&1"
