# Frozen settings: each stage has its own file as input, so that a change reruns this stage and later ones. A cluster job reads
# config.yaml again when it starts; its settings were frozen here when the pipeline started.
localrules:
    settings,
    all,


rule settings:
    output:
        RESULTS.folder / "{file}",
    log:
        RESULTS.log("settings/{file}"),
    wildcard_constraints:
        file=any_of(SETUP.settings),
    conda:
        "../../environment.yml"
    params:
        text=lambda wildcards: SETUP.settings[wildcards.file],
    message:
        "settings: {wildcards.file}"
    shell:
        "printf '%s' {params.text:q} > {output:q}.part 2> {log:q} && mv {output:q}.part {output:q}"
