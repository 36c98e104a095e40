# Tables, figures and one page over all runs and baselines, read from files alone.
SCORED = {"runs": RUNS, "baselines": BASELINES}
FIGURES = {
    "fid_clip": "Results",
    "scales": "Results",
    "strategies": "Results",
    "convergence": "Training",
    "training": "Training",
    "samples": "Results",
}


rule compare:
    input:
        settings=f"{RESULTS}/config.yaml",
        scores=[f"{RESULTS}/{kind}/{name}/score.json" for kind, names in SCORED.items() for name in names],
        samples=[f"{RESULTS}/{kind}/{name}/samples/{SHARDS[0]}.tar" for kind, names in SCORED.items() for name in names],
        differences=rules.pairs.output,
        generators=expand(f"{RESULTS}/runs/{{run}}/generator/generator.json", run=RUNS),
        training=expand(rules.distill.output.training, run=DISTILLED),
        captions=rules.prompts.output.evaluation,
    output:
        csv=f"{RESULTS}/summary.csv",
        summary=report(
            f"{RESULTS}/summary.md",
            caption="../report/summary.rst",
            category="Results",
        ),
        convergence=f"{RESULTS}/convergence.csv",
        figures=[
            report(f"{RESULTS}/figures/{name}.png", caption=f"../report/{name}.rst", category=category)
            for name, category in FIGURES.items()
        ],
        vectors=expand(f"{RESULTS}/figures/{{name}}.svg", name=[name for name in FIGURES if name != "samples"]),
        page=report(f"{RESULTS}/report.html", caption="../report/page.rst", category="Results"),
    log:
        f"{RESULTS}/logs/compare.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 4000,
        runtime="30m",
    params:
        out=subpath(output.csv, parent=True),
        code=stage_digest("report"),
    message:
        "compare"
    shell:
        "python -m sid_core report --settings {input.settings} --results {params.out} --threads {threads}"
        " > {log} 2>&1"
