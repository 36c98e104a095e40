"""Describe ComfyUI's workflow of an exported generator, for its model card. Read in ComfyUI 0.3.64."""

import json
from pathlib import Path

import torch

from ..scheduler import noise_schedule, scheduler_config

SECTION = """## ComfyUI

Put this folder into `ComfyUI/models/diffusers/{name}` and load this workflow (API format, nodes of ComfyUI itself). Its noise
level, sigma / alpha = {sigma}, is that of t = {t}; other schedules of sigmas, and a `cfg` other than 1, give other images.

```json
{workflow}
```"""
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction"}


def comfy_section(teacher: Path, record: dict, source: str | None, side: int) -> str:
    """Return a section of the card; '' for the embedded teacher, several steps, and other schedules than ComfyUI's default.

    ComfyUI's Euler sampler starts from sigma / alpha z and steps to 0, as diffusers' Euler scheduler does. `record` is
    generator.json, `source` that of the teacher's provenance.
    """
    config = scheduler_config(teacher)
    other = config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr", False)
    if source == "embedded" or record["num_steps"] > 1 or other or not SCHEDULE.items() <= config.items():
        return ""
    schedule, t = noise_schedule(config), torch.tensor([record["t_init"]])
    name, sigma = record["run"]["name"], round(float(schedule.sigma(t) / schedule.alpha(t)), 6)
    nodes = {
        "DiffusersLoader": {"model_path": name},
        "ModelSamplingDiscrete": {"model": ["1", 0], "sampling": SAMPLING[record["prediction_type"]], "zsnr": False},
        "CLIPTextEncode": {"clip": ["1", 1], "text": "a prompt"},
        "EmptyLatentImage": {"width": side, "height": side, "batch_size": 1},
        "BasicScheduler": {"model": ["2", 0], "scheduler": "simple", "steps": 1, "denoise": 1},
        "SetFirstSigma": {"sigmas": ["5", 0], "sigma": sigma},
        "KSamplerSelect": {"sampler_name": "euler"},
        "SamplerCustom": {
            "model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0], "sampler": ["7", 0], "sigmas": ["6", 0],
            "latent_image": ["4", 0], "add_noise": True, "noise_seed": 0, "cfg": 1,
        },
        "VAEDecode": {"samples": ["8", 0], "vae": ["1", 2]},
        "SaveImage": {"images": ["9", 0], "filename_prefix": name},
    }  # fmt: skip
    workflow = {str(n): {"class_type": kind, "inputs": inputs} for n, (kind, inputs) in enumerate(nodes.items(), 1)}
    lines = ",\n".join(f' "{n}": {json.dumps(node)}' for n, node in workflow.items())
    return SECTION.format(name=name, sigma=sigma, t=record["t_init"], workflow=f"{{\n{lines}\n}}")
