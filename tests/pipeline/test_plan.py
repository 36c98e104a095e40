"""Test the plan: jobs as in the workflow, hours and disk from the `plan` block."""

import json
from pathlib import Path

import pytest

from sid_core import cli
from sid_core import config as c
from sid_core.errors import UserError
from sid_core.pipeline.plan import MEASURED, make_plan, to_text, with_measured_speeds
from sid_core.training.iteration import passes_an_image

ROOT = Path(__file__).parents[2]


def shipped(**over) -> c.Config:
    values = c.merge(c.read_yaml(ROOT / "config.yaml"), {"distill": {"train_kimg": 12.8}})
    return c.parse_config(c.merge(values, over))


def stages(config: c.Config, **more) -> dict:
    return {stage.name: stage for stage in make_plan(config, **more)}


def test_make_plan_counts_jobs_by_runs_seeds_shards_and_baselines():
    planned = stages(shipped(seeds=[0, 1], generate={"samples_per_shard": 1000}))
    assert planned["distill 12.8 kimg"].jobs == 4 * 2
    assert planned["generate"].jobs == 4 * 2 * 5
    assert planned["features"].jobs == (4 * 2 + 3 + 2) * 5
    assert planned["score"].jobs == 4 * 2 + 3 + 2


def test_make_plan_of_a_distillation_estimates_hours_gpu_hours_and_disk():
    config = shipped(
        guidance_scales=[],
        extra_runs=[{"strategy": "lsg", "scale": 2, "train_kimg": 7200}, {"strategy": "none", "train_kimg": 3600}],
        resources={"distill": {"gpu": 4}},
        plan={"train_images_per_s": 10, "unet_million": 1000},
    )
    planned = stages(config)
    long = planned["distill 7,200 kimg"]
    assert (long.jobs, long.hours, long.gpu_hours) == (1, pytest.approx(50), pytest.approx(200))
    assert planned["distill 3,600 kimg"].hours == pytest.approx(25)
    assert long.disk_gb == pytest.approx(4 * (1 + 2 * 5))


def test_make_plan_of_adapters_counts_their_bytes_alone():
    runs = [{"strategy": "lsg", "scale": 2, "lora": {"rank": rank}} for rank in (64, 10_000)]
    for extra, million, expected in (
        (runs[:1], 859.5, 67.3),  # 64 times SD 1.5's 1.05 million, docs/how-to/lora.md
        (runs[:1], 2567.5, 196.8),
        (runs[1:], 859.5, 859.5),
    ):
        planned = stages(shipped(guidance_scales=[], extra_runs=extra, plan={"unet_million": million}))
        assert planned["distill 12.8 kimg"].disk_gb == pytest.approx(11 * 4 * expected / 1000, rel=0.45)
    both = stages(shipped(guidance_scales=[3], extra_runs=runs[:1], plan={"unet_million": 859.5}))
    assert both["distill 12.8 kimg"].disk_gb == pytest.approx(11 * 4 * (0.8595 + 0.0673), rel=0.05)


def test_make_plan_of_methods_estimates_hours_by_network_passes():
    extra = [
        {"strategy": "zero"},
        {"strategy": "long", "scale": 1.5},
        {"strategy": "long", "scale": 1.75, "objective": "dmd", "fake_updates": 5},
    ]
    planned = stages(shipped(guidance_scales=[1.5], extra_runs=extra), passes=passes_an_image)
    hours = {name: stage.hours for name, stage in planned.items() if name.startswith("distill")}
    lsg = 12_800 / shipped().plan.train_images_per_s / 3600
    expected = {passes: lsg * passes / 25 for passes in (15, 17, 25, 26)}
    assert hours == {f"distill 12.8 kimg x {passes} passes": pytest.approx(h) for passes, h in expected.items()}


def test_make_plan_counts_a_guided_step_twice():
    planned = stages(shipped())
    assert planned["generate teacher-dpm-solver-karras-cfg2-8steps"].hours == pytest.approx(
        2 * planned["generate teacher-dpm-solver-karras-cfg1-8steps"].hours
    )


def test_make_plan_counts_every_evaluation_of_a_generator():
    four = {"strategy": "long", "scale": 1.5, "num_steps": 4, "sample_steps": [2], "steps_objective": "mixture"}
    plan = {"generate_images_per_s": 10, "evaluations_per_s": 20}
    planned = stages(shipped(guidance_scales=[1.5], extra_runs=[four], plan=plan))
    count = shipped().generate.samples
    seconds = {"generate": count / 10, "generate 2 evaluations": count * 0.15, "generate 4 evaluations": count * 0.25}
    for name, expected in seconds.items():
        assert planned[name].jobs * planned[name].hours == pytest.approx(expected / 3600)


def test_make_plan_with_null_gpus_takes_those_of_the_machine():
    assert stages(shipped())["distill 12.8 kimg"].gpu_hours == 0
    assert stages(shipped(), gpus_here=1)["distill 12.8 kimg"].gpu_hours > 0


def test_to_text_names_every_stage_and_the_sum():
    text = to_text(shipped())
    for stage in make_plan(shipped()):
        assert stage.name in text
    assert text.splitlines()[-1].startswith("all")


