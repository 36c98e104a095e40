"""Test that errors of the configuration name the remedy, and that each stage has its own settings alone."""

import copy
import json
import re
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

from sid_core import config as c
from sid_core.config.blocks import MEMORY
from sid_core.config.loading import PRESETS
from sid_core.data.reference_images import reference_images
from sid_core.data.shapes import scenes
from sid_core.errors import UserError
from sid_core.pipeline.settings import stage_settings

ROOT = Path(__file__).parents[2]
SHIPPED = c.load_config(ROOT / "config.yaml").model_dump(mode="json")


LATE = {"strategy": "long", "scale": 1.5}
UID = {"strategy": "none", "objective": "real_uid", "real_uid": {"a": 0.9, "b": 0.92}}


def changed(**values) -> dict:
    """Return the whole shipped configuration with `block__key=value` changed; `...` takes a key away."""
    result = copy.deepcopy(SHIPPED)
    for path, value in values.items():
        *blocks, key = path.split("__")
        target = result
        for block in blocks:
            target = target[block]
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return result


def test_load_config_of_the_shipped_file_lists_its_runs():
    parsed = c.load_config(ROOT / "config.yaml")
    assert [run.name for run in c.runs(parsed)] == ["lsg-1.5", "lsg-2", "lsg-3", "lsg-4.5"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill__train_kimgs": 1}, "unknown key 'distill.train_kimgs'; did you mean 'train_kimg'?"),
        ({"guidance_scale": [1]}, "unknown key 'guidance_scale'; did you mean 'guidance_scales'?"),
        ({"distill__lr": ..., "preset": None}, "distill.lr: missing"),
        (
            {
                "evaluate__patches": True,
                "evaluate__feature_size": 64,
                "evaluate__image_size": 32,
                "generate__image_size": 32,
            },
            "evaluate.patches=true: expected stored images of evaluate.feature_size=64 or more, got generate.image_size=32",
        ),
        ({"evaluate__fid_teacher": True, "baselines__steps": []}, "evaluate.fid_teacher=true: expected a row of the"),
        (
            {"preset": "sd1.5"},
            "preset=sd1.5: expected one of flux-dev, sana-600m, sd15, sd21-768, sd21-base, sd35-medium, sdxl, shapes, or null",
        ),
        (
            {"teacher": {"source": "local", "path": "x"}},
            "preset=shapes: expected another one with teacher.source=local",
        ),
        ({"guidance_scales": [1.5, 0]}, "guidance_scales.1=0: expected greater than 0"),
        ({"guidance_scales": [-2]}, "guidance_scales.0=-2"),
        ({"guidance_scales": [float("nan")]}, "guidance_scales.0=nan"),
        ({"guidance_scales": ["much"]}, "guidance_scales.0='much'"),
        ({"guidance_scales": [1.5, 1.50]}, "two runs would be called 'lsg-1.5'"),
        ({"guidance_scales": [], "extra_runs": []}, "nothing to distil"),
        (
            {"resources__score": {"runtime": "12"}},
            "resources.score.runtime='12': expected minutes, hours or days, such as",
        ),
        ({"distill__t_init": 1200}, "distill.t_init=1200: expected less than or equal to 1000"),
        ({"distill__ida": 1}, "distill.ida=1: expected less than 1"),
        ({"extra_runs": [{"strategy": "none", "ida": 1}]}, "extra_runs.0.ida=1: expected less than 1"),
        ({"distill__lr": 1e-6}, "distill: lr_final=0.0001: expected at most lr=1e-06, which decays to it; or null"),
        ({"distill__micro_batch": 5}, "micro_batch=5: expected a divisor of batch=32"),
        (
            {"distill__compile": True, "distill__checkpointing": True},
            "compile, checkpointing: recomputed activations are",
        ),
        ({"distill__proxy_samples": 1}, "proxy_samples=1: expected 2, better hundreds"),
        ({"extra_runs": [{"strategy": "long"}]}, "strategy: long needs a scale"),
        ({"extra_runs": [{"strategy": "short", "scale": 2}]}, "scale=2: short guidance"),
        ({"extra_runs": [{"strategy": "anti", "scale": 1}]}, "scale=1: Anti-CFG"),
        ({"extra_runs": [{"strategy": "zero", "scale": 1}]}, "zero has no scale"),
        ({"extra_runs": [{"strategy": "lsg", "scale": 2, "teacher": 3}]}, "belong to strategy: custom"),
        (
            {"extra_runs": [LATE | {"adversarial": {"start_nimg": 100}}]},
            "run long-1.5-adversarial: adversarial: expected real images, got distill.real=null. Fix: distill:",
        ),
        (
            {"extra_runs": [LATE | {"adversarial": {"start_nimg": 10_400}}], "distill__real": {}},
            "run long-1.5-adversarial: adversarial.start_nimg=10400: expected less than the 10,400 images",
        ),
        (
            {"distill__adversarial": {"start_nimg": 5000}, "distill__real": {"pairs": 31}},
            "distill.real.pairs=31: expected at least distill.batch=32",
        ),
        ({"extra_runs": [LATE | {"objective": "real_uid"}]}, "real_uid: give a and b with objective: real_uid"),
        (
            {"extra_runs": [LATE | {"real_uid": {"a": 0.9, "b": 0.9}}]},
            "real_uid: give a and b with objective: real_uid",
        ),
        (
            {"extra_runs": [UID | {"real_uid": {"a": 0, "b": 1}}]},
            "extra_runs.0.real_uid.a=0: expected greater than 0",
        ),
        ({"extra_runs": [UID | {"adversarial": {"start_nimg": 0}}]}, "objective: real_uid has no discriminator"),
        ({"extra_runs": [UID]}, "run real_uid-none: objective=real_uid: expected real images, got distill.real=null"),
        (
            {"distill__real": {}, "prompts": {"source": "file", "train": "a.txt", "evaluation": "b.txt"}},
            "distill.real.source=embedded: expected prompts.source=embedded, got file",
        ),
        ({"distill__real": {"captions": "x.csv"}}, "distill.real: captions=x.csv: belongs to a folder of images"),
        ({"distill__real": {"source": "x", "captions": "x.txt"}}, "captions=x.txt: expected a table"),
        ({"distill__lora": {"rank": 0}}, "distill.lora.rank=0: expected greater than or equal to 1"),
        ({"extra_runs": [LATE | {"lora": {"rank": 4, "targets": []}}]}, "extra_runs.0.lora.targets=[]"),
        ({"distill__lora": {"rank": 4, "alpha": 8}}, "unknown key 'distill.lora.alpha'"),
        (
            {"extra_runs": [LATE | {"lora": {"rank": 4}, "ida": 0.02}]},
            "run long-1.5-rank4: ida=0.02: expected 0 with lora",
        ),
        ({"teacher": {"source": "local"}}, "give the diffusers directory"),
        ({"teacher": {"source": "hub", "repo": "a/b"}}, "repo, revision: give both with source: hub"),
        ({"teacher": {"source": "embedded", "variant": "fp16"}}, "repo, revision: give both with source: hub"),
        ({"evaluate__clip": {"source": "a/b", "revision": "main"}}, "evaluate.clip.revision='main'"),
        ({"evaluate__clip_revision": "main"}, "unknown key 'evaluate.clip_revision'; did you mean 'clip.revision'?"),
        ({"evaluate__reference_sha256": "abc"}, "evaluate.reference_sha256='abc'"),
        ({"prompts__train": "captions.txt"}, "expected a number of captions with source: embedded"),
        ({"generate__image_size": 16}, "generate.image_size=16: expected null or evaluate.image_size=None"),
        ({"evaluate__bootstrap": 50}, "unknown key 'evaluate.bootstrap': now a constant. Fix: remove it"),
        ({"distill__keep_states": 3}, "unknown key 'distill.keep_states': now a constant. Fix: remove it"),
        ({"distill__keep_best": None}, "unknown key 'distill.keep_best': now a constant. Fix: remove it"),
        ({"evaluate__precision": "float32"}, "unknown key 'evaluate.precision': now a constant. Fix: remove it"),
        ({"prompts__evaluation": 10}, "only prompts.evaluation=10 captions"),
        ({"experiment": "a/b"}, "experiment='a/b'"),
        ({"teachers": {20260901: {}}}, "teachers.20260901: expected text as a key, which YAML reads as another value."),
    ],
)
def test_parse_of_a_wrong_value_names_it_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        c.parse_config(changed(**values))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_parse_of_wrong_values_lists_every_key():
    with pytest.raises(UserError) as caught:
        c.parse_config(changed(distill__t_init=1200, distill__lr="fast", seeds=[-1]))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0]\ndistill:\n  lr: 1.0e-6\n\ndistill: {t_init: 600}\n", "lines 2 and 5: 'distill' is given twice"),
        ('distill:\n  lr: 1.0e-6\n  batch: 8\n  "lr": 2.0e-6\n', "lines 2 and 4: 'lr' is given twice"),
        ("imports:\n- {name: a, name: b}\n", "lines 2 and 2: 'name' is given twice"),
    ],
)
def test_read_yaml_of_a_key_given_twice_names_both_lines(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"config\.yaml, {message}"):
        c.read_yaml(tmp_path / "config.yaml")


