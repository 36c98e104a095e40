# The captions of training and of scores.
rule prompts:
    input:
        settings=settings_beside(RESULTS.prompts.parent),
        teacher=RESULTS.provenance(),  # its tokenizer counts tokens
    output:
        manifest=RESULTS.prompts,
        train=RESULTS.train_captions,
        evaluation=RESULTS.captions,
        report=RESULTS.prompts_report,
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output.manifest, parent=True),
        data=SETUP.data["prompts"],
    shell:
        "python -m sid_core prompts --settings {input.settings} --teacher {params.teacher} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
