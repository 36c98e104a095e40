import json
import math

import numpy as np
import pytest
from made_up import make_config, make_score, read_entries, use_published_protocol, write_csv

from sid_core.config import Adversarial, runs
from sid_core.evaluation.metrics.catalogue import METRICS
from sid_core.pipeline.inputs import Inputs
from sid_core.report import columns, curves, health, page, summary
from sid_core.report.entries import read_differences
from sid_core.storage.files import write_json

# points are at 320, 640, 960, … images with a score gap of 1.5, 1, 0.83, …: the first one is in the warm-up
ALARMS = {"warmup_nimg": 640, "score_gap_max": 0.9}


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((33.7123, 0.4321), "33.71 ± 0.43"),
        ((33.7123, 1.2345), "33.7 ± 1.2"),
        ((233.7123, 12.345), "234 ± 12"),
        ((0.49213, 0.00123), "0.4921 ± 0.0012"),
        ((0.3, 1e-7), "0.3000 ± 0.0000"),
        ((33.7123, None), "33.71"),
        ((33.7123, 0.0), "33.71"),
        (None, "—"),
    ],
)
def test_rounded_shows_two_digits_of_the_error(estimate, text):
    assert columns.rounded(estimate, 2) == text


def test_to_markdown_of_one_seed_shows_the_standard_error(make_experiment):
    config = make_config()
    entries = read_entries(config, make_experiment(config))
    assert entries[0].estimate("fid") == (30.0, 0.43)
    assert entries[0].estimate("kid") == (0.03, 0.001)
    assert entries[0].estimate("recall") == (0.6, None)
    assert columns.with_interval(entries[0], METRICS["fid"]) == "30.00, 95 % interval 29.10 to 30.80"
    assert columns.with_interval(entries[0], METRICS["recall"]) == "0.600"
    assert entries[0].estimate("teacher_eps_error") is None
    notes = summary.notes(entries, {"lsg-3": make_score(1, 1, 1)})
    text = summary.to_markdown(config, entries, "Headline.", notes, summary.warnings(config, entries))
    assert "Not computed: hps (evaluate.hps is null)." in text
    assert "| **30.00 ± 0.43** |" in text
    assert "| **0.6000 ± 0.0012** |" in text
    assert text.startswith("# shapes\n\nHeadline.\n")
    assert "| real images | 0.30 ± 0.43 | 0.6500 ± 0.0012 | 0.0003 ± 0.0010 | 0.700 | 0.600 | — | — | — |" in text
    assert "## Each seed" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1
    published = [line for line in rows if "published, " in line]
    assert len(published) == 9
    assert all("coco2014-30k (not comparable)" in line for line in published)


def headline(config, folder):
    entries = read_entries(config, folder)
    return summary.finding(entries, read_differences(folder / "pairs.csv", entries))


def write_pairs(folder, *lines):
    write_csv(folder / "pairs.csv", "a,b,metric,difference,low,high,excludes_zero,better,over", lines)


def test_finding_takes_its_verdict_from_the_paired_comparison(make_experiment):
    config = make_config()
    assert headline(config, make_experiment(config)) == (
        "SiD-LSG κ = 1.5 has the lowest FID of the generators, 30.00 ± 0.43 with one network evaluation an image; against the "
        "teacher's lowest, 25.00 ± 0.43 with 8 (DPM-Solver++ Karras, 8 steps, CFG 1): worse by 5.0 [3.0, 7.0]. SiD-LSG κ = 3 has "
        "the highest CLIP score, 0.6000 ± 0.0012."
    )