def test_read_yaml_of_json_takes_tabs_and_names_a_key_given_twice(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n\t"a": {"batch":\t8}\n}')
    assert c.read_yaml(path) == {"a": {"batch": 8}}
    path.write_text('{\n\t"a": 1,\n\t"a": 2\n}')
    with pytest.raises(UserError, match=r"config\.json, lines 2 and 3: 'a' is given twice"):
        c.read_yaml(path)


def test_read_yaml_of_merged_blocks_keeps_overrides(tmp_path):
    text = "a: &a {x: 1, y: 1}\nb: &b\n  <<: *a\n  y: 2\nc:\n  <<: *b\n  x: 3\n1: {}\n'1': {}\n"
    (tmp_path / "config.yaml").write_text(text)
    read = c.read_yaml(tmp_path / "config.yaml")
    assert read == {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}, 1: {}, "1": {}}


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\x00"])
def test_read_yaml_of_no_mapping_names_the_file(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        c.load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("word", ["null", "Null", "NULL", "~", ""])
def test_parse_of_null_in_words_gives_none(word):
    # Snakemake's --config hands over text: 'distill={lr_final: null}' became the text 'null'.
    parsed = c.parse_config(
        changed(
            distill__lr_final=word,
            distill__fake_lr=word,
            tracking__uri=word,
            tracking__best=word,
            teacher__path=word,
            evaluate__dinov2=word,
            resources__score__gpu=word,
        )
    )
    assert parsed.distill.lr_final is parsed.distill.fake_lr is parsed.tracking.uri is parsed.tracking.best is None
    assert parsed.teacher.path is parsed.evaluate.dinov2 is parsed.resources.score.gpu is None


def test_parse_of_empty_text_without_null_keeps_it():
    assert c.parse_config(changed(evaluate__caption_prefix="")).evaluate.caption_prefix == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scales": 1.5}, r"guidance_scales=1\.5: expected a list\. Fix: guidance_scales: \[1\.5\]"),
        ({"extra_runs": {"strategy": "none"}}, r"expected a list\. Fix: extra_runs: \[\{'strategy': 'none'\}\]"),
        ({"distill": [1]}, r"distill=\[1\]: expected keys with values"),
    ],
)
def test_parse_of_another_shape_shows_the_expected_one(changes, message):
    with pytest.raises(UserError, match=message):
        c.parse_config(changed(**changes))


