"""Export pipelines that diffusers loads and whose images equal those of `sid-core sample`; model card; upload to a hub."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, LCMScheduler, StableDiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from PIL import Image
from teacher_folders import edit

from sid_core import cli
from sid_core.config import Lora, Teacher
from sid_core.method import one_step
from sid_core.models.backbones.layout import Usage
from sid_core.models.convert.card import model_card
from sid_core.models.generator import generator_sha256, load_generator, save_generator
from sid_core.models.lora import adapted, own_weights
from sid_core.models.teacher import load_backbone, prepare_teacher, teacher_sha256
from sid_core.models.text import TextEncoder
from sid_core.sampling.session import InferenceSession
from sid_core.storage.files import read_json, verify_manifest, write_json, write_manifest

SEED = 3
PROMPT = "a red dot"


def change_scheduler(source: Path, out: Path, **changes: object) -> Path:
    """Prepare the teacher with another scheduler config."""
    shutil.copytree(source, out / "source")
    edit(out / "source" / "scheduler" / "scheduler_config.json", **changes)
    prepare_teacher(Teacher(source="local", path=str(out / "source")), out / "teacher")
    return out / "teacher"


def make_generator(teacher: Path, out: Path, t_init: int = 625, num_steps: int = 1, noise: str = "fresh") -> Path:
    """Save a generator with small random weights."""
    backbone = load_backbone(teacher)
    scales = {"fake_train": 1.5, "fake_eval": 1.5, "teacher": 1.5, "alpha": 1.0}
    record = {
        "run": {"name": "lsg-1.5", "strategy": "lsg", **scales, "num_steps": num_steps, "seed": 0},
        "t_init": t_init,
        "num_steps": num_steps,
        "step_noise": noise,
        "prediction_type": backbone.prediction_type,
        "train_kimg": 12.8,
        "teacher_sha256": teacher_sha256(teacher),
    }
    weights = {name: 0.1 * tensor for name, tensor in backbone.network.state_dict().items()}
    save_generator(out, backbone, weights, record)
    return out


def export(generator: Path, teacher: Path, out: Path, *more: str) -> int:
    return cli.main(["export", "--generator", str(generator), "--teacher", str(teacher), "--out", str(out), *more])


def pixels_of(pipeline: DiffusionPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(SEED)
    return np.asarray(pipeline(PROMPT, num_inference_steps=1, guidance_scale=1, generator=generator).images[0])


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def exported(request, tiny_teacher_source, tmp_path_factory):
    """Return the folders of teacher, generator and pipeline."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher = change_scheduler(tiny_teacher_source, folder, prediction_type=request.param)
    generator = make_generator(teacher, folder / "generator")
    assert export(generator, teacher, folder / "pipeline") == 0
    return teacher, generator, folder / "pipeline"


def test_export_gives_the_image_of_sample(exported, tmp_path):
    teacher, generator, folder = exported
    options = {"generator": generator, "teacher": teacher, "prompt": PROMPT, "seed": SEED, "out": tmp_path / "x.png"}
    assert cli.main(["sample", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]) == 0
    with Image.open(tmp_path / "x.png") as image:
        enlarged = np.asarray(image)
    pixels = pixels_of(DiffusionPipeline.from_pretrained(folder))
    assert pixels.shape == (16, 16, 3)
    assert pixels.std() > 5  # a uniform image would match any other
    np.testing.assert_array_equal(enlarged, pixels.repeat(8, axis=0).repeat(8, axis=1))


def test_export_gives_the_latents_of_one_step(exported):
    teacher, folder, pipeline = exported[0], exported[1], DiffusionPipeline.from_pretrained(exported[2])
    denoiser, record = load_generator(folder, teacher)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        expected = one_step(denoiser, z, record["t_init"], TextEncoder.from_directory(teacher).encode([PROMPT]))
    generator = torch.Generator().manual_seed(SEED)
    latents = pipeline(PROMPT, num_inference_steps=1, guidance_scale=1, generator=generator, output_type="latent")
    torch.testing.assert_close(latents.images, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_export_of_several_steps_gives_the_image_of_sample(tiny_teacher_source, tmp_path, prediction):
    teacher = change_scheduler(tiny_teacher_source, tmp_path, prediction_type=prediction)
    generator = make_generator(teacher, tmp_path / "g", num_steps=4, noise="ddim")
    assert export(generator, teacher, tmp_path / "p") == 0
    card = (tmp_path / "p" / "README.md").read_text()
    assert "16 x 16 images in 4 steps" in card
    times = [int(t) for t in re.search(r"timesteps=\[(.*?)\]", card)[1].split(",")]
    assert times == [625, 468, 312, 156]
    seed = torch.Generator().manual_seed(SEED)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "p")
    image = pipeline(PROMPT, timesteps=times, guidance_scale=1, generator=seed).images[0]
    expected = InferenceSession(teacher).image(generator, PROMPT, SEED)
    assert expected.std() > 5
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1