@pytest.mark.parametrize(
    ("fid", "recall", "words"),
    [
        ((0.1, -0.2, 0.4, "false", ""), None, ": no difference shown (0.10 [-0.20, 0.40]). SiD-LSG κ = 3 has the highest"),
        (
            (0.1, -0.2, 0.4, "false", ""),
            (-0.09, -0.1, -0.08, "true", "teacher-dpm-solver-karras-cfg1-8steps"),
            ": no difference shown (0.10 [-0.20, 0.40]). But recall is lower by 0.0900 [0.0800, 0.1000]: a loss of diversity, "
            "which FID hides. SiD-LSG κ = 3 has the highest",
        ),
        (
            (-0.6, -0.7, -0.5, "true", "lsg-1.5"),
            (-0.2, -0.3, -0.1, "true", "teacher-dpm-solver-karras-cfg1-8steps"),
            ": better by 0.600 [0.500, 0.700]. But recall is lower by 0.200 [0.100, 0.300]: a loss of diversity, which FID hides",
        ),
        ((-0.6, -0.7, -0.5, "true", "lsg-1.5"), (-0.2, -0.3, 0.1, "false", ""), ": better by 0.600 [0.500, 0.700]. SiD-LSG κ = 3 has the highest"),
        ((0.6, 0.5, 0.7, "true", "teacher-dpm-solver-karras-cfg1-8steps"), None, ": worse by 0.600 [0.500, 0.700]. SiD-LSG κ = 3 has the highest"),
    ],
    ids=["open", "open but less diverse", "better but less diverse", "better", "worse"],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_finding_names_recall_where_fid_hides_a_loss(make_experiment, fid, recall, words, turned):
    config = make_config()
    folder = make_experiment(config)
    lines = []
    for metric, found in (("fid", fid), ("recall", recall)):
        if found:
            value, low, high, excludes_zero, better = found
            ours, other = "lsg-1.5", "teacher-dpm-solver-karras-cfg1-8steps"
            line = (other, ours, metric, -value, -high, -low) if turned else (ours, other, metric, value, low, high)
            lines.append((*line, excludes_zero, better, "samples"))
    write_pairs(folder, *lines)
    assert words in headline(config, folder)


def test_finding_over_seeds_takes_the_comparison_over_seeds(make_experiment):
    config = make_config(seeds=[0, 1, 2])
    text = headline(config, make_experiment(config))
    assert "with one network evaluation an image (no difference shown from SiD-LSG κ = 3)" in text
    assert (
        "8 steps, CFG 1): no difference shown (6.0 [-1.0, 13.0]). But recall is lower by 0.100 [0.060, 0.140]" in text
    )
    assert "SiD-LSG κ = 3 has the highest CLIP score" in text


def test_finding_of_another_single_seed_has_its_verdict(make_experiment):
    config = make_config(seeds=[7])
    assert "worse by 5.0 [3.0, 7.0]" in headline(config, make_experiment(config))


def test_finding_without_a_comparison_says_so(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    write_pairs(folder)
    assert "8 steps, CFG 1): not compared. SiD-LSG κ = 3 has the highest" in headline(config, folder)


def test_make_entries_of_several_seeds_gives_mean_and_standard_deviation(make_experiment):
    config = make_config(seeds=[0, 1, 2], extra_runs=[{"strategy": "none"}])
    entries = read_entries(config, make_experiment(config))
    assert [entry.name for entry in entries[:4]] == [
        "lsg-1.5",
        "lsg-3",
        "none",
        "teacher-dpm-solver-karras-cfg1-8steps",
    ]
    assert [row.run for row in entries[1].rows] == ["lsg-3", "lsg-3-seed1", "lsg-3-seed2"]
    mean, sd = entries[1].estimate("fid")
    assert mean == pytest.approx(47)
    assert sd == pytest.approx(2)  # of 45, 47, 49, n - 1
    assert math.isclose(entries[1].estimate("recall")[1], 0)
    text = summary.to_markdown(config, entries, "Headline.", summary.notes(entries, {}), [])
    assert "| SiD-LSG κ = 1.5 | 32.0 ± 2.0 |" in text
    assert "| SiD, no guidance | **27.0 ± 2.0** |" in text
    assert "over 3 seeds of training: SiD-LSG κ = 1.5, SiD-LSG κ = 3, SiD, no guidance. Every" in text
    assert "| SiD-LSG κ = 3, seed 1 |" in text.split("## Each seed")[1]


def test_notes_of_rows_of_one_seed_call_them_no_means(make_experiment):
    imported = {"name": "official-2", "file": "a.pkl", "scale": 2, "train_kimg": 4812}
    config = make_config(seeds=[0, 1, 2], imports=[imported])
    entries = read_entries(config, make_experiment(config))
    notes = "\n".join(summary.notes(entries, {}))
    assert (
        "Mean ± standard deviation over 3 seeds of training: SiD-LSG κ = 1.5, SiD-LSG κ = 3. Every other row" in notes
    )
    assert "official-2" not in notes
    assert "SiD-LSG κ = 3" in page._trade_off_words(entries)
    assert "official-2" not in page._trade_off_words(entries)
    warnings = summary.warnings(config, entries)
    assert "Few seeds: each import is a single training (SiD-LSG κ = 2 (official-2))" in "\n".join(warnings)
    assert "(official-2) |" not in summary.to_markdown(config, entries, "", [], []).split("## Each seed")[1]
    alone = make_config(guidance_scales=[], imports=[imported])
    warnings = "\n".join(summary.warnings(alone, [entry for entry in entries if entry.name == "official-2"]))
    assert "trained with one seed" not in warnings


def test_make_entries_sweeps_only_runs_of_common_settings(make_experiment):
    extra = [{"strategy": "none"}, {"strategy": "lsg", "scale": 2, "alpha": 1.4}, {"strategy": "lsg", "scale": 6}]
    extra += [{"strategy": "lsg", "scale": 6, "train_kimg": 40, "name": "lsg-6-longer"}]
    config = make_config(extra_runs=extra)
    entries = read_entries(config, make_experiment(config))
    assert [entry.name for entry in entries if entry.swept] == ["lsg-1.5", "lsg-3", "lsg-6"]


def test_label_of_each_kind_of_row_names_its_settings(make_experiment):
    custom = {"strategy": "custom", "name": "x", "fake_train": 1, "fake_eval": 1.5, "teacher": 3}
    extra = [{"strategy": "short", "scale": 0.5}, {"strategy": "none"}, custom]
    config = make_config(extra_runs=[*extra, {"strategy": "lsg", "scale": 2, "num_steps": 4}], seeds=[0, 1])
    entries = read_entries(config, make_experiment(config))
    assert [entry.label for entry in entries[:11]] == [
        "SiD-LSG κ = 1.5",
        "SiD-LSG κ = 3",
        "SiD, short guidance κ = 0.5",
        "SiD, no guidance",
        "SiD κ = 1/1.5/3 (x)",
        "SiD-LSG κ = 2, 4 steps",
        "teacher, DPM-Solver++ Karras, 8 steps, CFG 1",
        "teacher, DPM-Solver++ Karras, 8 steps, CFG 3",
        "VAE reconstructions",
        "real images",
        "published, sd15, κ = 1.5, 8.8M images",
    ]
    assert entries[5].rows[1].label == "SiD-LSG κ = 2, 4 steps, seed 1"
    labels = [row.label for entry in entries for row in entry.rows]
    assert len(set(labels)) == len(labels)


def test_warnings_name_the_limits_of_the_conclusions(make_experiment):
    config = make_config(prompts=make_config().prompts.model_dump() | {"split": "validation"})
    folder = make_experiment(config)
    path = folder / "runs" / "lsg-3" / "score.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"samples": 9}))
    entries = read_entries(config, folder)
    text = "\n".join(summary.warnings(config, entries))
    assert (
        "Not comparable: 9 published rows were measured by protocol coco2014-30k, these otherwise (protocol shapes)."
        in summary.to_markdown(config, entries, "", [], [])
    )
    assert "Partial: SiD-LSG κ = 3 was scored on 9 samples, the configuration says 26" in text
    assert "κ = 1.5" not in text
    assert "one seed" in text
    assert "validation split" in text
    assert summary.warnings(make_config(seeds=[0, 1, 2]), read_entries(config, folder)[:1]) == []


def test_warnings_name_trainings_in_bad_health(make_experiment):
    distill = make_config().distill.model_dump()
    config = make_config(seeds=[0, 1], distill=distill | {"alarms": distill["alarms"] | ALARMS})
    folder = make_experiment(config)
    write_json(folder / "state" / "lsg-1.5" / "ended.json", {"how": "aborted", "iteration": 3, "why": "latent_std=9"})
    found = health.examine(
        config.distill.alarms, curves.read_curves(config, Inputs.finished(config, folder).trainings), folder
    )
    assert [(one.run, one.setting, one.ended, one.skipped, one.exceeded) for one in found] == [
        ("SiD-LSG κ = 1.5", "lsg-1.5", "aborted", 0, 1),
        ("SiD-LSG κ = 1.5, seed 1", "lsg-1.5", None, 1, 1),
        ("SiD-LSG κ = 3", "lsg-3", None, 0, 1),
        ("SiD-LSG κ = 3, seed 1", "lsg-3", None, 1, 1),
    ]
    text = "\n".join(health.warnings(found))
    assert (
        "Aborted: the last training of SiD-LSG κ = 1.5 was ended by an alarm; its generator is from one before." in text
    )
    assert "Skipped: SiD-LSG κ = 1.5, seed 1 left out 1 updates" in text
    assert "Alarms: SiD-LSG κ = 3 was beyond a limit at 1 logged points" in text


def test_exceeds_limit_of_a_discriminator_counts_from_the_start_of_the_gan():
    gan = Adversarial(start_nimg=100)
    config = make_config(distill=make_config().distill.model_dump() | {"real": {}, "adversarial": gan.model_dump()})
    points = {key: np.ones(4) for key in ("score_gap", "latent_std", "generator_loss")}
    points |= {"nimg": np.array([40, 80, 120, 160]), "discriminator_accuracy": np.array([0.9, 0.97, 0.97, 0.6])}
    alarms = config.distill.alarms.model_copy(update={"warmup_nimg": 0, "score_gap_max": 2})
    (with_gan, *_), (without, *_) = runs(config), runs(make_config())
    assert curves.exceeds_limit(alarms, with_gan, points).tolist() == [False, False, True, False]
    assert not curves.exceeds_limit(alarms, without, points).any()


def test_published_rows_of_an_equal_protocol_are_comparable(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    use_published_protocol(folder)
    entries = read_entries(config, folder)
    assert all(entry.comparable for entry in entries)
    assert "on trust" in summary.warnings(config, entries)[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"samples": 2000}, "samples: 2000, not 30000"),
        ({"captions_sha256": "e" * 64}, "captions_sha256: eeeeeeeeeeee…, not 2f0567cd563e…"),
        ({"caption_prefix": ""}, "caption_prefix: '', not 'A photo depicts '"),
        ({"images_image_size": None}, "images.image_size: None, not 256"),
        ({"images_feature_size": 256}, "images.feature_size: 256, not 299"),
        ({"images_network_precision": "bfloat16"}, "images.network_precision: 'bfloat16', not None"),
        ({"weights_features": "e" * 64}, "weights.features: eeeeeeeeeeee…, not f58cb9b6ec32…"),
        ({"reference_count": 5000}, "reference.count: 5000, not 40504"),
    ],
)
def test_published_rows_of_an_equal_name_alone_are_not_comparable(make_experiment, change, why):
    config = make_config()
    folder = make_experiment(config)
    use_published_protocol(folder, **change)
    entries = read_entries(config, folder)
    assert [entry.kind for entry in entries if not entry.comparable] == ["published"] * 9
    warning = summary.not_comparable(entries)
    assert warning.startswith("Not comparable: 9 published rows")
    assert why in warning
    assert ";" not in warning
    assert "coco2014-30k (not comparable)" in summary.to_markdown(config, entries, "", [], [])