@pytest.mark.parametrize("word", [None, "null", "~"])
def test_parse_of_an_experiment_called_null_raises(word):
    with pytest.raises(
        UserError, match=r"config: experiment=null: expected a valid string, got no value\. Fix: give it one"
    ):
        c.parse_config(changed(experiment=word))


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("2026_09_01", "the number 20260901"),
        ("2026-09-01", "the date 2026-09-01"),
        ("1.5", "the number 1.5"),
        ("on", "true"),
        ("007", "the number 7"),
    ],
)
def test_load_config_of_an_unquoted_name_shows_it_as_typed(tmp_path, typed, read):
    text = (ROOT / "config.yaml").read_text().replace("experiment: shapes", f"experiment: {typed}")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        c.load_config(tmp_path / "config.yaml")
    assert f"experiment={typed}: expected text, which YAML reads as {read}. Fix: quote it" in str(caught.value)
    assert f'experiment: "{typed}"' in str(caught.value)
    (tmp_path / "config.yaml").write_text(text.replace(f"experiment: {typed}", f'experiment: "{typed}"'))
    assert c.load_config(tmp_path / "config.yaml").experiment == typed
    (tmp_path / "over.yaml").write_text(f"extra_runs: [{{strategy: lsg, scale: 9, name: {typed}}}]")
    with pytest.raises(UserError, match=rf"extra_runs\.0\.name={typed}: .*name: \"{typed}\""):
        c.load_config(ROOT / "config.yaml", tmp_path / "over.yaml")