def test_export_with_another_scheduler_gives_another_image(exported):
    """Use a scheduler that feeds the network z itself."""
    pipeline = DiffusionPipeline.from_pretrained(exported[2])
    expected = pixels_of(pipeline)
    pipeline.scheduler = LCMScheduler.from_pretrained(exported[0] / "scheduler")
    generator = torch.Generator().manual_seed(SEED)
    image = pipeline(PROMPT, timesteps=[625], num_inference_steps=None, guidance_scale=1, generator=generator).images[0]
    assert np.abs(np.asarray(image).astype(int) - expected).max() > 2


def test_export_to_an_existing_path_replaces_only_an_export(exported, tmp_path, monkeypatch, capsys):
    teacher, generator, pipeline = exported
    for place, source in (("teacher", teacher), ("generator", generator), ("model", teacher.parent / "source")):
        shutil.copytree(source, tmp_path / place)
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for out in (".", "teacher", "generator", "model", "file", "file/x"):
        assert export(generator, teacher, Path(out)) == 1
        assert capsys.readouterr().err.startswith(f"error: {out}: ")
    assert sorted(tmp_path.rglob("*")) == before
    shutil.copytree(pipeline, "pipeline")
    Path("pipeline/README.md").unlink()
    assert export(generator, teacher, Path("pipeline")) == 0
    assert Path("pipeline/README.md").is_file()


@pytest.mark.parametrize("t_init", [1, 20, 400, 999])
def test_euler_scheduler_at_any_t_init_feeds_sigma_z(tiny_teacher, tmp_path, t_init):
    assert export(make_generator(tiny_teacher, tmp_path / "g", t_init), tiny_teacher, tmp_path / "p") == 0
    scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "p" / "scheduler")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [t_init]
    schedule, t = load_generator(tmp_path / "g", tiny_teacher)[0].schedule, torch.tensor([t_init])
    z = torch.randn(1, 4, 8, 8)
    fed = scheduler.scale_model_input(z * scheduler.init_noise_sigma, scheduler.timesteps[0])
    torch.testing.assert_close(fed, schedule.sigma(t) * z, atol=1e-6, rtol=1e-5)


def test_export_writes_manifest_record_and_index(exported):
    verify_manifest(exported[2])
    assert read_json(exported[2] / "generator.json") == read_json(exported[1] / "generator.json")
    index = read_json(exported[2] / "model_index.json")
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert not list(exported[2].rglob("*.bin"))


@pytest.mark.parametrize(
    ("changes", "t_init", "num_steps", "message"),
    [
        ({}, 625, 2, "num_steps=2, step_noise=fresh: expected 1 step, or step_noise: ddim"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, 999, 1, "t_init=999: alpha is 0 there"),
    ],
)
def test_export_of_unsupported_generators_raises(
    tiny_teacher_source, tmp_path, capsys, changes, t_init, num_steps, message
):
    teacher = change_scheduler(tiny_teacher_source, tmp_path, **changes)
    assert export(make_generator(teacher, tmp_path / "g", t_init, num_steps), teacher, tmp_path / "p") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_export_with_another_teacher_raises(exported, tiny_teacher_source, tmp_path, capsys):
    other = change_scheduler(tiny_teacher_source, tmp_path, beta_end=0.013, prediction_type="epsilon")
    assert export(exported[1], other, tmp_path / "p") == 1
    assert "not the one that" in capsys.readouterr().err


# --- model card --------------------------------------------------------------------------------------------------------

SCORE = {
    "samples": 30000,
    "fid": 8.7123,
    "fid_se": 0.0512,
    "clip": 0.30211,
    "clip_se": 0.00031,
    "kid": 0.00123,
    "precision": 0.61234,
    "recall": 0.51234,
    "protocol": {"name": "coco2014-30k", "samples": 30000},
    "protocol_hash": "0123456789abcdef" * 4,
}


