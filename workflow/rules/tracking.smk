# MLflow mirrors the files. `tracking_init` makes the database before several processes write to it; distillations then mirror
# themselves (without it as input: turning tracking on must not retrain); `track` mirrors the rest at the end. Both print to the
# terminal and run where the user is: a cluster's nodes may have no network.
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
        # the next call retries an unavailable store
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