@pytest.mark.parametrize(("typed", "value"), [("2026_09_01", 20260901), ("1e3", 1000.0), ("True", True)])
def test_parse_config_of_an_unquoted_argument_shows_it_as_typed(typed, value):
    arguments = ["snakemake", "--cores", "all", "--config", "seeds=[0]", f"experiment={typed}"]
    with pytest.raises(UserError) as caught:
        c.parse_config(changed(experiment=value), arguments=arguments)
    assert f"experiment={typed}: expected text" in str(caught.value)
    assert "Snakemake takes quotes off --config: there, begin it with a letter" in str(caught.value)


def test_parse_of_numbers_in_text_gives_numbers():
    # YAML 1.1 wants a dot before the exponent
    assert c.parse_config(changed(distill__lr="1e-3")).distill.lr == 1e-3


@pytest.mark.parametrize(
    ("memory", "switches"),
    [
        ("fast", (16, False, "none", "none", True)),
        ("balanced", (4, False, "optimizer", "optimizer", True)),
        ("smallest", (4, True, "all", "all", False)),
    ],
)
def test_distill_memory_sets_every_switch_that_is_null(memory, switches):
    nulls = {f"distill__{key}": None for key in MEMORY["fast"]}
    distill = c.parse_config(changed(distill__memory=memory, **nulls)).distill
    assert tuple(getattr(distill, key) for key in MEMORY["fast"]) == switches


def test_distill_memory_leaves_a_switch_that_is_given():
    distill = c.parse_config(
        changed(distill__memory="smallest", distill__checkpointing=None, distill__offload="ema")
    ).distill
    assert (distill.checkpointing, distill.offload, distill.micro_batch) == (True, "ema", 32)


def test_distill_memory_chooses_a_micro_batch_that_divides_the_batch():
    distill = c.parse_config(changed(distill__batch=30, distill__micro_batch=None)).distill
    assert distill.micro_batch == 15


# --- presets ------------------------------------------------------------------------------------------------------------

OWN = """
experiment: mine
preset: {preset}
teacher: {{source: local, path: /models/mine}}
prompts: {{source: file, train: train.txt, evaluation: coco2014-30k}}
guidance_scales: [1.5]
"""


def test_presets_equal_those_of_the_schema():
    names = get_args(get_args(c.Config.model_fields["preset"].annotation)[0])
    assert sorted(names) == sorted(path.stem for path in PRESETS.iterdir())


@pytest.mark.parametrize("preset", ["sd15", "sd21-base", "sd21-768"])
def test_load_config_with_a_preset_ignores_config_yaml(tmp_path, preset):
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text() + "\ndistill: {lr: 7.0, t_init: 600}\n")
    (tmp_path / "mine.yaml").write_text(OWN.format(preset=preset))
    config = c.load_config(tmp_path / "config.yaml", tmp_path / "mine.yaml")
    assert (config.distill.lr, config.distill.t_init, config.distill.batch) == (1e-6, 625, 512)
    assert [run.name for run in c.runs(config)] == ["lsg-1.5"]
    assert config.evaluate.protocol == "coco2014-30k"


def test_load_config_overrides_values_of_the_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN.format(preset="sd21-768") + "distill: {micro_batch: 4}\n")
    config = c.load_config(tmp_path / "mine.yaml")
    assert (config.distill.micro_batch, config.distill.lr, config.generate.batch) == (4, 1e-6, 7)
    assert config.plan.unet_million == 865.9


def test_load_config_of_another_teacher_without_a_preset_raises(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN.format(preset="sd15").replace("preset: sd15\n", ""))
    with pytest.raises(UserError, match=r"mine\.yaml: preset=shapes: expected another one with teacher\.source=local"):
        c.load_config(ROOT / "config.yaml", tmp_path / "mine.yaml")


def test_load_config_of_a_preset_without_a_teacher_raises(tmp_path):
    (tmp_path / "mine.yaml").write_text("experiment: mine\npreset: sd15\nguidance_scales: [2]\n")
    with pytest.raises(UserError) as caught:
        c.load_config(ROOT / "config.yaml", tmp_path / "mine.yaml")
    assert [line.split(";")[0] for line in str(caught.value).splitlines()] == [
        f"{tmp_path / 'mine.yaml'}: {key}: missing" for key in ("teacher", "prompts")
    ]


