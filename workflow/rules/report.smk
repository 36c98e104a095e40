# Paired differences, tables, figures and a page over all runs and baselines.
from sid_core.config import generators

FIGURES = {
    "fid_clip": "Results",
    "training": "Training",
    "samples": "Results",
}
# a figure without data is not written
if any(run.strategy == "lsg" for run in generators(CONFIG)):
    FIGURES["scales"] = "Results"
if NAMES["distilled"] and CONFIG.distill.proxy_samples:
    FIGURES["convergence"] = "Training"
if len({run.method for run in generators(CONFIG)}) > 1:
    FIGURES["methods"] = "Results"


# takes a second
localrules:
    pairs,


rule pairs:
    input:
        settings=RESULTS.config,
        scores=SETUP.every(lambda row: row.score),
        replicates=SETUP.every(lambda row: row.replicates),
    output:
        pairs=RESULTS.pairs,
        seeds=RESULTS.seeds,
    params:
        out=subpath(output.pairs, parent=True),
    shell:
        "python -m sid_core pairs --settings {input.settings} --results {params.out} --threads {threads} > {log} 2>&1"


rule report:
    input:
        settings=RESULTS.config,
        scores=SETUP.every(lambda row: row.score),
        samples=SETUP.every(lambda row: row.samples(NAMES["shards"][0])),
        differences=rules.pairs.output,
        generators=expand(RUN.record, run=NAMES["runs"]),
        training=expand(RUN.training, run=NAMES["distilled"]),
        captions=RESULTS.captions,
    output:
        csv=RESULTS.summary,
        summary=report(RESULTS.summary_text, caption="../report/summary.rst", category="Results"),
        convergence=RESULTS.convergence,
        figures=[
            report(RESULTS.figure(f"{name}.png"), caption=f"../report/{name}.rst", category=category)
            for name, category in FIGURES.items()
        ],
        vectors=[RESULTS.figure(f"{name}.svg") for name in FIGURES if name != "samples"],
        page=report(RESULTS.report, caption="../report/page.rst", category="Results"),
    params:
        out=subpath(output.csv, parent=True),
    shell:
        "python -m sid_core report --settings {input.settings} --results {params.out} --threads {threads} > {log} 2>&1"
