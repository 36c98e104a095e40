"""Export a generator as a self-contained diffusers pipeline directory with a model card, and upload it to a hub.

A generator of adapters becomes a LoRA file and a scheduler instead, for pipelines of its teacher and of the teacher's fine-tunes.
"""

import shutil
from pathlib import Path

import diffusers

from ...errors import UserError, one_line
from ...storage.files import atomic_path, read_json, verify_manifest, write_json, write_manifest, write_text
from ..backbones import StableDiffusion, family_of
from ..backbones.layout import DiffusersLayout
from ..generator import generator_folder, generator_sha256, recorded_steps
from ..lora import FILE
from ..teacher import latent_shape, teacher_sha256
from ..vae import pixels_per_latent
from .card import card_title, license_of, model_card
from .comfy import comfy_section
from .demo import write_demo

# both together distinguish an export from teachers and generators
MARKERS = ("scheduler/scheduler_config.json", "generator.json")


def export(generator: Path, teacher: Path, out: Path, score: Path | None = None) -> None:
    """Write the pipeline of a generator (runs/RUN) to `out`, with a model card and a demo.

    DiffusionPipeline.from_pretrained(out) loads it; adapters, without a demo, are for load_lora_weights(out).
    """
    generator = generator_folder(generator)
    if not teacher.is_dir():
        raise UserError(f"--teacher {teacher}: no such folder; expected results/EXPERIMENT/… of a finished run")
    verify_manifest(generator)
    record, weights = read_json(generator / "generator.json"), generator_sha256(generator)
    if record["teacher_sha256"] != teacher_sha256(teacher):
        raise UserError(f"--teacher {teacher}: not the one that {generator} was distilled from. Fix: give that one")
    steps = recorded_steps(record)
    if steps.count > 1 and steps.noise != "ddim":
        raise UserError(
            f"{generator}: num_steps={steps.count}, step_noise={steps.noise}: expected 1 step, or step_noise: ddim; no scheduler "
            "of diffusers adds other noise from this start. Fix: a row of one step by sample_steps: [1], or distil with ddim"
        )
    scores = read_json(score) if score else None
    if score and not (isinstance(scores, dict) and {"generator_sha256", "protocol_hash"} <= set(scores)):
        raise UserError(f"--score {score}: no score of a run; expected results/EXPERIMENT/runs/RUN/score.json")
    if scores and scores["generator_sha256"] != weights:
        raise UserError(f"--score {score}: of other weights than {generator}. Fix: score this generator, or omit it")
    family = family_of(teacher)
    if not issubclass(family, DiffusersLayout):
        raise UserError(f"--teacher {teacher}: {family.__name__} is no pipeline of diffusers. Fix: use sid-core sample")
    with atomic_path(out, *MARKERS) as folder:
        folder.mkdir()
        shutil.copy(generator / "generator.json", folder)
        scheduler, usage = family.exported(teacher, steps)
        scheduler.save_pretrained(folder / "scheduler")
        side = latent_shape(teacher)[1] * pixels_per_latent(teacher)
        origin = {"pipeline": family.PIPELINES[0], "scheduler": type(scheduler).__name__}
        provenance, comfy = read_json(teacher / "provenance.json") | origin, ""
        if (adapters := generator / family.NETWORK / FILE).is_file():
            family.fit_export(folder, steps)
            shutil.copy(adapters, folder)
        else:
            for name in family.CONFIGS.keys() - {family.NETWORK, "scheduler"}:
                if (teacher / name).is_dir():
                    shutil.copytree(teacher / name, folder / name)
            shutil.copytree(generator / family.NETWORK, folder / family.NETWORK)
            family.fit_export(folder, steps)
            write_model_index(folder, origin["scheduler"], family)
            comfy = comfy_section(teacher, record, provenance.get("source"), side)
            write_demo(folder / "demo", card_title(record, side), usage, license_of(provenance))
        write_text(folder / "README.md", model_card(record, weights, provenance, scores, side, usage, comfy))
        write_manifest(folder)


def write_model_index(folder: Path, scheduler: str, family: type[DiffusersLayout] = StableDiffusion) -> None:
    """Write model_index.json of a family's pipeline with the components in `folder`."""
    index = {"_class_name": family.PIPELINES[0], "_diffusers_version": diffusers.__version__} | family.INDEX
    index["scheduler"] = ["diffusers", scheduler]
    for name, (kind, *_) in family.CLASSES.items():
        library = "transformers" if name.startswith(("tokenizer", "text_encoder")) else "diffusers"
        index[name] = [library, kind] if (folder / name).is_dir() else [None, None]
    write_json(folder / "model_index.json", dict(sorted(index.items())))


def push(pipeline: Path, repo: str, private: bool = False) -> str:
    """Upload an exported pipeline to a hub (HF_TOKEN, HF_ENDPOINT), into a new repository if missing; return its URL."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

    if not all((pipeline / marker).is_file() for marker in MARKERS):
        raise UserError(f"--pipeline {pipeline}: no exported pipeline; expected a folder that sid-core export wrote")
    verify_manifest(pipeline)
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=pipeline, commit_message="Generator by sid_core")
    except HFValidationError:
        raise UserError(f"--repo {repo}: expected OWNER/NAME, an id on the hub") from None
    except OfflineModeIsEnabled:
        raise UserError(f"--repo {repo}: HF_HUB_OFFLINE is set; unset it to upload") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "set HF_TOKEN to a token that may write",
            403: "HF_TOKEN may not write there; give a repository of its owner, or another token",
            404: f"no such owner for this token; check the id and HF_TOKEN ({constants.ENDPOINT})",
        }.get(status, "run again later; what has arrived is not sent twice")
        raise UserError(f"--repo {repo}: the hub answers {status}; {remedy}") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"--repo {repo}: {one_line(error)} ({constants.ENDPOINT}). Fix: check the connection") from None
    return commit.commit_url