@pytest.mark.parametrize(
    ("preset", "name"), [("sd15", "coco2014-30k"), ("sd21-768", "coco2014-30k"), ("sdxl", "coco2014-10k")]
)
def test_load_config_of_a_preset_has_what_its_protocol_guarantees(tmp_path, preset, name):
    (tmp_path / "mine.yaml").write_text(OWN.format(preset=preset))
    config = c.load_config(tmp_path / "mine.yaml")
    assert config.evaluate.protocol == name
    assert config.generate.samples == {"coco2014-30k": 30_000, "coco2014-10k": 10_000}[name]
    assert config.evaluate.image_size == {"coco2014-30k": 256, "coco2014-10k": 512}[name]


def test_load_config_of_fewer_samples_than_the_protocols_name_says_names_each_difference(tmp_path):
    own = OWN.format(preset="sd15").replace("coco2014-30k", "captions.txt") + "generate: {samples: 100}\n"
    (tmp_path / "mine.yaml").write_text(own)
    with pytest.raises(UserError) as caught:
        c.load_config(tmp_path / "mine.yaml")
    assert str(caught.value).endswith(
        "evaluate.protocol=coco2014-30k: expected prompts.evaluation=coco2014-30k (got captions.txt), "
        "generate.samples=30000 (got 100). Fix: set them so, or give the protocol a name of your own, such as "
        "evaluate.protocol: mine"
    )
    (tmp_path / "mine.yaml").write_text(own + "evaluate: {protocol: mine}\n")
    assert c.load_config(tmp_path / "mine.yaml").generate.samples == 100


def test_load_config_of_coco2017_takes_captions_of_its_own(tmp_path):
    sizes = "generate: {samples: 5000, image_size: 512}\nevaluate: {protocol: coco2017-5k, image_size: 512, reference_samples: "
    own = OWN.format(preset="sd15").replace("coco2014-30k", "captions.txt") + sizes
    (tmp_path / "mine.yaml").write_text(own + "5000}\n")
    assert c.load_config(tmp_path / "mine.yaml").evaluate.protocol == "coco2017-5k"
    (tmp_path / "mine.yaml").write_text(own + "4999}\n")
    with pytest.raises(UserError, match=r"coco2017-5k: expected evaluate\.reference_samples=5000 \(got 4999\)\."):
        c.load_config(tmp_path / "mine.yaml")


# --- runs --------------------------------------------------------------------------------------------------------------


def runs_of(**values) -> dict[str, c.Run]:
    return {run.name: run for run in c.runs(c.parse_config(changed(**values)))}


def test_runs_of_close_scales_have_different_names():
    assert list(runs_of(guidance_scales=[1.5, 1.52, 2, 10])) == ["lsg-1.5", "lsg-1.52", "lsg-2", "lsg-10"]


def test_runs_with_more_seeds_keep_their_names():
    assert list(runs_of(guidance_scales=[2], seeds=[0, 1])) == ["lsg-2", "lsg-2-seed1"]


@pytest.mark.parametrize(
    ("extra", "name", "kappas"),
    [
        ({"strategy": "lsg", "scale": 7}, "lsg-7", (7, 7, 7)),
        ({"strategy": "long", "scale": 3}, "long-3", (1, 1, 3)),
        ({"strategy": "short", "scale": 0.5}, "short-0.5", (0.5, 1, 1)),
        ({"strategy": "short", "scale": 0}, "short-0", (0, 1, 1)),
        ({"strategy": "none"}, "none", (1, 1, 1)),
        ({"strategy": "zero"}, "zero", (0, 0, 1)),
        ({"strategy": "anti", "scale": -1}, "anti--1", (-1, -1, 1)),
        ({"strategy": "long", "scale": 1.75, "objective": "dmd"}, "dmd-long-1.75", (1, 1, 1.75)),
        ({"strategy": "custom", "name": "x", "fake_train": 1, "fake_eval": 2, "teacher": 3}, "x", (1, 2, 3)),
    ],
)
def test_runs_of_a_strategy_have_its_four_scales(extra, name, kappas):
    run = runs_of(extra_runs=[extra])[name]
    assert (run.fake_train, run.fake_eval, run.teacher) == kappas


