"""Write the model card of an exported generator: description, usage, settings, scores and license."""

import json

from ..backbones.layout import Usage

SHIPPED_LICENSE = "apache-2.0"  # license of the embedded teacher, which ships with sid_core
CITATION = """@inproceedings{zhou2025guided,
  title={Guided Score identity Distillation for Data-Free One-Step Text-to-Image Generation},
  author={Mingyuan Zhou and Zhendong Wang and Huangjie Zheng and Hai Huang},
  booktitle={The Thirteenth International Conference on Learning Representations},
  year={2025},
  url={https://arxiv.org/abs/2406.01561}
}"""
USAGE = """## How to use

```python
import torch
from diffusers import DiffusionPipeline

{load}
seed = torch.Generator().manual_seed(0)
image = pipeline("a prompt", {call}, guidance_scale={guidance}, generator=seed).images[0]
```

Both settings matter. It was distilled for {count}, and guidance is in its weights: a larger `guidance_scale` would apply
it twice, in most pipelines by two evaluations a step. The scheduler in this folder first feeds the network sigma(t_init) z and
ends at its estimate of x_0; another scheduler, such as LCMScheduler, starts from z and gives other images."""
DEMO = "The folder `demo` is a page to try prompts on, by `python demo/app.py` or as a Space."
LOAD = 'pipeline = DiffusionPipeline.from_pretrained("THIS REPOSITORY OR FOLDER", torch_dtype=torch.float32{load})'
LOAD_ADAPTERS = """from diffusers import {scheduler}  # and pip install peft

here = "THIS REPOSITORY OR FOLDER"
pipeline = DiffusionPipeline.from_pretrained("{teacher}", torch_dtype=torch.float32{load})  # or a fine-tune of it
pipeline.load_lora_weights(here)
pipeline.scheduler = {scheduler}.from_pretrained(here, subfolder="scheduler")"""


def model_card(
    record: dict, weights_sha256: str, provenance: dict, score: dict | None, side: int, usage: Usage, comfy: str = ""
) -> str:
    """Return Markdown that begins with the hub's metadata.

    Args:
        record, score: generator.json, and score.json of these weights.
        provenance: provenance.json of the teacher, and `pipeline` and `scheduler`, classes of diffusers.
        side: pixels of an image.
    """
    terms, lora = license_of(provenance), record["run"].get("lora")
    names = {"scheduler": provenance.get("scheduler"), "teacher": provenance.get("repo") or "THE TEACHER"}
    load = (LOAD_ADAPTERS if lora else LOAD).format(load=usage.load, **names)
    sections = [
        _metadata(terms, provenance.get("repo"), lora),
        f"# {card_title(record, side)}",
        _description(record, provenance),
        USAGE.format(load=load, call=usage.call, guidance=usage.guidance, count=_count(record)),
        *([usage.note] if usage.note else []),
        *([] if lora else [DEMO]),
        *([comfy] if comfy else []),
        _settings(record, weights_sha256),
        _scores(score),
        _terms(terms, provenance),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def card_title(record: dict, side: int) -> str:
    """Return 'lsg-1.5: text to 64 x 64 images in one step'."""
    return f"{record['run']['name']}: text to {side} x {side} images in {_count(record)}"


def _count(record: dict, unit: str = "step") -> str:
    return f"one {unit}" if record["num_steps"] == 1 else f"{record['num_steps']} {unit}s"


def license_of(provenance: dict) -> str | None:
    """Return the license of the teacher; None where it was not recorded."""
    return SHIPPED_LICENSE if _is_embedded(provenance) else provenance.get("license")


def _metadata(terms: str | None, repo: str | None, lora: dict | None) -> str:
    tags = f"tags: [one-step, distillation, sid-lsg{', lora' if lora else ''}]"
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image", tags]
    lines += [f"license: {terms}"] if terms else []
    lines += [f"base_model: {repo}"] if repo else []
    return "\n".join(["---", *lines, "---"])


def _description(record: dict, provenance: dict) -> str:
    imported = record.get("imported")
    origin = f"The weights are those of the published `{imported['file']}`." if imported else "Distilled by `sid_core`."
    real = "in a training that uses real images" if record.get("uses_real_images") else "without real images"
    return (
        f"A generator that needs {_count(record, 'network evaluation')} an image, distilled from {_teacher(provenance)} by Score identity "
        f"Distillation with long-short guidance ([arXiv 2406.01561](https://arxiv.org/abs/2406.01561)), {real}. {origin}"
    )


def _settings(record: dict, weights_sha256: str) -> str:
    run = record["run"]
    rows = {
        "kappa_1 (fake score, training)": run["fake_train"],
        "kappa_2 = kappa_3 (fake score, evaluation)": run["fake_eval"],
        "kappa_4 (teacher)": run["teacher"],
        "alpha": run["alpha"],
        "trained": f"LoRA of rank {run['lora']['rank']}" if run.get("lora") else "all weights",
        "real images": "used" if record.get("uses_real_images") else "not used",
        "images seen in training": _images(record),
        "t_init": record["t_init"],
        "network evaluations": record["num_steps"],
        "prediction type": record["prediction_type"],
        "seed": run["seed"],
        "sha256 of the weights": f"`{weights_sha256}`",
    }
    return "## Settings\n\n" + _table("setting", {key: "unknown" if v is None else v for key, v in rows.items()})


def _images(record: dict) -> str | None:
    """Return the images seen by the weights, and those of the whole training where an earlier checkpoint was chosen."""
    if record["train_kimg"] is None:
        return None
    seen, chosen = f"{1000 * record['train_kimg']:,.0f}", record.get("chosen")
    return f"{seen} of {1000 * record['whole_kimg']:,.0f}, chosen by the {chosen['rule']}" if chosen else seen


def _scores(score: dict | None) -> str:
    if score is None:
        return "## Scores\n\nNot given at export."
    protocol = score["protocol"]
    rows = {
        "FID": f"{score['fid']:.2f} ± {score['fid_se']:.2f}",
        "CLIP score": f"{score['clip']:.4f} ± {score['clip_se']:.4f}",
        "KID": f"{score['kid']:.5f}",
        "precision": f"{score['precision']:.3f}",
        "recall": f"{score['recall']:.3f}",
        "samples": f"{score['samples']:,}",
        "protocol": f"{protocol['name']}, `{score['protocol_hash'][:16]}`",
    }
    return (
        f"## Scores\n\n{_table('score', rows)}\n\n± is one standard error. Scores of other protocols are not comparable; this "
        f"is all of it:\n\n```json\n{json.dumps(protocol, indent=1)}\n```"
    )


def _terms(terms: str | None, provenance: dict) -> str:
    license_text = f"`{terms}`, the license of the teacher, holds for this generator too"
    if not terms:
        license_text = (
            "The license of the teacher holds for this generator too; it was not recorded: check it before you publish"
        )
    return (
        f"## License\n\n{license_text}. Teacher: {_teacher(provenance)}. "
        "The biases and limits of use on its card apply to this generator too."
    )


def _teacher(provenance: dict) -> str:
    if provenance.get("repo"):
        return f"`{provenance['repo']}` (revision `{provenance['revision']}`)"
    if _is_embedded(provenance):
        return "the small teacher that ships with `sid_core`"
    return f"a local teacher of diffusers' `{provenance['pipeline']}`"


def _is_embedded(provenance: dict) -> bool:
    return provenance.get("source", "").startswith("embedded")


def _table(what: str, rows: dict[str, object]) -> str:
    return "\n".join([f"| {what} | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