def test_model_card_with_a_score_lists_settings_and_scores(exported, tmp_path):
    teacher, generator, _ = exported
    write_json(tmp_path / "score.json", SCORE | {"generator_sha256": generator_sha256(generator)})
    assert export(generator, teacher, tmp_path / "p", "--score", str(tmp_path / "score.json")) == 0
    card = (tmp_path / "p" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "diffusers"
    assert "license" not in metadata  # unknown for a local teacher
    for line in (
        "# lsg-1.5: text to 16 x 16 images in one step",
        "distilled from a local teacher of diffusers' `StableDiffusionPipeline` by",
        "| FID | 8.71 ± 0.05 |",
        "| CLIP score | 0.3021 ± 0.0003 |",
        "| protocol | coco2014-30k, `0123456789abcdef` |",
        "| kappa_4 (teacher) | 1.5 |",
        "| images seen in training | 12,800 |",
        "num_inference_steps=1, guidance_scale=1",
        "zhou2025guided",
    ):
        assert line in card


@pytest.mark.parametrize(
    ("used", "sentence"), [(True, "in a training that uses real images"), (None, "without real images")]
)
def test_model_card_states_the_use_of_real_images(exported, used, sentence):
    record = json.loads((exported[1] / "generator.json").read_text()) | {"uses_real_images": used}
    card = model_card(record, "0" * 64, {"source": "embedded"}, None, 32, Usage("num_inference_steps=1"))
    assert f"(https://arxiv.org/abs/2406.01561)), {sentence}. " in card
    assert f"| real images | {'used' if used else 'not used'} |" in card


def test_export_with_a_score_of_other_weights_raises(exported, tmp_path, capsys):
    teacher, generator, _ = exported
    write_json(tmp_path / "score.json", SCORE | {"generator_sha256": "0" * 64})
    assert export(generator, teacher, tmp_path / "p", "--score", str(tmp_path / "score.json")) == 1
    assert "of other weights than" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", '{"generator_sha256": "0"}', "a,b\n1,2\n"])
def test_export_with_another_file_as_score_raises(exported, tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content)
    assert export(exported[1], exported[0], tmp_path / "p", "--score", str(tmp_path / "x.json")) == 1
    said = capsys.readouterr().err
    assert "x.json: no score of a run; expected" in said or (
        "x.json: not valid JSON" in said and "give the file of a stage" in said
    )
    assert not (tmp_path / "p").exists()


def test_model_card_states_the_license_of_the_teacher(tiny_teacher, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, teacher)
    generator = make_generator(teacher, tmp_path / "g")
    found = {"source": "hub", "repo": "owner/sd", "revision": "1" * 40, "license": "creativeml-openrail-m"}
    for provenance, terms in ((found, "creativeml-openrail-m"), ({"source": "embedded"}, "apache-2.0")):
        write_json(teacher / "provenance.json", provenance)
        write_manifest(teacher)
        assert export(generator, teacher, tmp_path / "p") == 0
        card = (tmp_path / "p" / "README.md").read_text()
        metadata = yaml.safe_load(card.split("---")[1])
        assert (metadata["license"], metadata.get("base_model")) == (terms, provenance.get("repo"))
        assert f"`{terms}`, the license of the teacher" in card


def run_card(folder: Path) -> dict:
    """Run the Python of a model card, and return its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    found = {}
    exec(code.replace("THIS REPOSITORY OR FOLDER", str(folder)).replace("a prompt", PROMPT), found)
    return found


def test_model_card_python_of_a_teacher_with_16_bit_text_encoders_gives_the_image_of_sample(tmp_path):
    teacher = tmp_path / "teacher"
    prepare_teacher(Teacher(source="embedded-flow"), teacher)
    generator = make_generator(teacher, tmp_path / "g", t_init=1000, num_steps=2, noise="ddim")
    assert export(generator, teacher, tmp_path / "p") == 0
    expected = InferenceSession(teacher).image(generator, PROMPT, 0)
    assert np.abs(np.asarray(run_card(tmp_path / "p")["image"]).astype(int) - expected).max() <= 1


def test_model_card_python_gives_the_image_of_the_pipeline(exported):
    found = run_card(exported[2])
    generator = torch.Generator().manual_seed(0)
    expected = found["pipeline"](PROMPT, num_inference_steps=1, guidance_scale=1, generator=generator).images[0]
    np.testing.assert_array_equal(np.asarray(found["image"]), np.asarray(expected))


def comfy_workflow(folder: Path) -> dict:
    (text,) = re.findall(r"```json\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)[:1]
    return json.loads(text)


def test_comfy_workflow_gives_the_latents_of_one_step(exported):
    """Compare with ComfyUI's formulas: x = sigma z, network input x / sqrt(sigma^2 + 1), timestep of the nearest sigma."""
    teacher, folder, _ = exported
    nodes = comfy_workflow(exported[2])
    links = [value for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert all(source in nodes for source, _ in links)
    by_class = {node["class_type"]: node["inputs"] for node in nodes.values()}
    sigma, kind = by_class["SetFirstSigma"]["sigma"], by_class["ModelSamplingDiscrete"]["sampling"]
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    sigmas = ((1 - abar) / abar).sqrt()
    t = (np.log(sigma) - sigmas.log()).abs().argmin()
    assert t == 625
    backbone, record = load_generator(folder, teacher)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
    cond = TextEncoder.from_directory(teacher).encode([PROMPT])
    with torch.inference_mode():
        expected = one_step(backbone, z, record["t_init"], cond)
        x = sigma * z
        output = backbone.network(x / (sigma**2 + 1) ** 0.5, t, encoder_hidden_states=cond.tokens).sample
    v_prediction = x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
    found = {"eps": x - output * sigma, "v_prediction": v_prediction}[kind]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_model_card_has_a_comfy_workflow_only_where_comfy_has_the_schedule(tiny_teacher, tiny_teacher_source, tmp_path):
    several = make_generator(tiny_teacher, tmp_path / "several", num_steps=2, noise="ddim")
    other = change_scheduler(tiny_teacher_source, tmp_path, beta_end=0.013)
    for number, (generator, teacher) in enumerate(
        [(several, tiny_teacher), (make_generator(other, tmp_path / "o"), other)]
    ):
        assert export(generator, teacher, tmp_path / str(number)) == 0
        assert "ComfyUI" not in (tmp_path / str(number) / "README.md").read_text()


# --- demo --------------------------------------------------------------------------------------------------------------


class Gradio(ModuleType):
    """A replacement of gradio that keeps the function and the title of the page."""

    def __init__(self):
        super().__init__("gradio")
        self.Textbox = self.Number = self.Image = lambda *_, **__: None

    def Interface(self, function, inputs, outputs, title):
        assert len(inputs) == 2
        self.function, self.title = function, title


@pytest.fixture
def gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", Gradio())
    monkeypatch.delenv("MODEL", raising=False)
    return sys.modules["gradio"]


def test_demo_app_gives_the_image_of_the_pipeline(exported, gradio):
    runpy.run_path(str(exported[2] / "demo" / "app.py"))
    assert gradio.title == "lsg-1.5: text to 16 x 16 images in one step"
    np.testing.assert_array_equal(
        np.asarray(gradio.function(PROMPT, SEED)), pixels_of(DiffusionPipeline.from_pretrained(exported[2]))
    )


def test_demo_app_away_from_its_pipeline_needs_the_variable_model(exported, gradio, tmp_path, monkeypatch):
    shutil.copytree(exported[2] / "demo", tmp_path / "space")
    with pytest.raises(SystemExit, match="Set the variable MODEL to OWNER/NAME"):
        runpy.run_path(str(tmp_path / "space" / "app.py"))
    monkeypatch.setenv("MODEL", str(exported[2]))
    runpy.run_path(str(tmp_path / "space" / "app.py"))
    assert np.asarray(gradio.function(PROMPT, SEED)).shape == (16, 16, 3)


def test_demo_has_the_metadata_of_a_space_and_requirements(exported):
    card = (exported[2] / "demo" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata == {"title": "lsg-1.5: text to 16 x 16 images in one step", "sdk": "gradio", "app_file": "app.py"}
    lines = (exported[2] / "demo" / "requirements.txt").read_text().splitlines()
    assert [re.split(">=", line)[0] for line in lines] == ["gradio", "torch", "diffusers", "transformers"]
    assert not any("+" in line for line in lines)


def test_export_of_adapters_writes_a_lora_file_with_its_scheduler(tiny_teacher, tmp_path):
    """Check the files; test_lora_in_diffusers.py loads them."""
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, teacher)
    write_json(teacher / "provenance.json", {"source": "hub", "repo": "owner/sd", "revision": "1" * 40})
    write_manifest(teacher)
    record = read_json(make_generator(teacher, tmp_path / "whole") / "generator.json")
    record["run"]["lora"] = {"rank": 2}
    backbone = adapted(load_backbone(teacher), Lora(rank=2), torch.Generator().manual_seed(0))
    save_generator(tmp_path / "g", backbone, own_weights(backbone.network.state_dict()), record)
    for _ in range(2):  # the second replaces the first
        assert export(tmp_path / "g", teacher, tmp_path / "p") == 0
    names = {"pytorch_lora_weights.safetensors", "generator.json", "README.md", "manifest.json", "scheduler"}
    assert {path.name for path in (tmp_path / "p").iterdir()} == names
    weights = StableDiffusionPipeline.lora_state_dict(tmp_path / "p")[0]
    assert weights.keys() == {f"unet.{name}" for name in own_weights(backbone.network.state_dict())}
    card = (tmp_path / "p" / "README.md").read_text()
    for line in (
        'from_pretrained("owner/sd", torch_dtype=torch.float32)  # or a fine-tune',
        "pipeline.scheduler = EulerDiscreteScheduler.from_pretrained(",
        "| trained | LoRA of rank 2 |",
        "tags: [one-step, distillation, sid-lsg, lora]",
    ):
        assert line in card
    assert "demo" not in card


# --- push --------------------------------------------------------------------------------------------------------------


class Api:
    """A replacement of the hub's API: records calls, and raises with `status`."""

    status, asked = 200, []

    def create_repo(self, repo, private, exist_ok):
        if self.status != 200:
            raise HfHubHTTPError("no", response=SimpleNamespace(headers={}, status_code=self.status, request=None))
        self.asked.append((repo, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.asked.append((repo_id, folder_path))
        return SimpleNamespace(commit_url="http://hub/commit")


@pytest.fixture
def api(monkeypatch):
    class Fresh(Api):
        asked: list = []

    monkeypatch.setattr("huggingface_hub.HfApi", Fresh)
    return Fresh


def push(folder: Path, *more: str) -> int:
    return cli.main(["push", "--pipeline", str(folder), "--repo", "me/mine", *more])


def test_push_of_a_teacher_raises(exported, api, capsys):
    assert push(exported[0]) == 1
    assert "no exported pipeline; expected a folder that sid-core export wrote" in capsys.readouterr().err
    assert api.asked == []


def test_push_of_an_export_uploads_the_folder(exported, api):
    assert push(exported[2], "--private") == 0
    assert api.asked == [("me/mine", True, True), ("me/mine", exported[2])]


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "answers 401; set HF_TOKEN"), (403, "answers 403; HF_TOKEN may not write"), (500, "answers 500; run again")],
)
def test_push_with_an_error_of_the_hub_names_it(exported, api, capsys, status, message):
    api.status = status
    assert push(exported[2]) == 1
    assert f"--repo me/mine: the hub {message}" in capsys.readouterr().err


def test_push_without_connection_names_the_cause(exported, monkeypatch, capsys):
    def no_connection(*_, **__):
        raise HTTPError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", no_connection)
    assert push(exported[2]) == 1
    assert "--repo me/mine: no route (" in capsys.readouterr().err


def test_push_of_a_changed_export_raises(exported, api, tmp_path, capsys):
    assert push(tmp_path) == 1
    assert "no exported pipeline" in capsys.readouterr().err
    shutil.copytree(exported[2], tmp_path / "p")
    (tmp_path / "p" / "README.md").write_text("changed")
    assert push(tmp_path / "p") == 1
    assert "differs from its recorded sha256" in capsys.readouterr().err
    assert not api.asked


def test_model_card_of_an_earlier_checkpoint_lists_both_numbers_of_images():
    run = {"name": "x", "fake_train": 2.0, "fake_eval": 2.0, "teacher": 2.0, "alpha": 1.0, "seed": 0}
    record = {"run": run, "t_init": 625, "num_steps": 1, "prediction_type": "epsilon", "train_kimg": 9.6}
    chosen = {"rule": "lowest fid_proxy", "nimg": 9600, "value": 1.0}
    whole = model_card(
        record | {"whole_kimg": 9.6}, "abc", {"source": "embedded"}, None, 32, Usage("num_inference_steps=1")
    )
    assert "| images seen in training | 9,600 |" in whole
    early = model_card(
        record | {"whole_kimg": 12.8, "chosen": chosen},
        "abc",
        {"source": "embedded"},
        None,
        32,
        Usage("num_inference_steps=1"),
    )
    assert "| images seen in training | 9,600 of 12,800, chosen by the lowest fid_proxy |" in early