def test_distillations_of_an_extra_run_use_its_alpha_steps_and_updates():
    run = runs_of(
        extra_runs=[{"strategy": "lsg", "scale": 2, "name": "two", "alpha": 1.3, "num_steps": 2, "fake_updates": 5}]
    )["two"]
    assert (run.alpha, run.num_steps, run.fake_updates) == (1.3, 2, 5)


def test_distillations_follow_ida_unless_a_run_has_its_own():
    extra = [{"strategy": "none"}, {"strategy": "zero", "ida": 0}]
    found = runs_of(extra_runs=extra, distill__ida=0.03)
    assert (found["none"].ida, found["zero"].ida, runs_of(extra_runs=extra)["none"].ida) == (0.03, 0, 0)


def test_runs_with_real_images_state_it_in_name_and_label():
    extra = [LATE, LATE | {"adversarial": {"start_nimg": 0}}, UID, UID | {"strategy": "zero"}]
    extra[3] = extra[3] | {"real_uid": {"a": 1, "b": 1}}
    found = runs_of(extra_runs=extra, distill__real={})
    labels = {
        name: found[name].label for name in ("long-1.5", "long-1.5-adversarial", "real_uid-none", "real_uid-zero")
    }
    assert labels == {
        "long-1.5": "SiD, long guidance κ = 1.5",
        "long-1.5-adversarial": "SiD, long guidance κ = 1.5, GAN, uses real images",
        "real_uid-none": "RealUID, no guidance, uses real images",
        "real_uid-zero": "RealUID, Zero-CFG",
    }
    assert runs_of(distill__real={}, distill__adversarial={"start_nimg": 0}).keys() == {
        f"lsg-{scale}-adversarial" for scale in ("1.5", "2", "3", "4.5")
    }


def test_runs_with_lora_state_the_rank_in_name_and_label():
    ranks = [{"rank": 4}, {"rank": 16, "targets": ["to_q"]}]
    found = runs_of(
        extra_runs=[LATE, *(LATE | {"lora": lora} for lora in ranks), LATE | {"name": "x", "lora": ranks[0]}]
    )
    labels = {name: found[name].label for name in ("long-1.5", "long-1.5-rank4", "long-1.5-rank16", "x")}
    long = "SiD, long guidance κ = 1.5"
    assert list(labels.values()) == [long, f"{long}, rank 4", f"{long}, rank 16", f"{long}, rank 4 (x)"]
    assert found["long-1.5-rank16"].method == "SiD, long guidance, rank 16"
    own = {one.run.name: one.distill.lora for one in c.distillations(c.parse_config(changed(distill__lora=ranks[0])))}
    assert own == {f"lsg-{scale}-rank4": c.Lora(rank=4) for scale in ("1.5", "2", "3", "4.5")}


def test_distillations_without_real_images_keep_their_settings():
    extra = {"extra_runs": [LATE | {"adversarial": {"start_nimg": 0}}]}
    with_real = c.distillations(c.parse_config(changed(**extra, distill__real={"pairs": 500})))
    assert [one.distill.real for one in with_real[:4]] == [None] * 4
    assert with_real[:4] == c.distillations(c.parse_config(SHIPPED))
    assert with_real[4].distill.real.pairs == 500
    assert with_real[4].distill.adversarial == with_real[4].run.adversarial


def test_baselines_and_shards_follow_the_settings():
    parsed = c.parse_config(changed(generate__samples=5000, generate__samples_per_shard=2000, baselines__steps=[2, 8]))
    names = [baseline.name for baseline in c.baselines(parsed)]
    assert names[0] == "teacher-dpm-solver-karras-cfg1-2steps"
    assert names[-2:] == ["vae", "real"]
    assert len(names) == 2 * 3 + 2
    assert c.shards(parsed) == ["00000", "00001", "00002"]


def test_baselines_of_two_solvers_have_different_names():
    ddim, dpm = (
        {one.name for one in c.baselines(c.parse_config(changed(baselines__solver=solver))) if one.kind == "teacher"}
        for solver in ("ddim", "dpm-solver")
    )
    assert len(ddim | dpm) == len(ddim) + len(dpm) > 0


@pytest.mark.parametrize(("scale", "nfe"), [(1.0, 8), (2.0, 16), (0.5, 16)])
def test_baseline_nfe_guided_counts_both_branches(scale, nfe):
    baseline = c.Baseline(name="x", kind="teacher", solver="ddim", steps=8, guidance_scale=scale)
    assert baseline.nfe == nfe


