# The validated configuration, the paths of its results, and the directives of all rules (sid_core/pipeline/rules.py): log,
# benchmark, environment, threads, resources, message, and the digest of the code that makes the result.
from sid_core.pipeline.bootstrap import any_of, bootstrap
from sid_core.pipeline.paths import settings_beside

SETUP = bootstrap(workflow, config)
CONFIG, RESULTS, NAMES = SETUP.config, SETUP.results, SETUP.names
RUN, BASELINE, ROW = RESULTS.run("{run}"), RESULTS.baseline("{name}"), RESULTS.row("{kind}", "{name}")


wildcard_constraints:
    run="[^/]+",
    name="[^/]+",
    kind="runs|baselines",
    teacher=any_of(NAMES["teachers"]),
    reference="reference|watch",
    shard=r"\d{5}",
