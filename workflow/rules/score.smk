# Reference, features of every shard, and scores: one protocol for runs and baselines.
REFERENCE, SHARD = RESULTS.reference("{reference}"), ROW.features("{shard}")


# fetches networks and reference images once, before many jobs need them
rule evaluation_networks:
    input:
        settings=RESULTS.reference("reference").settings,
    output:
        RESULTS.reference("reference").networks,
    params:
        data=SETUP.data["evaluate"],
        reference=SETUP.data["reference"],
    shell:
        "python -m sid_core evaluation-networks --settings {input.settings} --out {output}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


# `reference` is of the scores, `watch` of the proxy metrics: scenes that no score uses
rule reference:
    input:
        settings=REFERENCE.settings,
        networks=rules.evaluation_networks.output,
    output:
        features=REFERENCE.features,
        record=REFERENCE.record,
    params:
        data=SETUP.data["evaluate"],
        images=SETUP.data["reference"],
    shell:
        "python -m sid_core reference --settings {input.settings} --out {output.features}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


# `ancient`: another reference changes no sample's features
rule features:
    input:
        settings=RESULTS.features_settings,
        samples=ROW.samples("{shard}"),
        record=ROW.samples("{shard}").with_suffix(".json"),
        captions=RESULTS.captions,
        networks=ancient(rules.evaluation_networks.output),
    output:
        features=SHARD,
        record=SHARD.with_suffix(".json"),
    params:
        data=SETUP.data["evaluate"],
    shell:
        "python -m sid_core features --settings {input.settings} --samples {input.samples}"
        " --captions {input.captions} --out {output.features}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"


rule score:
    input:
        settings=RESULTS.score_settings,
        features=expand(rules.features.output.features, shard=NAMES["shards"], allow_missing=True),
        records=expand(rules.features.output.record, shard=NAMES["shards"], allow_missing=True),
        captions=RESULTS.captions,
        reference=RESULTS.reference("reference").features,
        teacher_scores=SETUP.teacher_scores,
    output:
        score=ROW.score,
        replicates=ROW.replicates,
    shell:
        "python -m sid_core score --settings {input.settings} --features {input.features}"
        " --captions {input.captions} --reference {input.reference} --out {output.score} --teacher-scores {input.teacher_scores}"
        " --threads {threads} --gpus {resources.gpu} > {log} 2>&1"