def test_splits_share_no_noise_and_no_reference_image():
    evaluation, validation = (
        stage_settings(c.parse_config(changed(prompts__split=split))) for split in ("evaluation", "validation")
    )
    generate = "runs/lsg-2/generate.yaml"
    samples = 2**31  # the most that one split may have
    seeds = [
        range(files[generate].sampling.seed, files[generate].sampling.seed + samples)
        for files in (evaluation, validation)
    ]
    assert not set(seeds[0][:: samples - 1]) & set(seeds[1][:: samples - 1])
    assert seeds[0].stop <= seeds[1].start
    assert seeds[1].stop <= c.SEEDS
    assert validation["score.settings.yaml"].seed == seeds[1].start
    drawn = [reference_images(files["reference/settings.yaml"]) for files in (evaluation, validation)]
    assert not (drawn[0].read(0) == drawn[1].read(0)).all()
    assert [files["reference/settings.yaml"].split for files in (evaluation, validation)] == [
        "evaluation",
        "validation",
    ]


def test_parse_of_a_seed_beyond_the_split_raises():
    with pytest.raises(UserError, match=r"generate\.seed=2147483648: expected seed \+ samples up to 2\^31"):
        c.parse_config(changed(generate__seed=2**31))


# --- settings of one stage -----------------------------------------------------------------------------------------------


def changed_files(**values) -> set[str]:
    """List the stages whose settings differ from the shipped configuration's, or are new."""
    before, after = (stage_settings(c.parse_config(v)) for v in (SHIPPED, changed(**values)))
    return {re.sub(r"^(runs|baselines)/[^/]+", r"\1", name) for name in after if after[name] != before.get(name)}


@pytest.mark.parametrize(
    ("values", "files"),
    [
        ({"evaluate__neighbours": 5}, {"score.settings.yaml"}),
        ({"generate__samples": 4000}, {"score.settings.yaml"}),
        ({"evaluate__reference_samples": 40}, {"reference/settings.yaml", "score.settings.yaml"}),
        (
            {"evaluate__clip": "x"},
            {"features.settings.yaml", "reference/settings.yaml", "score.settings.yaml"},
        ),
        ({"generate__batch": 100}, {"runs/generate.yaml", "baselines/generate.yaml"}),
        ({"distill__lr": 2e-3}, {"runs/settings.yaml"}),
        ({"distill__t_init": 600}, {"runs/settings.yaml", "runs/generate.yaml"}),
        ({"tracking__enabled": False}, set()),
        ({"distill__real": {"pairs": 500}}, set()),
        (
            {"distill__real": {}, "extra_runs": [LATE | {"adversarial": {"start_nimg": 0}}]},
            {"runs/settings.yaml", "runs/generate.yaml", "real-pairs.settings.yaml"},
        ),
        ({"guidance_scales": [1.5, 2.0, 3.0, 4.5, 6.0]}, {"runs/settings.yaml", "runs/generate.yaml"}),
        ({"teacher": {"source": "local", "path": "x"}, "preset": "sd15"}, {"teacher.settings.yaml"}),
    ],
)
def test_stage_settings_after_a_change_differ_in_its_stages_only(values, files):
    assert changed_files(**values) == files


def test_stage_settings_with_a_new_scale_keep_the_other_runs():
    before = stage_settings(c.parse_config(SHIPPED))
    after = stage_settings(c.parse_config(changed(guidance_scales=[1.5, 2.0, 2.5, 3.0, 4.5])))
    assert {name for name in after if after[name] != before.get(name)} == {
        "runs/lsg-2.5/settings.yaml",
        "runs/lsg-2.5/generate.yaml",
    }


def test_load_settings_of_a_dump_gives_equal_settings(tmp_path):
    for name, settings in stage_settings(c.parse_config(SHIPPED)).items():
        path = tmp_path / name.replace("/", "-")
        path.write_text(c.dump(settings))
        assert c.load_settings(type(settings), path) == settings
    (tmp_path / "config.yaml").write_text(c.dump(c.parse_config(SHIPPED)))
    assert c.load_config(tmp_path / "config.yaml") == c.parse_config(SHIPPED)


