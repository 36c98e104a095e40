# MLflow mirrors the files. `tracking_init` makes the database before several processes write to it; distillations mirror
# themselves as soon as its file is there (it is no input of theirs: turning tracking on must not train again); `track`
# brings everything else, and what they missed, once all is done. Both speak to the terminal, and run where the user sits: a
# cluster's nodes may have no network.
from sid_core.tracking import attempt, resolve_uri


localrules:
    tracking_init,
    track,


rule tracking_init:
    output:
        RESULTS.store,
    priority: 10
    params:
        experiment=CONFIG.experiment,
        where=["--uri", resolve_uri(CONFIG.tracking.uri)] if CONFIG.tracking.enabled else ["--off"],
        # a store that could not be used is tried again at the next call
        attempt=attempt(RESULTS.folder),
    shell:
        "python -m sid_core tracking-init --experiment {params.experiment} {params.where:q} --attempt {params.attempt} --out {output} 2>&1 | tee {log}"


rule track:
    input:
        tracking=rules.tracking_init.output,
        summary=RESULTS.summary,
        grids=expand(RUN.grids, run=NAMES["distilled"]),
    output:
        record=RESULTS.mirrored,
    params:
        results=subpath(output.record, parent=True),
        best=CONFIG.tracking.best,
    shell:
        "python -m sid_core track --results {params.results} 2>&1 | tee {log}"