def test_to_text_states_the_origin_of_its_speeds():
    assert "one CPU core, measured;" in to_text(shipped()).splitlines()[0]
    assert (
        "one H200, estimated, not measured;"
        in to_text(c.load_config(ROOT / "experiments" / "sd15.yaml")).splitlines()[0]
    )


def test_to_text_with_gpus_divides_the_time_of_distillations():
    config = shipped(guidance_scales=[2], distill={"train_kimg": 7200}, plan={"train_images_per_s": 10})
    assert "distillations in sequence" not in to_text(config)
    assert "distillations in sequence: 8.3 d on 1, 2.1 d on 4, 25.0 h on 8 GPUs" in to_text(config, gpus_here=1)


def test_to_text_with_the_longest_name_keeps_its_columns():
    lines = to_text(shipped(baselines={"steps": [100], "guidance_scales": [1.25]})).splitlines()
    assert any("teacher-dpm-solver-karras-cfg1.25-100steps" in line for line in lines)
    assert len({len(line) for line in lines[1:-1]}) == 1


def test_make_plan_with_embeddings_on_disk_counts_their_bytes(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    prompts = {"source": "file", "train": str(tmp_path / "train.txt"), "evaluation": c.COCO2014_30K}
    over = {"baselines": {"vae": False, "real": False}, "plan": {"embedding_kb": 4200}, "evaluate": {"clip": "folder"}}
    planned = stages(shipped(prompts=prompts | {"embeddings": "disk"}, **over))
    found = {name: stage.disk_gb for name, stage in planned.items() if name.startswith("embed-prompts")}
    assert found == {"embed-prompts train": pytest.approx(0.0126), "embed-prompts evaluation": pytest.approx(126)}
    assert not any("embed" in name for name in stages(shipped(prompts=prompts, **over)))


def test_to_text_of_dmd_with_few_fake_updates_warns():
    dmd = {"strategy": "long", "scale": 1.75, "objective": "dmd"}
    extra = [dmd, dmd | {"name": "published", "fake_updates": 10}]
    assert "note: dmd-long-1.75: fake_updates: 2;" in to_text(shipped(extra_runs=extra))
    assert "fake_updates" not in to_text(shipped(extra_runs=extra[1:]))


def test_to_text_with_embedded_networks_and_other_captions_warns():
    own = {
        "prompts": {"source": "file", "train": "a.txt", "evaluation": "b.txt"},
        "baselines": {"vae": False, "real": False},
    }
    assert "note: evaluate.reference, evaluate.feature_network, evaluate.clip: embedded" in to_text(shipped(**own))
    own["evaluate"] = {"reference": "images", "feature_network": "x.pt", "clip": "folder"}
    assert "note" not in to_text(shipped(**own))
    assert "note" not in to_text(shipped())


SD15 = c.load_config(ROOT / "experiments" / "sd15.yaml")
SPEEDS = {
    "train_images_per_s": 31.0,
    "generate_images_per_s": 60.0,
    "evaluations_per_s": 300,
    "feature_images_per_s": 90,
}


def write_measured(folder: Path, **changes: object) -> Path:
    measured = {
        "device": "NVIDIA H200",
        "date": "2026-12-01",
        "settings": "bfloat16",
        "unet_million": 859.5,
        "speeds": SPEEDS,
    }
    path = folder / MEASURED
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(measured | changes))
    return path


def test_plan_command_with_measurements_states_them(tmp_path, monkeypatch, capsys):
    write_measured(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "--configfile", str(ROOT / "experiments" / "sd15.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "speeds of config `plan`: NVIDIA H200, measured on 2026-12-01 (bfloat16);" in lines[0]
    (distill,) = (line for line in lines if line.startswith("distill 4,812 kimg"))
    assert f"{4_812_000 / 31 / 3600:.1f} h" in distill


def test_with_measured_speeds_of_some_parts_names_the_estimated_ones(tmp_path):
    path = write_measured(tmp_path, speeds={"train_images_per_s": 31})
    plan = with_measured_speeds(SD15.plan, path)
    assert (plan.train_images_per_s, plan.evaluations_per_s) == (31, SD15.plan.evaluations_per_s)
    expected = "but generate_images_per_s, evaluations_per_s, feature_images_per_s: one H200, estimated, not measured"
    assert plan.speeds.endswith(expected)


@pytest.mark.parametrize("changes", [{"unet_million": 0.73}, None])
def test_with_measured_speeds_of_another_network_or_none_keeps_estimates(changes, tmp_path):
    path = write_measured(tmp_path, **changes) if changes else tmp_path / "none.json"
    assert with_measured_speeds(SD15.plan, path) == SD15.plan


def test_with_measured_speeds_keeps_own_ones(tmp_path):
    own = SD15.plan.model_copy(update={"speeds": "my cluster"})
    assert with_measured_speeds(own, write_measured(tmp_path)) == own


@pytest.mark.parametrize(
    "changes", [{"speeds": {"train_images_per_s": -1}}, {"speeds": 3}, {"date": {}, "speeds": None}]
)
def test_with_measured_speeds_of_another_file_names_it(changes, tmp_path):
    path = write_measured(tmp_path, **changes)
    with pytest.raises(UserError, match=r"performance-gpu\.json: expected what `make gpu` writes"):
        with_measured_speeds(SD15.plan, path)