def test_settings_are_all_read_by_the_code():
    # A setting that no module mentions would be obeyed by nobody.
    blocks_py = ROOT / "sid_core" / "config" / "blocks.py"
    code = "\n".join(p.read_text() for p in (ROOT / "sid_core").rglob("*.py") if p != blocks_py)
    blocks = (
        c.ExtraRun,
        c.Adversarial,
        c.RealUID,
        c.Real,
        c.Imported,
        c.Plan,
        c.JobResources,
        c.Prompts,
        c.Alarms,
        c.Distill,
        c.Sampling,
        c.Baselines,
        c.Evaluate,
        c.Run,
        c.Baseline,
    )
    unread = [
        f"{block.__name__}.{key}"
        for block in blocks
        for key in block.model_fields
        if not re.search(rf"\b{key}\b", code)
    ]
    assert not unread


# --- the schema for editors ----------------------------------------------------------------------------------------------

SCHEMA = json.loads((ROOT / "workflow" / "schemas" / "config.schema.json").read_text())


def test_schema_accepts_the_shipped_config():
    jsonschema.validate(SHIPPED, SCHEMA)


@pytest.mark.parametrize(
    "values",
    [
        {"distill__train_kimgs": 1},
        {"distill__lr": ...},
        {"preset": "sd1.5"},
        {"guidance_scales": [0]},
        {"distill__t_init": 1200},
        {"experiment": "a/b"},
    ],
)
def test_schema_rejects_the_values_that_models_reject(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(**values), SCHEMA)


@pytest.mark.parametrize("split", ["evaluation", "validation"])
def test_proxy_reference_shares_no_scene_with_any_score(split):
    files = stage_settings(c.parse_config(changed(distill__proxy_samples=8, prompts__split=split)))
    assert (files["watch/settings.yaml"].split, files["reference/settings.yaml"].split) == ("watch", split)
    drawn = [scenes.draw(name, 8)[0].tobytes() for name in scenes.SPLITS]
    assert len(set(drawn)) == len(scenes.SPLITS)


# --- several evaluations ---------------------------------------------------------------------------------------------


def test_generators_of_several_steps_have_rows_in_fewer():
    extra = {"strategy": "long", "scale": 1.5, "num_steps": 4, "steps_objective": "mixture", "sample_steps": [1, 2]}
    config = c.parse_config(changed(guidance_scales=[], extra_runs=[extra], seeds=[0, 1]))
    assert [(run.name, run.label) for run in c.generators(config)] == [
        ("long-1.5-4steps", "SiD, long guidance κ = 1.5, 4 steps"),
        ("long-1.5-4steps-seed1", "SiD, long guidance κ = 1.5, 4 steps, seed 1"),
        ("long-1.5-4steps-in1", "SiD, long guidance κ = 1.5, 1 step of 4"),
        ("long-1.5-4steps-in2", "SiD, long guidance κ = 1.5, 2 steps of 4"),
        ("long-1.5-4steps-in1-seed1", "SiD, long guidance κ = 1.5, 1 step of 4, seed 1"),
        ("long-1.5-4steps-in2-seed1", "SiD, long guidance κ = 1.5, 2 steps of 4, seed 1"),
    ]
    assert [settings.source for settings in c.resamplings(config)] == ["long-1.5-4steps"] * 2 + [
        "long-1.5-4steps-seed1"
    ] * 2


def test_run_of_one_step_ignores_how_several_are_trained():
    config = c.parse_config(
        changed(guidance_scales=[2], distill__steps_objective="mixture", distill__step_noise="ddim")
    )
    assert (c.runs(config)[0].steps_objective, c.runs(config)[0].step_noise) == ("last", "fresh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_steps": [3]}, r"sample_steps=\[3\]: expected divisors of num_steps=4: 1, 2"),
        ({"sample_steps": [4]}, r"sample_steps=\[4\]: expected divisors of num_steps=4: 1, 2"),
        ({"sample_steps": [2], "steps_objective": "last"}, r"sample_steps=\[2\]: expected steps_objective: mixture"),
        ({"num_steps": 626}, "num_steps=626: expected at most t_init=625"),
        ({"step_noise": "old"}, "step_noise"),
        ({"strategy": "anti", "scale": 1.5}, "expected less than 0"),
        ({"fake_updates": 0}, "fake_updates"),
    ],
)
def test_config_with_impossible_steps_raises(changes, message):
    extra = {"strategy": "long", "scale": 1.5, "num_steps": 4, "steps_objective": "mixture"}
    with pytest.raises(UserError, match=message):
        c.parse_config(changed(extra_runs=[extra | changes]))
